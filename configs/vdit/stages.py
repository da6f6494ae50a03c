"""What the paper's three stages, 240p.py, 480p.py and 720p.py, have in common (arXiv 2408.12590,
section 3.2).

From the paper: the network (VDiT-XL/2, 767M), T5 with 250 tokens, epsilon prediction by DDPM, AdamW
at 2e-5, an average of the parameters, three stages, buckets. It gives no schedule, batch, steps or
masks; these are Open-Sora 1.1's, which it builds on: 1000 linear steps with a learned variance, 10%
of captions dropped, gradients clipped at 1.0, an average with decay 0.9999, masks of frames for
conditioning on images and videos, and the bucket tables (`data.buckets.STAGES`). The lengths become
the embedder's (17 for 16, ..., 113 for 128), and the batches a device are made global for 64
devices, as there; `:16` after a config's name makes them for 16. Our own: three of the seventeen
aspects, because each shape is a program to compile (`data.buckets.ASPECTS` has all).
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VDiTRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import COMMON_ASPECTS, STAGES, make_buckets
from xgen_jax.data.config import DataConfig, LatentsConfig
from xgen_jax.diffusion.config import OPEN_SORA
from xgen_jax.models.text_config import T5TextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def stage_config(
    name: str, *, init_from: str | None, steps: int, devices: int
) -> config_dict.ConfigDict:
    """One stage's run.

    Args:
      name: of the bucket table, a key of `data.buckets.STAGES`.
      init_from: the folder of the stage before; None for the first.
      steps: updates in all.
      devices: how many the global batches are made for.
    """
    run = VDiTRun(
        embedder="runs/vidvae",
        init_from=init_from,
        model=dataclasses.replace(PRESETS["VDiT-XL/2"], attention="auto"),
        text=T5TextConfig(path="weights/t5-v1_1-xxl", length=250),
        loss=VDiTLossConfig(
            process="ddpm", cond_drop_prob=0.1, time_distribution="uniform", frame_masks=OPEN_SORA
        ),
        data=DataConfig(
            source=LatentsConfig(),
            fit=True,
            buckets=make_buckets(STAGES[name], COMMON_ASPECTS, devices),
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
    return as_config_dict(run)
