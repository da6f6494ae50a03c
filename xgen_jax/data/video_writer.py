"""Video files through PyAV, written chunk by chunk, whole or not at all."""

import contextlib
import math
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from xgen_jax.data.pixels import check_clip
from xgen_jax.errors import UserError
from xgen_jax.files import replace, temporary_path

WRITE_SUFFIXES = (".mp4", ".webm", ".gif")
# The default shortcuts of swscale shift chroma by half a pixel and darken by one level of 255.
# These flags cost 1 ms a frame at 480p and take a read-write round trip from 43.8 to 48.6 dB.
EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
# A GIF delay is a whole number of 1/100 s, and viewers slow down anything below two.
_GIF_MAX_FPS = 50
_WAITING = 2  # chunks that wait for the encoder, at most


def write_video(path, video: np.ndarray, fps: float = 8.0) -> None:
    """Write uint8 (T, H, W, 3), T >= 1, at `fps` frames per second; see `VideoWriter`.

    Raises:
      UserError: another suffix, array or rate, or the file cannot be written.
    """
    if pathlib.Path(path).suffix.lower() in WRITE_SUFFIXES and 0 in getattr(video, "shape", ()):
        raise UserError(f"cannot write {path}: the video is empty, its shape is {video.shape}")
    with VideoWriter(path, fps) as writer:
        writer.write(video)


class VideoWriter:
    """A video file that is written chunk by chunk in constant memory; a context manager.

    The encoder has its own thread, so that the caller makes the next chunk meanwhile; `write` waits
    while two chunks are ahead of it.

    The suffix chooses the format: .mp4 is H.264 4:2:0 and .webm is VP9, both at near-lossless
    quality and playable in browsers; .gif has a palette of 256 colours, for which all frames are
    kept until the end, and at most 50 fps. Odd sizes grow by one repeated row or column where the
    codec needs even ones. Parent folders are made. The whole file appears when the context is left
    without an error; otherwise there is none. The bytes do not depend on the chunks.

    Args:
      path: of the file.
      fps: frames per second.

    Raises:
      UserError: another suffix or rate.
    """

    def __init__(self, path, fps: float = 8.0):
        self.path = pathlib.Path(path)
        self.frames = 0
        self._suffix = self.path.suffix.lower()
        if self._suffix not in WRITE_SUFFIXES:
            listed = ", ".join(WRITE_SUFFIXES)
            raise UserError(
                f"cannot write {path}: the suffix must be one of {listed}, not {self._suffix!r}"
            )
        if not (math.isfinite(fps) and 0 < fps <= 1000) or (
            self._suffix == ".gif" and fps > _GIF_MAX_FPS
        ):
            raise UserError(
                f"cannot write {path}: fps must be above 0 and at most 1000 (50 for .gif), "
                f"not {fps}"
            )
        self._rate = Fraction(fps).limit_denominator(1001)
        self._temporary = temporary_path(self.path)
        self._shape: tuple[int, ...] | None = None
        self._kept: list[np.ndarray] = []  # of a GIF
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._encoder = _InOrder()

    def write(self, video: np.ndarray) -> None:
        """Append frames, uint8 (T, H, W, 3), all of one size. They must not change any more.

        Raises:
          UserError: other frames, or the file cannot be written: these ones, or earlier ones.
        """
        check_clip(video, f"cannot write {self.path}: the video", empty=True)
        self._shape = self._shape or video.shape[1:]
        if video.shape[1:] != self._shape:
            raise UserError(
                f"cannot write {self.path}: frames {video.shape[1:]} do not continue {self._shape}"
            )
        with self._errors():
            if self._suffix == ".gif":
                self._kept.append(video)
            elif len(video):
                self._encoder.put(lambda: self._encode(self._yuv(video)))
        self.frames += len(video)

    def flush(self) -> None:
        """Wait until all frames so far are encoded.

        Raises:
          UserError: they cannot be written.
        """
        with self._errors():
            self._encoder.flush()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                with self._errors():
                    self._finish()
        finally:
            try:
                self._encoder.stop()  # may be interrupted, and the container is still in use then
                if self._container is not None:
                    with contextlib.suppress(av.FFmpegError, OSError):
                        self._container.close()
            finally:
                with contextlib.suppress(OSError):
                    self._temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"cannot write {self.path}: {reason(error)}") from error

    def _finish(self) -> None:
        self._encoder.flush()
        if not self.frames:
            raise UserError(f"cannot write {self.path}: the video is empty")
        if self._suffix == ".gif":
            self._encode(_with_palette(self._kept, self._rate))
        assert self._container is not None and self._stream is not None
        self._container.mux(self._stream.encode())
        self._container.close()
        self._container = None
        if (written := _count_times(self._temporary)) != self.frames:
            raise RuntimeError(
                f"{self.path}: {self.frames} frames were encoded but {written} are in the file"
            )
        replace(self._temporary, self.path)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": "+faststart"} if self._suffix == ".mp4" else {}
        name = os.path.abspath(self._temporary)
        container = self._container = av.open(name, "w", format=self._suffix[1:], options=options)
        assert self._shape is not None
        height, width = self._shape[:2]
        if self._suffix == ".gif":
            stream = container.add_stream("gif", rate=self._rate)
            stream.pix_fmt = "pal8"
        else:
            mp4 = self._suffix == ".mp4"
            stream = container.add_stream("libx264" if mp4 else "libvpx-vp9", rate=self._rate)
            stream.pix_fmt = "yuv420p"
            # The same video must give the same bytes: with the tree of macroblocks x264 encodes one
            # in four small clips differently the next time, in one thread too; without it, none of
            # 700.
            rest = (
                {"x264-params": "mbtree=0"} if mp4 else {"b": "0", "cpu-used": "4", "row-mt": "1"}
            )
            stream.options = {"crf": "12", **rest}
            codec = stream.codec_context
            # Tagged BT.709, limited range: untagged files change colour between players.
            codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1
            height, width = height + height % 2, width + width % 2
        stream.width, stream.height = width, height
        self._stream = stream
        self._place = 0

    def _encode(self, frames: Iterator[av.VideoFrame]) -> None:
        if self._container is None:
            self._open()
        assert self._container is not None and self._stream is not None
        for frame in frames:
            if self._encoder.stopped:
                return
            # Without its own time every frame would be at zero, and the header at thousands of fps.
            frame.pts, frame.time_base = self._place, 1 / self._rate
            self._place += 1
            self._container.mux(self._stream.encode(frame))

    def _yuv(self, video: np.ndarray) -> Iterator[av.VideoFrame]:
        height, width = video.shape[1:3]
        video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        convert = {
            "dst_colorspace": Colorspace.ITU709,
            "dst_color_range": ColorRange.MPEG,
            "threads": 1,
        }
        flags, scaler = Interpolation.BICUBIC | EXACT, VideoReformatter()
        for image in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            yield scaler.reformat(frame, format="yuv420p", interpolation=flags, **convert)


class _InOrder:
    """Runs functions one after another in a thread, which starts with the first of them.

    The error of one is raised by the next call of `put` or `flush`; those after it are left out.

    Attributes:
      stopped: nothing is wanted any more; a long function looks at it to end early.
    """

    def __init__(self):
        self.stopped = False
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def put(self, function: Callable[[], None]) -> None:
        """Let a function run after those before it; wait while there are too many."""
        if self._thread is None:
            # A daemon: a process that ends without leaving the writer's context must not hang.
            self._thread = threading.Thread(target=self._run, name="video encoder", daemon=True)
            self._thread.start()
        self._raise_error()
        self._waiting.put(function)

    def flush(self) -> None:
        """Wait for all functions."""
        self._waiting.join()
        self._raise_error()

    def stop(self) -> None:
        """Leave out what has not begun, and wait for what has."""
        self.stopped = True
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (function := self._waiting.get()) is not None:
            try:
                if not self.stopped and self._error is None:
                    function()
            except Exception as error:
                self._error = error
            finally:
                self._waiting.task_done()


def reason(error: Exception) -> str:
    """Return the message of FFmpeg or the system, without the errno and the repeated path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _count_times(path: pathlib.Path) -> int:
    """The number of distinct presentation times in a file."""
    with av.open(os.path.abspath(path)) as container:
        return len({packet.pts for packet in container.demux(video=0) if packet.size})


def _with_palette(chunks: list[np.ndarray], rate: Fraction) -> Iterator[av.VideoFrame]:
    """The frames in 256 colours chosen for this video, dithered."""
    height, width = chunks[0].shape[1:3]
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate
    )
    split, generate, use, sink = (
        graph.add(name) for name in ("split", "palettegen", "paletteuse", "buffersink")
    )
    source.link_to(split)
    split.link_to(generate, 0, 0)
    split.link_to(use, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for i, image in enumerate(image for chunk in chunks for image in chunk):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = i, 1 / rate
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            yield graph.vpull()
        except (av.EOFError, av.BlockingIOError):
            return
