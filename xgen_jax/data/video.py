"""Video files through PyAV, imported nowhere else: probe, read by presentation time, resize, write atomically.

Frames are named by their presentation time, never by index: containers lie about counts (an AVI may announce 444 frames
and hold 68) and variable-rate files have no index that means a time. Sizes are checked before anything is decoded: a
3 MB file can unpack to gigabytes. Only local files of the listed containers are opened, so a playlist in disguise
cannot make FFmpeg follow it.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import secrets
from collections.abc import Iterator
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from xgen_jax.errors import UserError

READ_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
WRITE_SUFFIXES = (".mp4", ".webm", ".gif")
MAX_PIXELS = 8192 * 4320  # one 8K frame
MAX_BYTES = 4 << 30  # of decoded video in one call
_OPEN = {"format_whitelist": "mov,mp4,matroska,webm,avi,gif", "protocol_whitelist": "file"}
# swscale's default shortcuts shift chroma by half a pixel and darken by one level of 255; these flags cost 1 ms a frame
# at 480p and take a read-write round trip from 43.8 to 48.6 dB.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
_GIF_MAX_FPS = 50  # a GIF delay is a whole number of 1/100 s, and viewers slow down anything below two


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file says of itself: displayed size in pixels (rotation applied), frames per second, seconds.

    `frames` is the container's count or duration x rate, an estimate, and None where neither is known.
    """

    width: int
    height: int
    fps: float
    frames: int | None
    duration_s: float


def probe(path) -> VideoInfo:
    """Reads the header and the first frame of a video file.

    Raises UserError naming the file and the reason: missing, empty, damaged, not a video, or too large a frame.
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
    """Decodes the frames shown from `start_s` seconds on, as uint8 (T, H, W, 3) RGB, and their rate.

    `fps=None` keeps the source's frames and rate; otherwise output k is the frame on display at `start_s + k / fps`.
    `frames` is the most to return: a file that ends sooner gives fewer. `cover=(height, width)` shrinks or enlarges
    each frame, aspect kept, until it just covers that size, in the same pass that converts the colours. Long files are
    entered at the key frame before `start_s`. Rotation metadata is applied.

    Raises UserError for an unreadable file, a start after the end, a frame above `max_pixels` (height x width) or
    a result above `max_bytes` (both known before decoding), and for arguments out of range.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"fps must be a positive number of frames per second or None, not {fps}")
    if frames is not None and frames < 1:
        raise UserError(f"frames must be at least 1 or None, not {frames}")
    if not (math.isfinite(start_s) and start_s >= 0):
        raise UserError(f"start_s must be seconds from the start of the video, 0 or more, not {start_s}")
    # A seek may land late (an open group of pictures, a broken index) or not work at all (GIF): step back, then decode
    # from the beginning.
    for seek_s in (start_s, start_s - 5.0, None):
        if seek_s is not None and seek_s <= 0:
            continue
        with _opened(path, max_pixels) as (container, stream):
            rate = _rate(stream)
            tick = float(stream.time_base)
            # About half a tick is what rounding to the container's clock may have moved a frame; where the tick is the
            # frame interval itself (AVI), times are exact.
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
    """Resizes uint8 (T, H, W, 3) to (T, height, width, 3): area average when shrinking, bicubic when enlarging."""
    if video.shape[1:3] == (height, width):
        return video
    out = np.empty((len(video), height, width, 3), np.uint8)
    flags, scaler = _scaler(video.shape[1], height), VideoReformatter()
    for i, image in enumerate(video):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        out[i] = scaler.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1).to_ndarray()
    return out


def cover_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same aspect, to the pixel, that covers the target."""
    scale = max(Fraction(target_height, height), Fraction(target_width, width))
    return max(target_height, round(height * scale)), max(target_width, round(width * scale))


def write_video(path, video: np.ndarray, fps: float = 8.0) -> None:
    """Writes uint8 (T, H, W, 3), T >= 1, at `fps` frames per second; the suffix chooses the format.

    .mp4 is H.264 4:2:0 and .webm is VP9, both at near-lossless quality and playable in browsers; .gif has a palette of
    256 colours and at most 50 fps. Odd sizes grow by one repeated row or column where the codec needs even ones. Parent
    folders are made. The file appears whole or not at all.

    Raises UserError for another suffix, array or rate, and when the disk or folder refuses the file.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise UserError(f"cannot write {path}: the suffix must be one of {', '.join(WRITE_SUFFIXES)}, not {suffix!r}")
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        what = f"{video.dtype} {video.shape}" if isinstance(video, np.ndarray) else type(video).__name__
        raise UserError(f"cannot write {path}: the video must be a uint8 array (T, H, W, 3), not {what}")
    if 0 in video.shape:
        raise UserError(f"cannot write {path}: the video is empty, its shape is {video.shape}")
    if not (math.isfinite(fps) and 0 < fps <= 1000) or (suffix == ".gif" and fps > _GIF_MAX_FPS):
        raise UserError(f"cannot write {path}: fps must be above 0 and at most 1000 (50 for .gif), not {fps}")
    if suffix != ".gif":
        height, width = video.shape[1:3]
        video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    temporary = path.with_name(f".{path.stem[:64]}.{secrets.token_hex(6)}.tmp{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _encode(temporary, suffix, video, Fraction(fps).limit_denominator(1001))
        written = _count_packets(temporary)[1]
        if written != len(video):
            raise RuntimeError(f"{path}: {len(video)} frames were encoded but {written} are in the file")
        os.replace(temporary, path)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path, max_pixels: int):
    """Yields (container, its first video stream); FFmpeg's errors inside become UserErrors that name the file."""
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
                raise UserError(f"cannot read {path}: frames of {size} pixels are above the limit of {max_pixels}")
            # The loader is parallel already, and the option stops a stream that grows after its header.
            stream.thread_type, codec.thread_count = "NONE", 1
            codec.options = {"max_pixels": str(max_pixels)}
            yield container, stream
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError) as error:
        raise UserError(f"cannot read {path}: it is damaged, truncated or not a video of a known kind") from error
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """FFmpeg's or the system's words for an error, without the errno and the repeated path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _rate(stream) -> float:
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)


def _duration_s(container, stream) -> float | None:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _displayed(width: int, height: int, rotation: int) -> tuple[int, int]:
    return (height, width) if round(rotation / 90) % 2 else (width, height)


def _count_packets(path) -> tuple[float, int]:
    """(seconds, distinct presentation times) from the packets alone, for files whose header gives no duration."""
    with _opened(path, MAX_PIXELS) as (container, stream):
        stamps = {p.pts if p.pts is not None else p.dts: p.duration or 0 for p in container.demux(stream) if p.size}
        stamps.pop(None, None)
        if not stamps:
            return 0.0, 0
        ticks = max(stamp + length for stamp, length in stamps.items()) - min(stamps)
        return float(ticks * stream.time_base), len(stamps)


def _seek(container, stream, seek_s: float) -> bool:
    """Moves to the key frame at or before `seek_s`; False where the format cannot."""
    try:
        container.seek(int(seek_s / stream.time_base) + (stream.start_time or 0), stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


def _timed_frames(container, stream, rate: float, *, sought: bool) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Yields (seconds since the start of the stream, seconds on display, frame) in increasing time."""
    origin = float((stream.start_time or 0) * stream.time_base)
    last = None
    for frame in container.decode(stream):
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is not None:
            time_s = float(stamp * frame.time_base) - origin
        elif last is None:
            time_s = math.inf if sought else 0.0  # after a seek a frame without a time could be anywhere
        else:
            time_s = last
        if last is not None and time_s <= last:
            time_s = last + 1 / rate  # missing or repeated times: go on at the nominal rate
        last = time_s
        yield time_s, float(frame.duration * frame.time_base) if frame.duration else 1 / rate, frame


def _pick(timed, start_s: float, fps: float | None, slack: float) -> Iterator[av.VideoFrame]:
    """The frame on display at each output time: the latest whose own time is not after it."""
    shown, count, end = None, 0, 0.0
    for time_s, length, frame in timed:
        if shown is not None and fps is None and time_s > start_s + slack:
            yield shown
        while shown is not None and fps is not None and start_s + count / fps + slack < time_s:
            yield shown
            count += 1
        shown, end = frame, time_s + length
    if fps is None and end > start_s + slack:
        yield shown
    # The last frame's length is the least certain time of all: what would be on display for one tick is not shown.
    while fps is not None and start_s + count / fps + 3 * slack < end:
        yield shown
        count += 1


def _wanted_frames(container, stream, fps: float, start_s: float, frames: int | None) -> int:
    duration = _duration_s(container, stream)
    if duration is None:
        return frames or 1
    left = max(1, math.ceil((duration - start_s) * fps))
    return left if frames is None else min(left, frames)


def _collect(path, picked, frames, wanted: int, cover, max_bytes: int, first) -> list[np.ndarray]:
    """Converts the picked frames to RGB at one size, refusing to pass `max_bytes` before and while decoding."""
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
    last, scaler = None, VideoReformatter()  # one for all frames: setting it up costs as much as using it
    for frame in itertools.islice(picked, frames):
        check(len(out) + 1)  # headers lie
        if frame is not last:
            flags = _scaler(frame.height, stored_height)
            rgb = scaler.reformat(frame, stored_width, stored_height, "rgb24", interpolation=flags, threads=1)
            last, image = frame, np.rot90(rgb.to_ndarray(), turns)  # counter-clockwise, as the display matrix means it
        out.append(image)
    return out


def _scaler(height: int, target_height: int) -> int:
    """swscale flags: averaging over the area never aliases, bicubic does not show blocks."""
    return (Interpolation.AREA if target_height < height else Interpolation.BICUBIC) | _EXACT


def _encode(path: pathlib.Path, suffix: str, video: np.ndarray, rate: Fraction) -> None:
    height, width = video.shape[1:3]
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for image in video)
    options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    with av.open(os.path.abspath(path), "w", format=suffix[1:], options=options) as out:
        if suffix == ".gif":
            stream = out.add_stream("gif", rate=rate)
            stream.pix_fmt = "pal8"
            frames = _with_palette(frames, width, height, rate)
        else:
            stream = out.add_stream("libx264" if suffix == ".mp4" else "libvpx-vp9", rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "12"} | ({} if suffix == ".mp4" else {"b": "0", "cpu-used": "4", "row-mt": "1"})
            codec = stream.codec_context
            # Tagged BT.709, limited range: untagged files change colour from one player to the next.
            codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1
            convert = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG, "threads": 1}
            flags, scaler = Interpolation.BICUBIC | _EXACT, VideoReformatter()
            frames = (scaler.reformat(frame, format="yuv420p", interpolation=flags, **convert) for frame in frames)
        stream.width, stream.height = width, height
        for i, frame in enumerate(frames):
            # Without a time of its own every frame lands at zero and the file claims thousands of fps.
            frame.pts, frame.time_base = i, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def _with_palette(frames, width: int, height: int, rate: Fraction) -> Iterator[av.VideoFrame]:
    """The frames in 256 colours chosen for this video, dithered."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / rate)
    split, generate, use, sink = (graph.add(name) for name in ("split", "palettegen", "paletteuse", "buffersink"))
    source.link_to(split)
    split.link_to(generate, 0, 0)
    split.link_to(use, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for i, frame in enumerate(frames):
        frame.pts, frame.time_base = i, 1 / rate
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            yield graph.pull()
        except (av.EOFError, av.BlockingIOError):
            return
