"""Reconstruct a video file: `launch/reconstruct.py`."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from xgen_jax.commands.sample import check_output_file, check_suffix
from xgen_jax.data.video import VideoReader, probe
from xgen_jax.data.video_writer import VideoWriter
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.reconstruction import ClipScores, side_by_side
from xgen_jax.evaluation.seams import seam_figures
from xgen_jax.inference.reconstruct import Reconstructor, load_reconstructor
from xgen_jax.inference.resample_time import BETWEEN, moments
from xgen_jax.runs.checkpoint import LATEST
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Video

_READ = 8  # frames at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructRequest:
    """The flags of `launch/reconstruct.py`.

    Attributes:
      embedder: folder of a VidVAE or REGEN.
      video: the file to reconstruct.
      out: the file to write, original and reconstruction side by side.
      start: seconds from which the video is taken.
      frames: number of frames from there at most; by default all.
      steps: evaluations of a REGEN's decoder; by default its run's.
      speed, between: see `Reconstructor`.
      memory_budget_gb: what the device may use, in GB (1e9 bytes); chunks are as long as it allows.
      overwrite: replace a file that exists.
      restore: checkpoint of the embedder: "latest", "latest_good", which steps over damaged ones,
        "best" (see `LoopConfig.keep_best`), or the number of a step.

    Raises:
      UserError: missing values, an `out` that cannot be written, an unknown `between`.
    """

    embedder: str = ""
    video: str = ""
    out: str = ""
    start: float = 0.0
    frames: int | None = None
    steps: int | None = None
    speed: float = 1.0
    between: str = BETWEEN[0]
    memory_budget_gb: float | None = None
    overwrite: bool = False
    restore: str = LATEST

    def __post_init__(self):
        missing = [name for name in ("embedder", "video", "out") if not getattr(self, name)]
        if missing:
            raise UserError(f"give {', '.join(f'--{name}' for name in missing)}")
        check_suffix(self.out)
        if not (math.isfinite(self.start) and self.start >= 0):
            raise UserError(f"--start={self.start} must be seconds, 0 or more")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"--frames={self.frames} must be 1 or more")
        choose("between", self.between, BETWEEN)
        if self.between != BETWEEN[0] and self.speed == 1.0:
            raise UserError(f"--between={self.between} is for another --speed than 1")


def reconstruct_file(request: ReconstructRequest) -> dict[str, Any]:
    """Reconstruct a video file and write it next to the original.

    Read, encoded, decoded, compared and written chunk by chunk, in memory that does not grow with
    the length; at another speed only the latents are kept whole, and the file is read twice. The
    original is then slowed by repeating frames, and the figures are those of the frames that it
    has.

    Returns:
      video (the path), shape (T, H, W, 3), fps, the figures of `reconstruction.compare` under the
      same names, but no lists; at speed 1 seam_ratio where there is one; wall_s.

    Raises:
      UserError: an unreadable video, a start after its end, an output that exists, steps or a speed
        that the embedder cannot decode.
    """
    started = time.monotonic()
    path = check_output_file(request.out, request.overwrite)
    info = probe(request.video)
    if request.start >= info.duration_s:
        raise UserError(
            f"--start={request.start:g} is not before the end of {request.video}, which lasts "
            f"{info.duration_s:g} s"
        )
    expected = max(1, math.ceil((info.duration_s - request.start) * info.fps - 1e-3))
    expected = expected if request.frames is None else min(expected, request.frames)
    if request.speed != 1.0:
        expected = len(moments(expected, request.speed))
    reconstruct = load_reconstructor(
        request.embedder, request.memory_budget_gb, request.steps, request.restore
    )
    pairs = (_stream if request.speed == 1.0 else _at_speed)(request, reconstruct)
    embedder, written, shape = reconstruct.embedder, 0, ()
    scores = ClipScores(patch=embedder.patch)
    console = ConsoleWriter(expected, "reconstruct", 0, ("psnr_db",), unit="frames")
    with contextlib.closing(console), VideoWriter(path, info.fps) as writer:
        for shown, reconstruction, own in pairs:
            writer.write(side_by_side(shown, reconstruction))
            if own.any():
                scores.add(shown[own], reconstruction[own])
            written, shape = written + len(own), shown.shape[1:]
            console.progress(written, {"psnr_db": scores.psnr_db})
    figures = scores.means()
    if request.speed == 1.0:  # at another one there are no chunks between the frames compared
        seams = seam_figures([(*scores.changes, embedder.chunk_starts(written))])
        figures |= {name: seams[name] for name in seams if name == "seam_ratio"}
    return {
        "video": str(path),
        "shape": [written, *shape],
        "fps": info.fps,
        **{name: round(value, 5) for name, value in figures.items()},
        "wall_s": round(time.monotonic() - started, 2),
    }


# Original, reconstruction, and which of their frames the video has.
Pairs = Iterator[tuple[Video, Video, np.ndarray]]


def _stream(request: ReconstructRequest, reconstruct: Reconstructor) -> Pairs:
    """Yield the video in chunks, with their reconstruction."""
    with VideoReader(request.video, start_s=request.start, frames=request.frames) as reader:
        waiting: collections.deque[np.ndarray] = collections.deque()  # for their reconstruction

        def read():
            for chunk in reader.chunks(_READ):
                waiting.extend(chunk)
                yield chunk

        for reconstruction in reconstruct.stream(read()):
            shown = np.stack([waiting.popleft() for _ in reconstruction])
            yield shown, reconstruction, np.ones(len(shown), bool)


def _at_speed(request: ReconstructRequest, reconstruct: Reconstructor) -> Pairs:
    """Yield the video, slowed or faster, with its reconstruction.

    All of it is encoded before the first frame is decoded, so it is read again to be shown.
    """
    count = shown = 0

    def read(reader: VideoReader):
        nonlocal count
        for chunk in reader.chunks(_READ):
            count += len(chunk)
            yield chunk

    with contextlib.ExitStack() as files:
        encoded, again = (
            files.enter_context(
                VideoReader(request.video, start_s=request.start, frames=request.frames)
            )
            for _ in range(2)
        )
        frames, number, frame = enumerate(again), -1, np.empty(0)
        options = {"speed": request.speed, "between": request.between}
        for reconstruction in reconstruct.stream(read(encoded), **options):
            at = moments(count, request.speed)[shown : shown + len(reconstruction)]
            shown, original = shown + len(at), []
            for place in np.floor(at):
                while number < place:
                    number, frame = next(frames)
                original.append(frame)
            yield np.stack(original), reconstruction, at == np.floor(at)
