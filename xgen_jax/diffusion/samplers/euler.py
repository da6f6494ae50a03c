"""Euler's method, first order, one evaluation a step.

Divided by alpha + sigma every process is a rectified flow:

    z   = x / (alpha + sigma) = (1 - tau) x0 + tau eps,    dz/dtau = eps - x0
    tau = sigma / (alpha + sigma)

and z(tau') = z(tau) + (tau' - tau) (eps - x0). On rectified flow z = x and tau = t. Neither end is
singular. The method equals DDIM without noise: both are exact for constant x0 and eps.
"""

import numpy as np


def coefficients(grid):
    """Return the coefficients of x' = keep x + slope (eps - x0)."""
    return {
        "keep": total(grid.after) / total(grid.now),
        "slope": total(grid.after) * (tau(grid.after) - tau(grid.now)),
    }


def total(level) -> np.ndarray:
    """Return alpha + sigma."""
    return level.alpha + level.sigma


def tau(level) -> np.ndarray:
    """Return the time of the rectified flow that the process is, up to a scale."""
    return level.sigma / total(level)


def init(x, coefficients):
    """Return (): the solver keeps no memory."""
    del x, coefficients
    return ()


def step(denoise, x, memory, here, noise):
    """Take one step, from `here.now` to `here.after`."""
    del noise
    d, c = denoise(x, here.now), here.coefficients
    return c["keep"] * x + c["slope"] * (d.eps - d.x0), memory
