"""Progress for people, on a terminal or in a log file."""

import collections
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

SHOWN_WAIT = 0.01  # of the time; less than that is no wait for data


class ConsoleWriter:
    """Progress for people: a bar on a terminal, a plain line every few seconds in a log file.

    Both show the step, the metrics named in `show`, the speed over the last half minute and the
    time left; the last state is printed as a line of its own at close. The speed is the caller's
    `steps_per_s` where it is given; other metrics `UNIT_per_s` are shown next to it, `mfu` as a
    percentage, and `input_wait` from 1% on.

    Args:
      total_steps: the step at which the run ends.
      name: what is running, the first word of the line.
      first_step: the first step of this run, more than 0 when it was resumed.
      show: names of the metrics to show, those that are there.
      stream: where to print; standard error by default, standard output being kept for results.
      interval_s: seconds between two plain lines.
      clock: seconds from any origin, never decreasing.
      unit: what a step is called.
    """

    REDRAW_S = 0.1
    SPEED_WINDOW_S = 30.0

    def __init__(
        self,
        total_steps: int,
        name: str = "train",
        first_step: int = 0,
        show: Sequence[str] = ("loss",),
        stream: TextIO | None = None,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "steps",
    ):
        self.unit = unit
        self.total_steps = total_steps
        self.name = name
        self.show = tuple(show)
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.interval_s = self.REDRAW_S if self.live else interval_s
        self.clock = clock
        self._start_s = clock()
        self._drawn_s = -math.inf
        self._step = first_step
        self._latest: dict[str, float] = {}
        self._marks = collections.deque([(self._start_s, first_step)])
        self._closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics, as `progress` does."""
        self.progress(step, metrics)

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the numbers, and print them if the last print is old enough."""
        now = self.clock()
        self._step = step
        self._latest.update(metrics)
        if now > self._marks[-1][0] and step > self._marks[-1][1]:
            self._marks.append((now, step))
            # Two marks stay in any case, else a run with steps slower than the window would have no
            # speed.
            while len(self._marks) > 2 and now - self._marks[0][0] > self.SPEED_WINDOW_S:
                self._marks.popleft()
        if now - self._drawn_s >= self.interval_s:
            self._drawn_s = now
            if self.live:
                self._print(f"\r{self._bar()}\x1b[K")
            else:
                self._print(self._line() + "\n")

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Do nothing: a console shows no images."""

    def close(self) -> None:
        """Print the last state and the duration of the run; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        parts = [
            f"{self.name} {self._step}/{self.total_steps}",
            *self._numbers(),
            f"in {duration(self._elapsed_s())}",
        ]
        self._print(("\r\x1b[K" if self.live else "") + "  ".join(parts) + "\n")

    def _elapsed_s(self) -> float:
        return self.clock() - self._start_s

    def _speed(self) -> float | None:
        if "steps_per_s" in self._latest:
            return float(self._latest["steps_per_s"])
        (start_s, start), (end_s, end) = self._marks[0], self._marks[-1]
        return (end - start) / (end_s - start_s) if end_s > start_s else None

    def _numbers(self) -> list[str]:
        parts = [
            f"{key} {float(self._latest[key]):.4g}" for key in self.show if key in self._latest
        ]
        speed = self._speed()
        if speed is not None:
            parts.append(f"{speed:.3g} {self.unit}/s")
        for name, value in self._latest.items():
            if name.endswith("_per_s") and name != "steps_per_s":
                parts.append(f"{quantity(value)} {name.removesuffix('_per_s')}/s")
        if "mfu" in self._latest:
            parts.append(f"MFU {100 * self._latest['mfu']:.3g}%")
        if (waited := self._latest.get("input_wait", 0.0)) >= SHOWN_WAIT:
            parts.append(f"input wait {100 * waited:.0f}%")
        return parts

    def _left(self) -> list[str]:
        speed = self._speed()
        if not speed or not math.isfinite(speed):
            return []
        return [f"{duration(max(self.total_steps - self._step, 0) / speed)} left"]

    def _line(self) -> str:
        return "  ".join(
            [f"{self.name} {self._step}/{self.total_steps}", *self._numbers(), *self._left()]
        )

    def _bar(self) -> str:
        columns = shutil.get_terminal_size().columns
        tail = "  ".join([f"{self._step}/{self.total_steps}", *self._numbers(), *self._left()])
        # One column stays free: some terminals wrap as soon as the last one is filled.
        width = min(40, columns - len(self.name) - len(tail) - 4)
        if width < 4:
            return f"{self.name} {tail}"[: columns - 1]
        done = round(width * min(max(self._step / max(self.total_steps, 1), 0.0), 1.0))
        full, empty = ("━", "─") if "utf" in (self.stream.encoding or "").lower() else ("#", "-")
        return f"{self.name} {full * done}{empty * (width - done)} {tail}"

    def _print(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def quantity(value: float) -> str:
    """Format a number to three digits with a suffix for thousands: `12.3`, `4.56k`, `1.2M`."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format seconds in two units at most: `8.2 s`, `4 min 05 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    for unit_s, unit, small_s, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= unit_s:
            rest = seconds % unit_s // small_s
            return (
                f"{seconds // unit_s} {unit} {rest:02d} {small}"
                if unit_s < 86400
                else f"{seconds // unit_s} d {rest} h"
            )
    return f"{seconds} s"
