"""Samplers: the order to which each converges, and the whole chain on data whose exact denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import chain, make_grid
from xgen_jax.diffusion.process import Denoised
from xgen_jax.diffusion.samplers import RULES, make_steps, sample
from xgen_jax.errors import UserError

FLOW = RectifiedFlow()
MEAN, STD = 1.5, 0.4


def gaussian(x, level, noised=None):
    """The exact denoiser of data N(MEAN, STD^2): x_t is normal, so E[x0 | x_t] is linear in x_t."""
    del noised
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    x0 = MEAN + gain * (x - level.alpha * MEAN)
    # Without dividing by sigma: eps is as linear as x0.
    eps = level.sigma / (level.alpha**2 * STD**2 + level.sigma**2) * (x - level.alpha * MEAN)
    return Denoised(x0, eps)


def exact(x, begin, end):
    """Where the ODE takes x: quantiles of one normal distribution go to the same of the other."""
    deviation = [np.sqrt(level.alpha**2 * STD**2 + level.sigma**2) for level in (begin, end)]
    return end.alpha * MEAN + deviation[1] / deviation[0] * (x - begin.alpha * MEAN)


# rule: (between two noise levels, all the way from noise to data). On an even grid down to data DPM-Solver++(2M) leaves
# h^2 log(1 / h), for its last steps do not shrink in lambda: measured between 512 and 2,048 steps that is a slope of 1.8.
ORDERS = {"euler": (1, 1), "ddim": (1, 1), "dpm++2m": (2, 1.8), "heun": (2, 2), "unipc": (3, 2)}


def test_every_rule_but_the_random_one_has_an_order():
    assert ORDERS.keys() | {"ancestral"} == RULES.keys()


class Cosine(DDPM):
    """A smooth variance-preserving schedule; DDPM's table has kinks at its steps, which would blur the orders."""

    def levels(self, t):
        t = np.asarray(t, np.float64)
        return super().levels(t)._replace(alpha=np.cos(np.pi / 2 * t), sigma=np.sin(np.pi / 2 * t))


def measured_order(rule, process, begin, end, counts=(512, 1024, 2048)):
    errors = []
    with jax.enable_x64(True):
        x = jnp.array([-1.3, 0.4, 2.0])
        for count in counts:
            levels = process.levels(np.linspace(begin, end, count + 1))
            last = [type(levels)(*(field[i] for field in levels)) for i in (0, -1)]
            error = sample(gaussian, x, make_steps(rule, chain(levels)), rule) - exact(np.asarray(x), *last)
            errors.append(float(jnp.abs(error).max()))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


@pytest.mark.parametrize("process", [FLOW, Cosine(learned_variance=False)], ids=["flow", "cosine"])
@pytest.mark.parametrize("rule", sorted(ORDERS))
def test_rules_converge_to_their_order(rule, process):
    # Fine grids: near the ends the multistep rules take steps in log(alpha / sigma) that halve slowly.
    for (begin, end), expected in zip(((0.9, 0.1), (1.0, 0.0)), ORDERS[rule]):
        order, errors = measured_order(rule, process, begin, end)
        assert abs(order - expected) < 0.15, (rule, begin, order, errors)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match="sampler 'ode45' is not known; choose one of ancestral, ddim"):
        make_steps("ode45", make_grid(FLOW, 1))
