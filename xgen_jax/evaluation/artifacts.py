"""What PSNR and SSIM do not show of a reconstruction: blur and grain, and a mesh of patches.

PSNR and MSE reward blur: their optimum is the mean of all that might be there. Sharpness shows it,

    sharpness = mean |grad Y(reconstruction)| / mean |grad Y(original)|
    Y = 0.299 R + 0.587 G + 0.114 B

with differences of neighbouring pixels for the gradient: 1 is natural, less is blurred, more is
grain or ringing: it is no detail of the original, whose gradient is 1 by definition.

A decoder that puts frames together from patches may leave a mesh of their borders. With patches of
p x p pixels,

    blockiness = B(reconstruction) / B(original)
    B = (mean |dY| across patch borders + c) / (mean |dY| elsewhere + c)

where dY are the differences of horizontal and of vertical neighbours in all frames of a clip; those
across a border are of pixels p n - 1 and p n, n = 1, 2, ... c = 0.1 of 255 levels gives flat clips
a ratio. 1 is natural, more is a mesh, less is patches that are smoother at their borders than
within.
"""

import numpy as np

from xgen_jax.data.pixels import check_pair
from xgen_jax.errors import UserError

# ITU-R BT.601 in thousandths: with whole numbers a flat frame has a gradient of exactly 0.
LUMA = (299, 587, 114)
# A flat frame, such as a fade to black, has no finite ratio unless the reconstruction is flat too.
SHARPNESS_CAP = 4.0
BLOCKINESS_CAP = 4.0
BLOCKINESS_FLOOR = 0.1  # c of the module's docstring, in levels of 255

SHARPNESS = (
    "mean gradient magnitude of the luma, reconstruction over original, per frame (at most "
    f"{SHARPNESS_CAP:g}; 1 where both are flat), mean over frames, then over clips; 1 is natural, "
    "below is blurred, above is grain or ringing and not detail"
)
BLOCKINESS = (
    "mean absolute difference of the luma across borders of {patch}x{patch} patches over that "
    f"elsewhere, each plus {BLOCKINESS_FLOOR:g} levels, reconstruction's ratio over the "
    f"original's, per clip (at most {BLOCKINESS_CAP:g}), mean over clips; 1 is natural, above is a "
    "mesh"
)

Video = np.ndarray  # uint8 (T, H, W, 3); not from xgen_jax.typing, which would import JAX


def sharpness_frames(original: Video, reconstruction: Video) -> np.ndarray:
    """Compute the sharpness of each frame, as the module's docstring defines it.

    Args:
      original, reconstruction: uint8 (T, H, W, 3), H and W at least 2.

    Returns:
      float64 (T,) in [0, 4]; 1 where both frames are flat, 4 where only the original is.

    Raises:
      UserError: not two uint8 videos of one shape.
    """
    check_pair(original, reconstruction)
    _, height, width, _ = original.shape
    if min(height, width) < 2:
        raise UserError(
            f"sharpness needs frames of at least 2x2 pixels; these are {height}x{width}"
        )
    frames = zip(original, reconstruction, strict=True)
    wanted, got = np.array([(_gradient(x), _gradient(y)) for x, y in frames]).T
    ratio = np.divide(got, wanted, out=np.full_like(got, SHARPNESS_CAP), where=wanted > 0)
    return np.where((wanted == 0) & (got == 0), 1.0, np.minimum(ratio, SHARPNESS_CAP))


def blockiness(original: Video, reconstruction: Video, patch: int) -> float:
    """Compute the blockiness of a clip, as the module's docstring defines it.

    Args:
      original, reconstruction: uint8 (T, H, W, 3).
      patch: pixels a side of the patches, which begin at the upper left corner.

    Returns:
      In [0, 4]; 1 where the videos are equal, and where a frame is a single patch or every pixel
      is one.

    Raises:
      UserError: not two uint8 videos of one shape, or patches of less than a pixel.
    """
    sums = BlockSums(patch)
    sums.add(original, reconstruction)
    return sums.blockiness


class BlockSums:
    """The sums behind `blockiness`, of a clip that may come in parts.

    Args:
      patch: pixels a side of the patches.

    Raises:
      UserError: patches of less than a pixel.
    """

    def __init__(self, patch: int):
        if patch < 1:
            raise UserError(f"blockiness needs patches of 1x1 pixels or more, not {patch}x{patch}")
        self._patch = patch
        self._sums = np.zeros((2, 2, 2))  # of each video: (sum, count) at borders, and elsewhere

    def add(self, original: Video, reconstruction: Video) -> None:
        """Add frames: uint8 (T, H, W, 3) of one shape."""
        check_pair(original, reconstruction)
        # A frame of a single patch has no borders, and patches of a pixel nothing else.
        if self._patch > 1 and max(original.shape[1:3]) > self._patch:
            self._sums += [_border_sums(each, self._patch) for each in (original, reconstruction)]

    @property
    def blockiness(self) -> float:
        """See `blockiness`."""
        if not self._sums.any():
            return 1.0
        at_border, elsewhere = (self._sums[..., 0] / self._sums[..., 1]).T / sum(LUMA)
        ratios = (at_border + BLOCKINESS_FLOOR) / (elsewhere + BLOCKINESS_FLOOR)
        return min(float(ratios[1] / ratios[0]), BLOCKINESS_CAP)


def _border_sums(video: Video, patch: int) -> np.ndarray:
    """(sum, count) of the absolute differences of a clip's luma, in thousandths of a level, across
    the borders of patches and elsewhere: (2, 2)."""
    sums = np.zeros((2, 2))
    for frame in video:  # whole numbers: the sums are exact
        luma = frame.astype(np.int64) @ np.array(LUMA)
        for rows in (luma, luma.T):
            steps = np.abs(np.diff(rows, axis=0))
            across = np.arange(1, len(rows)) % patch == 0
            for place, chosen in enumerate((across, ~across)):
                sums[place] += steps[chosen].sum(), steps[chosen].size
    return sums


def _gradient(frame: np.ndarray) -> float:
    """Mean magnitude of the luma's gradient of one frame, uint8 (H, W, 3)."""
    luma = frame.astype(np.int64) @ np.array(LUMA)
    return float(np.hypot(luma[:-1, 1:] - luma[:-1, :-1], luma[1:, :-1] - luma[:-1, :-1]).mean())
