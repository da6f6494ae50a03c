"""Rectified flow: its two ends, its speed, and conversions there and back."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.config import PREDICTIONS
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.errors import UserError

FLOW = RectifiedFlow()


def pair():
    return (jax.random.normal(jax.random.key(i), (3, 2, 4)) for i in range(2))


def test_zero_is_data_and_one_is_noise():
    x0, eps = pair()
    assert np.array_equal(FLOW.corrupt(x0, eps, jnp.zeros(3)), x0)
    assert np.array_equal(FLOW.corrupt(x0, eps, jnp.ones(3)), eps)


def test_each_sample_has_its_own_time():
    x0, eps = pair()
    mixed = FLOW.corrupt(x0, eps, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(mixed[1], 0.75 * x0[1] + 0.25 * eps[1], atol=1e-6)
    assert np.array_equal(mixed[0], x0[0])
    assert np.array_equal(mixed[2], eps[2])


def test_velocity_is_the_derivative_of_the_path():
    x0, eps = pair()
    t = jnp.array([0.1, 0.5, 0.9])
    x_t, derivative = jax.jvp(lambda t: FLOW.corrupt(x0, eps, t), (t,), (jnp.ones(3),))
    np.testing.assert_allclose(FLOW.convert(x0, x_t, t, "x0", "velocity"), derivative, atol=1e-5)


@pytest.mark.parametrize("source,target", list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_conversions_there_and_back(source, target):
    x0, eps = pair()
    t = jnp.array([0.2, 0.5, 0.8])
    x_t = FLOW.corrupt(x0, eps, t)
    alpha, sigma = FLOW.schedule(t[:, None, None])
    truth = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}
    there = FLOW.convert(truth[source], x_t, t, source, target)
    np.testing.assert_allclose(there, truth[target], atol=1e-5)
    # A prediction is seldom the truth: the way back must hold for any value.
    value = jax.random.normal(jax.random.key(9), x_t.shape)
    back = FLOW.convert(FLOW.convert(value, x_t, t, source, target), x_t, t, target, source)
    np.testing.assert_allclose(back, value, atol=1e-5)


@pytest.mark.parametrize("names", [("x0", "score"), ("score", "x0")])
def test_an_unknown_prediction_is_refused(names):
    x0, eps = pair()
    with pytest.raises(
        UserError, match="prediction='score' is not known; choose one of x0, eps, v, velocity"
    ):
        FLOW.convert(x0, eps, jnp.full(3, 0.5), *names)


def test_terminal_is_standard_noise():
    noise = FLOW.sample_prior(jax.random.key(0), (4, 10_000))
    # Five standard errors of 40,000 draws.
    assert abs(float(noise.mean())) < 0.025
    assert abs(float(noise.std()) - 1) < 0.018
