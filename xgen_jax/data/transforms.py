"""Resizing and cropping of uint8 (T, H, W, 3) clips; one size and one place for the whole clip, so motion is kept."""

import numpy as np

from xgen_jax.data.video import cover_size, resize_frames
from xgen_jax.errors import UserError


def resize_cover(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes, aspect kept and antialiased, to the smallest uint8 (T, >=height, >=width, 3) that covers the target."""
    return resize_frames(video, *cover_size(video.shape[1], video.shape[2], height, width))


def crop(video: np.ndarray, height: int, width: int, top: int, left: int) -> np.ndarray:
    """The (T, height, width, 3) window whose upper left pixel is (top, left); UserError where it leaves the frame."""
    rows, columns = video.shape[1:3]
    if not (0 <= top <= rows - height and 0 <= left <= columns - width):
        window = f"{height}x{width} at ({top}, {left})"
        raise UserError(f"a crop of {window} does not lie within frames of {rows}x{columns} (height x width)")
    return video[:, top : top + height, left : left + width]


def center_crop(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle (T, height, width, 3) of the frame."""
    return crop(video, height, width, (video.shape[1] - height) // 2, (video.shape[2] - width) // 2)


def random_crop(video: np.ndarray, height: int, width: int, draw: tuple[float, float]) -> np.ndarray:
    """A (T, height, width, 3) window placed by two uniform draws in [0, 1): every position is equally likely."""
    rows, columns = video.shape[1:3]
    top, left = int(draw[0] * (rows - height + 1)), int(draw[1] * (columns - width + 1))
    return crop(video, height, width, top, left)
