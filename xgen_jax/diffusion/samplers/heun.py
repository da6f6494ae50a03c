"""Heun's method (arXiv 2206.00364, algorithm 1 without churn), second order.

It takes two evaluations a step, and one in the last.

In the coordinates of `euler`, a step goes along the mean of the slopes at both its ends. Where it
ends on data, eps is not determined there, and the step is Euler's; one such step leaves the order
at two.
"""

import numpy as np
from jax import lax

from xgen_jax.diffusion.samplers.euler import coefficients, init

__all__ = ["coefficients", "evaluations", "init", "step"]


def ends_on_data(after):
    """Return whether a step that ends at this level is Euler's."""
    return (after.sigma <= 0) | (after.alpha <= 0)


def evaluations(after):
    """Return how often the network is evaluated in steps that end at these levels, (steps,)."""
    return np.where(ends_on_data(after), 1, 2)


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

    return lax.cond(ends_on_data(here.after), lambda x_euler: x_euler, corrected, x_euler), memory
