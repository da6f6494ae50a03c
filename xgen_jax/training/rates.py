"""How fast a run trains: steps, tokens or frames a second, use of the devices, wait for data."""

from collections.abc import Mapping

from jax.sharding import Mesh

from xgen_jax.parallel.devices import peak_of
from xgen_jax.training.tasks.base import Work


class Rates:
    """Counts steps and their work between rows of metrics.

    An interval begins and ends where a step has just been dispatched and the one before has been
    waited for, whatever the device computes meanwhile: so it holds as many steps as it has
    finished. What is waited for otherwise (the last step, one before a checkpoint) makes no
    interval. Buckets differ in their work, so that of each step is added up. Saves are part of an
    interval; evaluations and waits for a program are left out.

    Args:
      flops_per_s: that all devices of the run can do together; None if that is not known.
    """

    def __init__(self, flops_per_s: float | None = None):
        self._flops_per_s = flops_per_s
        self._began: tuple[int, float] | None = None  # steps done, and when
        self._work: dict[str, int] = {}
        self._flops: float | None = 0.0  # None if that of a step is not known
        self._waited_s = 0.0
        self._left_out_s = self._pause_s = 0.0  # before the last mark, and since
        self._latest: tuple[int, float] | None = None
        self._ahead: Work | None = None
        self._values: dict[str, float] = {}

    def waited(self, seconds: float) -> None:
        """Note that the main thread has waited for a batch."""
        self._waited_s += seconds

    def leave_out(self, seconds: float) -> None:
        """Note a time that is no part of the interval that ends with the next mark."""
        self._pause_s += seconds

    def mark(self, step: int, now_s: float, work: Work | None) -> None:
        """Note that a step has been dispatched, and the one before waited for.

        Args:
          step: its number: updates made before it.
          now_s: on a clock that never decreases.
          work: of the step; None if it is left out.
        """
        before, self._ahead = self._ahead, work
        if self._began is None:
            # Nothing before the first step counts: neither its batch nor its program.
            self._began, self._waited_s, self._pause_s = (step, now_s), 0.0, 0.0
            return
        self._latest = step, now_s
        self._left_out_s, self._pause_s = self._left_out_s + self._pause_s, 0.0
        if before is not None:
            self._work[before.unit] = self._work.get(before.unit, 0) + before.count
            if self._flops is not None:
                self._flops = None if before.flops is None else self._flops + before.flops

    def read(self) -> Mapping[str, float]:
        """Return the rates since the last call, or those of then if no interval has ended since;
        none before the second step.

        Returns:
          `steps_per_s`; `tokens_per_s` or `frames_per_s`; `mfu`, useful operations a second of the
          peak, where both are known; `input_wait`, the fraction of the time.
        """
        if self._began is None or self._latest is None:
            return self._values
        (before, start_s), (done, now_s) = self._began, self._latest
        seconds = max(now_s - start_s - self._left_out_s, 1e-9)
        self._values = {"steps_per_s": (done - before) / seconds}
        self._values |= {f"{unit}_per_s": count / seconds for unit, count in self._work.items()}
        if self._flops_per_s is not None and self._flops is not None:
            self._values["mfu"] = self._flops / seconds / self._flops_per_s
        self._values["input_wait"] = min(self._waited_s / seconds, 1.0)
        self._began, self._latest = self._latest, None
        self._work, self._flops = {}, 0.0
        self._waited_s = self._left_out_s = 0.0
        return self._values


def flops_per_s(mesh: Mesh, dtype: str) -> float | None:
    """Return the operations a second of all devices of a mesh; None if not known, as of a CPU."""
    peak = peak_of(mesh.devices.flat[0])
    return None if peak is None else mesh.size * peak.flops(dtype)
