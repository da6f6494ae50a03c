"""Tiny VDiT on the world of moving shapes, on the latents of configs/quickstart/vidvae.py.

python launch/train.py --config=configs/quickstart/vdit.py --workdir=runs/quickstart/vdit
"""

from ml_collections import config_dict


def get_config():
    """Nested ConfigDict; see `xgen_jax.training.config.VDiTRun` for the keys."""
    return config_dict.ConfigDict(
        {
            "objective": "vdit",
            "embedder": "runs/quickstart/vidvae",
            "model": {"width": 96, "depth": 4, "heads": 4, "patch": 2, "text_width": 96, "remat": "none"},
            "text": {"width": 96, "depth": 1, "heads": 4, "max_bytes": 64},
            "loss": {"caption_drop": 0.1, "time_distribution": "logit_normal", "time_shift": 1.0},
            "data": {
                "source": "synthetic",
                "seed": 1,
                "buckets": [{"frames": 9, "height": 32, "width": 32, "batch_size": 16}],
            },
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.02,
                "adam_learning_rate": 3e-3,
                "schedule": "linear",
                "warmup_steps": 100,
            },
            "loop": {"steps": 4000, "ema_decay": 0.999, "compute_dtype": "float32", "checkpoint_every": 1000},
            "mesh": {"fsdp": 1},
        }
    )
