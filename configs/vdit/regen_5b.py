"""VDiT-5B on REGEN's latents at 32x: 192x320, two latent frames for 33 frames (arXiv 2503.08665,
section 4).

command   python launch/train.py --config=vdit/regen_5b --workdir=runs/vdit/regen
            --config.data.source.path=LATENTS
hardware  a pod; the paper names none.
          Compiled ahead of time for v5p:4x4x4 (64 chips; docs/plans.md): the bucket of 132 frames,
          two clips a device, peaks at 3.5 of 95.7 GiB on each; larger batches can be tried.
time      not measured here
expect    not reproduced here; the paper shows early results, without a figure

LATENTS is the output of launch/encode.py for captioned videos of 132 frames or more, each in every
bucket, with the embedder of configs/regen/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/regen32 --data=VIDEOS --out=LATENTS
            --buckets=33x192x320,66x192x320,132x192x320 --text_encoder=weights/t5-v1_1-xxl --fps=24
            --dtype=bfloat16

From the paper: a latent transformer of 5B parameters, 192x320, two latent frames a chunk of 33,
clips of two chunks (66 frames at 12 a second) and four (132 at 24). It gives nothing else: the
network is VDiT-5B/2, T5 and rectified flow are as in our other runs, and batches, rate and steps
are our own. Batches are for 64 devices; --config=vdit/regen_5b:16 makes them for 16.
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VDiTRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, LatentsConfig
from xgen_jax.models.text_config import T5TextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig

# Clips of one, two and four chunks: (frames, clips a device).
LEVELS = ((33, 8), (66, 4), (132, 2))


def get_config(devices: str = "64"):
    """The run, its batches for `devices` devices."""
    buckets = tuple(
        Bucket(frames=frames, height=192, width=320, batch_size=clips * int(devices))
        for frames, clips in LEVELS
    )
    run = VDiTRun(
        embedder="runs/regen32",
        model=dataclasses.replace(PRESETS["VDiT-5B/2"], attention="auto"),
        text=T5TextConfig(path="weights/t5-v1_1-xxl", length=250),
        loss=VDiTLossConfig(
            cond_drop_prob=0.1, time_distribution="logit_normal", shift_by_size=True
        ),
        data=DataConfig(source=LatentsConfig(), buckets=buckets, num_threads=16, prefetch=16),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule="constant", warmup_steps=1000, clip_norm=1.0
        ),
        loop=LoopConfig(steps=100_000, ema_decay=0.9999, compute_dtype="bfloat16"),
        mesh=MeshConfig(fsdp=-1),
        sampler="euler",
        sample_steps=50,
        guidance_scale=7.0,
        sample_fps=24.0,
    )
    return as_config_dict(run)
