"""Frechet distance between two sets of clips: how far apart their features' distributions lie,
taken as Gaussians.

    d^2 = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

With centred features X = A sqrt(N - 1) and Y likewise, S_x = A^T A, S_y = B^T B, and the last trace
is the sum of the singular values of A B^T. No root of a covariance is taken, so the distance is
never complex, and is exact without full rank too (fewer clips than features).

FVD (arXiv 1812.01717) takes the features from an I3D network trained on Kinetics, see
`evaluation.fvd`. Without its weights there is `random_features`: a small convolutional network of
random filters. It detects blur, noise and wrong motion, but no objects: its distance is called
`frechet_random_features`, can only be compared with itself on the same clips, and is not FVD.
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
    return _distance(x.mean(0), a, y.mean(0), b)


class FeatureStatistics:
    """Number, mean and covariance of features that come batch after batch, in float64.

    The sum of products of deviations is kept, and corrected for the mean's move when a batch is
    added (Chan, Golub, LeVeque 1979): no large squares are subtracted from one another.
    """

    def __init__(self, features: int):
        self.count = 0
        self.mean_D = np.zeros(features)
        self._products_DD = np.zeros((features, features))

    def update(self, x_ND: np.ndarray) -> None:
        """Add a batch, a row a sample.

        Raises:
          UserError: another width, or a feature that is not finite.
        """
        x = np.asarray(x_ND, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.mean_D):
            raise UserError(f"features are (N, {len(self.mean_D)}), not {x.shape}")
        if not np.isfinite(x).all():
            raise UserError("a Frechet distance needs finite features")
        if len(x):
            mean = x.mean(0)
            self._add(len(x), mean, (x - mean).T @ (x - mean))

    def packed(self) -> np.ndarray:
        """Return all of it as one array (1 + D + D D,), to send to another process."""
        return np.concatenate([[self.count], self.mean_D, self._products_DD.ravel()])

    def add_packed(self, packed: np.ndarray) -> None:
        """Add what another one has `packed`."""
        width = len(self.mean_D)
        count, mean, products = np.split(packed, [1, 1 + width])
        if count[0]:
            self._add(int(count[0]), mean, products.reshape(width, width))

    def covariance(self) -> np.ndarray:
        """Return the unbiased covariance (D, D), as np.cov does; of 2 samples or more."""
        if self.count < 2:
            raise UserError(f"a covariance needs 2 samples or more, not {self.count}")
        return self._products_DD / (self.count - 1)

    def distance(self, other: "FeatureStatistics") -> float:
        """Compute d^2 to another set, see `frechet_distance`."""
        return _distance(
            self.mean_D, _root(self.covariance()), other.mean_D, _root(other.covariance())
        )

    def _add(self, count: int, mean_D: np.ndarray, products_DD: np.ndarray) -> None:
        total, move = self.count + count, mean_D - self.mean_D
        self._products_DD += products_DD + np.outer(move, move) * (self.count * count / total)
        self.mean_D = self.mean_D + move * (count / total)
        self.count = total


def _distance(m_x: np.ndarray, a: np.ndarray, m_y: np.ndarray, b: np.ndarray) -> float:
    """Compute d^2 of two means and of roots of the covariances, S_x = a^T a and S_y = b^T b."""
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    squares = np.square(m_x - m_y).sum() + np.square(a).sum() + np.square(b).sum()
    return float(squares - 2 * cross)


def _root(covariance_DD: np.ndarray) -> np.ndarray:
    """Return a with a^T a = S; what rounding has made negative is zero."""
    values, vectors = np.linalg.eigh(covariance_DD)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


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
