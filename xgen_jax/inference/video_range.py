"""Between what people see, uint8 0..255, and what models see, float [-1, 1]."""

import numpy as np

from xgen_jax.typing import Array, Video


def to_uint8(video: Array) -> Video:
    """[-1, 1] -> uint8, clipped and rounded."""
    return np.rint((np.clip(np.asarray(video, np.float32), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def to_float(video: Video) -> np.ndarray:
    """uint8 -> float32 [-1, 1]."""
    return np.asarray(video, np.float32) / 127.5 - 1.0
