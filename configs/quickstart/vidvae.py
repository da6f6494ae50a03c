"""Tiny VidVAE (4x4x4, 8 channels) on the world of moving shapes.

command   python launch/train.py --config=configs/quickstart/vidvae.py --workdir=runs/quickstart/vidvae
hardware  2 CPU cores, under 2 GB
time      106 s
expect    30.5 dB on held-out clips

Your own videos: add --config.data.source=video_folder --config.data.path=FOLDER
--config.data.require_captions=False.
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.config.losses import VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import LoopConfig, VidVAERun
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Bucket
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config():
    """Every key of `VidVAERun`, locked."""
    run = VidVAERun(
        model=PRESETS["tiny"],
        # The weight of KL decides what the transformer can learn, at hardly a cost here: with 1e-5
        # the latents keep 4 nats a value instead of 1.3, PSNR gains 0.2 dB, and after about 1,000
        # steps the transformer gets 26% of the directions right instead of 94%.
        loss=VidVAELossConfig(l1=0.0, l2=1.0, lpips=0.0, kl=2e-4),
        data=DataConfig(
            source=SyntheticConfig(),
            seed=0,
            buckets=(Bucket(frames=9, height=32, width=32, batch_size=4),),
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.02,
            adam_learning_rate=3e-3,
            schedule="linear",
            warmup_steps=50,
        ),
        loop=LoopConfig(
            steps=2400, ema_decay=0.995, compute_dtype="float32", checkpoint_every=1000
        ),
        mesh=MeshConfig(fsdp=1),
    )
    config = config_dict.ConfigDict(dataclasses.asdict(run))
    config.init_from = config_dict.placeholder(str)
    config.loss.lpips_weights = config_dict.placeholder(str)
    config.data.source.path = config_dict.placeholder(str)
    config.data.source.fps = config_dict.placeholder(float)
    config.data.source.stride = 1
    config.data.source.require_captions = True
    config.data.source.flip = False
    config.data.path = config_dict.placeholder(str)  # its name in older releases
    return config
