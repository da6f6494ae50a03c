"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), second order, one evaluation a step.

In lambda = log(alpha / sigma), with h the step and h_prev the one before:

    D  = x0 + h / (2 h_prev) (x0 - x0_prev)
    x' = sigma'/sigma x + alpha' (1 - e^-h) D

The first step has no step before it, and one that ends on data is infinite in lambda: both take D =
x0.
"""

import numpy as np


def log_ratio(level) -> np.ndarray:
    """Return lambda = log(alpha / sigma); infinite at both ends."""
    return np.log(level.alpha) - np.log(level.sigma)


def coefficients(grid):
    """Return the coefficients of x, x0 and the x0 of the step before."""
    now, after = grid.now, grid.after
    h = log_ratio(after) - log_ratio(now)
    before = np.append(np.nan, h[:-1])
    # No extrapolation at the first step, after one from pure noise, nor in one that ends on data.
    extrapolation = np.where(np.isfinite(before) & np.isfinite(h), 0.5 * h / before, 0.0)
    # e^-h without logarithms, which are infinite at the ends.
    weight = after.alpha * (1.0 - (now.alpha * after.sigma) / (after.alpha * now.sigma))
    return {
        "x": after.sigma / now.sigma,
        "x0": weight * (1.0 + extrapolation),
        "x0_before": -weight * extrapolation,
    }


def init(x, coefficients):
    """Return zeros for the x0 of the step before, which the first step does not use."""
    del coefficients
    return x * 0


def step(denoise, x, memory, here, noise):
    """Take one step, from `here.now` to `here.after`."""
    del noise
    x0, c = denoise(x, here.now).x0, here.coefficients
    return c["x"] * x + c["x0"] * x0 + c["x0_before"] * memory, x0
