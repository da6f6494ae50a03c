"""Metrics, times and checkpoints that a run writes while it trains."""

import contextlib
import datetime
import functools
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax

from xgen_jax.config.loop import better
from xgen_jax.config.runs import Run
from xgen_jax.data.pipeline import Batch, Pipeline
from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import is_first
from xgen_jax.runs.checkpoint import Checkpoints, FailedSave
from xgen_jax.runs.folder import CONFIG, RunFolder, describe_machine
from xgen_jax.training.compiled import StepMetrics
from xgen_jax.training.loss_guard import LossGuard
from xgen_jax.training.metric_writers import (
    ConsoleWriter,
    JsonlWriter,
    MetricWriter,
    MetricWriters,
    TensorBoardWriter,
)
from xgen_jax.training.metric_writers.trackers import Trackers
from xgen_jax.training.rates import Rates
from xgen_jax.training.state import TrainState
from xgen_jax.training.tasks.base import Task

EVENTS = 200  # newest ones in run.json
SHOWN = (
    "loss",
    "psnr_db",
    "disc_loss",
    "held_out_loss",
    "held_out_psnr_db",
    "held_out_accuracy_all",
)  # on the console


class RunLog:
    """The writers of a run. A context that finishes a save under way, whatever ends the run.

    Attributes:
      run: the folder.
      last: metrics of the last step that was looked at.
      guard: what it does about losses that are not finite, or too high.
      stop: signal that stops all processes, 0 for none: the metric "stop" of that step.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Run,
        task: Task,
        pipeline: Pipeline,
        checkpoints: Checkpoints,
        first_step: int,
        facts: Mapping[str, Any],
        guard: LossGuard,
        trackers: Trackers,
        rates: Rates,
    ):
        """Open the writers.

        Args:
          run, config, task, pipeline, checkpoints: of the run.
          first_step: updates made so far.
          facts: entries of run.json besides machine and times.
          guard: of the losses, as it was after `first_step`.
          trackers: from `open_trackers`; they outlive this log.
          rates: of the steps from here on.
        """
        self.run, self.last, self.guard, self.stop = run, {}, guard, 0
        self._loop, self._task, self._pipeline = config.loop, task, pipeline
        self._checkpoints = checkpoints
        before = run.facts()
        self._facts = {**describe_machine(), **facts}
        if "events" in before:
            self._facts["events"] = before["events"]
        self._spent_before_s = before.get("wall_s", 0.0) if first_step else 0.0
        self._started_s = time.monotonic()
        self._rates, self._work = rates, functools.cache(task.work)
        self._done = first_step  # updates dispatched, those of steps that are left out among them
        self._pending: tuple[int, Batch, StepMetrics] | None = None
        self._held_out: tuple[int, Mapping[str, float]] = first_step, {}
        self._best: float | None = None
        if name := config.loop.keep_best:
            best = checkpoints.best_step(name)
            self._best = None if best is None else checkpoints.figures(best)[name]
        self._reported = pipeline.report()
        self._writers = MetricWriters()
        self._trackers = trackers
        trackers.report_to(self.note)
        if is_first():  # it writes for all
            first_row = first_step + 1  # rows carry the number of updates made
            loop, name = config.loop, config.objective
            files: dict[str, Callable[[], MetricWriter]] = {
                "console": lambda: ConsoleWriter(loop.steps, name, first_step, SHOWN),
                "jsonl": lambda: JsonlWriter(run.metrics, first_row),
                "tensorboard": lambda: TensorBoardWriter(run.path / "tensorboard", first_row),
            }
            self._writers = MetricWriters(*(files[n]() for n in loop.writers if n in files))

    def waited(self, seconds: float) -> None:
        """Note that the next batch was waited for."""
        self._rates.waited(seconds)

    @contextlib.contextmanager
    def apart(self) -> Generator[None]:
        """Leave the time inside out of the rates, from when the step dispatched last is done."""
        if self._pending is not None:
            self._pending[2].wait()
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._rates.leave_out(time.monotonic() - began_s)

    def dispatched(self, step: int, batch: Batch, metrics: StepMetrics | None) -> None:
        """Look at the step before, while the device works on this one, and note this one.

        Args:
          step, batch: that were dispatched.
          metrics: on the device, for the next look; None if the step is left out.

        Raises:
          NonFiniteLoss, LossSpike, UserError: see `flush_metrics`, of the step before.
        """
        if self._pending is not None:
            self._pending[2].wait()
        work = None if metrics is None else self._work(self._pipeline.bucket(step))
        self._rates.mark(step, time.monotonic(), work)
        self.flush_metrics()
        self._done = step + 1
        self._pending = None if metrics is None else (step, batch, metrics)

    def flush_metrics(self, extra: Mapping[str, float] | None = None) -> None:
        """Look at the step dispatched last, and write its metrics if a row is due.

        Args:
          extra: figures of an evaluation after that step, which make a row due.

        Raises:
          NonFiniteLoss, LossSpike: see `LossGuard`.
          UserError: the disk is full.
        """
        done = self._done
        if self._pending is None:
            if extra:  # after a step that was left out, which has no metrics
                self._held_out = done, extra
                self._write(extra)
            return
        (step, batch, metrics), self._pending = self._pending, None
        self.last = metrics.fetch()
        self.stop = int(self.last.pop("stop", 0))
        where = f"bucket {self._pipeline.bucket(step).name}, samples {batch['index'].tolist()}"
        if skipped := self.guard.check(step, self.last, where):
            self.note("skipped", step, skipped)
        if extra:
            self._held_out = done, extra
            self.last |= extra
        if extra or done % self._loop.log_every == 0 or done == self._loop.steps:
            self._write({**self.last, **self._rates.read()})
        else:
            self._writers.progress(done, self.last)
            self._trackers.progress(done, self.last)

    def _write(self, metrics: Mapping[str, float]) -> None:
        row = {**metrics, "time_s": self._elapsed_s()}
        self._trackers.write(self._done, row)
        try:
            self._writers.write(self._done, row)
        except OSError as error:
            raise UserError(
                f"{self.run.metrics} cannot be written ({error.strerror}); the newest "
                "checkpoint is intact, and the same command goes on from it"
            ) from error

    def preview(self, step: int, path: Any) -> None:
        """Show a preview's GIF with every writer that can."""
        self._writers.image(step, "preview", path)
        self._trackers.image(step, "preview", path)

    def is_best(self) -> bool:
        """Return whether the last evaluation has the best value so far of `loop.keep_best`."""
        name = self._loop.keep_best
        if name is None:
            return False
        value = self._held_out[1][name]
        best = value == value and (self._best is None or better(name, value, self._best))
        self._best = value if best else self._best
        return best

    def check_save(self) -> None:
        """Report the save under way if it has failed; the run goes on."""
        try:
            self._checkpoints.poll()
        except FailedSave as error:
            self._failed(error)

    def save(self, step: int, state: TrainState, last: bool = False) -> None:
        """Start to save a checkpoint.

        Args:
          step: updates made.
          state: after them.
          last: nothing is trained after it: wait until it is on disk.

        Raises:
          FailedSave: the last one could not be written. Others are reported, and the run goes on.
          UserError: the folder of the run has gone.
        """
        self._report_clips()
        if not (self.run.path / CONFIG).is_file():
            raise UserError(
                f"the run folder {self.run.path} has gone while step {step} was trained: "
                f"it holds no {CONFIG}"
            )
        # The times first, so that no checkpoint is without them.
        self._write_facts()
        data = {**self._pipeline.state(step), "fingerprints": self._task.fingerprints()}
        if guard := self.guard.state():
            data["guard"] = guard
        if self._held_out[1] and self._held_out[0] == step:
            data["held_out"] = dict(self._held_out[1])
        try:
            self._checkpoints.wait()
        except FailedSave as error:
            self._failed(error)
        try:
            with jax.transfer_guard("allow"):
                self._checkpoints.save(step, state, data)
            if last:
                self._checkpoints.wait()
        except FailedSave as error:
            if last:
                raise
            self._failed(error)

    def note(self, event: str, step: int, message: str) -> None:
        """Print what happened, and add it to the events in run.json with the next checkpoint."""
        print(f"\n{message}", file=sys.stderr)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {"event": event, "step": step, "date": date, "message": message}
        self._facts["events"] = [*self._facts.get("events", []), row][-EVENTS:]

    def rollback(self, step: int, message: str) -> None:
        """Note that the run goes back because of a step."""
        self.note("rollback", step, message)
        self._write_facts()

    def _failed(self, error: FailedSave) -> None:
        self.note("failed_save", error.step, f"{error} The run goes on; the next one may succeed")
        self._write_facts()

    def _write_facts(self) -> None:
        if not is_first():
            return
        try:
            self.run.write_facts({**self._facts, "wall_s": self._elapsed_s()})
        except UserError as error:  # a record of times stops no run
            print(f"\n{error}", file=sys.stderr)

    def _report_clips(self) -> None:
        """Print, and note in run.json, clips that turned out to be unusable while training."""
        if (report := self._pipeline.report()) == self._reported:
            return
        new = [line for line in report.splitlines() if line not in self._reported.splitlines()]
        print("\n" + "\n".join(new), file=sys.stderr)
        self._reported = report
        summary = self._facts.get("summary", {})
        self._facts["summary"] = {**summary, "left_out": report.splitlines()}

    def _elapsed_s(self) -> float:
        return self._spent_before_s + time.monotonic() - self._started_s

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: Any, *exc_info: Any) -> None:
        """Finish; an error here never hides the one that ends the run."""
        failed: Exception | None = None
        for finish in (self._checkpoints.wait, self._writers.close):
            try:
                finish()
            except (UserError, OSError) as error:
                failed = failed or error
        if failed is not None and kind is None:
            raise failed
        if failed is not None:
            print(f"\n{failed}", file=sys.stderr)
