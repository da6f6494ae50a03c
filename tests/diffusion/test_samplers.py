"""Samplers: the order to which each converges, and the whole chain on data whose exact denoiser is
known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import chain, make_grid
from xgen_jax.diffusion.process import Denoised, Level
from xgen_jax.diffusion.samplers import SOLVERS, count_evaluations, key_noise, make_steps, sample
from xgen_jax.errors import UserError

FLOW = RectifiedFlow()
MEAN, STD = 1.5, 0.4


def gaussian(x, level, frame_mask=None):
    """The exact denoiser of data N(MEAN, STD^2): x_t is normal, so E[x0 | x_t] is linear in x_t."""
    del frame_mask
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    x0 = MEAN + gain * (x - level.alpha * MEAN)
    # Without dividing by sigma: eps is as linear as x0.
    eps = level.sigma / (level.alpha**2 * STD**2 + level.sigma**2) * (x - level.alpha * MEAN)
    return Denoised(x0, eps)


def exact(x, begin, end):
    """Where the ODE takes x: quantiles of one normal distribution go to the same of the other."""
    deviation = [np.sqrt(level.alpha**2 * STD**2 + level.sigma**2) for level in (begin, end)]
    return end.alpha * MEAN + deviation[1] / deviation[0] * (x - begin.alpha * MEAN)


# rule: (between two noise levels, all the way from noise to data). On an even grid down to data
# DPM-Solver++(2M) leaves h^2 log(1 / h), for its last steps do not shrink in lambda: between 512
# and 2,048 steps that is a slope of 1.8.
ORDERS = {"euler": (1, 1), "ddim": (1, 1), "dpm++2m": (2, 1.8), "heun": (2, 2), "unipc": (3, 2)}


def test_every_rule_but_the_random_one_has_an_order():
    assert ORDERS.keys() | {"ancestral"} == SOLVERS.keys()


class Cosine(DDPM):
    """A smooth variance-preserving schedule; DDPM's table has kinks at its steps, which would blur
    the orders."""

    def levels(self, t):
        t = np.asarray(t, np.float64)
        return super().levels(t)._replace(alpha=np.cos(np.pi / 2 * t), sigma=np.sin(np.pi / 2 * t))


def measured_order(solver, process, begin, end, counts=(512, 1024, 2048)):
    errors = []
    with jax.enable_x64(True):
        x = jnp.array([-1.3, 0.4, 2.0])
        for count in counts:
            levels = process.levels(np.linspace(begin, end, count + 1))
            last = [Level(*(field[i] for field in levels)) for i in (0, -1)]
            error = sample(gaussian, x, make_steps(solver, chain(levels)), solver) - exact(
                np.asarray(x), *last
            )
            errors.append(float(jnp.abs(error).max()))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


@pytest.mark.parametrize("process", [FLOW, Cosine(learned_variance=False)], ids=["flow", "cosine"])
@pytest.mark.parametrize("solver", sorted(ORDERS))
def test_solvers_converge_to_their_order(solver, process):
    # Fine grids: near the ends the multistep rules take steps in log(alpha / sigma) that halve
    # slowly.
    for (begin, end), expected in zip(((0.9, 0.1), (1.0, 0.0)), ORDERS[solver]):
        order, errors = measured_order(solver, process, begin, end)
        assert abs(order - expected) < 0.15, (solver, begin, order, errors)


@pytest.mark.parametrize("process,steps", [(FLOW, 24), (DDPM(), 100)], ids=["flow", "ddpm"])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_gaussian_data_come_back_from_noise(solver, process, steps):
    count = 10_000
    steps = {"ancestral": 500, "ddim": 500, "euler": 500}.get(solver, steps)
    keys = jax.random.split(jax.random.key(7), count)
    noise = process.sample_prior(jax.random.key(0), (count,))
    steps = make_steps(solver, make_grid(process, steps))
    samples = jax.jit(lambda x, steps: sample(gaussian, x, steps, solver, key_noise(keys, ())))(
        noise, steps
    )
    # Five standard errors of the draws, and a hundredth for the steps.
    assert abs(float(samples.mean()) - MEAN) < 5 * STD / count**0.5 + 0.01 * MEAN
    assert abs(float(samples.std()) - STD) < 5 * STD / (2 * count) ** 0.5 + 0.01 * STD


@pytest.mark.parametrize("end", [0.0, 0.1])  # on data, and on noise
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_evaluations_are_counted(solver, end):
    seen = []

    def denoise(x, level, frame_mask=None):
        jax.debug.callback(seen.append, level.t)
        return gaussian(x, level, frame_mask)

    steps = make_steps(solver, chain(FLOW.levels(np.linspace(0.9, end, 6))))
    keys = jax.random.split(jax.random.key(0), 3)
    sample(denoise, jnp.array([-1.0, 0.3, 2.0]), steps, solver, key_noise(keys, ()))
    jax.effects_barrier()
    expected = (9 if end == 0 else 10) if solver == "heun" else 5
    assert count_evaluations(solver, steps) == len(seen) == expected


@pytest.mark.parametrize("process", [FLOW, DDPM()], ids=["flow", "ddpm"])
def test_euler_is_ddim_without_noise(process):
    x, grid = jnp.array([-1.0, 0.3, 2.0]), make_grid(process, 7, ratio=2.0)
    euler, ddim = (
        sample(gaussian, x, make_steps(solver, grid), solver) for solver in ("euler", "ddim")
    )
    np.testing.assert_allclose(euler, ddim, rtol=1e-5)


@pytest.mark.parametrize("process", [FLOW, DDPM()], ids=["flow", "ddpm"])
def test_ddim_with_all_its_noise_is_ancestral_sampling(process):
    x, grid = jnp.array([-1.0, 0.3, 2.0]), make_grid(process, 20)
    noise = key_noise(jax.random.split(jax.random.key(0), 3), ())
    ddim = sample(gaussian, x, make_steps("ddim", grid, eta=1.0), "ddim", noise)
    ancestral = sample(gaussian, x, make_steps("ancestral", grid), "ancestral", noise)
    np.testing.assert_allclose(ddim, ancestral, rtol=1e-4)


def test_one_euler_step_from_noise_is_the_prediction_of_data():
    noise = jax.random.normal(jax.random.key(0), (5,))
    x = sample(
        lambda x, level, frame_mask: Denoised(x * 0 + 2.0, x),
        noise,
        make_steps("euler", make_grid(FLOW, 1)),
        "euler",
    )
    np.testing.assert_allclose(x, np.full(5, 2.0), atol=1e-6)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_constant_data_are_found_in_any_number_of_steps(solver):
    # One point of data: x0 is known exactly, and every rule that ends on data must end there.
    x = jnp.array([[0.3, -1.0]])
    noise = key_noise(jax.random.split(jax.random.key(0), 1), (2,))

    def denoise(x, level, frame_mask):
        x0 = jnp.full_like(x, 0.7)
        return Denoised(x0, (x - level.alpha * x0) / level.sigma)

    for process, steps in ((FLOW, 1), (FLOW, 2), (FLOW, 5), (DDPM(), 1), (DDPM(), 3)):
        got = sample(denoise, x, make_steps(solver, make_grid(process, steps)), solver, noise)
        np.testing.assert_allclose(got, 0.7, atol=1e-5, err_msg=f"{process} {steps}")


def test_higher_orders_of_unipc():
    flow = FLOW.levels(np.linspace(0.9, 0.1, 257))
    with jax.enable_x64(True):
        errors = []
        for order in (1, 2, 3):
            x = sample(
                gaussian, jnp.array([2.0]), make_steps("unipc", chain(flow), order=order), "unipc"
            )
            last = [Level(*(field[i] for field in flow)) for i in (0, -1)]
            errors.append(abs(float(x[0]) - float(exact(2.0, *last))))
    assert errors[0] > 20 * errors[1] > 100 * errors[2], errors


def test_a_sample_draws_the_same_noise_in_any_batch_and_other_noise_at_every_step():
    keys = jax.random.split(jax.random.key(0), 4)
    whole = key_noise(keys, (3,))
    np.testing.assert_array_equal(key_noise(keys[2:], (3,))(5, 0), whole(5, 0)[2:])
    draws = np.stack([whole(step, stream) for step in (0, 1) for stream in (0, 1)])
    assert len(np.unique(draws)) == draws.size


def test_one_program_serves_every_grid_and_scale():
    traces = []

    @jax.jit
    def draw(x, steps, gain):
        traces.append(1)
        return sample(lambda x, level, frame_mask: gaussian(gain * x, level), x, steps, "unipc")

    x = jnp.array([0.5, -0.5])
    grids = (
        make_grid(FLOW, 6),
        make_grid(FLOW, 6, ratio=3.0),
        make_grid(DDPM(), 6),
        make_grid(DDPM(), 6, "respaced"),
    )
    results = [draw(x, make_steps("unipc", grid), gain) for grid in grids for gain in (1.0, 1.1)]
    assert len(traces) == 1
    assert len({float(result[0]) for result in results}) == len(results)


def test_a_rule_that_draws_noise_says_so():
    with pytest.raises(UserError, match="this sampler needs noise"):
        sample(gaussian, jnp.ones(2), make_steps("ancestral", make_grid(FLOW, 2)), "ancestral")


@pytest.mark.parametrize(
    "solver,options,message",
    [("ddim", {"eta": 1.5}, "eta=1.5"), ("unipc", {"order": 4}, "order=4")],
)
def test_options_out_of_range_are_refused(solver, options, message):
    with pytest.raises(UserError, match=message):
        make_steps(solver, make_grid(FLOW, 2), **options)


def test_an_unknown_rule_is_refused():
    with pytest.raises(
        UserError, match="sampler='ode45' is not known; choose one of ancestral, ddim"
    ):
        make_steps("ode45", make_grid(FLOW, 1))
