"""Technical quality of the picture, without any weights; it is no measure of beauty.

PIQE (Venkatanath et al., "Blind image quality evaluation using perception based features", NCC
2015, doi 10.1109/NCC.2015.7084843) judges each block of the picture that has visible structure: a
flat border means blur or strong compression, and a middle that varies as its surround means noise.
Sharpness, brightness and contrast say why a clip has a bad score, and which clips are black.
"""

import cv2
import numpy as np

from xgen_jax.curation.config import QualityConfig
from xgen_jax.curation.meter import Columns, Meter

_BLOCK = 16  # pixels; the macroblocks of H.264 have the same size
_ACTIVE = 0.1  # variance above which a block has visible structure
_FLAT = 0.1  # standard deviation below which a part of a block's border is flat
_PART = 6  # pixels of that part
# Pixels of each side at most: 8 ms a frame, and at 1080p still a tenth of the picture.
_CROP = 448
_SCORES = ("piqe", "sharpness", "brightness", "contrast")


class QualityMeter(Meter):
    """Measures the quality of a few frames at the video's own resolution.

    Args:
      config: whose `every_s` is used.
    """

    def __init__(self, config: QualityConfig):
        self.every_s = config.every_s
        self._times_s: list[float] = []
        self._rows: list[tuple[float, ...]] = []

    def add(self, time_s: float, image: np.ndarray) -> None:
        """See `Meter.add`."""
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        middle = _middle(gray)
        brightness, contrast = (float(value.item()) / 255 for value in cv2.meanStdDev(gray))
        sharpness = float(cv2.Laplacian(middle, cv2.CV_64F).var()) if middle.size else np.nan
        self._times_s.append(time_s)
        self._rows.append((piqe(middle), sharpness, brightness, contrast))

    def columns(self) -> Columns:
        """Return "time_s" and, float32:

        piqe: of the middle of the frame, 0 (clean) to 100 (bad), see `piqe`; NaN below 16 pixels.
        sharpness: variance of the Laplacian of the middle, of brightness 0 to 255; NaN as well.
        brightness: mean of the whole frame, 0 to 1.
        contrast: standard deviation of the brightness of the whole frame, 0 to 0.5.
        """
        rows = np.array(self._rows, np.float32).reshape(-1, len(_SCORES))
        return {"time_s": np.array(self._times_s, np.float64), **dict(zip(_SCORES, rows.T))}


def quality_scores(rows: Columns) -> dict[str, float]:
    """Return the means of a clip's frames: "piqe", "sharpness", "brightness", "contrast"; NaN where
    no frame was measured.

    Args:
      rows: of one clip, see `QualityMeter.columns`.
    """
    return {name: _mean(rows[name]) for name in _SCORES}


def piqe(gray: np.ndarray) -> float:
    """Return the PIQE of a picture, 0 (clean) to 100 (blurred, blocky or noisy).

    A picture without structure, such as a black one, has 100. Equal to pypiqe 1.2, a port of the
    authors' MATLAB code, except that brightness is not stretched to 255 first: a dark clip would
    seem a normal one.

    Args:
      gray: uint8 (H, W); rows and columns past a multiple of 16 are left out.

    Returns:
      NaN for a picture of less than 16 pixels a side.
    """
    height, width = (side // _BLOCK * _BLOCK for side in gray.shape)
    if not (height and width):
        return np.nan
    blocks = _normalized(gray[:height, :width])
    blocks = blocks.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).swapaxes(1, 2)
    blocks = blocks.reshape(-1, _BLOCK, _BLOCK)
    variance = blocks.var((1, 2), ddof=1)
    active = variance > _ACTIVE
    blocks, variance = blocks[active], variance[active]
    distortion = _has_flat_border(blocks) * (1 - variance) + _is_noise(blocks, variance) * variance
    return float(100 * (distortion.sum() + 1) / (len(blocks) + 1))


def _middle(gray: np.ndarray) -> np.ndarray:
    """Return the middle of a picture, cut at multiples of 16, where blocks of a codec end."""
    height, width = (min(side, _CROP) // _BLOCK * _BLOCK for side in gray.shape)
    top, left = (
        (side - cut) // 2 // _BLOCK * _BLOCK for side, cut in zip(gray.shape, (height, width))
    )
    return gray[top : top + height, left : left + width]


def _normalized(gray: np.ndarray) -> np.ndarray:
    """Return the brightness less its local mean, divided by its local deviation, float64 (H, W)."""
    picture = gray.astype(np.float64)  # the difference of squares below needs more than 32 bits

    def local_mean(values):
        return cv2.GaussianBlur(values, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)

    mean = local_mean(picture)
    deviation = np.sqrt(np.abs(local_mean(picture * picture) - mean * mean))
    return (picture - mean) / (deviation + 1)


def _has_flat_border(blocks: np.ndarray) -> np.ndarray:
    """Return which blocks (N, 16, 16) have a flat part of six pixels on a border, bool (N,)."""
    borders = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], 1)
    parts = np.lib.stride_tricks.sliding_window_view(borders, _PART, -1)
    return (parts.std(-1, ddof=1) < _FLAT).any((1, 2))


def _is_noise(blocks: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return which blocks (N, 16, 16) vary in their middle as around it, as noise does."""
    deviation = np.sqrt(variance)
    middle = blocks[:, :, 7:9].std((1, 2), ddof=1)
    # In the paper the surround is all but columns 7 and 8. pypiqe leaves out 7 and 9, and the
    # figures in common use are those of this code.
    around = np.delete(blocks, (7, 9), 2).std((1, 2), ddof=1)
    ratio = middle / np.maximum(around, 1e-6)
    difference = np.abs(deviation - ratio) / np.maximum(deviation, ratio)
    return deviation > 2 * difference


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
