"""Classifier-free guidance (arXiv 2207.12598): null + scale (condition - null), both halves in one forward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xgen_jax.typing import Array


def guided(
    predict: Callable[[Array, Array, Any], Array], condition: Any, null: Any, scale: float | Array
) -> Callable[[Array, Array], Array]:
    """Makes a denoise function for `samplers.sample` out of a conditional model.

    Args:
      predict: (x (2B, ...), t (2B,), condition of 2B) -> prediction (2B, ...).
      condition: a pytree with leading dim B.
      null: the same for the empty condition.
      scale: 1 is no guidance.
    """
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null)

    def denoise(x, t):
        y = predict(jnp.concatenate([x, x]), jnp.full((2 * x.shape[0],), t), both)
        conditional, unconditional = jnp.split(y, 2)
        return unconditional + scale * (conditional - unconditional)

    return denoise
