"""Tiny VDiT on the world of moving shapes, on the latents of configs/quickstart/regen.py: two frames for nine.

command   python launch/train.py --config=configs/quickstart/vdit_regen.py --workdir=runs/quickstart/vdit_regen
hardware  2 CPU cores, under 2 GB
time      0.15 s of one core a step
expect    after 2,400 steps (--config.loop.steps=2400) 50% (32 of 64) of held-out prompts with all attributes right:
          color 100%, direction 97%, size 97%, background 100%, shape 50%. The shape is what the latents of so short a
          training of the embedder hold worst: of its plain reconstructions the verifier reads 85% right

--config=configs/quickstart/vdit_regen.py:16 is of clips of 17 frames, on the latents of runs/quickstart/regen16, which
configs/quickstart/regen.py:16 trains.
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.data.pipeline import Bucket, DataConfig
from xgen_jax.models.text import ByteTextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig
from xgen_jax.training.config import LoopConfig, VDiTRun
from xgen_jax.training.objectives.vdit import VDiTLossConfig
from xgen_jax.training.optimizer import OptimizerConfig


def get_config(ratio: str = "8"):
    """Every key of `VDiTRun`, locked; one chunk a clip."""
    bucket = Bucket(frames=int(ratio) + 1, height=32, width=32, batch_size=16)
    run = VDiTRun(
        embedder="runs/quickstart/regen" + ("" if ratio == "8" else ratio),
        model=dataclasses.replace(PRESETS["tiny"], patch=1),  # the latents are 4x4
        text=ByteTextConfig(width=96, depth=1, heads=4, max_bytes=64),
        loss=VDiTLossConfig(caption_drop=0.1, time_distribution="logit_normal", time_shift=4.0),
        data=DataConfig(source="synthetic", seed=1, buckets=(bucket,)),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=0.02, adam_learning_rate=3e-3, schedule="linear", warmup_steps=100
        ),
        loop=LoopConfig(steps=4800, ema_decay=0.999, compute_dtype="float32", checkpoint_every=1000),
        mesh=MeshConfig(fsdp=1),
        sample_steps=12,
        guidance_scale=4.0,
    )
    config = config_dict.ConfigDict(dataclasses.asdict(run))
    config.init_from = config_dict.placeholder(str)
    config.data.path = config_dict.placeholder(str)
    config.data.fps = config_dict.placeholder(float)
    return config
