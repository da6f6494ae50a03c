"""Tiny VDiT on the moving-shapes dataset, on the latents of configs/quickstart/regen.py: two
latent frames for nine frames.

command   python launch/encode.py --embedder=runs/quickstart/regen --data=synthetic --count=32000 \\
              --seed=1 --out=runs/quickstart/regen_latents
          python launch/train.py --config=quickstart/vdit_regen \\
              --workdir=runs/quickstart/vdit_regen \\
              --config.data.source.path=runs/quickstart/regen_latents
hardware  2 CPU cores, under 2 GB
time      80 s and 41 min 30 s, on one core with other work on the other
expect    all attributes right for 90.8% (88.0 to 93.0) of 512 held-out prompts: color 98%,
          direction 100%, size 98%, background 100%, shape 93%

--config=quickstart/vdit_regen:16 trains on clips of 17 frames, on the latents of
runs/quickstart/regen16, which --config=quickstart/regen:16 trains: 25 min for 6,500 steps, 87.1%
(83.9 to 89.7), shape 88%, size 96%. The clips need not be encoded before; a step that encodes them
takes longer.
"""

from xgen_jax.configs.quickstart import vdit


def get_config(ratio: str = "8"):
    """The run of vdit.py on other latents, for longer; one chunk a clip."""
    config = vdit.get_config()
    config.embedder = "runs/quickstart/regen" + ("" if ratio == "8" else ratio)
    config.model.patch = 1  # the latents are 4x4
    (bucket,) = config.data.buckets
    config.data.buckets = ({**bucket, "frames": int(ratio) + 1},)
    # With these it was measured; vdit.py has other ones, which were not tried on these latents.
    config.loss.time_shift = 4.0
    config.optimizer.update({"learning_rate": 0.02, "adam_learning_rate": 3e-3})
    config.loop.update({"steps": 10_000 if ratio == "8" else 6_500, "ema_decay": 0.999})
    return config
