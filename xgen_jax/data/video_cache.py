"""Small videos, decoded once and kept in memory at the size at which they are read.

A random clip of a file costs decoding from the key frame before it, for most codecs many times the
clip itself. A folder whose frames fit in memory at the size of a bucket is decoded once instead, in
a thread of its own: nothing waits for it.
"""

import bisect
import collections
import dataclasses
import itertools
import math
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from xgen_jax.data.frame_times import pick_frames
from xgen_jax.data.video import Timed, VideoInfo, VideoReader, cover_size

Size = tuple[int, int]
Key = tuple[str, Size]


class VideoCache:
    """The frames of a folder's videos, where all of them fit in memory.

    A clip is the same array, to the bit, as `read_video` gives. Safe for threads.

    Args:
      videos: of the whole folder.
      limit: bytes of frames at most; 0 keeps none.
    """

    def __init__(self, videos: Iterable[VideoInfo], limit: int):
        self._videos, self._limit, self._left, self._held = videos, limit, limit, 0
        self._lock = threading.Lock()
        self._fits: dict[Size, bool] = {}
        self._kept: dict[Key, _Frames | None] = {}  # None: not yet, or never
        self._waiting: collections.deque[Key] = collections.deque()
        self._thread: threading.Thread | None = None

    def read(
        self, path: Any, *, fps: float | None, start_s: float, frames: int, cover: Size
    ) -> np.ndarray | None:
        """Return a clip, uint8 (T, H, W, 3); None if it has to be read from its file: it does not
        fit, is not decoded yet, is damaged, or ends before the start.

        Args:
          path, fps, start_s, frames, cover: see `VideoReader`.
        """
        key = str(path), cover
        with self._lock:
            if not self._has_room(cover):
                return None
            if key not in self._kept:
                self._kept[key] = None
                self._waiting.append(key)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._decode, daemon=True)
                    self._thread.start()
            kept = self._kept[key]
        return None if kept is None else kept.clip(fps, start_s, frames)

    def wait(self) -> None:
        """Wait until all that was asked for is decoded."""
        while True:
            with self._lock:
                thread = self._thread
            if thread is None:
                return
            thread.join()

    def _has_room(self, cover: Size) -> bool:
        """Return whether all videos fit at a size, and keep the room for them if so."""
        if cover not in self._fits:
            left = self._left
            for info in self._videos:  # no more of them than fit: there may be millions
                height, width = cover_size(info.height, info.width, *cover)
                left -= 3 * height * width * (info.frames or math.ceil(info.duration_s * info.fps))
                if left < 0:
                    break
            self._fits[cover] = left >= 0
            self._left = self._left if left < 0 else left
        return self._fits[cover]

    def _decode(self) -> None:
        """Decode what is asked for, and end."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                path, cover = self._waiting.popleft()
            try:
                kept = self._decoded(path, cover)
            except Exception:  # of whatever kind: this thread decodes the other files, too
                continue  # a clip before the damage may still be read: the file decides
            with self._lock:
                self._kept[path, cover] = kept

    def _decoded(self, path: str, cover: Size) -> "_Frames | None":
        """Decode a file; None for one that is longer than its header says, or whose times had to be
        repaired: they are others where a clip is read from a key frame on."""
        timed: list[Timed] = []
        held = self._held
        with VideoReader(path, cover=cover) as reader:
            for time_s, length_s, image in reader.timed():
                held += image.nbytes
                if held > self._limit or reader.repaired:
                    return None
                timed.append((time_s, length_s, image))
        self._held = held
        return _Frames(timed, reader.slack)


@dataclasses.dataclass(frozen=True)
class _Frames:
    """All frames of one video, in increasing time, and how far off a time may be."""

    timed: list[Timed]
    slack: float

    def clip(self, fps: float | None, start_s: float, frames: int) -> np.ndarray | None:
        """See `VideoCache.read`."""
        # From the last frame that is not after the start, as from a key frame.
        first = bisect.bisect_right(self.timed, start_s + self.slack, key=lambda each: each[0])
        timed = itertools.islice(self.timed, max(0, first - 1), None)
        picked = pick_frames(timed, start_s, fps, self.slack)
        video = list(itertools.islice(picked, frames))
        return np.stack(video) if video else None
