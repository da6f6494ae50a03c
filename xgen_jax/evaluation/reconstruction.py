"""Reconstruction metrics of uint8 videos, in NumPy: PSNR, SSIM, MSE, sharpness and blockiness.

What a viewer sees is compared: both videos are uint8, so a model's floats are rounded and clipped
first.

    PSNR = 10 log10(255^2 / MSE)
    SSIM = (2 m_a m_b + C1) (2 s_ab + C2) / ((m_a^2 + m_b^2 + C1) (s_a^2 + s_b^2 + C2))
    C = (K 255)^2

SSIM as in Wang et al. 2004 (doi:10.1109/TIP.2003.819861): moments under an 11x11 Gaussian window of
sigma 1.5, population covariance, K = 0.01 and 0.03, mean over the windows that lie wholly inside
the frame, then over R, G and B. Tools that pad the frame and average the whole map give up to 6e-3
less. MSE is on the [-1, 1] scale, which is the one consistent with the xGen-VideoSyn-1 paper's
table 3 (arXiv 2408.12590).

PSNR and MSE reward blur: their optimum is the mean of all that might be there. Sharpness shows it,

    sharpness = mean |grad Y(reconstruction)| / mean |grad Y(original)|
    Y = 0.299 R + 0.587 G + 0.114 B

with differences of neighbouring pixels for the gradient: 1 is natural, less is blurred, more is
noisy.

A decoder that puts frames together from patches may leave a mesh of their borders, which none of
the above shows. With patches of p x p pixels,

    blockiness = B(reconstruction) / B(original)
    B = (mean |dY| across patch borders + c) / (mean |dY| elsewhere + c)

where dY are the differences of horizontal and of vertical neighbours in all frames of a clip; those
across a border are of pixels p n - 1 and p n, n = 1, 2, ... c = 0.1 of 255 levels gives flat clips
a ratio. 1 is natural, more is a mesh, less is patches that are smoother at their borders than
within.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from xgen_jax.data.pixels import check_clip
from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import gather

DATA_RANGE = 255.0
WINDOW = 11
_BAND = 32  # rows of SSIM that are computed at a time
SIGMA = 1.5
K1, K2 = 0.01, 0.03
# Identical frames have an infinite PSNR, which neither a mean nor JSON can hold. Means take at most
# this much.
PSNR_CAP_DB = 100.0
MSE_TO_UNIT = (2.0 / DATA_RANGE) ** 2  # from the 0..255 scale to [-1, 1]
MEANS = ("psnr_db", "psnr_of_mean_mse_db", "ssim", "mse", "sharpness")
# ITU-R BT.601 in thousandths: with whole numbers a flat frame has a gradient of exactly 0.
LUMA = (299, 587, 114)
# A flat frame, such as a fade to black, has no finite ratio unless the reconstruction is flat too.
SHARPNESS_CAP = 4.0
BLOCKINESS_CAP = 4.0
BLOCKINESS_FLOOR = 0.1  # c of the module's docstring, in levels of 255

CONVENTIONS = {
    "psnr_db": f"uint8, range 255, per frame, capped at {PSNR_CAP_DB:g} dB, mean over frames, "
    f"then over clips",
    "psnr_of_mean_mse_db": "PSNR of a clip's mean MSE, then mean over clips",
    "ssim": "uint8 RGB, 11x11 Gaussian, sigma 1.5, K 0.01 and 0.03, valid region, mean over "
    "channels and frames",
    "mse": "on the [-1, 1] scale",
    "sharpness": "mean gradient magnitude of the luma, reconstruction over original, per frame "
    f"(at most {SHARPNESS_CAP:g}; 1 where both are flat), mean over frames, then over clips; 1 is "
    "natural, below is blurred",
}
BLOCKINESS = (
    "mean absolute difference of the luma across borders of {patch}x{patch} patches over that "
    f"elsewhere, each plus {BLOCKINESS_FLOOR:g} levels, reconstruction's ratio over the "
    f"original's, per clip (at most {BLOCKINESS_CAP:g}), mean over clips; 1 is natural, above is a "
    "mesh"
)

Video = np.ndarray  # uint8 (T, H, W, 3); not from xgen_jax.typing, which would import JAX


class FrameDistance(Protocol):
    """Learned distance of two uint8 videos (T, H, W, 3), frame by frame: (T,), 0 where equal.

    Attributes:
      name: key in the results.
      convention: definition of the figure, for reports.
    """

    @property
    def name(self) -> str: ...

    @property
    def convention(self) -> str: ...

    def __call__(self, a: Video, b: Video) -> np.ndarray: ...


def psnr_frames(a: Video, b: Video) -> np.ndarray:
    """Compute the peak signal-to-noise ratio of each frame.

    Args:
      a, b: uint8 (T, H, W, 3).

    Returns:
      float64 (T,) in dB; infinite where the frames are identical.

    Raises:
      UserError: not two uint8 videos of one shape.
    """
    return _psnr(_mse_frames(a, b))


def ssim_frames(a: Video, b: Video) -> np.ndarray:
    """Compute the structural similarity of each frame, as the module's docstring defines it.

    Args:
      a, b: uint8 (T, H, W, 3), H and W at least 11.

    Returns:
      float64 (T,) in [-1, 1]; 1 where the frames are identical.

    Raises:
      UserError: not two uint8 videos of one shape, or frames smaller than the window.
    """
    _check(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, its window; these are "
            f"{a.shape[1]}x{a.shape[2]}"
        )
    return np.array([_ssim(x, y) for x, y in zip(a, b, strict=True)])


def sharpness_frames(original: Video, reconstruction: Video) -> np.ndarray:
    """Compute the sharpness of each frame, as the module's docstring defines it.

    Args:
      original, reconstruction: uint8 (T, H, W, 3), H and W at least 2.

    Returns:
      float64 (T,) in [0, 4]; 1 where both frames are flat, 4 where only the original is.

    Raises:
      UserError: not two uint8 videos of one shape.
    """
    _check(original, reconstruction)
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
    _check(original, reconstruction)
    if patch < 1:
        raise UserError(f"blockiness needs patches of 1x1 pixels or more, not {patch}x{patch}")
    if patch == 1 or max(original.shape[1:3]) <= patch:
        return 1.0
    wanted, got = (_border_ratio(video, patch) for video in (original, reconstruction))
    return min(float(got / wanted), BLOCKINESS_CAP)


def compare(
    original: Video,
    reconstruction: Video,
    lpips: FrameDistance | None = None,
    patch: int | None = None,
) -> dict[str, Any]:
    """Compute all metrics of one clip.

    Args:
      original, reconstruction: uint8 (T, H, W, 3), H and W at least 11.
      lpips: a learned distance to report as well.
      patch: pixels a side of the patches that the decoder puts together, to report `blockiness`.

    Returns:
      `psnr_db` (mean over frames, a frame counting for at most 100 dB: identical frames have no
      finite PSNR), `psnr_of_mean_mse_db` (the PSNR of the clip's mean MSE, capped likewise; never
      above `psnr_db` without the cap), `ssim` (mean over frames), `mse` (mean, [-1, 1] scale),
      `sharpness` (mean over frames), `identical_frames` (count), and the lists `psnr_db_frames`,
      `ssim_frames`, `mse_frames`, `sharpness_frames`; with `lpips` its mean and list under its
      name; with `patch` `blockiness`. All finite.

    Raises:
      UserError: as `psnr_frames` and `ssim_frames`; what `lpips` raises.
    """
    mse = _mse_frames(original, reconstruction)
    psnr_db = np.minimum(_psnr(mse), PSNR_CAP_DB)
    ssim = ssim_frames(original, reconstruction)
    sharpness = sharpness_frames(original, reconstruction)
    result = {
        "psnr_db": float(psnr_db.mean()),
        "psnr_of_mean_mse_db": min(float(_psnr(mse.mean())), PSNR_CAP_DB),
        "ssim": float(ssim.mean()),
        "mse": float(mse.mean() * MSE_TO_UNIT),
        "sharpness": float(sharpness.mean()),
        "identical_frames": int((mse == 0).sum()),
        "psnr_db_frames": psnr_db.tolist(),
        "ssim_frames": ssim.tolist(),
        "mse_frames": (mse * MSE_TO_UNIT).tolist(),
        "sharpness_frames": sharpness.tolist(),
    }
    if patch is not None:
        result["blockiness"] = blockiness(original, reconstruction, patch)
    if lpips is not None:
        distances = np.asarray(lpips(original, reconstruction), np.float64)
        result |= {lpips.name: float(distances.mean()), f"{lpips.name}_frames": distances.tolist()}
    return result


def evaluate_reconstruction(
    reconstruct: Callable[[Video], Video],
    clips: Iterable[tuple[str, Video]],
    visit: Callable[[dict[str, Any], Video, Video], None] | None = None,
    worst: int = 5,
    lpips: FrameDistance | None = None,
    patch: int | None = None,
) -> dict[str, Any]:
    """Reconstruct every clip and score it; one clip is in memory at a time.

    Several processes give their own clips each, in turns: of n, process p has the clips p, p + n,
    ... The result is that of all.

    Args:
      reconstruct: video -> video of the same shape, both uint8 (T, H, W, 3).
      clips: (name, video) pairs, at least one in all.
      visit: called with each clip's row, original and reconstruction, to save them or to show
        progress; it may add entries to the row, such as the `file` it wrote.
      worst: number of clips with the lowest PSNR to list.
      lpips: a learned distance to report as well, under its name.
      patch: as of `compare`.

    Returns:
      `clips` (count), `mean` (of each metric, over clips), `worst` (names, worst first),
      `conventions` (definitions of the metrics) and `videos`, one row a clip: `name`, `frames`,
      `height`, `width` and all of `compare`.

    Raises:
      UserError: no clips, or a clip that cannot be compared; the message names it.
    """
    rows: list[dict[str, Any]] = []
    for name, original in clips:
        reconstruction = reconstruct(original)
        try:
            result = compare(original, reconstruction, lpips, patch)
        except UserError as error:
            raise UserError(f"clip {name!r}: {error}") from error
        frames, height, width, _ = original.shape
        row = {"name": name, "frames": frames, "height": height, "width": width, **result}
        if visit is not None:
            visit(row, original, reconstruction)
        rows.append(row)
    turns = itertools.zip_longest(*gather(rows))
    rows = [row for turn in turns for row in turn if row is not None]
    if not rows:
        raise UserError("no clips to reconstruct: the data is empty, or every clip was left out")
    means, conventions = MEANS, CONVENTIONS
    if patch is not None:
        means = (*means, "blockiness")
        conventions = conventions | {"blockiness": BLOCKINESS.format(patch=patch)}
    if lpips is not None:
        means, conventions = (*means, lpips.name), conventions | {lpips.name: lpips.convention}
    return {
        "clips": len(rows),
        "mean": {name: math.fsum(row[name] for row in rows) / len(rows) for name in means},
        "worst": [row["name"] for row in sorted(rows, key=lambda row: row["psnr_db"])[:worst]],
        "conventions": conventions,
        "videos": rows,
    }


def side_by_side(original: Video, reconstruction: Video, separator: int = 2) -> Video:
    """Join two videos: the original on the left, a grey line, the reconstruction on the right.

    Args:
      original, reconstruction: uint8 (T, H, W, 3).
      separator: width of the line in pixels, even, since the common video formats need an even
        width.

    Returns:
      uint8 (T, H, 2 W + separator, 3).

    Raises:
      UserError: not two uint8 videos of one shape, or an odd separator.
    """
    _check(original, reconstruction)
    if separator < 0 or separator % 2:
        raise UserError(
            f"the separator is {separator} pixels wide; it must be even and not negative"
        )
    frames, height, _, channels = original.shape
    line = np.full((frames, height, separator, channels), 128, np.uint8)
    return np.concatenate([original, line, reconstruction], axis=2)


def _check(a: Video, b: Video) -> None:
    for video in (a, b):
        check_clip(video)
    if a.shape != b.shape:
        raise UserError(f"the videos differ in shape (T, H, W, 3): {a.shape} and {b.shape}")


def _mse_frames(a: Video, b: Video) -> np.ndarray:
    """Mean squared difference of each frame on the 0..255 scale, float64 (T,)."""
    _check(a, b)  # whole numbers below: the sums are exact
    return np.array([np.square(x.astype(np.int64) - y).mean() for x, y in zip(a, b, strict=True)])


def _psnr(mse: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(DATA_RANGE**2 / mse)


def _border_ratio(video: Video, patch: int) -> float:
    """B of the module's docstring, of a clip uint8 (T, H, W, 3)."""
    border, elsewhere = np.zeros(2), np.zeros(2)  # (sum, count) of the absolute differences
    for frame in video:  # whole numbers: the sums are exact
        luma = frame.astype(np.int64) @ np.array(LUMA)
        for rows in (luma, luma.T):
            steps = np.abs(np.diff(rows, axis=0))
            across = np.arange(1, len(rows)) % patch == 0
            border += steps[across].sum(), steps[across].size
            elsewhere += steps[~across].sum(), steps[~across].size
    of_border, of_rest = (total / count / sum(LUMA) for total, count in (border, elsewhere))
    return (of_border + BLOCKINESS_FLOOR) / (of_rest + BLOCKINESS_FLOOR)


def _gradient(frame: np.ndarray) -> float:
    """Mean magnitude of the luma's gradient of one frame, uint8 (H, W, 3)."""
    luma = frame.astype(np.int64) @ np.array(LUMA)
    return float(np.hypot(luma[:-1, 1:] - luma[:-1, :-1], luma[1:, :-1] - luma[:-1, :-1]).mean())


def _gaussian() -> np.ndarray:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    return weights / weights.sum()


def _filter(maps: np.ndarray, axis: int) -> np.ndarray:
    """Gaussian-weighted sums along one axis, which gets shorter by WINDOW - 1."""
    length = maps.shape[axis] - WINDOW + 1
    index = [slice(None)] * maps.ndim

    def shifted(offset: int) -> np.ndarray:
        index[axis] = slice(offset, offset + length)
        return maps[tuple(index)]

    weights = _gaussian()
    total = weights[WINDOW // 2] * shifted(WINDOW // 2)
    for offset in range(WINDOW // 2):  # the window is symmetric: two taps have one weight
        total += weights[offset] * (shifted(offset) + shifted(WINDOW - 1 - offset))
    return total


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one frame, uint8 (H, W, 3)."""
    # The moment maps of a band of rows stay in the cache; those of a frame of HD take 250 MB.
    tops = range(0, len(a) - WINDOW + 1, _BAND)
    bands = [slice(top, top + _BAND + WINDOW - 1) for top in tops]
    return float(np.concatenate([_ssim_map(a[band], b[band]) for band in bands]).mean())


def _ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM at each place where the window fits into uint8 (H, W, 3)."""
    # float64: E[x^2] - E[x]^2 cancels on flat patches, where float32 is off by up to 3e-4.
    a, b = a.astype(np.float64), b.astype(np.float64)
    maps = np.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = _filter(_filter(maps, 1), 2)
    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    mean_ab, mean_squares = mean_a * mean_b, mean_a**2 + mean_b**2
    numerator = (2 * mean_ab + c1) * (2 * (ab - mean_ab) + c2)
    denominator = (mean_squares + c1) * (aa + bb - mean_squares + c2)
    return numerator / denominator
