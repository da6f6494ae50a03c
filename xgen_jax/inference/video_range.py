"""Between what people see, uint8 0..255, and what models see, float [-1, 1]."""

import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.typing import Array, Video


def to_uint8(video: Array) -> Video:
    """[-1, 1] -> uint8, clipped and rounded."""
    return np.rint((np.clip(np.asarray(video, np.float32), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def to_float(video: Video) -> np.ndarray:
    """uint8 -> float32 [-1, 1]."""
    return np.asarray(video, np.float32) / 127.5 - 1.0


def check_video(video: np.ndarray) -> None:
    """Raises UserError unless it is video (B, T, H, W, 3), uint8 or float in [-1, 1], all finite."""
    if video.ndim != 5 or video.shape[-1] != 3:
        raise UserError(f"video is (B, T, H, W, 3), not {video.shape}")
    if video.dtype == np.uint8:
        return
    if not np.issubdtype(video.dtype, np.floating):
        raise UserError(f"video is uint8, or float in [-1, 1], not {video.dtype}")
    if not np.isfinite(video).all():
        where = np.argwhere(~np.isfinite(video))[0].tolist()
        raise UserError(f"video has pixels that are not finite, the first at (batch, frame, y, x, channel) {where}")
    low, high = (float(x) for x in (video.min(initial=0), video.max(initial=0)))
    if max(-low, high) > 1.001:
        raise UserError(f"float video lies in [-1, 1], but this one in [{low:g}, {high:g}]; 0..255 is uint8")
