"""Tiny VDiT on the moving-shapes dataset, on the latents of configs/quickstart/vidvae.py.

command   python launch/encode.py --embedder=runs/quickstart/vidvae --data=synthetic \\
              --count=16000 --seed=1 --out=runs/quickstart/latents
          python launch/train.py --config=quickstart/vdit --workdir=runs/quickstart/vdit \\
              --config.data.source.path=runs/quickstart/latents
hardware  2 CPU cores, under 2 GB
time      25 s and 478 s
expect    all five attributes right for 98.0% and 98.8% of 512 held-out prompts with two seeds; what
          is wrong is the shape

The clips need not be encoded before; a step that encodes them has a quarter more to
compute.

Your own captioned videos, at 64x64 on the latents of runs/mine/vidvae, at 2.9 steps a second on
2 CPU cores:

    python launch/train.py --config=quickstart/vdit:videos --workdir=runs/mine/vdit \\
        --config.data.source.path=FOLDER
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VDiTRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig, VideoFolderConfig
from xgen_jax.errors import choose
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config(clips: str = "shapes"):
    """A run on moving `shapes`, or on a folder of captioned `videos`."""
    embedder, source, longest = "runs/quickstart/vidvae", SyntheticConfig(), 64
    # Muon's part of a step does not grow with the batch: 32 clips take 1.6 times as long as 16.
    bucket = Bucket(frames=9, height=32, width=32, batch_size=32)
    loop = LoopConfig(steps=2500, ema_decay=0.998, compute_dtype="float32", checkpoint_every=1000)
    rate, adam_rate, shift = 0.03, 4e-3, 1.6
    if choose("clips", clips, ("shapes", "videos")) == "videos":
        embedder, source, longest = "runs/mine/vidvae", VideoFolderConfig(), 512
        bucket = Bucket(frames=9, height=64, width=64, batch_size=8)
        loop = dataclasses.replace(loop, steps=4800, ema_decay=0.999)
        rate, adam_rate, shift = 0.02, 3e-3, 4.0
    run = VDiTRun(
        embedder=embedder,
        # Directions are learnt after 800 steps with it; after 2,700 or, as often, not in 4,800
        # without it (docs/quality.md).
        model=dataclasses.replace(PRESETS["tiny"], caption_positions=True),
        text=ByteTextConfig(width=96, depth=1, heads=4, max_bytes=longest),
        # A plain background is decided while all else is still noise, at times that are rarely
        # trained on without a shift: after 1,200 steps 83% of the backgrounds were right without
        # one, 100% with 4. The shape is decided later: with 4 it is right less often than with 1.6
        # (docs/quality.md).
        loss=VDiTLossConfig(cond_drop_prob=0.1, time_distribution="logit_normal", time_shift=shift),
        data=DataConfig(
            source=source,
            seed=1,
            buckets=(bucket,),
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=rate,
            adam_learning_rate=adam_rate,
            schedule="linear",
            warmup_steps=100,
        ),
        loop=loop,
        mesh=MeshConfig(fsdp=1),
        sample_steps=12,
        guidance_scale=4.0,  # the best of 3, 4 and 5 on 512 prompts other than those scored above
    )
    return as_config_dict(run)
