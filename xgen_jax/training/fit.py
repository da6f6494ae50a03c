"""The training loop: one for every task.

Order within a step: fetch a batch, dispatch the update, only then look at the metrics of the step
before, so that the device never waits for the host. An update that is not finite was not applied,
neither is the one dispatched after it: the state before it is saved, and the run stops with the
step, the bucket and the samples.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.runs import LoopConfig, Run
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import StopVote, is_first
from xgen_jax.parallel.arrays import put
from xgen_jax.parallel.memory import program_bytes
from xgen_jax.parallel.sharding import batch_sharding, replicated, tree_shardings
from xgen_jax.runs.checkpoint import array_shapes
from xgen_jax.runs.folder import RunFolder
from xgen_jax.training.compiled import abstract_arguments, compile_ahead, jit_update
from xgen_jax.training.evaluation import Evaluation
from xgen_jax.training.run_log import NonFiniteLoss, RunLog
from xgen_jax.training.state import TrainState, abstract_state, start_state
from xgen_jax.training.summary import Summary
from xgen_jax.training.tasks.base import Task
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

    Returns:
      A summary: step, parameters, seconds spent here, the last metrics.

    Raises:
      NonFiniteLoss: that step was not applied; the newest checkpoint is the state before it.
    """
    started = time.monotonic()
    loop, on_batch = config.loop, batch_sharding(mesh)
    optimizer = task.optimizer(config.optimizer, loop.steps)
    checkpoints = run.checkpoints(loop.keep_checkpoints)
    # Shapes, then shardings, then values: every array is made on its own devices.
    arrays, _ = task.to_device(pipeline.batch(0), on_batch)
    key = put(jax.random.key(loop.seed), replicated(mesh))
    abstract, shardings = abstract_state(task, optimizer, mesh, key, arrays)
    if checkpoints.steps():
        # `check_state` has compared the arrays of a run that has changed; the rest may differ.
        restore = checkpoints.restore_arrays if run.changes() else checkpoints.restore
        state, _ = restore(abstract)
        if array_shapes(state) != array_shapes(abstract):
            state = grow(state, start_state(task, optimizer, shardings, key, arrays, start))
    else:
        state = start_state(task, optimizer, shardings, key, arrays, start)
    frozen = put(task.frozen, tree_shardings(task.frozen, mesh))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    first_step = int(state.step)
    last: dict[str, float] = {}
    if first_step < loop.steps:
        before = time.monotonic()
        update = jit_update(task, optimizer, loop, mesh, shardings)
        arguments = {b: abstract_arguments(task, arrays, b, on_batch) for b in pipeline.buckets}
        steps = compile_ahead(update, abstract, arguments, frozen)
        evaluation = Evaluation.make(task, held_out, loop, on_batch)
        facts = {"parameters": parameters, "compile_s": time.monotonic() - before}
        if summary is not None:
            size = max(program_bytes(cast(Any, step)) for step in steps.values())
            summary = summary.of_run(config, first_step, parameters, task.frozen, mesh, size)
            facts["summary"] = summary.facts
            if is_first():
                print("\n".join(summary.lines()), file=sys.stderr)
        log = RunLog(run, config, task, pipeline, checkpoints, first_step, facts)
        state, last = take_steps(
            task, pipeline, loop, on_batch, steps, state, frozen, log, evaluation
        )
    task.finish(run, state.ema, pipeline, trained=bool(last))
    return {
        "objective": config.objective,
        "workdir": str(run.path),
        "step": int(state.step),
        "parameters": parameters,
        "wall_s": round(time.monotonic() - started, 1),
        **{name: round(value, 5) for name, value in last.items()},
    }


def check_state(run: RunFolder, config: Run, task: Task, pipeline: Pipeline, mesh: Mesh) -> None:
    """Check that a run can go on from its newest checkpoint with a configuration that has changed.

    Args:
      run, config, task, pipeline, mesh: see `fit`; the mesh is the current one.

    Raises:
      UserError: parameters or the optimiser's state would have other shapes than the checkpoint.
    """
    optimizer = task.optimizer(config.optimizer, config.loop.steps)
    arrays, _ = task.to_device(pipeline.batch(0), batch_sharding(mesh))
    key = put(jax.random.key(config.loop.seed), replicated(mesh))
    here = array_shapes(abstract_state(task, optimizer, mesh, key, arrays)[0])
    there = run.checkpoints().shapes()
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
    steps: dict[Any, Callable],
    state: TrainState,
    frozen: Params,
    log: RunLog,
    evaluation: Evaluation,
) -> tuple[TrainState, dict[str, float]]:
    """Take the steps from the state's to the last; return (state, the last metrics)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(log)
        first_step, everywhere = int(state.step), state.step.sharding
        batches = stack.enter_context(contextlib.closing(pipeline.iterate(first_step)))
        profiler = stack.enter_context(Profiler(log.run.path / "profile", loop.profile_steps))
        interrupted = stack.enter_context(caught_signals())
        vote = StopVote()
        # A transfer that nobody asked for would stall every step.
        stack.enter_context(jax.transfer_guard("disallow"))
        for step, batch in batches:
            profiler.before(step)
            arrays, sample_id = task.to_device(batch, on_batch)
            place = put(np.int32(step), everywhere)
            state, metrics = steps[pipeline.bucket(step)](state, arrays, sample_id, frozen, place)
            done = step + 1
            profiler.after(step, state)
            stop = vote(bool(interrupted))
            try:
                log.flush_metrics()  # of the step before; the device works on this one
                log.dispatched(step, batch, metrics)
                if evaluation.due(done):
                    log.flush_metrics(evaluation(done, state, frozen, log))
                if stop or done % loop.checkpoint_every == 0 or done == loop.steps:
                    log.flush_metrics()
            except NonFiniteLoss as error:
                if error.step > first_step:  # what was loaded or initialised needs no checkpoint
                    log.save(error.step, state)
                raise
            if stop or done % loop.checkpoint_every == 0 or done == loop.steps:
                log.save(done, state)
                if stop and done < loop.steps:
                    raise KeyboardInterrupt
            if done == loop.steps:
                break
    return state, log.last


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


@contextlib.contextmanager
def caught_signals() -> Generator[list[int]]:
    """Give a list that fills when the process is asked to stop (Ctrl-C, a scheduler's SIGTERM), so
    that a step is finished and saved first; asked twice, the process stops at once. Python allows
    handlers in the main thread alone: elsewhere nothing is caught.
    """
    received: list[int] = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
