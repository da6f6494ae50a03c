"""Interlaced frames, made whole: each holds two fields, of odd and of even rows, at two moments.

A frame on display shows one field, and FFmpeg's `bwdif` fills in the other's rows from the frames
before and after. Rate and times stay those of the frames. Only frames that the file marks as
interlaced are changed; the order of their fields is that of the frame.
"""

from collections.abc import Iterator
from fractions import Fraction

import av
import av.filter

from xgen_jax.data.video_file import file_errors
from xgen_jax.errors import UserError

# Seconds since the start of the stream, seconds on display, and the frame.
TimedFrame = tuple[float, float, av.VideoFrame]


def deinterlace(path, timed: Iterator[TimedFrame], *, sought: bool) -> Iterator[TimedFrame]:
    """Yield frames with those that are interlaced made whole; a frame later, from the first one on.

    A frame is the same to the bit wherever reading began, for it depends on its two neighbours
    alone.

    Args:
      path: named in errors.
      timed: frames one after another, without gaps.
      sought: whether frames come before the first one. It is left out if it is interlaced, for the
        one before is needed, and unknown.

    Raises:
      UserError: damage, after the frames before it.
    """
    before, fields = None, None
    try:
        for entry in timed:
            frame = entry[2]
            if fields is None and not frame.interlaced_frame:
                yield entry
            else:
                if fields is not None and not fields.takes(frame):
                    yield from fields.rest()
                    fields = before = None
                if fields is None:
                    fields = _Fields(path, frame)
                    known = before is not None and fields.takes(before[2])
                    if before is not None and known:
                        # The filter takes its first interlaced frame for the first of the video.
                        fields.add(entry, shown=False)
                        fields.add(before, shown=False)
                    elif sought:
                        fields.add(entry, shown=False)
                        sought, before = False, entry
                        continue
                yield from fields.add(entry)
            sought, before = False, entry
    except UserError:
        if fields is not None:
            yield from fields.rest()
        raise
    if fields is not None:
        yield from fields.rest()


class _Fields:
    """A filter of frames of one size and format: one goes out, late, for each that goes in."""

    def __init__(self, path, frame: av.VideoFrame):
        self._path, self._kind = path, _kind(frame)
        self._waiting: list[tuple[TimedFrame, bool]] = []
        self._graph = av.filter.Graph()
        self._graph.threads = 1  # the loader is parallel already
        # Its clock is not used: the frames keep the times that they came with.
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        filled = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
        self._graph.link_nodes(source, filled, self._graph.add("buffersink")).configure()

    def takes(self, frame: av.VideoFrame) -> bool:
        return _kind(frame) == self._kind

    def add(self, entry: TimedFrame, shown: bool = True) -> list[TimedFrame]:
        """Return the frames that are ready; one that is not `shown` is only a neighbour."""
        self._waiting.append((entry, shown))
        return self._ready(entry[2])

    def rest(self) -> list[TimedFrame]:
        """Return the frames that waited for one more."""
        return self._ready(None)

    def _ready(self, frame: av.VideoFrame | None) -> list[TimedFrame]:
        ready = []
        with file_errors(self._path):
            self._graph.push(frame)
            while self._waiting:
                try:
                    out = self._graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
                assert isinstance(out, av.VideoFrame)
                (time_s, length_s, given), shown = self._waiting.pop(0)
                out.pts, out.time_base = given.pts, given.time_base
                if shown:
                    ready.append((time_s, length_s, out))
        return ready


def _kind(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
