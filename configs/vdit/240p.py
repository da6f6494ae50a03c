"""VDiT at the paper's scale, stage 1 of 3: images up to 1024x1024, videos up to 240p (arXiv
2408.12590, section 3.2).

command   python launch/train.py --config=configs/vdit/240p.py --workdir=runs/vdit/240p --config.data.path=LATENTS
            --config.init_from=PIXART, a folder that launch/convert.py made of PixArt-alpha, where
            the paper starts
hardware  a pod; the paper spent 642 to 672 H100 days on its three stages. Compiled ahead of time
for v5p:4x4x4 (64
          chips; 329 s on two busy CPU cores): the bucket of most latent cells, 12 images of 512x512
          a device, peaks at 2.64 of 95.7 GiB on each. No other bucket or slice was compiled
time      not measured here
expect    not reproduced here

LATENTS is what launch/encode.py made of captioned videos, each in the bucket that it fits, with the
embedder of configs/vidvae/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/vidvae --data=VIDEOS --out=LATENTS --stage=240p
            --text_encoder=weights/t5-v1_1-xxl --fps=8 --dtype=bfloat16

From the paper: the network (VDiT-XL/2, 767M), T5 with 250 tokens, epsilon prediction by DDPM, AdamW
at 2e-5, an average of the parameters, three stages, buckets. It prints no schedule, batch, steps or
masks; these are Open-Sora 1.1's, which
it builds on: 1000 linear steps with a learned variance, 10% of captions dropped, gradients clipped
at 1.0, an average with decay 0.9999, 81,000 steps, masks of frames (there in the last 17,000 steps
alone, here in all), and the bucket table of its stage 1 (`data.buckets.STAGES`). The lengths become
the embedder's (17 for 16, ..., 113 for 128), and the batches a device are made global for 64
devices, as there; --config=configs/vdit/240p.py:16 makes them for 16. Our own: three of the
seventeen aspects, for each shape is a program to compile (`data.buckets.ASPECTS` has all).
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import LoopConfig, VDiTRun
from xgen_jax.data.buckets import COMMON_ASPECTS, STAGES, make_buckets
from xgen_jax.data.config import DataConfig
from xgen_jax.diffusion.frame_masks import OPEN_SORA
from xgen_jax.models.text import T5TextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def stage_config(name: str, init_from: str | None, steps: int, devices: str):
    """A stage of the three: every key of `VDiTRun`, locked; `devices` scales the batches."""
    run = VDiTRun(
        embedder="runs/vidvae",
        model=dataclasses.replace(PRESETS["VDiT-XL/2"], attention="chunked"),
        text=T5TextConfig(path="weights/t5-v1_1-xxl", length=250),
        loss=VDiTLossConfig(
            process="ddpm", cond_drop_prob=0.1, time_distribution="uniform", frame_masks=OPEN_SORA
        ),
        data=DataConfig(
            source="latents",
            fit=True,
            buckets=make_buckets(STAGES[name], COMMON_ASPECTS, int(devices)),
            num_threads=16,
            prefetch=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-5, schedule="constant", warmup_steps=0, clip_norm=1.0
        ),
        loop=LoopConfig(steps=steps, ema_decay=0.9999, compute_dtype="bfloat16"),
        mesh=MeshConfig(fsdp=-1),
        sampler="ancestral",
        sample_steps=100,
        sample_spacing="respaced",
        guidance_scale=7.0,
        sample_fps=8.0,
    )
    config = config_dict.ConfigDict(dataclasses.asdict(run))
    config.data.path = config_dict.placeholder(str)
    config.data.fps = config_dict.placeholder(float)
    config.init_from = init_from or config_dict.placeholder(str)
    return config


def get_config(devices: str = "64"):
    """See `stage_config`."""
    return stage_config("240p", None, 81_000, devices)
