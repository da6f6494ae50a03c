"""Video files through PyAV: probe, read by presentation time, resize. `video_writer` writes them.

Frames are addressed by presentation time, never by index: counts in containers are unreliable (an
AVI may announce 444 frames and hold 68), and in files of variable rate an index gives no time.
Pixels are those that a player shows: square, upright, deinterlaced (`deinterlace`), and with the
colours of `color`. Sizes are
checked before anything is decoded: a 3 MB file can unpack to gigabytes. Only local files of the
listed containers are opened, so that FFmpeg does not follow a playlist under another name.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from xgen_jax.data.color import FastConverter, RGBConverter, YUVConverter, scaling_flags
from xgen_jax.data.deinterlace import deinterlace
from xgen_jax.data.frame_times import Rewindable, pick_frames
from xgen_jax.data.video_file import (
    MAX_PIXELS,
    decode_frames,
    displayed_size,
    file_errors,
    frame_rate,
    open_video,
    seek,
    stream_length,
    stream_seconds,
)
from xgen_jax.errors import UserError

READ_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"),
)
MAX_BYTES = 4 << 30  # of decoded video in one call
_NEIGHBOUR_S = 0.2  # holds a frame or more of interlaced video

Frame = TypeVar("Frame")
# Seconds since the start of the stream, seconds on display, and the picture, uint8 (H, W, 3).
Timed = tuple[float, float, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
      width, height: as displayed, in pixels (square, rotation applied).
      fps: frames per second.
      frames: the container's count, or duration x rate: an estimate.
      duration_s: seconds from the first frame to the end of the last, of the video alone.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    duration_s: float


def probe(path) -> VideoInfo:
    """Read the header, the first frame and, where the header may be wrong, the last packets.

    Raises:
      UserError: the file is missing, empty, damaged, not a video, or has too large frames.
    """
    with open_video(path, MAX_PIXELS) as (container, stream), file_errors(path):
        rate = frame_rate(path, stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise UserError(f"cannot read {path}: it has a video stream without a single frame")
        width, height = displayed_size(path, stream, first, MAX_PIXELS)
        duration, frames = stream_length(path, container, stream, rate)
    return VideoInfo(width=width, height=height, fps=rate, frames=frames, duration_s=duration)


def read_video(
    path,
    *,
    fps: float | None = None,
    start_s: float = 0.0,
    frames: int | None = None,
    cover: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> tuple[np.ndarray, float]:
    """Decode frames of a video file, as a player shows them.

    Args:
      path, fps, start_s, frames, cover, max_pixels: see `VideoReader`.
      max_bytes: of the result at most.

    Returns:
      The frames, uint8 (T, H, W, 3) RGB, and their rate.

    Raises:
      UserError: as `VideoReader`; a result above its limit (known before decoding).
    """
    options = {"fps": fps, "start_s": start_s, "frames": frames, "cover": cover}
    with VideoReader(path, **options, max_pixels=max_pixels) as reader:
        return reader.read(max_bytes), reader.fps


class VideoReader:
    """The frames of a video file, one after another in constant memory.

    A context manager, to be iterated once: yields uint8 (H, W, 3) RGB.

    Args:
      path: of the file.
      fps: frame k of the result is the one on display at `start_s + k / fps`; None keeps the file's
        frames and rate.
      start_s: seconds. Long files are entered at the key frame before.
      frames: number of frames at most; a file that ends earlier gives fewer.
      cover: (height, width); each frame is resized, its aspect kept, until it just covers that
        size, in the same pass that converts the colours.
      max_pixels: height x width of a frame at most.
      max_fps: of a reader without `fps`, to give a constant rate: that of the file, divided by the
        least whole number that makes it `max_fps` or less; None for none.

    Attributes:
      height, width: of the frames.
      fps: their rate.
      expected: number of frames by the header, or 1 if it says nothing.
      slack: seconds by which a frame's time may be off.
      repaired: whether a time was missing or not after the one before, so far.

    Raises:
      UserError: an unreadable file, a frame above its limit (known before decoding), arguments out
        of range; when iterated also a start after the end.
    """

    def __init__(
        self,
        path,
        *,
        fps: float | None = None,
        start_s: float = 0.0,
        frames: int | None = None,
        cover: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
        max_fps: float | None = None,
    ):
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise UserError(
                f"fps must be a positive number of frames per second or None, not {fps}"
            )
        if frames is not None and frames < 1:
            raise UserError(f"frames must be at least 1 or None, not {frames}")
        if not (math.isfinite(start_s) and start_s >= 0):
            raise UserError(
                f"start_s must be seconds from the start of the video, 0 or more, not {start_s}"
            )
        self.path, self._start_s, self._frames = path, start_s, frames
        self.repaired = self._interlaced = False
        self._file = contextlib.ExitStack()
        try:
            stream, rate, first, timed, slack, self._entry = self._enter(max_pixels)
            self._first, self._turns = first, round(first.rotation / 90)
            width, height = displayed_size(path, stream, first, max_pixels)
        except BaseException:
            self.close()
            raise
        if cover is not None:
            height, width = cover_size(height, width, *cover)
        if fps is None and max_fps is not None:
            fps = rate / math.ceil(rate / max_fps - 1e-3)
        self.height, self.width, self.fps = height, width, float(fps or rate)
        self._timed, self._fps, self.slack = Rewindable(timed, slack), fps, slack
        seconds = stream_seconds(stream)
        left = 1 if seconds is None else math.ceil((seconds - start_s) * self.fps)
        self.expected = max(1, left if frames is None else min(left, frames))
        if seconds is None:
            self.expected = frames or 1

    def _enter(self, max_pixels: int):
        """(stream, rate, first frame, all with their times, slack, mark of the place) from the key
        frame before the start."""
        # A seek may land late (an open group of pictures, a broken index) or not work at all (GIF):
        # step back, then decode from the beginning.
        # Of interlaced video the frame before is needed, too (`deinterlace`): a few frames do.
        near = self._start_s - _NEIGHBOUR_S
        for seek_s in (self._start_s, near, self._start_s - 5.0, None):
            if seek_s is not None and (seek_s <= 0 or (seek_s == near and not self._interlaced)):
                continue
            container, stream = self._file.enter_context(open_video(self.path, max_pixels))
            rate = frame_rate(self.path, stream)
            tick = float(stream.time_base)
            # About half a tick is what rounding to the container's clock may have moved a frame;
            # where the tick is the frame interval itself (AVI), times are exact.
            slack = 1e-6 + (0.45 * tick if tick < 0.5 / rate else 0.0)
            if seek_s is not None and not seek(container, stream, seek_s):
                self.close()
                continue
            timed = self._timed_frames(container, stream, rate, sought=seek_s is not None)
            timed = deinterlace(self.path, timed, sought=seek_s is not None)
            first = next(timed, None)
            if seek_s is not None and (first is None or first[0] > self._start_s + slack):
                self.close()
                continue
            if first is None:
                raise UserError(f"cannot read {self.path}: no frame could be decoded")
            entry = seek_s is not None, first[0]
            return stream, rate, first[2], itertools.chain([first], timed), slack, entry
        raise AssertionError("the last attempt reads from the beginning and always ends")

    def _timed_frames(
        self, container, stream, rate: float, *, sought: bool
    ) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield (seconds since the start of the stream, seconds on display, frame) in increasing
        time."""
        origin = float((stream.start_time or 0) * stream.time_base)
        last = None
        for frame in decode_frames(self.path, container, stream, from_key=sought):
            assert frame.time_base is not None
            stamp = frame.pts if frame.pts is not None else frame.dts
            if stamp is not None:
                time_s = float(stamp * frame.time_base) - origin
            elif last is None:
                # After a seek a frame without a time could be anywhere.
                time_s = math.inf if sought else 0.0
            else:
                time_s = last
            self.repaired |= stamp is None
            self._interlaced |= bool(frame.interlaced_frame)
            if last is not None and time_s <= last:
                self.repaired = True
                time_s = last + 1 / rate  # missing or repeated times: continue at the nominal rate
            last = time_s
            yield (
                time_s,
                float(frame.duration * frame.time_base) if frame.duration else 1 / rate,
                frame,
            )

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def share(self, other: "VideoReader") -> bool:
        """Go on with the frames of a reader of the same file that starts no later, if both decode
        from the same key frame, and close this one's file.

        Returns:
          Whether they do; if not, nothing changes.
        """
        if self._entry != other._entry:
            return False
        self._timed = other._timed
        self.close()
        return True

    def read(self, max_bytes: int = MAX_BYTES, next_s: float = math.inf) -> np.ndarray:
        """Return all frames that the reader would yield, uint8 (T, H, W, 3); instead of iterating.

        Args:
          max_bytes: of the result at most.
          next_s: start of the reader that shares this one's frames afterwards.

        Raises:
          UserError: also for a result above its limit, known before decoding.
        """
        size = self.height * self.width * 3

        def check(count: int) -> None:
            if count * size > max_bytes:
                raise UserError(
                    f"cannot read {self.path}: {count} frames of {self.width}x{self.height} are "
                    f"above the limit of {max_bytes / 2**30:.3g} GiB; read fewer frames at a "
                    "time, or smaller"
                )

        check(self.expected)
        self._timed.rewind(next_s)
        video = []
        for image in self:
            check(len(video) + 1)  # again, since headers are unreliable
            video.append(image)
        return np.stack(video)

    def converter(self, side: int = 0, fast: bool = False) -> Callable[..., np.ndarray]:
        """Return the conversion of a frame to what is shown, uint8 (H, W, 3); see `Picture`."""
        size = self.height, self.width
        if 0 < side < max(size):
            size = tuple(max(1, round(length * side / max(size))) for length in size)
        stored = size[::-1] if self._turns % 2 else size
        convert = FastConverter(*stored) if fast else RGBConverter(*stored)
        # Counter-clockwise, as in the display matrix.
        return lambda frame: np.rot90(convert(frame), self._turns)

    def timed(self) -> Iterator[Timed]:
        """Yield all frames of the file with their times, from the key frame before the start;
        instead of iterating."""
        convert = self.converter()
        for time_s, length_s, frame in self._timed:
            with file_errors(self.path):
                image = convert(frame)
            yield time_s, length_s, image

    def pictures(self) -> Iterator[tuple[float, float, "Picture"]]:
        """Yield the same as `timed`, with pictures that are converted only where they are asked
        for, at any size."""
        converters: dict[tuple[int, bool], Callable[..., np.ndarray]] = {}
        for time_s, length_s, frame in self._timed:
            yield time_s, length_s, Picture(self, frame, converters)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._converted(self.converter())

    def to_encode(
        self, sizes: Sequence[tuple[int, int]]
    ) -> tuple[int, Iterator[list[av.VideoFrame]]]:
        """Return the frames, instead of iterating, each at several sizes, for an encoder.

        Args:
          sizes: even heights and widths.

        Returns:
          The matrix of their colours, a value for the tag of a file; and the frames, yuv420p in
          limited range. One that is shown again is the same object.
        """
        turns, first = self._turns, self._first
        converters = [YUVConverter(height, width, first, turns) for height, width in sizes]
        frames = self._converted(lambda frame: [convert(frame) for convert in converters])
        return converters[0].matrix, frames

    def _converted(self, convert: Callable[[av.VideoFrame], Frame]) -> Iterator[Frame]:
        last = image = None
        picked = pick_frames(self._timed, self._start_s, self._fps, self.slack)
        for frame in itertools.islice(picked, self._frames):
            if frame is not last:
                last, image = frame, convert(frame)
            assert image is not None
            yield image
        if last is None:
            raise UserError(
                f"cannot read {self.path} from {self._start_s:g} s: the video ends before that"
            )

    def chunks(self, frames: int) -> Iterator[np.ndarray]:
        """Yield the frames as uint8 (T, H, W, 3), `frames` of them at a time, and the rest."""
        images = iter(self)
        while chunk := list(itertools.islice(images, frames)):
            yield np.stack(chunk)


class Picture:
    """A decoded frame, which is converted where it is asked for."""

    def __init__(self, reader: VideoReader, frame: av.VideoFrame, converters: dict):
        self._reader, self._frame, self._converters = reader, frame, converters
        self._images: dict[tuple[int, bool], np.ndarray] = {}

    def image(self, side: int = 0, fast: bool = False) -> np.ndarray:
        """Return the picture, uint8 (H, W, 3) RGB.

        Args:
          side: pixels of the longer side at most; 0 for the size of the video.
          fast: approximate colours, without HDR's curve and transparency, for measuring changes.

        Raises:
          UserError: the frame is damaged.
        """
        key = side, fast
        if key not in self._images:
            if key not in self._converters:
                self._converters[key] = self._reader.converter(side, fast)
            with file_errors(self._reader.path):
                self._images[key] = np.ascontiguousarray(self._converters[key](self._frame))
        return self._images[key]


def resize_frames(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (T, H, W, 3) to (T, height, width, 3), by area average if smaller, else
    bicubic."""
    if video.shape[1:3] == (height, width):
        return video
    out = np.empty((len(video), height, width, 3), np.uint8)
    flags = scaling_flags(video.shape[1], video.shape[2], height, width)
    scaler = VideoReformatter()
    for i, image in enumerate(video):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        out[i] = scaler.reformat(
            frame, width, height, "rgb24", interpolation=flags, threads=1
        ).to_ndarray()
    return out


def resize_cover(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize to the smallest uint8 (T, >=height, >=width, 3) of the same aspect that covers the
    target, antialiased."""
    return resize_frames(video, *cover_size(video.shape[1], video.shape[2], height, width))


def cover_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Return the smallest (height, width) of the same aspect, to the pixel, that covers the
    target."""
    scale = max(Fraction(target_height, height), Fraction(target_width, width))
    return max(target_height, round(height * scale)), max(target_width, round(width * scale))
