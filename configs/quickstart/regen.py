"""Tiny REGEN (8x8x8, 8 channels) on the world of moving shapes.

command   python launch/train.py --config=configs/quickstart/regen.py --workdir=runs/quickstart/regen
hardware  2 CPU cores, under 2 GB
time      5 min 56 s on one core
expect    27.8 dB on held-out clips, drawn in one evaluation; of 91% of them the verifier reads all attributes right

--config=configs/quickstart/regen.py:16 takes a ratio of 16x with clips of 17 frames; 4 and 32 there
are as well.

Your own videos: add --config.data.source=video_folder --config.data.path=FOLDER
--config.data.require_captions=False.
"""

import dataclasses

from ml_collections import config_dict

from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import LoopConfig, REGENRun
from xgen_jax.data.config import DataConfig
from xgen_jax.data.pipeline import Bucket
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config(ratio: str = "8"):
    """Every key of `REGENRun`, locked; one chunk a clip."""
    model = PRESETS[f"tiny-{ratio}x"]
    bucket = Bucket(frames=model.chunk_frames, height=32, width=32, batch_size=8)
    run = REGENRun(
        model=model,
        loss=REGENLossConfig(
            process="flow", prediction="x0", one_step_fraction=0.5, kl=2e-4, motion=4.0
        ),
        data=DataConfig(source="synthetic", seed=0, buckets=(bucket,)),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.02,
            adam_learning_rate=3e-3,
            schedule="linear",
            warmup_steps=50,
        ),
        loop=LoopConfig(
            steps=1500, ema_decay=0.995, compute_dtype="float32", checkpoint_every=1000
        ),
        mesh=MeshConfig(fsdp=1),
    )
    config = config_dict.ConfigDict(dataclasses.asdict(run))
    config.init_from = config_dict.placeholder(str)
    config.loss.lpips_weights = config_dict.placeholder(str)
    config.data.path = config_dict.placeholder(str)
    config.data.fps = config_dict.placeholder(float)
    return config
