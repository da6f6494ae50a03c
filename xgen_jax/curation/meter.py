"""What a stage measures of a video while it is decoded, and rows of what was measured."""

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

# Columns of equal length by name; "time_s" float64, seconds since the start of the video, is one.
Columns = Mapping[str, Any]


class Meter(abc.ABC):
    """Measures the frames of one video, which come in increasing time.

    Attributes:
      every_s: seconds between the frames that it is given; 0 for every frame.
      side: pixels of the longer side of these frames at most; 0 for frames as they are. Frames of
        every frame's meters are scaled fast, the others exactly.
    """

    every_s: float = 0.0
    side: int = 0

    @abc.abstractmethod
    def add(self, time_s: float, image: np.ndarray) -> None:
        """Measure a frame, uint8 (H, W, 3) RGB, upright and with square pixels."""

    @abc.abstractmethod
    def columns(self) -> Columns:
        """Return what was measured, in increasing time: NumPy arrays or typed Arrow arrays, so that
        an empty one has a type."""


def between(rows: Columns, start_s: float, end_s: float) -> dict[str, np.ndarray]:
    """Return the rows at start_s <= time_s < end_s, of columns that are NumPy arrays."""
    first, last = np.searchsorted(rows["time_s"], (start_s, end_s))
    return {name: values[first:last] for name, values in rows.items()}
