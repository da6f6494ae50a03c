"""A LoRA adapter of configs/quickstart/vdit.py's model for another style: the same dataset with
its shapes as outlines.

command   python launch/train.py --config=quickstart/vdit_lora --workdir=runs/quickstart/vdit_lora
hardware  2 CPU cores, under 2 GB
time      42 s for 400 steps; 89,088 parameters, a file of 0.36 MB
expect    a hole in the shape for 39 of 64 held-out prompts, 0 of 64 with the base, 1 of 64 at half
          the weight; the base was a run of configs/quickstart/vdit.py, whose autoencoder was not
          trained on outlines (24.3 dB, 30.4 dB on filled shapes)

Your own captioned videos, on the model of runs/mine/vdit: --config=quickstart/vdit_lora:videos
--config.data.source.path=FOLDER.

Sample with launch/sample.py --model=runs/quickstart/vdit_lora, or with any weight:
--model=runs/quickstart/vdit --lora=runs/quickstart/vdit_lora/adapter.safetensors:0.7
"""

from xgen_jax.configs.quickstart import vdit


def get_config(clips: str = "shapes"):
    """A run whose model, text and loss are the base's."""
    config = vdit.get_config(clips)
    config.init_from = "runs/mine/vdit" if clips == "videos" else "runs/quickstart/vdit"
    config.embedder = ""  # the base's
    config.lora = {"rank": 8, "alpha": 16.0}
    config.data.seed = 2
    if clips == "shapes":
        config.data.source.style = "outline"
        (bucket,) = config.data.buckets
        config.data.buckets = ({**bucket, "batch_size": 16},)
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 5e-3,
        "schedule": "linear",
        "warmup_steps": 50,
    }
    config.loop.update({"steps": 400, "ema_decay": 0.99, "checkpoint_every": 200})
    config.guidance_scale = 3.0
    return config
