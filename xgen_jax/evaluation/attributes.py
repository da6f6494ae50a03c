"""Attributes of moving shapes, read from a video's pixels.

It uses no model. The background is the border's median, the shape is what stands out from it, and
each attribute is measured on that soft mask: colour by the nearest of the palette, shape by the
template of equal area that fits best, size by that template's extent, direction by the path of the
centroid. It tolerates the blur and noise that an autoencoder or a sampler leaves.
"""

from collections.abc import Mapping

import numpy as np

from xgen_jax.data.pixels import check_clip
from xgen_jax.data.sources.synthetic import (
    ATTRIBUTES,
    BACKGROUNDS,
    EXTENTS,
    FILL,
    PALETTE,
    coverage,
)

# Least difference of shape and background, in levels; the palette's least is 124.
_LEAST_CONTRAST = 50.0
_LEAST_TRAVEL = 0.08  # of the frame; the dataset's least is 0.25
_LEAST_PRESENCE = 0.5  # of the frames must show the shape
# Largest distance to a named colour, in levels; the palette's least gap is 124.
_FARTHEST_COLOR = 100.0
# Largest squared difference of mask and template over the mask's area; heavy blur reaches 0.2.
_WORST_MISFIT = 0.35
_SIZE_BORDER = float(np.sqrt(EXTENTS["small"] * EXTENTS["large"]))


def read_attributes(video: np.ndarray) -> dict[str, str]:
    """Read the attributes of a video of the moving-shapes dataset.

    Args:
      video: uint8 (T, H, W, 3).

    Returns:
      {attribute: value}, by the names of `ATTRIBUTES`. What is uncertain is left out: the direction
      of a shape that hardly moves (or of a still), a colour far from the palette, an outline unlike
      any shape, and all but the background when nothing stands out in most frames.

    Raises:
      UserError: another kind of array.
    """
    check_clip(video)
    video = video.astype(np.float32)
    ground = _background(video)
    read = {"background": _nearest(ground, BACKGROUNDS)}
    read |= _read_shape(video - ground, ground)
    return {name: value for name in ATTRIBUTES if (value := read.get(name))}


def _background(video: np.ndarray) -> np.ndarray:
    """Median colour (3,) of the frames' outermost pixels."""
    # A shape touches at most two of the four sides.
    sides = (video[:, 0], video[:, -1], video[:, :, 0], video[:, :, -1])
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def _nearest(color: np.ndarray, names: Mapping[str, tuple[int, int, int]]) -> str | None:
    """Name of the nearest colour; None if none is near."""
    distances = {name: float(np.linalg.norm(color - np.array(rgb))) for name, rgb in names.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < _FARTHEST_COLOR else None


def _read_shape(difference: np.ndarray, ground: np.ndarray) -> dict[str, str | None]:
    """Colour, shape, size and direction of what stands out; empty if nothing does, None for what is
    uncertain."""
    found = _segment(difference)
    if found is None:
        return {}
    mask, contrast = found
    frames, height, width = mask.shape
    mask, x, y = _centroids(mask)
    areas = mask.sum(axis=(1, 2))
    area = float(np.median(areas))
    present = areas > max(area / 2, 1.0)
    if present.sum() < _LEAST_PRESENCE * frames:
        return {}
    mask, x, y = mask[present], x[present], y[present]
    shape, extent = _fit_template(mask, area, x, y)
    return {
        "color": _nearest(ground + contrast, PALETTE),
        "shape": shape,
        "size": "large" if extent > _SIZE_BORDER * min(height, width) else "small",
        "direction": _direction(np.flatnonzero(present), x / width, y / height, frames),
    }


def _segment(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Soft mask (T, H, W) in [0, 1] of what stands out, and its contrast (3,) with the background;
    None if nothing does.

    `difference`: (T, H, W, 3), the video less its background.
    """
    distance = np.sqrt(np.einsum("...c,...c->...", difference, difference))
    # The smallest shape covers 4.5 % of a frame, so its inside lies beyond the 98th percentile.
    level = np.quantile(distance, 0.98)
    if level < _LEAST_CONTRAST:
        return None
    contrast = np.median(difference[distance >= 0.8 * level], axis=0)
    # Strong differences that cancel are texture, not a shape.
    if np.linalg.norm(contrast) < _LEAST_CONTRAST:
        return None
    cover = difference @ contrast / (contrast @ contrast)
    # Steeper than the true cover: noise on either side is cut off, and the half-way outline stays
    # where it is.
    return np.clip((cover - 0.25) * 2, 0, 1), contrast


def _centroids(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask without what lies far from the shape, and the shape's centroid: x (T,), y (T,) in
    pixels."""
    _, height, width = mask.shape
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    reach = EXTENTS["large"] * min(height, width)
    x, y = _centroid(mask, columns, rows)
    for _ in range(2):  # stray specks pull the first centroid, not the second
        near = (np.abs(columns - x[:, None]) < reach)[:, None, :] & (
            np.abs(rows - y[:, None]) < reach
        )[:, :, None]
        mask = mask * near
        x, y = _centroid(mask, columns, rows)
    return mask, x, y


def _centroid(
    mask: np.ndarray, columns: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    area = np.maximum(mask.sum(axis=(1, 2)), 1e-6)
    return mask.sum(axis=1) @ columns / area, mask.sum(axis=2) @ rows / area


def _fit_template(
    mask: np.ndarray, area: float, x: np.ndarray, y: np.ndarray
) -> tuple[str | None, float]:
    """Shape that differs least from the mask at its centroid and of its area, and its extent in
    pixels. The shape is None if even the best fits badly."""
    _, height, width = mask.shape
    best: tuple[str | None, float, float] = (None, np.inf, 0.0)
    for shape, fill in FILL.items():
        extent = float(np.sqrt(area / fill))
        # A triangle's centroid lies a sixth of its height below the middle of its box.
        center_y = y - extent / 6 if shape == "triangle" else y
        template = coverage(
            shape, extent, center_x=x, center_y=center_y, height=height, width=width
        )
        misfit = float(np.sum((template - mask) ** 2))
        if misfit < best[1]:
            best = (shape, misfit, extent)
    shape, misfit, extent = best
    return (shape if misfit < _WORST_MISFIT * float(mask.sum()) else None), extent


def _direction(times: np.ndarray, x: np.ndarray, y: np.ndarray, frames: int) -> str | None:
    """Side towards which a straight line through the centroids leads; None if it hardly moves.

    `times`: indices of the frames; `x`, `y`: centroids as fractions of the frame.
    """
    if len(times) < 2:
        return None
    centered = times - times.mean()
    way_x, way_y = (
        float(centered @ place / (centered @ centered)) * (frames - 1) for place in (x, y)
    )
    if max(abs(way_x), abs(way_y)) < _LEAST_TRAVEL:
        return None
    if abs(way_x) > abs(way_y):
        return "right" if way_x > 0 else "left"
    return "down" if way_y > 0 else "up"
