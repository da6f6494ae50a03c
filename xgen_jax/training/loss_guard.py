"""What follows from a step's loss: a step is left out, a run goes back, or it stops.

All of it is a function of the losses and of what a checkpoint holds, so that a run that is killed
and resumed decides as one that is not.
"""

import collections
import math
import statistics
from collections.abc import Collection
from typing import Any

import numpy as np

from xgen_jax.config.loop import LoopConfig
from xgen_jax.errors import UserError

WINDOW = 128  # losses that a spike is compared with, as in OLMo and Levanter
LEAST = WINDOW // 2  # losses that it takes to tell a spike from noise
MAX_ROLLBACKS = 8  # from one checkpoint


class NonFiniteLoss(UserError):
    """The loss or its gradient is NaN or infinite; that step was not applied.

    Attributes:
      step: the step.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class LossSpike(UserError):
    """The loss of a step is far above those before it: the run goes back, without that batch.

    Attributes:
      step: the step.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class LossGuard:
    """Looks at the loss of every step, in order.

    Attributes:
      in_a_row: newest steps whose loss or gradient was not finite.
      left_out: steps whose batches are left out because of a spike.
    """

    def __init__(
        self,
        loop: LoopConfig,
        saved: dict[str, Any] | None = None,
        left_out: Collection[int] = (),
    ):
        """Begin, or go on.

        Args:
          loop: of the run.
          saved: what `state` returned when the checkpoint was saved.
          left_out: steps that have been found since then.
        """
        saved = saved or {}
        self._loop = loop
        self.in_a_row: int = saved.get("in_a_row", 0)
        self.left_out = {*saved.get("left_out", ()), *left_out}
        self._losses = collections.deque(saved.get("losses", ()), WINDOW)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, ready for JSON; {} for nothing."""
        values = {
            "in_a_row": self.in_a_row,
            "left_out": sorted(self.left_out),
            "losses": list(self._losses),
        }
        return {name: value for name, value in values.items() if value}

    def check(self, step: int, metrics: dict[str, float], batch: str) -> str | None:
        """Look at a step.

        Args:
          step: its number.
          metrics: with "loss" and "grad_norm".
          batch: its bucket and samples, in words.

        Returns:
          A note on a step that was left out, or None.

        Raises:
          NonFiniteLoss: more of those in a row than are allowed.
          LossSpike: see `LoopConfig.rollback_sigma`.
        """
        loss = metrics["loss"]
        if not (math.isfinite(loss) and math.isfinite(metrics["grad_norm"])):
            return self._not_finite(step, metrics, batch)
        self.in_a_row = 0
        sigma = self._loop.rollback_sigma
        if not sigma:
            return None
        if len(self._losses) >= LEAST:
            mean, deviation = statistics.fmean(self._losses), statistics.pstdev(self._losses)
            limit = mean + sigma * deviation
            if loss > limit:
                raise LossSpike(
                    f"step {step}: loss {loss:.6g}, {batch}; it is above {limit:.6g}, which is "
                    f"{sigma:g} standard deviations above the mean {mean:.6g} of the last "
                    f"{len(self._losses)} (loop.rollback_sigma)",
                    step,
                )
        self._losses.append(loss)
        return None

    def _not_finite(self, step: int, metrics: dict[str, float], batch: str) -> str:
        self.in_a_row += 1
        allowed = self._loop.skip_non_finite
        names = ", ".join(name for name, value in metrics.items() if not np.isfinite(value))
        what = (
            f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}, {batch}; "
            f"not finite: {names}. "
        )
        if self.in_a_row <= allowed:
            return f"{what}The step is left out, {self.in_a_row} in a row of {allowed} allowed"
        advice = (
            "Lower the learning rate (--config.optimizer.learning_rate=... --accept_changes), or "
            "look at those samples"
        )
        in_a_row, self.in_a_row = self.in_a_row, 0  # who goes on allows as many again
        if not allowed:
            raise NonFiniteLoss(
                f"{what}The step was not applied; the run goes on from it with the same command. "
                f"{advice}; --config.loop.skip_non_finite=N leaves out up to N such steps in a row",
                step,
            )
        raise NonFiniteLoss(
            f"{what}It is number {in_a_row} in a row, and loop.skip_non_finite={allowed} leaves "
            f"out {allowed}; none was applied, and the same command goes on after them. {advice}",
            step,
        )

    def check_rollbacks(self, spike: LossSpike, back_to: int) -> None:
        """Raise UserError if the run has gone back to a checkpoint too often."""
        since = [step for step in self.left_out if step >= back_to]
        if len(since) >= MAX_ROLLBACKS:
            raise UserError(
                f"{spike}. {len(since)} batches since the checkpoint of step {back_to} have been "
                "left out already, steps "
                f"{', '.join(map(str, sorted(since)))}: lower the learning rate, or raise "
                "loop.rollback_sigma"
            )
