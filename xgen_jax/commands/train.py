"""Train a model, or continue its training: `launch/train.py`."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from xgen_jax.commands.hosts import check_hosts
from xgen_jax.config.changes import change_rows
from xgen_jax.config.runs import Run, Weights, to_dict
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import held_out_data, make_source, shapes_style
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.captions import HeldOutCaptions
from xgen_jax.files import locked
from xgen_jax.parallel.agreement import check_equal, is_first, together
from xgen_jax.parallel.arrays import batch_part
from xgen_jax.parallel.mesh import make_mesh
from xgen_jax.parallel.sharding import on_mesh
from xgen_jax.runs.checkpoint import LATEST, LATEST_GOOD
from xgen_jax.runs.folder import RunFolder, check_fingerprints
from xgen_jax.runs.hub import refuse_address
from xgen_jax.runs.warm_start import with_base_embedder
from xgen_jax.training.fit import check_state, fit
from xgen_jax.training.metric_writers import MetricWriter
from xgen_jax.training.metric_writers.trackers import check_writers
from xgen_jax.training.summary import Summary
from xgen_jax.training.tasks import build_task


def train(
    config: Run,
    workdir: str | os.PathLike,
    overwrite: bool = False,
    accept_changes: bool = False,
    restore: str = LATEST,
    writers: Sequence[MetricWriter] = (),
) -> dict[str, Any]:
    """Train the run of a configuration in a folder, or continue it.

    Args:
      config: see `config.runs.run_config`.
      workdir: the run folder. If it holds this same run, training continues from its newest
        checkpoint, bit for bit as if never interrupted (on the same devices).
      overwrite: remove the run that is in the folder.
      accept_changes: go on with the run in the folder although its data, or keys that leave the
        network and the shapes of its state as they are, have changed: learning rate, schedule,
        weights of the loss, buckets, seed and the like. run.json notes what has changed, and when.
      restore: the checkpoint to go on from: "latest", or "latest_good", which steps over damaged
        ones and renames them to STEP.damaged.
      writers: your own, besides `loop.writers`; see `training.fit.fit` and docs/trackers.md.

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
    choose("restore", restore, (LATEST, LATEST_GOOD))
    if overwrite and accept_changes:
        raise UserError(
            "--overwrite starts again and --accept_changes goes on: give one of them, not both"
        )
    refuse_address("--workdir", workdir)
    check_writers(config.loop.writers, writers)
    check_hosts(to_dict(config))
    run = RunFolder(workdir)
    with together():  # a mistake that one process finds ends all of them
        config = with_base_embedder(config, run, overwrite)
        changed = run.check(config, overwrite, accept_changes)
        mesh = make_mesh(config.mesh)
        index, count = batch_part(mesh)
        part = {"process_index": index, "process_count": count}
        source = make_source(config.data, config.embeds_captions)
        config = config.for_clips(source.rates(), lambda line: print(line, file=sys.stderr))
        task = build_task(config, mesh, source)
        pipeline = Pipeline(source, config.data, **part)
        if report := pipeline.report():
            print(report, file=sys.stderr)
        steps = [] if overwrite else run.checkpoints().steps()
        marks = ("clips (index and captions)", "buckets", "schedule")
        check_equal(
            {
                "data": dict(zip(marks, pipeline.fingerprint().split("."))),
                "frozen networks": task.fingerprints(),
                "checkpoints in the run folder": steps,
            }
        )
        saved = None
        if steps:
            saved = run.checkpoints().restore_data(restore)
            changed |= data_change(run, pipeline, saved, accept_changes)
            check_fingerprints(task.fingerprints(), saved, f"the run in {run.path}")
            if changed:
                with on_mesh(mesh):
                    check_state(run, config, task, pipeline, mesh, restore)
        start = task.warm_start(config) if saved is None else None
        held_out = judge = None
        if config.loop.evaluate_every:
            multiple = mesh.shape["data"] * mesh.shape["fsdp"]
            data = held_out_data(config.data, multiple, config.embeds_captions)
            held_out = Pipeline(*data, **part)
            verified = task.samples_prompts and shapes_style(config.data.source) == "filled"
            if verified and config.loop.evaluate_prompts:
                judge = HeldOutCaptions(config.loop.evaluate_prompts)
        if changed:
            listed = "\n  ".join(change_rows(changed))
            print(f"{run.path} goes on with changes (there -> here):\n  {listed}", file=sys.stderr)
        summary = Summary.of_data(source, config.data, pipeline, config.loop.steps)
    with contextlib.ExitStack() as stack:
        with together():
            if is_first():  # it stands for the processes of this run
                stack.enter_context(locked(run.path, "trains in"))
                run.create_or_resume(config, overwrite, changed)
        stack.enter_context(on_mesh(mesh))
        return fit(
            run, config, task, pipeline, mesh, held_out, start, summary, restore, judge, writers
        )


def data_change(
    run: RunFolder, pipeline: Pipeline, saved: dict[str, Any], accept: bool
) -> dict[str, tuple[str, str]]:
    """Return {"data": (old, new) fingerprint} if a run's clips have changed, else {}.

    Args:
      run: the folder.
      pipeline: of the clips as they are now.
      saved: the data of the newest checkpoint.
      accept: whether other clips are accepted; those of a call that ended before its first
        checkpoint are anyway.

    Raises:
      UserError: they have changed, and it is not accepted.
    """
    before, now = saved.get("fingerprint"), pipeline.fingerprint()
    if before == now:
        return {}
    change = {"key": "data", "old": before, "new": now, "step": saved.get("step")}
    if not accept and not any(change.items() <= noted.items() for noted in run.changes()):
        try:
            pipeline.check_state(saved)
        except UserError as error:
            raise UserError(
                f"{error}; or go on from the newest checkpoint with the data as it is now: "
                "--accept_changes"
            ) from error
    return {"data": (str(before), now)}
