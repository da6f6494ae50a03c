"""REGEN at the paper's scale (arXiv 2503.08665): 8x8 in space and 32x in time, images and videos
mixed.

command   python launch/train.py --config=regen/paper --workdir=runs/regen32
            --config.data.source.path=VIDEOS
hardware  a pod; the paper names none
time      not measured here
expect    the paper's table 1, PSNR and rFVD, not reproduced here:

                  MCL-JCV             DAVIS
            32x   28.71 dB, 224.56    23.49 dB, 522.20
            16x   30.41 dB,  92.48    26.27 dB, 235.13
             8x   32.74 dB,  29.88    29.34 dB,  89.98

--config=regen/paper:8 has another ratio, of 4, 8, 16 and 32: chunks of 5, 9, 17 and 33 frames.
--config=regen/paper:32-patch16 has patches of 16x16 pixels in the decoder, and a convolution of 16
channels at the resolution of pixels behind them: 240 tokens a frame instead of 960, 31.6 TFLOP a
window of 33 frames instead of 273.9, by formula (docs/regen.md). Not the paper's, not trained.

From the paper: the decoder (24 blocks of 2048 with 16 heads, patch 8), 8 channels, two latent
frames a chunk, 192x320, epsilon prediction by DDPM as the only loss, encoder and decoder trained
together, images and videos. It gives no width of the encoder, SIREN, schedule, batch, rate, steps,
average or fraction of images: those here are our own. So are clips of two chunks with windows
shifted across their border, where the paper's own videos jump (docs/regen.md). At our small scale
x0 by rectified flow with half of the chunks at t = 1 learns much sooner (the same page, 200 steps):

          --config.loss.process=flow --config.loss.prediction=x0 --config.loss.one_step_fraction=0.5
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import REGENRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, VideoFolderConfig
from xgen_jax.errors import choose
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig

# By "32", "32-patch16" and so on.
VARIANTS = {
    name.removeprefix("paper-").replace("x", "", 1): preset
    for name, preset in PRESETS.items()
    if name.startswith("paper-")
}


def get_config(variant: str = "32"):
    """A run at a ratio of 4, 8, 16 or 32 in time; with "-patch16" of larger patches."""
    preset = VARIANTS[choose("variant", variant, VARIANTS)]
    # A chunk of 33 frames has 31,680 tokens at this size: no implementation that "auto" stands for
    # makes the full matrix.
    model = dataclasses.replace(preset, attention="auto")
    run = REGENRun(
        model=model,
        loss=REGENLossConfig(process="ddpm", prediction="eps", windows="shifted"),
        data=DataConfig(
            source=VideoFolderConfig(require_captions=False),
            buckets=(
                Bucket(frames=1, height=192, width=320, batch_size=256, weight=0.25),
                Bucket(frames=2 * model.chunk_frames, height=192, width=320, batch_size=32),
            ),
            num_threads=16,
            prefetch=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule="constant", warmup_steps=1000, clip_norm=1.0
        ),
        loop=LoopConfig(steps=300_000, ema_decay=0.9999, compute_dtype="bfloat16"),
        mesh=MeshConfig(fsdp=-1),
    )
    return as_config_dict(run)
