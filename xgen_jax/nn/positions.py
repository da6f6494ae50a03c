"""Positions: rotary embedding in time, sinusoids in space (arXiv 2408.12590, section 3.2) and of scalars."""

import jax.numpy as jnp
import numpy as np

from xgen_jax.typing import Array


def rotary(x_BNKC: Array, positions_N: Array, base: float = 10_000.0) -> Array:
    """Rotates interleaved channel pairs by position times frequency (RoFormer, arXiv 2104.09864).

    Args:
      x_BNKC: queries or keys; C must be even.
      positions_N: the position of each token, any real unit (latent frames here).
      base: the longest wavelength is about 2*pi*base positions.
    """
    channels = x_BNKC.shape[-1]
    frequencies = base ** -(np.arange(0, channels, 2) / channels)
    angles = jnp.asarray(positions_N, jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)[None, :]
    cos, sin = (f(angles)[None, :, None, :].astype(x_BNKC.dtype) for f in (jnp.cos, jnp.sin))
    pairs = x_BNKC.reshape(*x_BNKC.shape[:-1], channels // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x_BNKC.shape)


def sinusoid(x: Array, dim: int, max_period: float = 10_000.0) -> Array:
    """Cosines, then sines, of a scalar at `dim`/2 geometric frequencies: (...,) -> (..., dim)."""
    half = dim // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(x, jnp.float32)[..., None] * frequencies.reshape((1,) * jnp.ndim(x) + (-1,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sinusoid_2d(height: int, width: int, dim: int, max_period: float = 10_000.0) -> Array:
    """Fixed embedding of a grid, (height*width, dim): the first half encodes the column, the second the row."""
    quarter = dim // 4
    frequencies = max_period ** -(np.arange(quarter) / quarter)

    def axis(count):
        angles = np.arange(count)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    columns = np.broadcast_to(axis(width)[None], (height, width, 2 * quarter))
    rows = np.broadcast_to(axis(height)[:, None], (height, width, 2 * quarter))
    table = np.concatenate([columns, rows], axis=-1).reshape(height * width, 4 * quarter)
    return jnp.asarray(np.pad(table, ((0, 0), (0, dim - 4 * quarter))), jnp.float32)
