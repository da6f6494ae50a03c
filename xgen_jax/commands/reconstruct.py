"""Reconstructs one video file: what `launch/reconstruct.py` does."""

import time
from typing import Any

import numpy as np

from xgen_jax.commands.evaluate import require
from xgen_jax.commands.sample import check_output_file
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.evaluation.reconstruction import compare, side_by_side
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.inference.resample_time import BETWEEN, moments


def reconstruct_file(
    *,
    embedder: str | None,
    video: str | None,
    out: str | None,
    frames: int | None = None,
    steps: int | None = None,
    speed: float = 1.0,
    between: str = BETWEEN[0],
    memory_budget_gb: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Reconstructs one video file and writes both side by side.

    Args:
      embedder, video, out, frames, overwrite: see `launch/reconstruct.py`.
      steps: see `load_reconstructor`.
      speed, between: see `Reconstructor`; the original is then slowed by repeating frames, and the
        figures are of the frames that it has.
      memory_budget_gb: what the device may use, see `inference.streaming.decode`.

    Raises:
      UserError: missing arguments, an unreadable video, an output that is there, steps or a speed
        that the embedder cannot have.
    """
    started = time.monotonic()
    for name, value in (("embedder", embedder), ("video", video), ("out", out)):
        require(name, value)
    path = check_output_file(out, overwrite)
    original, fps = read_video(video, frames=frames)
    reconstruction = load_reconstructor(embedder, memory_budget_gb, steps)(
        original, speed, between=between
    )
    at = moments(len(original), speed)
    own, shown = at == np.floor(at), original[np.floor(at).astype(int)]
    result = compare(shown[own], reconstruction[own])
    write_video(path, side_by_side(shown, reconstruction), fps)
    figures = {name: round(result[name], 4) for name in ("psnr_db", "ssim", "mse", "sharpness")}
    wall_s = round(time.monotonic() - started, 2)
    return {
        "video": str(path),
        "shape": list(reconstruction.shape),
        "fps": fps,
        **figures,
        "wall_s": wall_s,
    }
