"""What every metric writer does, and several writers as one."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol


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


def number(value: Any) -> float:
    """Convert a Python, NumPy or JAX scalar to a Python number; integers stay integers."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
