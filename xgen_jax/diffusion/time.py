"""Times in [0, 1] for training and sampling. One shift serves both (arXiv 2403.03206, section 5.3.2)."""

import jax
import jax.numpy as jnp

from xgen_jax.errors import UserError
from xgen_jax.typing import Array


def shift(t: Array, ratio: float) -> Array:
    """Moves times towards noise for larger videos: r t / (1 + (r - 1) t); ratio 1 leaves them as they are."""
    return ratio * t / (1.0 + (ratio - 1.0) * t)


def draw_times(key_B: Array, distribution: str, ratio: float = 1.0) -> Array:
    """Training times (B,), one for each key.

    Args:
      key_B: one key a sample, so that a sample's time does not depend on the batch around it.
      distribution: `uniform`, or `logit_normal` (location 0, scale 1; arXiv 2403.03206, section 3.1).
      ratio: see `shift`.
    """
    match distribution:
        case "uniform":
            t_B = jax.vmap(jax.random.uniform)(key_B)
        case "logit_normal":
            t_B = jax.nn.sigmoid(jax.vmap(jax.random.normal)(key_B))
        case _:
            raise UserError(f"time distribution {distribution!r} is not known; choose 'uniform' or 'logit_normal'")
    return shift(t_B, ratio)


def time_grid(steps: int, ratio: float = 1.0) -> Array:
    """Sampling times (steps + 1,) from 1 (noise) down to 0 (data), evenly spaced before the shift."""
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    return shift(jnp.linspace(1.0, 0.0, steps + 1), ratio)
