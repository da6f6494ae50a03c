"""Heun's method (arXiv 2206.00364, algorithm 1 without churn), second order.

It takes two evaluations a step, and one in the last.

In the coordinates of `euler`, a step goes along the mean of the slopes at both its ends. Where it
ends on data, eps is not determined there, and the step is Euler's; one such step leaves the order
at two.
"""

import jax.numpy as jnp
from jax import lax

from xgen_jax.diffusion.samplers.euler import coefficients, init

__all__ = ["coefficients", "init", "step"]


def step(denoise, x, memory, here, noise):
    """Take one step, from `here.now` to `here.after`."""
    del noise
    c = here.coefficients
    first = denoise(x, here.now)
    slope = first.eps - first.x0
    x_euler = c["keep"] * x + c["slope"] * slope

    def corrected(x_euler):
        second = denoise(x_euler, here.after)
        return c["keep"] * x + c["slope"] * 0.5 * (slope + second.eps - second.x0)

    ends_on_data = jnp.logical_or(here.after.sigma <= 0, here.after.alpha <= 0)
    return lax.cond(ends_on_data, lambda x_euler: x_euler, corrected, x_euler), memory
