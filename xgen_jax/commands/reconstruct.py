"""Reconstruct a video file: `launch/reconstruct.py`."""

import dataclasses
import time
from typing import Any

import numpy as np

from xgen_jax.commands.sample import check_output_file, check_suffix
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.reconstruction import compare, side_by_side
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.inference.resample_time import BETWEEN, moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructRequest:
    """The flags of `launch/reconstruct.py`.

    Attributes:
      embedder: folder of a VidVAE or REGEN.
      video: the file to reconstruct.
      out: the file to write, original and reconstruction side by side.
      frames: number of frames from the start; by default all.
      steps: evaluations of a REGEN's decoder; by default its run's.
      speed, between: see `Reconstructor`.
      memory_budget_gb: what the device may use, in GB (1e9 bytes); chunks are as long as it allows.
      overwrite: replace a file that exists.

    Raises:
      UserError: missing values, an `out` that cannot be written, an unknown `between`.
    """

    embedder: str = ""
    video: str = ""
    out: str = ""
    frames: int | None = None
    steps: int | None = None
    speed: float = 1.0
    between: str = BETWEEN[0]
    memory_budget_gb: float | None = None
    overwrite: bool = False

    def __post_init__(self):
        missing = [name for name in ("embedder", "video", "out") if not getattr(self, name)]
        if missing:
            raise UserError(f"give {', '.join(f'--{name}' for name in missing)}")
        check_suffix(self.out)
        choose("between", self.between, BETWEEN)
        if self.between != BETWEEN[0] and self.speed == 1.0:
            raise UserError(f"--between={self.between} is for another --speed than 1")


def reconstruct_file(request: ReconstructRequest) -> dict[str, Any]:
    """Reconstruct a video file and write it next to the original.

    At another speed the original is slowed by repeating frames, and the figures are those of the
    frames that it has.

    Returns:
      video (the path), shape (T, H, W, 3), fps, psnr_db, ssim, mse, sharpness, blockiness,
      wall_s.

    Raises:
      UserError: an unreadable video, an output that exists, steps or a speed that the embedder
        cannot decode.
    """
    started = time.monotonic()
    path = check_output_file(request.out, request.overwrite)
    original, fps = read_video(request.video, frames=request.frames)
    reconstruct = load_reconstructor(request.embedder, request.memory_budget_gb, request.steps)
    reconstruction = reconstruct(original, request.speed, between=request.between)
    at = moments(len(original), request.speed)
    own, shown = at == np.floor(at), original[np.floor(at).astype(int)]
    result = compare(shown[own], reconstruction[own], patch=reconstruct.embedder.patch)
    write_video(path, side_by_side(shown, reconstruction), fps)
    names = ("psnr_db", "ssim", "mse", "sharpness", "blockiness")
    figures = {name: round(result[name], 4) for name in names}
    return {
        "video": str(path),
        "shape": list(reconstruction.shape),
        "fps": fps,
        **figures,
        "wall_s": round(time.monotonic() - started, 2),
    }
