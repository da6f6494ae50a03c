"""Rectified flow (arXiv 2209.03003; arXiv 2403.03206): a straight line from data to noise.

    x_t = (1 - t) x0 + t eps        t in [0, 1], 0 is data, 1 is noise
    velocity = dx_t/dt = eps - x0

so x0 = x_t - t velocity and eps = x_t + (1 - t) velocity.
"""

import dataclasses

import jax
import jax.numpy as jnp

from xgen_jax.errors import UserError
from xgen_jax.typing import Array, Shape

PREDICTIONS = ("x0", "eps", "velocity")


def per_sample(t_B: Array, x: Array) -> Array:
    """(B,) -> (B, 1, ..., 1) with the rank of x."""
    return jnp.reshape(t_B, t_B.shape + (1,) * (x.ndim - t_B.ndim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """The four verbs of a process: corrupt, convert, terminal, schedule."""

    def schedule(self, t: Array) -> tuple[Array, Array]:
        """(alpha, sigma) of x_t = alpha x0 + sigma eps at t in [0, 1]."""
        return 1.0 - t, t

    def corrupt(self, x0: Array, eps: Array, t_B: Array) -> Array:
        """x_t of a batch (B, ...) at times (B,)."""
        alpha, sigma = self.schedule(per_sample(t_B, x0))
        return alpha * x0 + sigma * eps

    def convert(self, value: Array, x_t: Array, t_B: Array, source: str, target: str) -> Array:
        """Turns a prediction of one kind into another at the same (x_t, t).

        Args:
          value: the prediction, as x_t in shape.
          x_t: the corrupted batch (B, ...).
          t_B: times; x0 from eps needs t < 1, eps from x0 needs t > 0.
          source: one of "x0", "eps", "velocity".
          target: likewise.
        """
        for name in (source, target):
            if name not in PREDICTIONS:
                raise UserError(f"prediction {name!r} is not known; choose one of {', '.join(PREDICTIONS)}")
        if source == target:
            return value
        alpha, sigma = self.schedule(per_sample(t_B, x_t))
        match source:
            case "x0":
                x0, eps = value, (x_t - alpha * value) / sigma
            case "eps":
                x0, eps = (x_t - sigma * value) / alpha, value
            case "velocity":
                x0, eps = x_t - sigma * value, x_t + alpha * value
        return {"x0": x0, "eps": eps, "velocity": eps - x0}[target]

    def terminal(self, key: Array, shape: Shape) -> Array:
        """Noise at t = 1: standard normal."""
        return jax.random.normal(key, shape)
