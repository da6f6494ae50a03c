"""Positions: rotary embeddings, and sinusoids of grids and scalars (arXiv 2408.12590, 3.2)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from xgen_jax.typing import Array


class Placing(NamedTuple):
    """What makes queries and keys of what is projected, see `nn.attention.SelfAttention`.

    Attributes:
      norm: they are normalised per head, and scaled.
      rotate_first: they are rotated before that, not after it.
    """

    norm: bool
    rotate_first: bool


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotate interleaved channel pairs by position times frequency (RoFormer, arXiv 2104.09864).

    Args:
      x: queries or keys (..., N, K, C); C must be even.
      positions: (N,), the real position of each token (in latent frames here); or (N, A), its
        positions along A axes, among which the channels are divided: 2 floor(C / 2A) for each, and
        the remainder to the first.
      base: the longest wavelength is about 2*pi*base positions.
    """
    channels = x.shape[-1]
    angles = rotary_angles(jnp.reshape(positions, (x.shape[-3], -1)), channels, base)
    angles = angles.reshape((1,) * (x.ndim - 3) + (x.shape[-3], 1, -1))
    cos, sin = (f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    pairs = x.reshape(*x.shape[:-1], channels // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape)


def rotary_angles(positions: Array, channels: int, base: float = 10_000.0) -> Array:
    """Return the angles (N, channels / 2) of `rotary`, for positions (N, A)."""
    positions = jnp.asarray(positions, jnp.float32)
    axes = positions.shape[1]
    each = 2 * (channels // (2 * axes))
    angles = []
    for axis, count in enumerate([channels - (axes - 1) * each] + [each] * (axes - 1)):
        frequencies = base ** -(np.arange(0, count, 2) / count)
        angles.append(positions[:, axis, None] * jnp.asarray(frequencies, jnp.float32)[None, :])
    return jnp.concatenate(angles, axis=1)


def sinusoid(x: Array, dim: int, max_period: float = 10_000.0) -> Array:
    """Return cosines, then sines, at `dim`/2 geometric frequencies: (...,) -> (..., dim)."""
    half = dim // 2
    frequencies = jnp.exp(-np.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(x, jnp.float32)[..., None] * frequencies.reshape(
        (1,) * jnp.ndim(x) + (-1,)
    )
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sinusoid_2d(
    height: int,
    width: int,
    dim: int,
    max_period: float = 10_000.0,
    scales: tuple[float | Array, float | Array] = (1.0, 1.0),
) -> Array:
    """Return the fixed embedding of a grid, (height*width, dim).

    The first half of the channels encodes the column, the second the row. `scales` are the
    distances of neighbours, down and across.
    """
    quarter = dim // 4
    frequencies = max_period ** -(np.arange(quarter) / quarter)

    def axis(count, scale):
        # Python numbers are computed in double precision while tracing, traced ones in float32.
        xp, f = (
            (np, frequencies)
            if isinstance(scale, (int, float))
            else (jnp, frequencies.astype(np.float32))
        )
        angles = (xp.arange(count) * scale)[:, None] * f[None, :]
        return xp.concatenate([xp.sin(angles), xp.cos(angles)], axis=-1)

    columns, rows = axis(width, scales[1])[None], axis(height, scales[0])[:, None]
    grid = [
        jnp.broadcast_to(jnp.asarray(x, jnp.float32), (height, width, 2 * quarter))
        for x in (columns, rows)
    ]
    table = jnp.concatenate(grid, axis=-1).reshape(height * width, 4 * quarter)
    return jnp.pad(table, ((0, 0), (0, dim - 4 * quarter)))
