"""Structural similarity of frames at one scale (SSIM) and at five (MS-SSIM), in NumPy, float64.

    SSIM = l cs
    l    = (2 m_a m_b + C1) / (m_a^2 + m_b^2 + C1),  cs = (2 s_ab + C2) / (s_a^2 + s_b^2 + C2)
    C    = (K 255)^2

SSIM as in Wang et al. 2004 (doi:10.1109/TIP.2003.819861): moments under an 11x11 Gaussian window of
sigma 1.5, population covariance, K = 0.01 and 0.03, mean over the windows that lie wholly inside
the frame, then over R, G and B. Tools that pad the frame and average the whole map (torchmetrics)
give up to 6e-3 less.

MS-SSIM as in Wang et al. 2003 (doi:10.1109/ACSSC.2003.1292216), of each of R, G and B:

    MS-SSIM = mean(SSIM at scale 5)^w_5 * product over scales 1 to 4 of mean(cs)^w

with means below 0 taken as 0, and the mean over the channels at the end, as pytorch-msssim does it.
A scale is the mean of 2x2 pixels of the one before; a side of odd length repeats its last row or
column first. The window must fit into the last scale, so that frames have sides of 161 pixels or
more; there is no MS-SSIM of smaller ones, since fewer scales would be another figure.
"""

import numpy as np

from xgen_jax.errors import UserError

DATA_RANGE = 255.0
WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, the finest first
MS_LEAST = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # pixels a side
_BAND = 32  # rows that are computed at a time


def ssim_frame(a_HWC: np.ndarray, b_HWC: np.ndarray) -> tuple[float, float | None]:
    """Compute SSIM and MS-SSIM of a frame, which share their first scale.

    Args:
      a_HWC, b_HWC: of one shape, 0..255.

    Returns:
      (SSIM in [-1, 1], MS-SSIM in [0, 1], None for frames that are too small for it).

    Raises:
      UserError: a frame smaller than the window.
    """
    if min(a_HWC.shape[:2]) < WINDOW:
        raise UserError(
            f"SSIM needs frames of at least {WINDOW}x{WINDOW} pixels, its window; these are "
            f"{a_HWC.shape[0]}x{a_HWC.shape[1]}"
        )
    ssim_C, cs_C = _means(a_HWC, b_HWC)
    if min(a_HWC.shape[:2]) < MS_LEAST:
        return float(ssim_C.mean()), None
    *weights, last = WEIGHTS
    product_C, of_scale_C = np.ones_like(cs_C), ssim_C
    for weight in weights:
        product_C = product_C * np.maximum(cs_C, 0) ** weight
        a_HWC, b_HWC = _halved(a_HWC), _halved(b_HWC)
        of_scale_C, cs_C = _means(a_HWC, b_HWC)
    product_C = product_C * np.maximum(of_scale_C, 0) ** last
    return float(ssim_C.mean()), float(product_C.mean())


def _means(a_HWC: np.ndarray, b_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (C,) of SSIM and of cs over the places where the window fits."""
    # The moment maps of a band of rows stay in the cache; those of a frame of HD take 250 MB.
    tops = range(0, len(a_HWC) - WINDOW + 1, _BAND)
    bands = [slice(top, top + _BAND + WINDOW - 1) for top in tops]
    maps = [_maps(a_HWC[band], b_HWC[band]) for band in bands]
    ssim_C, cs_C = (np.concatenate(parts).mean((0, 1)) for parts in zip(*maps))
    return ssim_C, cs_C


def _maps(a_HWC: np.ndarray, b_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM and cs at each place where the window fits."""
    # float64: E[x^2] - E[x]^2 cancels on flat patches, where float32 is off by up to 3e-4.
    a, b = a_HWC.astype(np.float64), b_HWC.astype(np.float64)
    maps = np.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = _filter(_filter(maps, 1), 2)
    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    mean_ab, mean_squares = mean_a * mean_b, mean_a**2 + mean_b**2
    cs = (2 * (ab - mean_ab) + c2) / (aa + bb - mean_squares + c2)
    return (2 * mean_ab + c1) / (mean_squares + c1) * cs, cs


def _halved(frame_HWC: np.ndarray) -> np.ndarray:
    height, width, channels = frame_HWC.shape
    even = np.pad(frame_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    squares = even.astype(np.float64).reshape(len(even) // 2, 2, -1, 2, channels)
    return squares.mean((1, 3))


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
