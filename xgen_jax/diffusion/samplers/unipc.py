"""UniPC (arXiv 2302.04867, algorithms 5 and 6, data prediction, B(h) = e^h - 1).

It takes one evaluation a step. A multistep predictor has order p (UniP); the evaluation at its
result also corrects that result (UniC), which adds one order. At p = 2, the default, the order is
three between two noise levels, and two down to data, where the last step is infinite in
lambda = log(alpha / sigma) and of first order.

With h the step, r_k = (lambda_{-k} - lambda) / h of the evaluations before, and D_k = (x0_{-k} -
x0) / r_k:

    x' = sigma'/sigma x - alpha' (e^-h - 1) x0 - alpha' (e^-h - 1) sum_k rho_k D_k

The corrector has one D more, of the evaluation at x' with r = 1. The rhos solve a small linear
system, on the host.
"""

import math

import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.samplers.dpm_solver import log_ratio
from xgen_jax.errors import UserError


def _weights(r, h):
    """Return rho (n,) for evaluations at r (n,) and a step h > 0: matches phi_1 .. phi_n."""
    phi = math.expm1(-h)
    b, phi_k, factorial = [], phi / -h - 1.0, 1
    for k in range(1, len(r) + 1):
        b.append(phi_k * factorial / phi)
        factorial *= k + 1
        phi_k = phi_k / -h - 1.0 / factorial
    return np.linalg.solve(np.array([np.asarray(r) ** k for k in range(len(r))]), np.array(b))


def _update(now, after, r, rho, length):
    """Return the coefficients of x, of x0 at `now`, and of the x0 at each r, padded to `length`.

    The last r may lie ahead.
    """
    factor = now[0] * after[1] / (after[0] * now[1])  # e^-h
    weight = after[0] * (1.0 - factor)
    history = np.zeros(length)
    history[: len(r)] = weight * np.asarray(rho) / np.asarray(r)
    return after[1] / now[1], weight - history.sum(), history


def coefficients(grid, order: int = 2):
    """Return the coefficients of the predictor (p_*) and of the corrector (c_*).

    The corrector is that of the step before. Arrays are (steps,), those of past evaluations
    (steps, order - 1) and (steps, order).
    """
    if order not in (1, 2, 3):
        raise UserError(f"UniPC's order={order} must be 1, 2 or 3")
    now, after = grid.now, grid.after
    begin, end = log_ratio(now), log_ratio(after)
    steps = len(begin)
    predictor = np.zeros((steps, order + 1))  # x, x0, x0 of 1 .. order - 1 steps before
    corrector = np.zeros((steps, order + 2))  # x, x0 there; x0 of the step before it ..; x0 here
    used = 1
    for i in range(steps):
        if i > 0:
            corrector[i] = _corrector(grid, begin[:i], end[i - 1] - begin[i - 1], used, order)
        used = min(order, i + 1)
        h = end[i] - begin[i]
        while used > 1 and not (np.isfinite(h) and np.isfinite(begin[i - used + 1])):
            used -= 1
        r = [(begin[i - k] - begin[i]) / h for k in range(1, used)]
        rho = [0.5] if used == 2 else _weights(r, h) if used > 2 else []
        levels = (now.alpha[i], now.sigma[i]), (after.alpha[i], after.sigma[i])
        x, x0, history = _update(*levels, r, rho, order - 1)
        predictor[i] = [x, x0, *history]
    return {
        "p_x": predictor[:, 0],
        "p_x0": predictor[:, 1],
        "p_before": predictor[:, 2:],
        "c_x": corrector[:, 0],
        "c_x0": corrector[:, 1:-1],
        "c_here": corrector[:, -1],
        "keep": np.append(1.0, np.zeros(steps - 1)),
    }


def _corrector(grid, begin, h, used, order):
    """Return the coefficients of the last step's start, its x0, those before, and x0 at its end."""
    now, after, i = grid.now, grid.after, len(begin) - 1
    r = [(begin[i - k] - begin[i]) / h for k in range(1, used)] + [1.0]
    rho = [0.5] if used == 1 else _weights(r, h)
    x, x0, weights = _update(
        (now.alpha[i], now.sigma[i]), (after.alpha[i], after.sigma[i]), r, rho, used
    )
    history = np.append(weights[:-1], np.zeros(order - used))
    return [x, x0, *history, weights[-1]]


def init(x, coefficients):
    """Return zeros for the start of the step before, and the past x0, newest first."""
    order = coefficients["c_x0"].shape[-1]
    return x * 0, jnp.zeros((order, *x.shape), x.dtype)


def step(denoise, x, memory, here, noise):
    """Correct x by the evaluation at x, then take one step."""
    del noise
    c, (x_before, x0s_before) = here.coefficients, memory
    x0 = denoise(x, here.now).x0
    x = (
        c["keep"] * x
        + c["c_x"] * x_before
        + jnp.tensordot(c["c_x0"], x0s_before, 1)
        + c["c_here"] * x0
    )
    x0s = jnp.concatenate([x0[None], x0s_before[:-1]])
    after = c["p_x"] * x + c["p_x0"] * x0 + jnp.tensordot(c["p_before"], x0s_before[:-1], 1)
    return after, (x, x0s)
