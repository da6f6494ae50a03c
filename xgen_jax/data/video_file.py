"""The open video file: its stream, rate, length and frame size, whatever its header claims."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
from collections.abc import Generator
from fractions import Fraction

import av
from av.stream import Disposition

from xgen_jax.data.video_writer import reason
from xgen_jax.errors import UserError

MAX_PIXELS = 8192 * 4320  # one 8K frame
MAX_FPS = 500.0  # a higher rate in a header is that of a clock
# Wider or narrower pixels are a mistake of the header; anamorphic film is 2, DVD at most 1.46.
_MAX_ASPECT = 4
_NEARLY_SQUARE = 0.01  # resizing costs sharpness
_SETTLE_S = 2.0
_PICTURE = Disposition.attached_pic | Disposition.timed_thumbnails
_OPEN = {
    "format_whitelist": "mov,mp4,matroska,webm,avi,gif,mpeg,mpegts,asf,flv,ogg",
    "protocol_whitelist": "file",
}


@dataclasses.dataclass(frozen=True)
class VideoBytes:
    """A video in memory, wherever the path of a file is taken.

    Attributes:
      name: for messages, where it comes from.
      data: the bytes of its file.
    """

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def file_errors(path) -> Generator[None]:
    """Turn errors of FFmpeg and the system into UserErrors that name the file."""
    try:
        yield
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError) as error:
        raise UserError(
            f"cannot read {path}: it is damaged, truncated or not a video of a known kind"
        ) from error
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


@contextlib.contextmanager
def open_video(path, max_pixels: int):
    """Yield (container, its video stream).

    Raises:
      UserError: no readable video file, or frames of more than `max_pixels` by its header. Errors
        of what the caller does stay what they are, see `file_errors`.
    """
    if not isinstance(path, VideoBytes):
        path = pathlib.Path(path)
        if path.is_dir():
            raise UserError(f"cannot read {path}: it is a folder, not a video file")
        if not path.is_file():
            raise UserError(f"cannot read {path}: no such file")
    with file_errors(path):
        if _size(path) == 0:
            raise UserError(f"cannot read {path}: the file is empty (zero bytes)")
        # An absolute path cannot be taken for a protocol such as `concat:`.
        file = io.BytesIO(path.data) if isinstance(path, VideoBytes) else os.path.abspath(path)
        container = av.open(file, "r", options=_OPEN, metadata_errors="replace")
    with container:
        with file_errors(path):
            stream = _best_stream(path, container)
            codec = stream.codec_context
            if codec is None:
                raise UserError(f"cannot read {path}: no decoder for its video codec")
            if codec.width < 1 or codec.height < 1:
                raise UserError(f"cannot read {path}: the header gives no frame size")
            _check_size(path, codec.width, codec.height, max_pixels)
            # The loader is parallel already, and the option stops a stream that grows after its
            # header.
            stream.thread_type, codec.thread_count = "NONE", 1
            codec.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def _size(path) -> int:
    return len(path.data) if isinstance(path, VideoBytes) else os.path.getsize(path)


def _best_stream(path, container):
    """The video that a player shows: FFmpeg's choice, but no cover picture."""
    films = [stream for stream in container.streams.video if not stream.disposition & _PICTURE]
    if not films:
        held = "only a cover picture" if container.streams.video else "no video stream"
        raise UserError(f"cannot read {path}: it has {held}")
    best = container.streams.best("video")
    return best if best in films else max(films, key=lambda stream: stream.frames)


def _check_size(path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UserError(
            f"cannot read {path}: frames of {width}x{height} pixels are above the limit of "
            f"{max_pixels}"
        )


def displayed_size(path, stream, first: av.VideoFrame, max_pixels: int) -> tuple[int, int]:
    """Return (width, height) of a stream as displayed, given its first frame: with square pixels,
    for which the shorter side of a pixel grows, and turned upright.

    Raises:
      UserError: it is above `max_pixels`.
    """
    width, height = first.width, first.height
    aspect = stream.sample_aspect_ratio or Fraction(1)  # of a pixel, width : height
    if aspect > 0 and _NEARLY_SQUARE < abs(math.log(aspect)) <= math.log(_MAX_ASPECT):
        width, height = round(width * max(aspect, 1)), round(height / min(aspect, 1))
    _check_size(path, width, height, max_pixels)
    return (height, width) if round(first.rotation / 90) % 2 else (width, height)


def decode_frames(path, container, stream, *, from_key: bool = False):
    """Yield the frames of a stream from where the file is, transparency included.

    Args:
      path: named in errors.
      container, stream: see `open_video`.
      from_key: leave out what comes before the first key frame, after a seek into the midst of a
        group of pictures; the rest of the group would be decoded from nothing.

    Raises:
      UserError: damage.
    """
    decoder = _alpha_decoder(stream) or stream.codec_context
    with file_errors(path):
        for packet in container.demux(stream):
            if from_key and packet.size and not packet.is_keyframe:
                continue
            from_key = False
            yield from decoder.decode(packet)


def _alpha_decoder(stream) -> av.VideoCodecContext | None:
    """A decoder for the transparency of WebM, which FFmpeg's own decoders leave out."""
    if stream.metadata.get("alpha_mode") != "1":
        return None
    own = stream.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(own.codec.canonical_name)
    if name not in av.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_type, decoder.thread_count = "NONE", 1
    decoder.options, decoder.extradata = own.options, own.extradata
    for tag in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(decoder, tag, getattr(own, tag))
    return decoder


def frame_rate(path, stream) -> float:
    """Return a stream's frames per second: the header's, or measured where it gives only that of a
    clock; 25 if there is no way to know."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate is not None and 0 < rate <= MAX_FPS:
            return float(rate)
    stamps, _ = _all_stamps(path)
    span = (max(stamps) - min(stamps)) * float(stream.time_base) if stamps else 0
    measured = (len(stamps) - 1) / span if span else 0
    return measured if 0 < measured <= MAX_FPS else 25.0


def stream_seconds(stream) -> float | None:
    """Return the seconds that the header gives for the video itself, None if it gives none."""
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    if tag := _tagged_seconds(stream.metadata.get("DURATION", "")):
        return tag
    # A container's duration is that of its longest stream.
    container = stream.container
    if len(container.streams) == 1 and container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def _tagged_seconds(text: str) -> float | None:
    """Parse Matroska's "HH:MM:SS.fraction"."""
    try:
        hours, minutes, seconds = map(float, text.split(":"))
    except ValueError:
        return None
    total = 3600 * hours + 60 * minutes + seconds
    return total if 0 < total < math.inf else None


def stream_length(path, container, stream, rate: float) -> tuple[float, int]:
    """Return (seconds, frames) of the video that is in the file; it moves the file's position.

    The index of MP4 is trusted as far as the file reaches. Elsewhere the last packets count, found
    by a seek to the end that the header claims, since no header says how long the video is without
    the sound, or whether the file was cut off; the frames are then an estimate, unless the packets
    were counted from the first.
    """
    indexed, claimed = stream.index_entries, stream_seconds(stream)
    if "mp4" in container.format.name and stream.frames and claimed and len(indexed):
        size, last = _size(path), indexed[-1]
        if last.pos + last.size <= size:
            return claimed, stream.frames
        stamps = [entry.timestamp for entry in indexed if entry.pos + entry.size <= size]
        return len(stamps) / len(indexed) * claimed, min(len(stamps), stream.frames)
    start = stream.start_time or 0
    stamps, end, whole = set(), 0, False
    last_s = claimed or (container.duration or 0) / av.time_base
    # A second earlier, since packets are not in the order of their times.
    if last_s > 0 and seek(container, stream, max(0.0, last_s - 1.0)):
        with file_errors(path):
            stamps, end = _read_stamps(container, stream, rate)
        whole = bool(stamps) and min(stamps) <= start
    if not stamps:
        (stamps, end), whole = _all_stamps(path, rate), True
    if whole:
        start = min(stamps, default=0)
    seconds = max(0.0, float((end - start) * stream.time_base))
    if stream.frames and claimed is not None:  # AVI has an index, but times only of decoding
        seconds = min(seconds, claimed)
    frames = len(stamps) if whole else math.floor(seconds * rate + 0.25)  # a clock rounds times
    return seconds, frames


def seek(container, stream, seconds: float) -> bool:
    """Move to the key frame at or before; return False if the format cannot."""
    if container.format.name == "mpeg":  # the first times after a seek may be a frame off
        seconds = max(0.0, seconds - _SETTLE_S)
    try:
        container.seek(
            int(seconds / stream.time_base) + (stream.start_time or 0), stream=stream, backward=True
        )
    except (av.FFmpegError, OverflowError):
        return False
    return True


def _all_stamps(path, rate: float = 25.0) -> tuple[set[int], float]:
    with open_video(path, MAX_PIXELS) as (container, stream), file_errors(path):
        return _read_stamps(container, stream, rate)


def _read_stamps(container, stream, rate: float) -> tuple[set[int], float]:
    """(presentation times, end of the last frame) of the packets from here on, in ticks."""
    ends = {}
    frame = 1 / (rate * float(stream.time_base))
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.size and stamp is not None:
            ends[stamp] = stamp + (packet.duration or frame)
    return set(ends), max(ends.values(), default=0)
