"""Train a model, or continue its training: `launch/train.py`."""

import os
import sys
from typing import Any

import jax

from xgen_jax.config.runs import Run, Weights
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import held_out_data, make_source
from xgen_jax.errors import UserError
from xgen_jax.parallel.mesh import make_mesh
from xgen_jax.parallel.sharding import on_mesh
from xgen_jax.runs.folder import RunFolder, check_fingerprints
from xgen_jax.training.fit import fit
from xgen_jax.training.tasks import build_task


def train(config: Run, workdir: str | os.PathLike, overwrite: bool = False) -> dict[str, Any]:
    """Train the run of a configuration in a folder, or continue it.

    Args:
      config: see `config.runs.run_config`.
      workdir: the run folder. If it holds this same run, training continues from its newest
        checkpoint, bit for bit as if never interrupted (on the same devices).
      overwrite: remove the run that is in the folder.

    Returns:
      A summary: step, last metrics, seconds spent here, parameters.

    Raises:
      UserError: every mistake of the user, before anything is trained or written; later a loss
        that is not finite (`NonFiniteLoss`), or a disk that is full.
    """
    if isinstance(config, Weights):
        raise UserError(
            f"converted weights are not a run; train a {config.family} run that starts from them, "
            "with init_from=FOLDER"
        )
    if not isinstance(config, Run):
        raise UserError(
            "a configuration is a dict or a Run, not a "
            f"{type(config).__name__}; of ml_collections give config.to_dict()"
        )
    run = RunFolder(workdir)
    run.check(config, overwrite)
    mesh = make_mesh(config.mesh)
    source = make_source(config.data)
    config = config.for_clips(source.rates(), lambda line: print(line, file=sys.stderr))
    task = build_task(config, mesh, source)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    pipeline = Pipeline(source, config.data, **processes)
    for line in filter(None, (source.report(), *pipeline.problems)):
        print(line, file=sys.stderr)
    saved = None
    if not overwrite and run.checkpoints().steps():
        saved = run.checkpoints().restore_data()
        pipeline.check_state(saved)
        check_fingerprints(task.fingerprints(), saved, f"the run in {run.path}")
    start = task.warm_start(config) if saved is None else None
    held_out = None
    if config.loop.evaluate_every:
        multiple = mesh.shape["data"] * mesh.shape["fsdp"]
        held_out = Pipeline(*held_out_data(config.data, multiple), **processes)
    run.create_or_resume(config, overwrite)
    with on_mesh(mesh):
        return fit(run, config, task, pipeline, mesh, held_out, start)
