"""Solvers and grids against diffusers 0.42.1: every state of every trajectory, for eps, v and flow
predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import assert_golden, last, linear_model, load

from xgen_jax.diffusion.config import GridConfig
from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.samplers import make_steps, sample

ARRAYS, ABOUT = load("schedulers")
RUNS = ABOUT["config"]["runs"]
GRIDS, GRIDS_ABOUT = load("scheduler_grids")
RULES = {"ddim": "ddim", "dpm": "dpm++2m", "unipc": "unipc", "fme": "euler", "euler": "euler"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "velocity"}


def process_of(run):
    kw = run["kw"]
    if kw.get("prediction_type") == "flow_prediction" or run["c"] == "fme":
        return RectifiedFlow()
    return DDPM(
        betas=kw.get("beta_schedule", "linear"),
        beta_start=kw["beta_start"],
        beta_end=kw["beta_end"],
        prediction=PREDICTIONS[kw.get("prediction_type", "epsilon")],
        zero_snr=kw.get("rescale_betas_zero_snr", False),
        learned_variance=False,
    )


def grid_of(process, run, steps):
    """The grid by the name that the scheduler's class and arguments have here."""
    kw, kind = run["kw"], run["c"]
    ratio = np.exp(run["mu"]) if "mu" in run else kw.get("shift", kw.get("flow_shift", 1.0))
    if "sigmas" in run:  # a pipeline's own
        spacing = "even"
    elif kind == "fme":
        spacing = "flow_match_euler_dynamic" if "mu" in run else "flow_match_euler"
    elif kw.get("use_flow_sigmas"):
        spacing = f"{kind}_flow"
    elif kw.get("use_karras_sigmas"):
        spacing = "dpm_karras"
    else:
        family = {"ddim": "ddim", "euler": "ddim", "dpm": "dpm", "unipc": "dpm"}[kind]
        default = "leading" if kind == "ddim" else "linspace"
        spacing = f"{family}_{kw.get('timestep_spacing', default)}"
    options = GridConfig(
        steps_offset=kw.get("steps_offset", 0) if spacing.endswith("leading") else 0,
        set_alpha_to_one=kw.get("set_alpha_to_one", True),
    )
    return make_grid(process, steps, spacing, ratio, options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def states_of(process, rule, fake, z, steps):
    """Every state; compiled once for all runs of a rule, a kind of prediction and a length."""
    model = linear_model(fake)

    def denoise(x, level, frame_mask):
        return process.denoised(model(x, level.timestep), x, level)

    return sample(denoise, z, steps, rule, trajectory=True)[1]


def trajectory(run, arrays, steps):
    process, rule = process_of(run), RULES[run["c"]]
    grid = grid_of(process, run, steps)
    fake = {name: arrays[name] for name in ("in/fake_W", "in/fake_b", "in/fake_c")}
    # The schedule is in the grid: of the process only the kind of prediction is left.
    kind = DDPM(prediction=process.prediction, learned_variance=False)
    return grid, states_of(kind, rule, fake, last(arrays["in/z"]), make_steps(rule, grid))


@pytest.mark.parametrize("name", RUNS)
def test_trajectories(name):
    run = RUNS[name]
    grid, states = trajectory(run, ARRAYS, run["n"])
    assert_golden(states, last(ARRAYS[f"out/{name}/trajectory"]), name)
    np.testing.assert_allclose(grid.now.timestep, ARRAYS[f"out/{name}/timesteps"], rtol=1e-6)
    if f"out/{name}/sigmas" in ARRAYS:
        # For noise prediction diffusers counts in sigma / alpha.
        sigma, alpha = (
            np.append(grid.now.sigma, grid.after.sigma[-1]),
            np.append(grid.now.alpha, grid.after.alpha[-1]),
        )
        flow = isinstance(process_of(run), RectifiedFlow)
        assert_golden(
            sigma if flow else sigma / alpha, ARRAYS[f"out/{name}/sigmas"], f"{name}/sigmas"
        )


@pytest.mark.parametrize("steps", GRIDS_ABOUT["steps"])
@pytest.mark.parametrize("name", GRIDS_ABOUT["runs"])
def test_grids_by_name(name, steps):
    """Timesteps and every state, at few steps and at many; one step is where grids differ most."""
    grid, states = trajectory(GRIDS_ABOUT["runs"][name], GRIDS, steps)
    wanted = last(GRIDS[f"out/{name}/{steps}/trajectory"])
    assert len(states) == len(wanted) == steps
    for number, (state, known) in enumerate(zip(states, wanted)):
        assert_golden(state, known, f"{name}/{steps}/{number}")
    np.testing.assert_allclose(grid.now.timestep, GRIDS[f"out/{name}/{steps}/timesteps"], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in RUNS if f"out/{name}/add_noise_t421" in ARRAYS])
def test_corruption_tables_and_v(name):
    process = process_of(RUNS[name])
    x0, noise = (jnp.asarray(last(ARRAYS[f"in/{name}"])) for name in ("x0", "noise"))
    t_B = jnp.full(2, 422 / 1000)
    x_t = process.corrupt(x0, noise, t_B)
    assert_golden(x_t, last(ARRAYS[f"out/{name}/add_noise_t421"]), f"{name}/add_noise")
    assert_golden(
        process.convert(noise, x_t, t_B, "eps", "v"),
        last(ARRAYS[f"out/{name}/velocity_t421"]),
        f"{name}/velocity",
    )
    if f"out/{name}/alphas_cumprod" in ARRAYS:
        assert_golden(
            process.tables.alphas_cumprod, ARRAYS[f"out/{name}/alphas_cumprod"], f"{name}/abar"
        )
