"""A REGEN of 8x in time on your own clips, on GPUs; configs/finetune/ladder.py has the rungs.

command   python launch/train.py --config=finetune/regen:12gb --workdir=runs/gpu/regen
            --config.data.source.path=FOLDER
hardware  peak of the compiled train step: 2.3 GiB (12gb, RTX 4070), 15.4 GiB (24gb, RTX 4090),
          47.3 GiB (80gb, H100), 1.4 GiB (cpu); not run on a GPU
time      not measured; no GPU was timed
expect    not trained. With this loss, optimiser and rate the tiny network reaches 28.9 dB on shapes
          in 1,500 steps (docs/regen.md); quickstart/regen has more of the gradient and KL terms now

Clips of two chunks, decoded in windows across their border (docs/regen.md).

What to change first: out of memory, a smaller batch in --config.data.buckets; another ratio,
--config.model=small-16x --config.model.head_channels=8 --config.model.attention=auto
--config.data.buckets=34x128x128x8.
"""

import dataclasses

from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.config.runs import REGENRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.configs.finetune.ladder import MUON, rung
from xgen_jax.data.config import VideoFolderConfig
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig

BATCH = {"cpu": 2, "12gb": 16, "24gb": 8, "80gb": 4}


def get_config(name: str = "12gb"):
    """The run of a rung: clips of two chunks, with windows across their border."""
    here = rung(name)
    model = dataclasses.replace(
        PRESETS[f"{here.size}-8x"],
        head_channels=8,
        attention="auto",
        remat=here.remat,
    )
    frames = 2 * model.chunk_frames
    run = REGENRun(
        model=model,
        loss=REGENLossConfig(
            process="flow",
            prediction="x0",
            one_step_fraction=0.5,
            windows="shifted",
            kl=2e-4,
            motion=4.0,
            gradient=0.1,
        ),
        data=here.data(VideoFolderConfig(require_captions=False), BATCH[name], frames),
        optimizer=MUON,
        loop=here.loop(steps=50_000, ema_decay=0.999),
        mesh=MeshConfig(fsdp=-1),
    )
    return as_config_dict(run)
