"""SIREN (arXiv 2006.09661): a network of sines as a function of a coordinate, per place of a grid.

    h_0 = Fourier features of t    h_{i+1} = sin(W_i h_i + b_i)    y = W (scale * h_n + shift) + b

The weights are shared; scale and shift come from a code at each place, so that every place has a
temporal function of its own (REGEN, arXiv 2503.08665, section 3, which does not say how the code
modulates). The code stays outside of the sines: inside, a large code wraps around, and an encoder
that is trained jointly and moves to large codes does not recover (docs/regen.md measures it). The
coordinate is continuous: the function interpolates between the times seen in training, and
extrapolates beyond them.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xgen_jax.typing import Array


def fourier_features(t: Array, bands: int) -> Array:
    """Return t, and sines and cosines of pi t, 2 pi t, ... 2^(bands - 1) pi t.

    (...,) -> (..., 1 + 2 bands).
    """
    t = jnp.asarray(t, jnp.float32)[..., None]
    angles = t * jnp.asarray(np.pi * 2.0 ** np.arange(bands), jnp.float32).reshape(
        (1,) * (t.ndim - 1) + (-1,)
    )
    return jnp.concatenate([t, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ModulatedSIREN(nn.Module):
    """A function of time for each place of a grid.

    Attributes:
      features: channels of the result.
      hidden: width of the sine layers.
      depth: number of sine layers, 1 or more.
      bands: see `fourier_features`.
    """

    features: int
    hidden: int
    depth: int
    bands: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, times_BF: Array, code_BHWC: Array) -> Array:
        """Evaluate at times (B, F) with codes (B, H, W, C): (B, F, H, W, features)."""
        h = fourier_features(times_BF, self.bands).astype(self.dtype)
        for layer in range(self.depth):
            # A sine of a uniform angle has variance 1/2: sqrt(6 / n) keeps that of the angles at 1
            # (section 3.2).
            bound = np.sqrt(6.0 / h.shape[-1])
            h = jnp.sin(
                nn.Dense(
                    self.hidden,
                    dtype=self.dtype,
                    kernel_init=_symmetric(bound),
                    name=f"sine{layer}",
                )(h)
            )
        scale, shift = jnp.split(
            nn.Dense(2 * self.hidden, dtype=self.dtype, name="amplitude")(code_BHWC)[:, None], 2, -1
        )
        h = scale * h[:, :, None, None] + shift
        return nn.Dense(self.features, dtype=self.dtype, name="out")(h)


def _symmetric(bound: float):
    """Return an initialiser, uniform in -bound .. bound."""

    def init(key, shape, dtype=jnp.float32):
        return nn.initializers.uniform(2 * bound)(key, shape, dtype) - jnp.asarray(bound, dtype)

    return init
