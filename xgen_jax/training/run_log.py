"""Metrics, times and checkpoints that a run writes while it trains."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from xgen_jax.config.runs import Run
from xgen_jax.data.pipeline import Batch, Pipeline
from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import is_first
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.runs.folder import RUN, RunFolder, describe_machine
from xgen_jax.training.metric_writers import (
    ConsoleWriter,
    JsonlWriter,
    MetricWriters,
    TensorBoardWriter,
)
from xgen_jax.training.state import TrainState
from xgen_jax.training.tasks.base import Task

SHOWN = ("loss", "psnr_db", "disc_loss", "held_out_loss", "held_out_psnr_db")  # on the console


class NonFiniteLoss(UserError):
    """The loss or its gradient is NaN or infinite; the state before that step is intact.

    Attributes:
      step: the step that was not applied.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class RunLog:
    """The writers of a run. A context that finishes a save under way, whatever ends the run.

    Attributes:
      run: the folder.
      last: metrics of the last step that was looked at.
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
    ):
        """Open the writers.

        Args:
          run, config, task, pipeline, checkpoints: of the run.
          first_step: updates made so far.
          facts: entries of run.json besides machine and times.
        """
        self.run, self.last = run, {}
        self._loop, self._task, self._pipeline = config.loop, task, pipeline
        self._checkpoints = checkpoints
        self._facts = {**describe_machine(), **facts}
        before = run.read_json(RUN) if first_step and (run.path / RUN).is_file() else {}
        self._spent_before_s = before.get("wall_s", 0.0)
        self._started_s = self._mark_s = time.monotonic()
        self._mark_step = first_step
        self._pending: tuple[int, Batch, Any] | None = None
        self._reported = pipeline.report()
        self._writers = MetricWriters()
        if is_first():  # it writes for all
            self._writers = MetricWriters(
                ConsoleWriter(config.loop.steps, config.objective, first_step, SHOWN),
                JsonlWriter(run.metrics, first_step + 1),  # rows carry the number of updates made
                TensorBoardWriter(run.path / "tensorboard", first_step + 1),
            )

    def dispatched(self, step: int, batch: Batch, metrics: Any) -> None:
        """Note the metrics of a step on the device, to be looked at by `flush_metrics`."""
        self._pending = (step, batch, metrics)

    def flush_metrics(self, extra: Mapping[str, float] | None = None) -> None:
        """Look at the step dispatched last, and write its metrics if a row is due.

        Args:
          extra: figures of an evaluation after that step, which make a row due.

        Raises:
          NonFiniteLoss: the loss or the gradient of that step is not finite.
        """
        if self._pending is None:
            return
        (step, batch, metrics), self._pending = self._pending, None
        self.last = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(step, batch)
        self.last |= extra or {}
        done = step + 1
        if extra or done % self._loop.log_every == 0 or done == self._loop.steps:
            now = time.monotonic()
            speed = (done - self._mark_step) / max(now - self._mark_s, 1e-9)
            self._mark_s, self._mark_step = now, done
            self._writers.write(
                done, {**self.last, "steps_per_s": speed, "time_s": self._elapsed_s()}
            )
        else:
            self._writers.progress(done, self.last)

    def preview(self, step: int, path: Any) -> None:
        """Show a preview's GIF in TensorBoard."""
        self._writers.image(step, "preview", path)

    def save(self, step: int, state: TrainState) -> None:
        """Start to save a checkpoint."""
        self._report_clips()
        # The times first, so that no checkpoint is without them.
        if is_first():
            self.run.write_facts({**self._facts, "wall_s": self._elapsed_s()})
        data = {**self._pipeline.state(step), "fingerprints": self._task.fingerprints()}
        with jax.transfer_guard("allow"):
            self._checkpoints.save(step, state, data)

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

    def _check_finite(self, step: int, batch: Batch) -> None:
        if np.isfinite(self.last["loss"]) and np.isfinite(self.last["grad_norm"]):
            return
        bucket = self._pipeline.bucket(step)
        names = ", ".join(name for name, value in self.last.items() if not np.isfinite(value))
        raise NonFiniteLoss(
            f"step {step}: loss {self.last['loss']}, gradient norm {self.last['grad_norm']}, "
            f"bucket {bucket.name}, samples {batch['index'].tolist()}; not finite: {names}. The "
            "step was not applied; the run goes on from it with the same command. Lower the "
            "learning rate (--config.optimizer.learning_rate=... --accept_changes), or look at "
            "those samples",
            step,
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        try:
            self._checkpoints.wait()
        finally:
            self._writers.close()
