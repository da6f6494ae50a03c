"""Frames by their presentation times: which are on display when, and the last ones again."""

import collections
import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")


def pick_frames(
    timed: Iterable[tuple[float, float, Frame]], start_s: float, fps: float | None, slack: float
) -> Iterator[Frame]:
    """Yield the frame on display at each output time: the latest whose own time is not after it.

    Args:
      timed: (seconds since the start of the stream, seconds on display, frame) in increasing time,
        from one that is not after `start_s`, if there is one.
      start_s, fps: see `VideoReader`.
      slack: seconds by which a time may be off.
    """
    shown, count, end = None, 0, 0.0
    for time_s, length, frame in timed:
        if shown is not None and fps is None and time_s > start_s + slack:
            yield shown
        while shown is not None and fps is not None and start_s + count / fps + slack < time_s:
            yield shown
            count += 1
        shown, end = frame, time_s + length
    if shown is not None and fps is None and end > start_s + slack:
        yield shown
    # The length of the last frame is the least certain time: a frame that would be on display for
    # one tick is left out.
    while shown is not None and fps is not None and start_s + count / fps + 3 * slack < end:
        yield shown
        count += 1


class Rewindable(Iterator[tuple[float, float, Frame]]):
    """Decoded frames with their times, of which the last can be had again.

    Args:
      timed: (seconds since the start of the stream, seconds on display, frame) in increasing time.
      slack: seconds by which a time may be off.
    """

    def __init__(self, timed: Iterator[tuple[float, float, Frame]], slack: float):
        self._timed, self._slack, self._next_s = timed, slack, math.inf
        self._waiting: collections.deque[tuple[float, float, Frame]] = collections.deque()
        self._kept: collections.deque[tuple[float, float, Frame]] = collections.deque()

    def rewind(self, next_s: float) -> None:
        """Go back to where the last call said, and remember from the frame on display at `next_s`
        on."""
        self._waiting.extendleft(reversed(self._kept))
        self._kept.clear()
        self._next_s = next_s

    def __next__(self) -> tuple[float, float, Frame]:
        timed = self._waiting.popleft() if self._waiting else next(self._timed)
        if timed[0] <= self._next_s + self._slack:
            self._kept.clear()
        self._kept.append(timed)
        return timed
