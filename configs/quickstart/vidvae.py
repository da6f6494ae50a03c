"""Tiny VidVAE (4x4x4, 8 channels) on the moving-shapes dataset.

command   python launch/train.py --config=quickstart/vidvae --workdir=runs/quickstart/vidvae
hardware  2 CPU cores, under 2 GB
time      109 to 125 s, compilation included; 88 s at version 0.2.0, when the machine was faster
expect    30.4 dB on held-out clips

With --config.model.head_channels=8 --config.loss.gradient=0.3 a step takes 1.7 times as long, and
as many steps reach 31.3 dB with less grain: a sharpness of 1.42 instead of 1.79 (docs/vidvae.md).

Your own videos, at 64x64 and with 16 channels, for 8,000 steps: 20 to 22 minutes, 35.2 dB on the
held-out ends of seven films and a blockiness of 1.03, 1 GB of memory and as much for the frames:

    python launch/train.py --config=quickstart/vidvae:videos --workdir=runs/mine/vidvae \\
        --config.data.source.path=FOLDER
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VidVAERun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig, VideoFolderConfig
from xgen_jax.errors import choose
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig

MODEL = PRESETS["tiny"]
# The weight of the KL term decides what the transformer can learn, at little cost here: with 1e-5
# the latents keep 4 nats a value instead of 1.3, PSNR gains 0.2 dB, and after about 1,000 steps the
# transformer gets 26% of the directions right instead of 94%. With 1e-3 it gets 96% of the shapes
# right, with 2e-4 94% (docs/quality.md); 5e-4 lies between the two.
LOSS = VidVAELossConfig(l1=0.0, l2=1.0, lpips=0.0, kl=5e-4)


def get_config(clips: str = "shapes"):
    """A run on moving `shapes`, or on a folder of `videos`."""
    model, loss, steps = MODEL, LOSS, 2400
    source = SyntheticConfig()
    bucket = Bucket(frames=9, height=32, width=32, batch_size=4)
    if choose("clips", clips, ("shapes", "videos")) == "videos":
        # Eight values cannot hold a 4x4x4 patch of footage, and colour is what they drop first: the
        # eight largest components of such patches reach 27 dB, sixteen 31 dB.
        # Without a head the decoder leaves a mesh of its patches: docs/vidvae.md.
        model = dataclasses.replace(model, latent_channels=16, head_channels=8)
        # As for shapes, where the KL term is a mean over half the values, the weight would be 4e-4;
        # a quarter of that gains half a decibel (docs/vidvae.md).
        loss = dataclasses.replace(loss, gradient=0.05, chroma=4.0, kl=2e-4)
        source = VideoFolderConfig(require_captions=False)
        bucket = Bucket(frames=9, height=64, width=64, batch_size=2)
        steps = 8000
    run = VidVAERun(
        model=model,
        loss=loss,
        data=DataConfig(source=source, seed=0, buckets=(bucket,)),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.02,
            adam_learning_rate=3e-3,
            schedule="linear",
            warmup_steps=50,
        ),
        loop=LoopConfig(
            steps=steps, ema_decay=0.995, compute_dtype="float32", checkpoint_every=1000
        ),
        mesh=MeshConfig(fsdp=1),
    )
    return as_config_dict(run)
