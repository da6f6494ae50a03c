"""Tiny VDiT on the world of moving shapes, on the latents of configs/quickstart/vidvae.py.

python launch/train.py --config=configs/quickstart/vdit.py --workdir=runs/quickstart/vdit
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.models.vdit import PRESETS


def get_config():
    """Nested ConfigDict; see `xgen_jax.training.config.VDiTRun` for the keys."""
    return config_dict.ConfigDict(
        {
            "objective": "vdit",
            "embedder": "runs/quickstart/vidvae",
            "model": dataclasses.asdict(PRESETS["tiny"]),
            "text": {"width": 96, "depth": 1, "heads": 4, "max_bytes": 64},
            # What a plain background or a direction is must be settled while all else is still noise: without the shift
            # such times are hardly trained on, and neither is learnt.
            "loss": {"caption_drop": 0.1, "time_distribution": "logit_normal", "time_shift": 4.0},
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
            "loop": {"steps": 4800, "ema_decay": 0.999, "compute_dtype": "float32", "checkpoint_every": 1000},
            "mesh": {"fsdp": 1},
            "sample_steps": 12,
            "guidance_scale": 3.0,
        }
    )
