"""Tiny VDiT on the moving-shapes dataset, on the latents of configs/quickstart/regen.py: two
latent frames for nine frames.

command   python launch/train.py --config=quickstart/vdit_regen --workdir=runs/quickstart/vdit_regen
hardware  2 CPU cores, under 2 GB
time      15 min 41 s, on one core with other work on the other
expect    all attributes right for 75% of 512 held-out prompts: color 97%, direction 100%, size 97%,
          background 100%, shape 79%; 73 to 75% on three REGENs that were trained for longer than
          quickstart/regen (docs/quality.md), 84% on the last of them with
          --config.loop.steps=9600; 67% on quickstart/regen by an earlier transformer

--config=quickstart/vdit_regen:16 trains on clips of 17 frames, on the latents of
runs/quickstart/regen16, which --config=quickstart/regen:16 trains.
"""

from xgen_jax.configs.quickstart import vdit


def get_config(ratio: str = "8"):
    """The run of vdit.py on other latents; one chunk a clip."""
    config = vdit.get_config()
    config.embedder = "runs/quickstart/regen" + ("" if ratio == "8" else ratio)
    config.model.patch = 1  # the latents are 4x4
    (bucket,) = config.data.buckets
    config.data.buckets = ({**bucket, "frames": int(ratio) + 1},)
    return config
