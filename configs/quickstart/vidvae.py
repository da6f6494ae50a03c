"""Tiny VidVAE (4x4x4, 8 channels) on the world of moving shapes.

python launch/train.py --config=configs/quickstart/vidvae.py --workdir=runs/quickstart/vidvae
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.models.vidvae import PRESETS


def get_config():
    """Nested ConfigDict; see `xgen_jax.training.config.VidVAERun` for the keys."""
    return config_dict.ConfigDict(
        {
            "objective": "vidvae",
            "model": dataclasses.asdict(PRESETS["tiny"]),
            # The weight of KL decides what the transformer can learn, at hardly a cost here: with 1e-5 the latents keep
            # 4 nats a value instead of 1.3, PSNR gains 0.2 dB, and after about 1,000 steps the transformer gets 26% of
            # the directions right instead of 94%.
            "loss": {"l1": 0.0, "l2": 1.0, "kl": 2e-4},
            "data": {
                "source": "synthetic",
                "seed": 0,
                "buckets": [{"frames": 9, "height": 32, "width": 32, "batch_size": 4}],
            },
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.02,
                "adam_learning_rate": 3e-3,
                "schedule": "linear",
                "warmup_steps": 50,
            },
            "loop": {"steps": 2400, "ema_decay": 0.995, "compute_dtype": "float32", "checkpoint_every": 1000},
            "mesh": {"fsdp": 1},
        }
    )
