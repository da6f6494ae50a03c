"""Samplers: the order to which each converges, and the whole chain on data whose exact velocity is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.samplers import RULES, sample
from xgen_jax.diffusion.time import time_grid
from xgen_jax.errors import UserError

ORDERS = {"euler": 1.0}


def test_every_rule_has_an_order():
    assert ORDERS.keys() == RULES.keys()


@pytest.mark.parametrize("rule", sorted(ORDERS))
def test_rules_converge_to_their_order(rule):
    # dx/dt = x cos(t), so x(0) = x(1) exp(-sin 1): neither linear in t nor autonomous.
    exact = float(np.exp(-np.sin(1.0)))
    steps = np.array([16, 32, 64, 128])
    solve = jax.jit(lambda times: sample(lambda x, t: x * jnp.cos(t), jnp.ones(()), times, rule))
    errors = [abs(float(solve(time_grid(n))) - exact) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - ORDERS[rule]) < 0.1, (rule, slope, errors)


@pytest.mark.parametrize("rule", sorted(ORDERS))
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_gaussian_data_come_back_from_noise(rule, ratio):
    mean, std = 1.5, 0.4

    def velocity(x, t):
        # x_t ~ N((1-t) m, (1-t)^2 s^2 + t^2); E[eps - x0 | x_t] is linear in x_t.
        variance = (1 - t) ** 2 * std**2 + t**2
        return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean

    noise = RectifiedFlow().terminal(jax.random.key(0), (20_000,))
    samples = sample(velocity, noise, time_grid(400, ratio), rule)
    # Five standard errors of 20,000 draws, plus what 400 steps of a first-order rule leave.
    assert abs(float(samples.mean()) - mean) < 5 * std / 20_000**0.5 + 2e-3
    assert abs(float(samples.std()) - std) < 5 * std / 40_000**0.5 + 4e-3


def test_one_euler_step_from_noise_is_the_prediction_of_data():
    noise = jax.random.normal(jax.random.key(0), (5,))
    np.testing.assert_allclose(sample(lambda x, t: x - 2.0, noise, time_grid(1)), np.full(5, 2.0), atol=1e-6)


def test_times_may_run_to_noise_too():
    there_and_back = jnp.concatenate([time_grid(200), time_grid(200)[::-1][1:]])
    x = sample(lambda x, t: x * jnp.cos(t), jnp.ones(()), there_and_back)
    assert abs(float(x) - 1) < 0.01


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="sampler 'ode45' is not known; choose one of euler"):
        sample(lambda x, t: x, jnp.ones(()), time_grid(1), "ode45")
