"""Frechet distance between two sets of clips: how far apart their features' distributions lie,
taken as Gaussians.

    d^2 = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

With centred features X = A sqrt(N - 1) and Y likewise, S_x = A^T A, S_y = B^T B, and the last trace
is the sum of the singular values of A B^T. No root of a covariance is taken, so the distance is
never complex, and is exact without full rank too (fewer clips than features).

FVD (arXiv 1812.01717) takes the features from an I3D network trained on Kinetics. Without its
weights there is `random_features`: a small convolutional network of random filters. It detects
blur, noise and wrong motion, but no objects: its distance is called `frechet_random_features`, can
only be compared with itself on the same clips, and is not FVD.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xgen_jax.data.pixels import check_clip, to_unit_range
from xgen_jax.errors import UserError
from xgen_jax.typing import Array, Video

NAME = "frechet_random_features"
SEED = 2503
WIDTHS = (16, 32, 32)  # channels after each 3x3x3 convolution, which halves height and width
FEATURES = 2 * WIDTHS[-1]
CONVENTION = (
    f"Frechet distance (unbiased covariances) of {FEATURES} features a clip: mean and standard "
    f"deviation, over its frames and places, of the last of {len(WIDTHS)} random 3x3x3 "
    f"convolutions (leaky ReLU, NumPy seed {SEED}); no FVD"
)


def frechet_distance(x_ND: np.ndarray, y_ND: np.ndarray) -> float:
    """Compute d^2 between two sets of features, with unbiased covariances, in float64.

    Args:
      x_ND, y_ND: a row a sample, two rows or more; their numbers may differ.

    Returns:
      0 or more, to rounding.

    Raises:
      UserError: fewer than two samples, features of different width, or one that is not finite.
    """
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_ND, np.float64)
    for features in (x, y):
        if features.ndim != 2 or len(features) < 2:
            raise UserError(
                f"a Frechet distance needs (N, D) features of 2 samples or more, not "
                f"{features.shape}"
            )
        if not np.isfinite(features).all():
            raise UserError("a Frechet distance needs finite features")
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"the two sets have {x.shape[1]} and {y.shape[1]} features; they must be the same"
        )
    # QR preserves A^T A, and makes the product D x D for any number of samples.
    a, b = (_upper((z - z.mean(0)) / np.sqrt(len(z) - 1)) for z in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(
        np.square(x.mean(0) - y.mean(0)).sum() + np.square(a).sum() + np.square(b).sum() - 2 * cross
    )


def _upper(x_ND: np.ndarray) -> np.ndarray:
    r: Any = np.linalg.qr(x_ND, mode="r")  # NumPy annotates it as the other modes' pair
    return r


@functools.cache
def _filters() -> tuple[np.ndarray, ...]:
    """Random kernels (3, 3, 3, in, out), He-initialised (arXiv 1502.01852)."""
    rng, shapes = np.random.default_rng(SEED), zip((3, *WIDTHS[:-1]), WIDTHS)
    return tuple(
        (rng.standard_normal((3, 3, 3, i, o)) * np.sqrt(2 / (27 * i))).astype(np.float32)
        for i, o in shapes
    )


@jax.jit
def _features(filters: tuple[Array, ...], video_BTHWC: Array) -> Array:
    x = video_BTHWC
    # A figure must not depend on whether the device rounds its products.
    with jax.default_matmul_precision("highest"):
        for kernel in filters:
            x = lax.conv_general_dilated(
                x, kernel, (1, 2, 2), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
            )
            x = jnp.where(x > 0, x, 0.2 * x)
    return jnp.concatenate([x.mean((1, 2, 3)), x.std((1, 2, 3))], axis=-1)


def random_features(clips: Iterable[Video]) -> np.ndarray:
    """Compute features of clips for `frechet_distance`; the same on every machine, to rounding.

    Args:
      clips: uint8 (T, H, W, 3), one after another.

    Returns:
      float64 (clips, 64).

    Raises:
      UserError: another kind of array.
    """
    rows = []
    for clip in clips:
        check_clip(clip)
        rows.append(np.asarray(_features(_filters(), to_unit_range(clip)[None])[0], np.float64))
    return np.stack(rows) if rows else np.zeros((0, FEATURES))
