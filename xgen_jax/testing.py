"""Tiny models and runs for tests, notebooks and benchmarks; seconds on a CPU."""

import copy
from typing import Any

from xgen_jax.config.losses import REGENLossConfig, VidVAELossConfig
from xgen_jax.config.runs import Run, run_config
from xgen_jax.data.sources.factory import make_source
from xgen_jax.models.embedder import REGENEmbedder, VidVAEEmbedder
from xgen_jax.models.regen import REGEN
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.training.tasks import build_task
from xgen_jax.training.tasks.base import Task
from xgen_jax.training.tasks.regen import REGENTask
from xgen_jax.training.tasks.vidvae import VidVAETask

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


def tiny_run(values: dict[str, Any], **changes: Any) -> Run:
    """Build the configuration of a tiny run, e.g. `tiny_run(VIDVAE, loop={"steps": 4})`.

    Args:
      values: `VIDVAE`, `VDIT` or the like.
      changes: keys to replace; a dict changes keys of a group and leaves the others.
    """
    values = copy.deepcopy(values)
    for key, change in changes.items():
        group = values.get(key)
        merged = isinstance(change, dict) and isinstance(group, dict)
        values[key] = group | change if merged else change
    return run_config(values)


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
