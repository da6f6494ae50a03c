"""Tiny models and runs for tests, notebooks and benchmarks; seconds on a CPU."""

import copy
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from xgen_jax.config.losses import REGENLossConfig, VidVAELossConfig
from xgen_jax.config.runs import Run, run_config
from xgen_jax.data.sources.factory import make_source
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.models.regen import REGEN, abstract_variables
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.regen_embedder import REGENEmbedder
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.training.tasks import build_task
from xgen_jax.training.tasks.base import Task
from xgen_jax.training.tasks.regen import REGENTask
from xgen_jax.training.tasks.vidvae import VidVAETask
from xgen_jax.typing import Params

BUCKET = {"frames": 5, "height": 16, "width": 16, "batch_size": 2}
DATA: dict[str, Any] = {
    "source": {"kind": "synthetic", "num_clips": 100},
    "buckets": [BUCKET],
}
VIDVAE: dict[str, Any] = {
    "objective": "vidvae",
    "model": {
        "channels": [8],
        "space_reduction": [False],
        "time_reduction": [False],
        "latent_channels": 4,
        "blocks": 1,
        "stem": [4, 4, 4],
        "mid_attention": False,
        "norm": "rms",
    },
    "loss": {"lpips": 0.0},
    "data": DATA,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    "loop": {"steps": 2, "compute_dtype": "float32", "log_every": 1},
    "mesh": {"fsdp": 1},
}
VDIT: dict[str, Any] = {
    **VIDVAE,
    "objective": "vdit",
    "loss": {},
    "model": {
        "width": 16,
        "depth": 2,
        "heads": 2,
        "patch": 2,
        "text_width": 16,
        "remat": "none",
    },
    "text": {"width": 16, "depth": 1, "heads": 2, "max_bytes": 64},
    "sample_steps": 2,
}

# Fields of `VIDVAE` that compile fastest: no pixel sees another.
POINTWISE = {"channels": [4], "latent_channels": 2, "kernels": [[1, 1, 1], [1, 1, 1]]}

# Two levels. These kernels compile in half the time of 3x3x3, which the first and last layers have.
PYRAMID = VidVAEConfig(
    channels=(4, 8),
    space_reduction=(True, False),
    time_reduction=(True, True),
    latent_channels=3,
    blocks=1,
    kernels=((1, 3, 3), (3, 1, 1)),
)
# The smallest network whose latents have the shape of the paper's embedder, 4x8x8.
VIDVAE_4X8X8 = VidVAEConfig(
    channels=(4,),
    space_reduction=(False,),
    time_reduction=(False,),
    latent_channels=4,
    blocks=1,
    stem=(4, 8, 8),
    mid_attention=False,
    kernels=((1, 1, 1), (1, 1, 1)),
    norm="rms",
)
# Chunks of five frames, 4x4 pixels a cell.
REGEN_MODEL = REGENConfig(
    encoder=VidVAEConfig(
        channels=(8, 8),
        space_reduction=(False, False),
        time_reduction=(True, False),
        latent_channels=4,
        blocks=1,
        stem=(2, 4, 4),
        mid_attention=False,
        kernels=((1, 3, 3), (3, 1, 1)),
        norm="rms",
    ),
    width=16,
    depth=2,
    heads=2,
    siren_hidden=8,
    siren_depth=2,
    siren_features=6,
    remat="none",
)
STATISTICS = {"mean": [-0.1, 0.0, 0.1, 0.2], "std": [0.5, 1.0, 1.5, 2.0]}


def tiny_vidvae(**changes: Any) -> VidVAEConfig:
    """The configuration of a VidVAE of 4x4x4 with one level, with other fields as given."""
    config = dataclasses.replace(VIDVAE_4X8X8, channels=(8,), stem=(4, 4, 4))
    fields: dict[str, Any] = {"kernels": ((1, 3, 3), (3, 1, 1)), **changes}
    return dataclasses.replace(config, **fields)


def tiny_run(values: dict[str, Any], **changes: Any) -> Run:
    """Build the configuration of a tiny run, e.g. `tiny_run(VIDVAE, loop={"steps": 4})`.

    Args:
      values, changes: see `tiny_values`.
    """
    return run_config(tiny_values(values, **changes))


def tiny_values(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Copy the values of a tiny run with changes.

    Args:
      values: `VIDVAE`, `VDIT` or the like.
      changes: keys to replace; a dict changes keys of a group and leaves the others.
    """
    values = copy.deepcopy(values)
    for key, change in changes.items():
        group = values.get(key)
        merged = isinstance(change, dict) and isinstance(group, dict)
        values[key] = group | change if merged else change
    return values


def task_of(config: Run) -> Task:
    """Build the task of a run without a mesh, its data and frozen networks loaded."""
    return build_task(config, None, make_source(config.data))


def warm_start(config: Run) -> Any:
    """Load the parameters that a run's first step starts from."""
    return task_of(config).warm_start(config)


def regen_task(model: REGEN, loss_config: REGENLossConfig, **fields: Any) -> REGENTask:
    """Make a REGEN's task around a model; `fields` are others of `EmbedderTask`."""
    process, windows = loss_config.make_process(), loss_config.windows
    embedder = REGENEmbedder(model=model, process=process, windows=windows)
    return REGENTask(embedder=embedder, loss_config=loss_config, **fields)


def vidvae_task(model: VidVAE, loss_config: VidVAELossConfig, **fields: Any) -> VidVAETask:
    """Make a VidVAE's task around a model; `fields` are others of `EmbedderTask`."""
    embedder = VidVAEEmbedder(model=model)
    return VidVAETask(embedder=embedder, loss_config=loss_config, **fields)


def random_regen_params(config: REGENConfig = REGEN_MODEL, seed: int = 0) -> Params:
    """Make all parameters random: some of an untrained network are zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(leaf.dtype),
        abstract_variables(config),
    )


def regen_embedder(
    config: REGENConfig = REGEN_MODEL, **changes: Any
) -> tuple[REGENEmbedder, Params]:
    """Make a REGEN embedder with random parameters and statistics that are not trivial."""
    settings: dict[str, Any] = {"windows": "shifted"} | changes
    embedder = REGENEmbedder(
        model=REGEN(config), process=RectifiedFlow(prediction="x0"), **settings
    )
    return embedder, embedder.bundle(
        random_regen_params(config), *map(np.array, STATISTICS.values())
    )


def write_regen_run(
    path: pathlib.Path,
    seed: int = 0,
    config: REGENConfig = REGEN_MODEL,
    statistics: bool = True,
) -> pathlib.Path:
    """Write the folder of a finished run with random parameters."""
    folder = RunFolder(path)
    folder.create_or_resume(
        run_config(
            {
                "objective": "regen",
                "model": dataclasses.asdict(config),
                "loss": {"windows": "shifted"},
                "data": {
                    "source": {"kind": "synthetic"},
                    "buckets": [{"frames": 10, "height": 16, "width": 16, "batch_size": 2}],
                },
                "optimizer": {"learning_rate": 1e-3},
                "loop": {"steps": 1, "compute_dtype": "float32"},
            }
        )
    )
    checkpoints = folder.checkpoints()
    checkpoints.save(1, {"ema": {"regen": random_regen_params(config, seed)}}, {"fingerprints": {}})
    checkpoints.wait()
    if statistics:
        folder.write_json(LATENT_STATISTICS, STATISTICS)
    return folder.path
