"""Tiny VidVAE (4x4x4, 8 channels) on the moving-shapes dataset.

command   python launch/train.py --config=quickstart/vidvae --workdir=runs/quickstart/vidvae
hardware  2 CPU cores, under 2 GB
time      106 s
expect    30.5 dB on held-out clips

Your own videos: add --config.data.source.path=FOLDER
--config.data.source.require_captions=False.
"""

from xgen_jax.config.losses import VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import LoopConfig, VidVAERun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config():
    run = VidVAERun(
        model=PRESETS["tiny"],
        # The weight of the KL term decides what the transformer can learn, at little cost here:
        # with 1e-5 the latents keep 4 nats a value instead of 1.3, PSNR gains 0.2 dB, and after
        # about 1,000 steps the transformer gets 26% of the directions right instead of 94%.
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
    return as_config_dict(run)
