"""Metric writers: console, JSON lines and TensorBoard behind one `write`.

A metric is a float with a name that carries its unit (`steps_per_s`, `time_s`, `psnr_db`). `write`
records a step's metrics on disk; `progress` only shows the step and is cheap enough to be called on
every step. Nothing here imports JAX or TensorFlow, so that a writer never waits for a
device: the caller passes numbers it has already fetched.
"""

import collections
import contextlib
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write

RESERVED = ("step", "nonfinite")


class MetricWriter(Protocol):
    """Protocol of the writers behind `MetricWriters`, which documents the methods."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def progress(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, path: pathlib.Path) -> None: ...

    def close(self) -> None: ...


class MetricWriters:
    """Several writers as one; a context manager that closes every writer, even if one fails.

    Args:
      *writers: the writers, called in this order and closed in the opposite one.
    """

    def __init__(self, *writers: MetricWriter):
        self.writers = writers
        self._stack = contextlib.ExitStack()
        for writer in writers:
            self._stack.callback(writer.close)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` of `step` with every writer."""
        for writer in self.writers:
            writer.write(step, metrics)

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that the run has reached `step`; record nothing."""
        for writer in self.writers:
            writer.progress(step, metrics)

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Show an image file, a GIF for one that moves, with the writers that can."""
        for writer in self.writers:
            writer.image(step, name, path)

    def close(self) -> None:
        """Close every writer; a second call does nothing."""
        self._stack.close()

    def __enter__(self) -> "MetricWriters":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()


class ConsoleWriter:
    """Progress for people: a bar on a terminal, a plain line every few seconds in a log file.

    Both show the step, the metrics named in `show`, the speed over the last half minute and the
    time left; the last state is printed as a line of its own at close. The speed is the caller's
    `steps_per_s` where it is given.

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
        return parts if speed is None else [*parts, f"{speed:.3g} {self.unit}/s"]

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


class JsonlWriter:
    """Write a JSON object a line, flushed: `{"step": 10, "loss": 0.5, "steps_per_s": 8.1}`.

    NaN and infinities are not JSON: such a value is written as null and named under `nonfinite`, as
    `{"loss": null, "nonfinite": {"loss": "nan"}}`; `read_jsonl` puts it back.

    Args:
      path: the file; it is appended to, folders are made.
      first_step: the first step that this run will write. Lines from there on were written by a run
        that got further than its last checkpoint; they are dropped, in one atomic replacement. None
        drops no line.

    Raises:
      UserError: a line other than the last is not a JSON object with a step. The last one may be
        torn (the run was killed while writing it) and is then dropped.
    """

    def __init__(self, path: str | os.PathLike, first_step: int | None = None):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._repair(first_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step as a line."""
        taken = [name for name in metrics if name in RESERVED]
        if taken:
            raise ValueError(f"a metric cannot be called {taken[0]!r}: the name is the writer's")
        values = {name: _number(value) for name, value in metrics.items()}
        nonfinite = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        row: dict[str, Any] = {"step": int(step)}
        row |= {name: None if name in nonfinite else value for name, value in values.items()}
        if nonfinite:
            row["nonfinite"] = nonfinite
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: progress is not recorded."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Do nothing: the file is in the run's folder."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def _repair(self, first_step: int | None) -> None:
        text = self.path.read_bytes()
        kept = [
            line
            for line, row in _lines(self.path, text)
            if first_step is None or row["step"] < first_step
        ]
        repaired = b"".join(line + b"\n" for line in kept)
        if repaired == text:
            return
        with atomic_write(self.path, durable=True) as temporary:
            temporary.write_bytes(repaired)


class TensorBoardWriter:
    """Scalars for TensorBoard, through tensorboardX.

    Args:
      directory: the folder of the event files.
      first_step: the first step that this run will write; TensorBoard then hides what an
        interrupted run wrote from there on. None hides nothing.
    """

    def __init__(self, directory: str | os.PathLike, first_step: int | None = None):
        # Here and not above: it pulls in protobuf, which a run that does not want TensorBoard
        # should not wait for.
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary

        self._writer = SummaryWriter(str(directory), purge_step=first_step)
        self._summary = Summary

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, _number(value), int(step))

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: progress is not recorded."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Add an image file as it is, so that a GIF moves."""
        image = self._summary.Image(colorspace=3, encoded_image_string=path.read_bytes())
        summary = self._summary(value=[self._summary.Value(tag=name, image=image)])
        file_writer: Any = self._writer.file_writer
        file_writer.add_summary(summary, int(step))

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        self._writer.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, float]]:
    """Read the rows of a file written by `JsonlWriter`, in order; the run may be in progress.

    NaN and infinities are floats again and a torn last line is left out.

    Raises:
      UserError: no such file, or a line other than the last is not a JSON object with a step.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the metrics of a run")
    rows = []
    for _, row in _lines(path, path.read_bytes()):
        row.update({name: float(value) for name, value in row.pop("nonfinite", {}).items()})
        rows.append(row)
    return rows


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


def _number(value: Any) -> float:
    """Convert a Python, NumPy or JAX scalar to a Python number; integers stay integers."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def _lines(path: pathlib.Path, text: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Return lines with the objects in them, without a torn last line."""
    lines = text.split(b"\n")
    # After the last newline comes nothing, or a line that a killed run was writing.
    lines.pop()
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0  # noqa: B018  (an object with a numeric step, or an exception)
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}: {line[:80]!r} is not a JSON object with a step; remove "
                "the line, or move the file away to begin a new one"
            ) from None
        parsed.append((line, row))
    return parsed
