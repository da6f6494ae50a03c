"""Pixels of files, uint8 0..255, and of models, float [-1, 1]; cropping; random clips."""

from typing import Any

import numpy as np

from xgen_jax.errors import UserError


def to_uint8(video) -> np.ndarray:
    """Convert [-1, 1] to uint8, clipped and rounded."""
    return np.rint((np.clip(np.asarray(video, np.float32), -1.0, 1.0) + 1.0) * 127.5).astype(
        np.uint8
    )


def check_clip(video: Any, what: str = "a video", empty: bool = False) -> None:
    """Raise UserError unless `video` is an array of frames, uint8 (T, H, W, 3).

    Args:
      video: any value.
      what: names it in the message.
      empty: also accept no frames or no pixels.
    """
    shape, dtype = getattr(video, "shape", None), getattr(video, "dtype", None)
    if shape is None or dtype is None:
        raise UserError(f"{what} must be a uint8 array (T, H, W, 3), not {type(video).__name__}")
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"{what} must be a uint8 array (T, H, W, 3), not {dtype} {shape}")
    if 0 in shape and not empty:
        raise UserError(f"{what} must have frames and pixels; this one is {shape}")


def check_pair(a: Any, b: Any) -> None:
    """Raise UserError unless `a` and `b` are videos, uint8 (T, H, W, 3), of one shape."""
    for video in (a, b):
        check_clip(video)
    if a.shape == b.shape:
        return
    hint = "compare as many frames of the one as of the other"
    if a.shape[1:] != b.shape[1:]:
        hint = "resize or crop one of them to the size of the other"
    raise UserError(
        f"the videos differ in shape (T, H, W, 3): {a.shape} and {b.shape}; they are compared "
        f"frame by frame and pixel by pixel: {hint}"
    )


def check_video(video: np.ndarray) -> None:
    """Raise UserError unless `video` is (B, T, H, W, 3), uint8 or finite float in [-1, 1]."""
    if video.ndim != 5 or video.shape[-1] != 3:
        raise UserError(f"video is (B, T, H, W, 3), not {video.shape}")
    if video.dtype == np.uint8:
        return
    if not np.issubdtype(video.dtype, np.floating):
        raise UserError(f"video is uint8, or float in [-1, 1], not {video.dtype}")
    if not np.isfinite(video).all():
        where = np.argwhere(~np.isfinite(video))[0].tolist()
        raise UserError(
            "video has pixels that are not finite, the first at (batch, frame, y, x, channel) "
            f"{where}"
        )
    low, high = (float(x) for x in (video.min(initial=0), video.max(initial=0)))
    if max(-low, high) > 1.001:
        raise UserError(
            f"float video lies in [-1, 1], but this one in [{low:g}, {high:g}]; 0..255 is uint8"
        )


def to_unit_range(video_uint8):
    """Convert uint8 0..255 to float32 [-1, 1], in NumPy or JAX."""
    return video_uint8.astype(np.float32) / 127.5 - 1.0


def crop(video: np.ndarray, height: int, width: int, top: int, left: int) -> np.ndarray:
    """Return the (T, height, width, 3) window whose upper left pixel is (top, left).

    Raises:
      UserError: it does not lie within the frame.
    """
    rows, columns = video.shape[1:3]
    if not (0 <= top <= rows - height and 0 <= left <= columns - width):
        window = f"{height}x{width} at ({top}, {left})"
        raise UserError(
            f"a crop of {window} does not lie within frames of {rows}x{columns} (height x width)"
        )
    return video[:, top : top + height, left : left + width]


def center_crop(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle (T, height, width, 3) of the frame."""
    return crop(video, height, width, (video.shape[1] - height) // 2, (video.shape[2] - width) // 2)


def random_crop(
    video: np.ndarray, height: int, width: int, uniform: tuple[float, float]
) -> np.ndarray:
    """Return the (T, height, width, 3) window at the place that two uniform numbers in [0, 1)
    choose; every place is equally likely."""
    rows, columns = video.shape[1:3]
    top, left = int(uniform[0] * (rows - height + 1)), int(uniform[1] * (columns - width + 1))
    return crop(video, height, width, top, left)


UNIFORMS = 4  # random numbers of a clip: start, row, column, mirrored


def random_start(
    begin_s: float,
    end_s: float,
    *,
    frames: int,
    fps: float,
    file_fps: float,
    uniform: float,
    place: int = 0,
    count: int = 1,
) -> float:
    """Return the second at which a clip starts, one at which the file has a frame.

    The last frame of the clip must start before the end: the choice is among the file's frames that
    allow it, clip `place` of `count` among the place-th count-th of them.

    Args:
      begin_s, end_s: seconds of the file within which the clip lies, if it fits there.
      frames, fps: of the clip.
      file_fps: of the file.
      uniform: number in [0, 1) that chooses.
      place, count: of clips that share these seconds.
    """
    spare = end_s - begin_s - (frames - 1) / fps - 1 / file_fps
    starts = 1 + max(0, int(spare * file_fps + 1e-3))
    return begin_s + int((min(place, count - 1) + uniform) / count * starts) / file_fps


def hold_last(video: np.ndarray, frames: int) -> np.ndarray:
    """Repeat the last frame of (T, H, W, 3) until there are `frames`."""
    missing = frames - len(video)
    return np.concatenate([video, np.repeat(video[-1:], missing, axis=0)]) if missing > 0 else video


def random_view(
    video: np.ndarray, height: int, width: int, uniforms: np.ndarray, flip: bool
) -> np.ndarray:
    """Return (T, height, width, 3): a crop at a random place, mirrored in half of the cases.

    Args:
      video: (T, H, W, 3) that covers height x width.
      height, width: of the crop.
      uniforms: the clip's `UNIFORMS` numbers in [0, 1).
      flip: mirror at all.
    """
    video = random_crop(video, height, width, (uniforms[1], uniforms[2]))
    if flip and uniforms[3] < 0.5:
        video = video[:, :, ::-1]
    return np.ascontiguousarray(video)
