"""Video files through PyAV: probe, read by presentation time, resize. `video_writer` writes them.

Frames are addressed by presentation time, never by index: counts in containers are unreliable (an
AVI may announce 444 frames and hold 68), and in files of variable rate an index gives no time.
Sizes are checked before anything is decoded: a 3 MB file can unpack to gigabytes. Only local files
of the listed containers are opened, so that FFmpeg does not follow a playlist under another name.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from xgen_jax.data.video_writer import EXACT, reason
from xgen_jax.errors import UserError

READ_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
MAX_PIXELS = 8192 * 4320  # one 8K frame
MAX_BYTES = 4 << 30  # of decoded video in one call
_OPEN = {"format_whitelist": "mov,mp4,matroska,webm,avi,gif", "protocol_whitelist": "file"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The header of a video file.

    Attributes:
      width, height: as displayed, in pixels (rotation applied).
      fps: frames per second.
      frames: the container's count, or duration x rate: an estimate; None if neither is known.
      duration_s: seconds.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    duration_s: float


def probe(path) -> VideoInfo:
    """Read the header and the first frame of a video file.

    Raises:
      UserError: the file is missing, empty, damaged, not a video, or has too large frames.
    """
    with _opened(path, MAX_PIXELS) as (container, stream):
        rate = _rate(stream)
        duration = _duration_s(container, stream)
        first = next(container.decode(stream), None)
        if first is None:
            raise UserError(f"cannot read {path}: it has a video stream without a single frame")
        width, height = _displayed(first.width, first.height, first.rotation)
    if duration is None:
        duration, frames = _count_packets(path)
    else:
        frames = stream.frames or round(duration * rate) or None
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
    """Decode frames of a video file; rotation metadata is applied.

    Args:
      path: of the file.
      fps: frame k of the result is the one on display at `start_s + k / fps`; None keeps the file's
        frames and rate.
      start_s: seconds. Long files are entered at the key frame before.
      frames: number of frames at most; a file that ends earlier gives fewer.
      cover: (height, width); each frame is resized, its aspect kept, until it just covers that
        size, in the same pass that converts the colours.
      max_pixels: height x width of a frame at most.
      max_bytes: of the result at most.

    Returns:
      The frames, uint8 (T, H, W, 3) RGB, and their rate.

    Raises:
      UserError: an unreadable file, a start after the end, a frame or a result above its limit
        (known before decoding), or arguments out of range.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps must be a positive number of frames per second or None, not {fps}")
    if frames is not None and frames < 1:
        raise UserError(f"frames must be at least 1 or None, not {frames}")
    if not (math.isfinite(start_s) and start_s >= 0):
        raise UserError(
            f"start_s must be seconds from the start of the video, 0 or more, not {start_s}"
        )
    # A seek may land late (an open group of pictures, a broken index) or not work at all (GIF):
    # step back, then decode from the beginning.
    for seek_s in (start_s, start_s - 5.0, None):
        if seek_s is not None and seek_s <= 0:
            continue
        with _opened(path, max_pixels) as (container, stream):
            rate = _rate(stream)
            assert stream.time_base is not None
            tick = float(stream.time_base)
            # About half a tick is what rounding to the container's clock may have moved a frame;
            # where the tick is the frame interval itself (AVI), times are exact.
            slack = 1e-6 + (0.45 * tick if tick < 0.5 / rate else 0.0)
            if seek_s is not None and not _seek(container, stream, seek_s):
                continue
            timed = _timed_frames(container, stream, rate, sought=seek_s is not None)
            first = next(timed, None)
            if seek_s is not None and (first is None or first[0] > start_s + slack):
                continue
            if first is None:
                raise UserError(f"cannot read {path}: no frame could be decoded")
            wanted = _wanted_frames(container, stream, fps or rate, start_s, frames)
            picked = _pick(itertools.chain([first], timed), start_s, fps, slack)
            video = _collect(path, picked, frames, wanted, cover, max_bytes, first[2])
        if not video:
            raise UserError(f"cannot read {path} from {start_s:g} s: the video ends before that")
        return np.stack(video), float(fps or rate)
    raise AssertionError("the last attempt reads from the beginning and always ends")


def resize_frames(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (T, H, W, 3) to (T, height, width, 3), by area average if smaller, else
    bicubic."""
    if video.shape[1:3] == (height, width):
        return video
    out = np.empty((len(video), height, width, 3), np.uint8)
    flags, scaler = _scaler(video.shape[1], height), VideoReformatter()
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


@contextlib.contextmanager
def _opened(path, max_pixels: int):
    """Yield (container, its first video stream); errors of FFmpeg inside become UserErrors."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"cannot read {path}: it is a folder, not a video file")
    if not path.is_file():
        raise UserError(f"cannot read {path}: no such file")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"cannot read {path}: the file is empty (zero bytes)")
        # An absolute path cannot be taken for a protocol such as `concat:`.
        with av.open(os.path.abspath(path), options=_OPEN, metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"cannot read {path}: it has no video stream")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec is None:
                raise UserError(f"cannot read {path}: no decoder for its video codec")
            if codec.width < 1 or codec.height < 1:
                raise UserError(f"cannot read {path}: the header gives no frame size")
            if codec.width * codec.height > max_pixels:
                size = f"{codec.width}x{codec.height}"
                raise UserError(
                    f"cannot read {path}: frames of {size} pixels are above the limit of "
                    f"{max_pixels}"
                )
            # The loader is parallel already, and the option stops a stream that grows after its
            # header.
            stream.thread_type, codec.thread_count = "NONE", 1
            codec.options = {"max_pixels": str(max_pixels)}
            yield container, stream
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError) as error:
        raise UserError(
            f"cannot read {path}: it is damaged, truncated or not a video of a known kind"
        ) from error
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


def _rate(stream) -> float:
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)


def _duration_s(container, stream) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _displayed(width: int, height: int, rotation: int) -> tuple[int, int]:
    return (height, width) if round(rotation / 90) % 2 else (width, height)


def _count_packets(path) -> tuple[float, int]:
    """(seconds, distinct presentation times) from the packets, for files whose header has no
    duration."""
    with _opened(path, MAX_PIXELS) as (container, stream):
        stamps = {
            stamp: p.duration or 0
            for p in container.demux(stream)
            if p.size and (stamp := p.dts if p.pts is None else p.pts) is not None
        }
        if not stamps:
            return 0.0, 0
        ticks = max(stamp + length for stamp, length in stamps.items()) - min(stamps)
        assert stream.time_base is not None
        return float(ticks * stream.time_base), len(stamps)


def _seek(container, stream, seek_s: float) -> bool:
    """Move to the key frame at or before `seek_s`; return False if the format cannot."""
    try:
        container.seek(
            int(seek_s / stream.time_base) + (stream.start_time or 0), stream=stream, backward=True
        )
    except av.FFmpegError:
        return False
    return True


def _timed_frames(
    container, stream, rate: float, *, sought: bool
) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Yield (seconds since the start of the stream, seconds on display, frame) in increasing
    time."""
    origin = float((stream.start_time or 0) * stream.time_base)
    last = None
    for frame in container.decode(stream):
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is not None:
            time_s = float(stamp * frame.time_base) - origin
        elif last is None:
            # After a seek a frame without a time could be anywhere.
            time_s = math.inf if sought else 0.0
        else:
            time_s = last
        if last is not None and time_s <= last:
            time_s = last + 1 / rate  # missing or repeated times: continue at the nominal rate
        last = time_s
        yield time_s, float(frame.duration * frame.time_base) if frame.duration else 1 / rate, frame


def _pick(timed, start_s: float, fps: float | None, slack: float) -> Iterator[av.VideoFrame]:
    """Yield the frame on display at each output time: the latest whose own time is not after it."""
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


def _wanted_frames(container, stream, fps: float, start_s: float, frames: int | None) -> int:
    duration = _duration_s(container, stream)
    if duration is None:
        return frames or 1
    left = max(1, math.ceil((duration - start_s) * fps))
    return left if frames is None else min(left, frames)


def _collect(path, picked, frames, wanted: int, cover, max_bytes: int, first) -> list[np.ndarray]:
    """Convert the picked frames to RGB at one size; `max_bytes` is checked before and while
    decoding."""
    turns = round(first.rotation / 90)
    width, height = _displayed(first.width, first.height, turns * 90)
    if cover is not None:
        height, width = cover_size(height, width, *cover)
    size = height * width * 3
    stored_width, stored_height = _displayed(width, height, turns * 90)

    def check(count: int) -> None:
        if count * size > max_bytes:
            raise UserError(
                f"cannot read {path}: {count} frames of {width}x{height} are above the limit of "
                f"{max_bytes / 2**30:.3g} GiB; read fewer frames at a time, or smaller"
            )

    check(wanted)
    out: list[np.ndarray] = []
    # One scaler for all frames: to set it up costs as much as to use it.
    last, scaler = None, VideoReformatter()
    for frame in itertools.islice(picked, frames):
        check(len(out) + 1)  # again, since headers are unreliable
        if frame is not last:
            flags = _scaler(frame.height, stored_height)
            rgb = scaler.reformat(
                frame, stored_width, stored_height, "rgb24", interpolation=flags, threads=1
            )
            # Counter-clockwise, as in the display matrix.
            last, image = frame, np.rot90(rgb.to_ndarray(), turns)
        else:
            image = out[-1]
        out.append(image)
    return out


def _scaler(height: int, target_height: int) -> int:
    """swscale flags: an area average does not alias, bicubic does not show blocks."""
    return (Interpolation.AREA if target_height < height else Interpolation.BICUBIC) | EXACT
