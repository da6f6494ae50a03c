"""Euler's rule, first order, one evaluation a step.

Divided by alpha + sigma every process is a rectified flow:

    z = x / (alpha + sigma) = (1 - tau) x0 + tau eps,    tau = sigma / (alpha + sigma),    dz/dtau = eps - x0

and z(tau') = z(tau) + (tau' - tau) (eps - x0). On rectified flow z = x and tau = t. Neither end is
singular. The rule is the same as DDIM's without noise, which is exact for constant x0 and eps
likewise.
"""

import numpy as np


def coefficients(grid):
    """x' = keep x + slope (eps - x0)."""
    return {
        "keep": total(grid.after) / total(grid.now),
        "slope": total(grid.after) * (tau(grid.after) - tau(grid.now)),
    }


def total(level) -> np.ndarray:
    """alpha + sigma."""
    return level.alpha + level.sigma


def tau(level) -> np.ndarray:
    """The time of the flow that this process is, up to a scale."""
    return level.sigma / total(level)


def init(x, coefficients):
    """No memory."""
    del x, coefficients
    return ()


def step(denoise, x, memory, here, noise):
    """One step from `here.now` to `here.after`."""
    del noise
    d, c = denoise(x, here.now), here.coefficients
    return c["keep"] * x + c["slope"] * (d.eps - d.x0), memory
