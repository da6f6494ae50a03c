"""The goldens' conventions: arrays (B, C, T, H, W) and a linear model in place of a network.

The goldens are runs in float64; ours are in float32, as the library runs, with tables and
coefficients made in float64.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "goldens"
worst = {}  # relative error of each comparison made, for whoever wants to print them


def load(name):
    """(arrays by name, their description)."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file), json.loads((FOLDER / f"{name}.json").read_text())


def last(x):
    """(..., B, C, T, H, W) -> channels last."""
    return np.moveaxis(x, -4, -1)


def linear_model(arrays):
    """(x, time, noised or None) -> W x + b + time / 1000 c [+ noised d], channels last."""
    weight, b, c = (jnp.asarray(arrays[f"in/fake_{name}"]) for name in "Wbc")

    def model(x, time, frame_mask=None):
        y = jnp.tensordot(x, weight.T, 1) + (b + time / 1000 * c)[None, None, None, None]
        if frame_mask is not None:
            d = jnp.asarray(arrays["in/fake_d"])
            y = y + frame_mask[:, :, None, None, None] * d[None, None, None, None]
        return y

    return model


def assert_golden(actual, expected, what=""):
    """Agreement at 1e-5 of the largest value."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    error, scale = float(np.abs(actual - expected).max()), float(np.abs(expected).max())
    worst[what] = error / max(scale, 1e-30)
    assert error <= 1e-5 * scale, (what, error, scale)
