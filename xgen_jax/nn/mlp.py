"""The feed-forward layer of a transformer block."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from xgen_jax.nn.choices import MLP_RESULT
from xgen_jax.nn.embeddings import XAVIER, ZEROS
from xgen_jax.typing import Array


def _gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=True)


class MLP(nn.Module):
    """Dense to `hidden`, activation (GELU in its tanh form), Dense back; (..., D) -> (..., D)."""

    hidden: int
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32
    activation: Callable[[Array], Array] = _gelu

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        out_init = ZEROS if self.zero_init else XAVIER
        h = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=XAVIER, name="fc1")(x_BND)
        out = nn.Dense(x_BND.shape[-1], dtype=self.dtype, kernel_init=out_init, name="fc2")
        return checkpoint_name(out(self.activation(h)), MLP_RESULT)
