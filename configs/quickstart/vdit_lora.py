"""An adapter of configs/quickstart/vdit.py's model for another style: the same world, its shapes
drawn as outlines.

command   python launch/train.py --config=configs/quickstart/vdit_lora.py --workdir=runs/quickstart/vdit_lora
hardware  2 CPU cores, under 2 GB
time      42 s for 400 steps; 89,088 parameters, a file of 0.36 MB
expect    39 of 64 held-out prompts drawn with a hole in the shape, 0 of 64 by the base, 1 of 64 at half the weight; the
          base was a run of configs/quickstart/vdit.py, whose autoencoder has seen no outline (24.3
          dB, 30.4 filled)

Your own videos: add --config.data.source=video_folder --config.data.path=FOLDER, with
captions.jsonl in the folder. Draw with launch/sample.py --model=runs/quickstart/vdit_lora, or, with
any weight, with --model=runs/quickstart/vdit
--lora=runs/quickstart/vdit_lora/adapter.safetensors:0.7
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import LoopConfig, VDiTRun
from xgen_jax.data.config import DataConfig
from xgen_jax.data.pipeline import Bucket
from xgen_jax.models.lora import LoRAConfig
from xgen_jax.models.text import ByteTextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config():
    """Every key of `VDiTRun`, locked. Model, text and loss are the base's."""
    run = VDiTRun(
        embedder="runs/quickstart/vidvae",
        init_from="runs/quickstart/vdit",
        lora=LoRAConfig(rank=8, alpha=16.0),
        model=PRESETS["tiny"],
        text=ByteTextConfig(width=96, depth=1, heads=4, max_bytes=64),
        loss=VDiTLossConfig(cond_drop_prob=0.1, time_distribution="logit_normal", time_shift=4.0),
        data=DataConfig(
            source="synthetic",
            style="outline",
            seed=2,
            buckets=(Bucket(frames=9, height=32, width=32, batch_size=16),),
        ),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=5e-3, schedule="linear", warmup_steps=50
        ),
        loop=LoopConfig(steps=400, ema_decay=0.99, compute_dtype="float32", checkpoint_every=200),
        mesh=MeshConfig(fsdp=1),
        sample_steps=12,
        guidance_scale=3.0,
    )
    config = config_dict.ConfigDict(dataclasses.asdict(run))
    config.data.path = config_dict.placeholder(str)
    config.data.fps = config_dict.placeholder(float)
    return config
