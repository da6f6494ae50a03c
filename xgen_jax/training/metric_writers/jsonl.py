"""Metrics as JSON lines: written by a run, and read again."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write
from xgen_jax.training.metric_writers.base import number

RESERVED = ("step", "nonfinite")


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
        values = {name: number(value) for name, value in metrics.items()}
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


def _lines(path: pathlib.Path, text: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """Return lines with the objects in them, without a torn last line."""
    lines = text.split(b"\n")
    # After the last newline comes nothing, or a line that a killed run was writing.
    lines.pop()
    parsed = []
    for place, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"] + 0  # noqa: B018  (an object with a numeric step, or an exception)
        except (ValueError, TypeError, KeyError):
            if place == len(lines):
                break
            raise UserError(
                f"{path}, line {place}: {line[:80]!r} is not a JSON object with a step; remove "
                "the line, or move the file away to begin a new one"
            ) from None
        parsed.append((line, row))
    return parsed
