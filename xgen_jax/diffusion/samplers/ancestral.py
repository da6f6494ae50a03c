"""Ancestral sampling (arXiv 2006.11239, algorithm 2), for any process (arXiv 2107.00630, section
3.2):

    q(x' | x, x0) = N(x sigma'^2 alpha / (alpha' sigma^2) + x0 alpha' beta / sigma^2,
                      beta sigma'^2 / sigma^2)
    beta          = sigma^2 - (alpha / alpha')^2 sigma'^2

With a learned variance, the network places the log variance between log beta and the log of the
posterior's (arXiv 2102.09672); without one it is the posterior's. A step that ends on data adds no
noise. Stochastic: it has no order as a solver of the ODE; its moments converge to first order.
"""

import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.process import STEP_NOISE


def posterior(grid):
    """Return (variance, beta) of each step, (steps,)."""
    now, after = grid.now, grid.after
    beta = now.sigma**2 - (now.alpha / after.alpha) ** 2 * after.sigma**2
    return beta * (after.sigma / now.sigma) ** 2, beta


def coefficients(grid):
    """Return the mean's coefficients of x and x0, and the two bounds of the log variance."""
    now, after = grid.now, grid.after
    variance, beta = posterior(grid)
    return {
        "x": (now.alpha / after.alpha) * (after.sigma / now.sigma) ** 2,
        "x0": after.alpha * beta / now.sigma**2,
        "upper": np.where(variance > 0, np.log(beta), 0.0),
        "lower": np.where(variance > 0, np.log(variance), 0.0),
        "noisy": (variance > 0).astype(np.float64),
    }


def init(x, coefficients):
    """Return (): the solver keeps no memory."""
    del x, coefficients
    return ()


def step(denoise, x, memory, here, noise):
    """Take one step, from `here.now` to `here.after`."""
    d, c = denoise(x, here.now), here.coefficients
    log_variance = c["lower"]
    if d.variance is not None:
        fraction = (d.variance + 1.0) / 2.0
        log_variance = fraction * c["upper"] + (1.0 - fraction) * c["lower"]
    mean = c["x"] * x + c["x0"] * d.x0
    return mean + c["noisy"] * jnp.exp(0.5 * log_variance) * noise(
        here.now.step, STEP_NOISE
    ), memory
