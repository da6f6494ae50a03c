"""The training loop: one for every task.

Order within a step: take a batch, dispatch the update, let a thread put the next batch, only then
look at the metrics of the step before, so that the device never waits for the host. An update that
is not finite was not applied, neither is the one dispatched after it: the state before it is saved,
and the run stops with the step, the bucket and the samples; or that batch is left out, see
`loss_guard`. A run that is asked to stop finishes its step and saves first.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.runs import Run, to_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import from_first, is_first, together
from xgen_jax.parallel.arrays import Ahead, put
from xgen_jax.parallel.sharding import batch_sharding, replicated, tree_shardings
from xgen_jax.runs.checkpoint import LATEST, LATEST_GOOD, Step
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.stored import array_shapes
from xgen_jax.signals import Stopped, stop_later
from xgen_jax.training.compiled import StepPrograms, abstract_arguments, jit_update
from xgen_jax.training.evaluation import Evaluation, Judge
from xgen_jax.training.loss_guard import LossGuard, LossSpike, NonFiniteLoss
from xgen_jax.training.metric_writers import MetricWriter
from xgen_jax.training.metric_writers.trackers import Trackers, open_trackers
from xgen_jax.training.rates import Rates, flops_per_s
from xgen_jax.training.run_log import RunLog
from xgen_jax.training.state import TrainState, abstract_state, start_state
from xgen_jax.training.summary import Summary
from xgen_jax.training.tasks.base import Task
from xgen_jax.training.watchdog import Watchdog
from xgen_jax.typing import Array, Params


def fit(
    run: RunFolder,
    config: Run,
    task: Task,
    pipeline: Pipeline,
    mesh: Mesh,
    held_out: Pipeline | None = None,
    start: Params | None = None,
    summary: Summary | None = None,
    restore: Step = LATEST,
    judge: Judge | None = None,
    writers: Sequence[MetricWriter] = (),
) -> dict[str, Any]:
    """Train a task to the last step of its run, from the newest checkpoint if there is one.

    Args:
      run: the folder, which holds `config`.
      config: of the run.
      task: built for it on the mesh, which is the current one.
      pipeline: batches to train on.
      mesh: of the devices.
      held_out: batches to evaluate on, every `loop.evaluate_every` steps.
      start: sub-trees of parameters to start from (`Task.warm_start`).
      summary: of the data, shown with the rest before the first step.
      restore: the checkpoint to go on from, LATEST or LATEST_GOOD.
      judge: of samples at each evaluation, for a task that samples prompts.
      writers: the user's own, besides `loop.writers`. The first process calls them, and closes them
        at the end; one that fails ends no run. After `loop.rollback_sigma` has taken a run back,
        steps come again.

    Returns:
      A summary: step, parameters, seconds spent here, the last metrics.

    Raises:
      NonFiniteLoss: that step was not applied; the newest checkpoint is the state before it.
      Stopped: the process was asked to stop, and has saved.
      FailedSave: the last checkpoint could not be written.
    """
    started = time.monotonic()
    loop, on_batch = config.loop, batch_sharding(mesh)
    optimizer = task.optimizer(config.optimizer, loop.steps)
    checkpoints = run.checkpoints()
    checkpoints.keep_as(loop)
    # Shapes, then shardings, then values: every array is made on its own devices.
    arrays, sample_id = task.to_device(pipeline.batch(0), on_batch)
    key = put(jax.random.key(loop.seed), replicated(mesh))
    abstract, shardings = abstract_state(task, optimizer, mesh, key, arrays)

    def begin(restore: Step) -> tuple[TrainState, dict[str, Any]]:
        """Return (state, data) of the checkpoint to go on from, or of a new run."""
        if not checkpoints.steps():
            return start_state(task, optimizer, shardings, key, arrays, start), {}
        # `check_state` has compared the arrays of a run that has changed.
        state, data = checkpoints.restore(abstract, restore, grown=bool(run.changes()))
        if array_shapes(state) != array_shapes(abstract):
            state = grow(state, start_state(task, optimizer, shardings, key, arrays, start))
        if restore == LATEST_GOOD:
            from_first(lambda: checkpoints.set_aside(after=int(state.step)))
        return state, data

    state, data = begin(restore)
    frozen = put(task.frozen, tree_shardings(task.frozen, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    first_step = int(state.step)
    last: dict[str, float] = {}
    trackers = Trackers()
    with together():  # before anything is compiled
        if is_first():
            names = loop.writers if first_step < loop.steps else ()
            trackers = open_trackers(names, writers, run.trackers, to_dict(config))
    with trackers, contextlib.ExitStack() as stack:
        if first_step < loop.steps:
            before = time.monotonic()
            update = jit_update(task, optimizer, loop, mesh, shardings)
            arguments = {b: abstract_arguments(task, arrays, b, on_batch) for b in pipeline.buckets}
            stop = stop_shape(mesh)
            programs = StepPrograms(update, abstract, arguments, mesh, frozen, stop)
            stack.callback(programs.close)
            # The largest decides whether the run fits.
            needed = pipeline.needed(first_step, loop.steps)
            largest = max(needed, key=lambda bucket: (task.work(bucket).cells, bucket.frames))
            with together():
                size = programs.compile_first([needed[0], largest])
            evaluation = Evaluation.make(task, held_out, loop, on_batch, judge)
            if loop.keep_best:
                evaluation.check(loop.keep_best, abstract.ema, arrays, sample_id, frozen)
            facts = {"parameters": parameters, "compile_s": time.monotonic() - before}
            if summary is not None:
                summary = summary.of_run(config, first_step, parameters, task.frozen, mesh, size)
                facts["summary"] = summary.facts
                if is_first():
                    print("\n".join(summary.lines()), file=sys.stderr)
            programs.compile_behind(needed)
            guard = LossGuard(loop, data.get("guard"))
            asked = stack.enter_context(stop_later())
            while True:
                log = RunLog(
                    run,
                    config,
                    task,
                    pipeline,
                    checkpoints,
                    first_step,
                    facts,
                    guard,
                    trackers,
                    Rates(flops_per_s(mesh, loop.compute_dtype)),
                )
                try:
                    state, last = take_steps(
                        task,
                        pipeline,
                        loop,
                        on_batch,
                        programs,
                        state,
                        frozen,
                        log,
                        evaluation,
                        asked,
                    )
                    break
                except LossSpike as spike:
                    # Its frames hold a state, and two do not fit on the devices.
                    found = spike.with_traceback(None)
                del state
                if stopping := asked_to_stop(asked, log):
                    raise Stopped(stopping)  # the run goes back when it goes on
                state, data = begin(LATEST_GOOD)
                first_step = int(state.step)
                guard.check_rollbacks(found, first_step)
                back = f"{found}. Back to step {first_step}, to go on without that batch"
                log.rollback(found.step, back)
                guard = LossGuard(loop, data.get("guard"), {*guard.left_out, found.step})
    task.finish(run, state.ema, pipeline, trained=bool(last))
    return {
        "objective": config.objective,
        "workdir": str(run.path),
        "step": int(state.step),
        "parameters": parameters,
        "wall_s": round(time.monotonic() - started, 1),
        **{name: round(value, 5) for name, value in last.items()},
    }


def check_state(
    run: RunFolder,
    config: Run,
    task: Task,
    pipeline: Pipeline,
    mesh: Mesh,
    restore: Step = LATEST,
) -> None:
    """Check that a run can go on from its checkpoint with a configuration that has changed.

    Args:
      run, config, task, pipeline, mesh, restore: see `fit`; the mesh is the current one.

    Raises:
      UserError: parameters or the optimiser's state would have other shapes than the checkpoint.
    """
    optimizer = task.optimizer(config.optimizer, config.loop.steps)
    arrays, _ = task.to_device(pipeline.batch(0), batch_sharding(mesh))
    key = put(jax.random.key(config.loop.seed), replicated(mesh))
    here = array_shapes(abstract_state(task, optimizer, mesh, key, arrays)[0])
    there = run.checkpoints().shapes(restore)
    differing = [
        f"{name}: {there.get(name, 'not there')} -> {here.get(name, 'not there')}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
        and not (task.may_grow(name) and _longer(there.get(name, ()), here.get(name, ())))
    ]
    if differing:
        listed = "\n  ".join(differing[:3])
        raise UserError(
            f"the run in {run.path} cannot go on with the changed configuration: {len(differing)} "
            f"of {len(here)} arrays of its state differ (there -> here):\n  {listed}\nleave the "
            "keys that they depend on as they were, choose another folder, or start again with "
            "--overwrite"
        )


def grow(state: TrainState, new: TrainState) -> TrainState:
    """Append, to arrays with fewer rows than those of a new state, the latter's other rows."""

    def longer(old: Array, new: Array) -> Array:
        if old.shape == new.shape:
            return old
        return jax.device_put(jnp.concatenate([old, new[len(old) :]]), new.sharding)

    return jax.tree.map(longer, state, new)


def _longer(there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    return bool(there and here) and there[0] < here[0] and there[1:] == here[1:]


def take_steps(
    task: Task,
    pipeline: Pipeline,
    loop: LoopConfig,
    on_batch: jax.sharding.NamedSharding,
    programs: StepPrograms,
    state: TrainState,
    frozen: Params,
    log: RunLog,
    evaluation: Evaluation,
    asked: list[int],
) -> tuple[TrainState, dict[str, float]]:
    """Take the steps from the state's to the last; return (state, the last metrics).

    `asked` fills with the signal that asks this process to stop, see `signals.stop_later`.
    """
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(log.run.path, loop.stall_timeout_s))
        stack.enter_context(log)
        first_step, everywhere = int(state.step), state.step.sharding
        turn = put(np.int32(first_step), everywhere)
        read = stack.enter_context(contextlib.closing(pipeline.iterate(first_step)))
        batches = stack.enter_context(Ahead(read, lambda item: task.put(item[1], on_batch)))
        profiler = stack.enter_context(Profiler(log.run.path / "profile", loop.profile_steps))
        known: dict[Bucket, Callable] = {}  # the programs that all processes have

        def program(bucket: Bucket) -> Callable:
            """Return a bucket's step; Stopped if the process is asked to stop while it waits."""
            if bucket not in known:
                alone = jax.process_count() == 1
                with log.apart(), watchdog.paused(f"step {step}"), together():
                    take = programs.get(bucket, lambda: alone and asked)
                if take is None:
                    raise Stopped(asked[0])
                known[bucket] = take
            return known[bucket]

        def save_reached() -> None:
            watchdog.beat(f"the checkpoint after step {step}")
            reached = int(jax.device_get(state.step))
            if reached > first_step:  # what was loaded or initialised needs no checkpoint
                log.save(reached, state, last=True)

        # A transfer that nobody asked for would stall every step.
        stack.enter_context(jax.transfer_guard("disallow"))
        while True:
            asked_at = time.monotonic()
            (step, batch), (arrays, sample_id) = next(batches)
            log.waited(time.monotonic() - asked_at)
            done = step + 1
            watchdog.beat(f"step {step}")
            profiler.before(step)
            metrics = None
            try:
                if step in log.guard.left_out:
                    log.flush_metrics()  # if the step before stops the run, its number is saved
                    # Two arrays: the state's is donated to the next step.
                    turn, reached = (put(np.int32(done), everywhere) for _ in range(2))
                    state = dataclasses.replace(cast(Any, state), step=reached)
                else:
                    stop = stop_votes(cast(Mesh, on_batch.mesh), asked)
                    arrays = task.for_step(arrays, on_batch)
                    try:
                        if jax.process_count() == 1:  # several must learn of it in the same step
                            programs.check()
                        take = program(pipeline.bucket(step))
                    except (Exception, Stopped):  # there is no program for this step
                        log.flush_metrics()
                        save_reached()
                        raise
                    state, metrics, turn = take(state, arrays, sample_id, frozen, turn, stop)
                    if done < loop.steps and not task.batches_compute:
                        batches.begin()
                profiler.after(step, state)
                log.dispatched(step, batch, metrics)
                best = False
                if evaluation.due(done):
                    watchdog.beat(f"the evaluation after step {step}")
                    with log.apart():
                        figures = evaluation(done, state, frozen, log)
                    log.flush_metrics(figures)
                    best = log.is_best()
                stopping = asked_to_stop(asked, log)
                last = stopping > 0 or done == loop.steps
                due = last or best or done % loop.checkpoint_every == 0
                if due:
                    log.flush_metrics()
            except NonFiniteLoss:
                save_reached()
                raise
            log.check_save()
            if due:
                watchdog.beat(f"the checkpoint of step {done}")
                log.save(done, state, last)
                if stopping and done < loop.steps:
                    raise Stopped(stopping)
            if done == loop.steps:
                break
            watchdog.stepped(f"the batch of step {done}")
        watchdog.beat("the end of the run")
    return state, log.last


def asked_to_stop(asked: list[int], log: RunLog) -> int:
    """Return the signal by which the run is asked to stop, 0 for none: the same in all processes,
    of which each knows from the step that was looked at last whether one was asked."""
    return asked[0] if asked and jax.process_count() == 1 else log.stop


def stop_shape(mesh: Mesh) -> jax.ShapeDtypeStruct | None:
    """Return the shape of `stop_votes`."""
    if jax.process_count() == 1:
        return None
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=sharding)


def stop_votes(mesh: Mesh, asked: list[int]) -> Array | None:
    """Return one number a device of several processes: the signal by which its process was asked to
    stop, or 0. A process alone needs none: None."""
    shape = stop_shape(mesh)
    if shape is None:
        return None
    mine = np.full(len(mesh.local_devices), asked[0] if asked else 0, np.int32)
    # Asked for, which jax does not see where there are several processes.
    with jax.transfer_guard("allow"):
        return jax.make_array_from_process_local_data(shape.sharding, mine)


class Profiler:
    """Traces some steps for xprof; a context that ends a trace that is still open."""

    def __init__(self, folder: Any, steps: tuple[int, int] | None):
        self.folder, self.steps, self.tracing = folder, steps, False

    def before(self, step: int) -> None:
        """Begin the trace with its first step."""
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True

    def after(self, step: int, state: TrainState) -> None:
        """End the trace when its last step is done on the device."""
        if self.tracing and self.steps and step >= self.steps[1]:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stop()
