"""The training loop: one for every task.

Order within a step: fetch a batch, dispatch the update, only then look at the metrics of the step
before, so that the device never waits for the host. An update that is not finite was not applied,
and stops the run with the step, the bucket and the samples.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import jax
from jax.sharding import Mesh

from xgen_jax.config.runs import LoopConfig, Run
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.parallel.sharding import batch_sharding, replicated, tree_shardings
from xgen_jax.runs.folder import RunFolder
from xgen_jax.training.compiled import abstract_arguments, compile_ahead, jit_update
from xgen_jax.training.evaluation import Evaluation
from xgen_jax.training.run_log import RunLog
from xgen_jax.training.state import TrainState, abstract_state, start_state
from xgen_jax.training.tasks.base import Task
from xgen_jax.typing import Params


def fit(
    run: RunFolder,
    config: Run,
    task: Task,
    pipeline: Pipeline,
    mesh: Mesh,
    held_out: Pipeline | None = None,
    start: Params | None = None,
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

    Returns:
      A summary: step, parameters, seconds spent here, the last metrics.

    Raises:
      NonFiniteLoss: that step was not applied; the newest checkpoint is as it was.
    """
    started = time.monotonic()
    loop, on_batch = config.loop, batch_sharding(mesh)
    optimizer = task.optimizer(config.optimizer, loop.steps)
    checkpoints = run.checkpoints(loop.keep_checkpoints)
    # Shapes, then shardings, then values: every array is made on its own devices.
    arrays, _ = task.to_device(pipeline.batch(0), on_batch)
    key = jax.device_put(jax.random.key(loop.seed), replicated(mesh))
    abstract, shardings = abstract_state(task, optimizer, mesh, key, arrays)
    if checkpoints.steps():
        state, _ = checkpoints.restore(abstract)
    else:
        state = start_state(task, optimizer, shardings, key, arrays, start)
    frozen = jax.device_put(task.frozen, tree_shardings(task.frozen, mesh))
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
        first_step = int(state.step)
        batches = stack.enter_context(contextlib.closing(pipeline.iterate(first_step)))
        profiler = stack.enter_context(Profiler(log.run.path / "profile", loop.profile_steps))
        interrupted = stack.enter_context(caught_signals())
        # A transfer that nobody asked for would stall every step.
        stack.enter_context(jax.transfer_guard("disallow"))
        for step, batch in batches:
            profiler.before(step)
            arrays, sample_id = task.to_device(batch, on_batch)
            state, metrics = steps[pipeline.bucket(step)](state, arrays, sample_id, frozen)
            log.flush_metrics()  # of the step before; the device works on this one
            log.dispatched(step, batch, metrics)
            done = step + 1
            profiler.after(step, state)
            if evaluation.due(done):
                log.flush_metrics(evaluation(done, state, frozen, log))
            if interrupted or done % loop.checkpoint_every == 0 or done == loop.steps:
                log.flush_metrics()
                log.save(done, state)
                if interrupted and done < loop.steps:
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
