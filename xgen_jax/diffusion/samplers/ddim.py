"""DDIM (arXiv 2010.02502, equation 12), first order; without noise (eta = 0) Euler's method.

    x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise        s = eta times the ancestral deviation

eta = 1 is ancestral sampling with the smaller of the two fixed variances.
"""

import numpy as np

from xgen_jax.diffusion.process import STEP_NOISE
from xgen_jax.diffusion.samplers.ancestral import posterior
from xgen_jax.errors import UserError


def coefficients(grid, eta: float = 0.0):
    """Return the coefficients of x0, eps and noise."""
    if not 0.0 <= eta <= 1.0:
        raise UserError(f"eta={eta} must be within 0 .. 1")
    variance = eta**2 * posterior(grid)[0] if eta else np.zeros_like(grid.now.t)
    return {
        "x0": grid.after.alpha,
        "eps": np.sqrt(grid.after.sigma**2 - variance),
        "noise": np.sqrt(variance) if eta else None,
    }


def init(x, coefficients):
    """Return (): the solver keeps no memory."""
    del x, coefficients
    return ()


def step(denoise, x, memory, here, noise):
    """Take one step, from `here.now` to `here.after`."""
    d, c = denoise(x, here.now), here.coefficients
    x = c["x0"] * d.x0 + c["eps"] * d.eps
    if c["noise"] is not None:
        x = x + c["noise"] * noise(here.now.step, STEP_NOISE)
    return x, memory
