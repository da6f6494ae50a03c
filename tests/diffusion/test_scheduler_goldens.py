"""Step rules against diffusers 0.42.1: every state of every trajectory, for eps, v and flow
predictions."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden import assert_golden, last, linear_model, load

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import Grid, chain, karras_levels, spaced_steps
from xgen_jax.diffusion.process import Level
from xgen_jax.diffusion.samplers import make_steps, sample
from xgen_jax.diffusion.time import shift

ARRAYS, ABOUT = load("schedulers")
RUNS = ABOUT["config"]["runs"]
RULES = {"ddim": "ddim", "dpm": "dpm++2m", "unipc": "unipc", "fme": "euler"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "velocity"}
DATA = Level(*(np.array([a]) for a in (0.0, 1.0, 0.0, 0.0, 0)))


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


def join(*levels):
    return Level(*(np.concatenate(fields) for fields in zip(*levels)))


def ddim_grid(process, run):
    """diffusers takes N // n off a step for where it ends, which is not always where the next one
    begins."""
    n, kw = run["n"], run["kw"]
    visited = spaced_steps(1000, n, kw.get("timestep_spacing", "leading"))
    after = visited - 1000 // n
    # set_alpha_to_one=False: the last step ends on step 0 instead of on data.
    end = np.where(
        after >= 0, (after + 1) / 1000, 0.0 if kw.get("set_alpha_to_one", True) else 1 / 1000
    )
    return visited, Grid(process.levels((visited + 1) / 1000), process.levels(end))


def dpm_grid(process, run):
    n, kw = run["n"], run["kw"]
    if kw.get("use_flow_sigmas"):
        # DPM-Solver leaves pure noise out by starting at 0.999 before the shift, UniPC by a cut at
        # 1 - 1e-6.
        sigmas = (
            (1 - np.linspace(1, 1 / 1000, n + 1))[:0:-1]
            if run["c"] == "dpm"
            else np.linspace(1, 1e-3, n + 1)[:-1]
        )
        sigmas = np.minimum(shift(sigmas, kw["flow_shift"]), 1 - 1e-6)
        levels = process.levels(sigmas)
        visited = (sigmas * 1000).astype(int)
        levels = levels._replace(timestep=visited.astype(float))
    elif kw.get("use_karras_sigmas"):
        levels = karras_levels(process, n)
        visited = levels.timestep[:-1].astype(int)
        return visited, chain(levels)
    else:
        if kw.get("timestep_spacing") == "leading":
            # Of n + 1 steps the lowest is left out, and the offset is added.
            visited = (np.arange(1, n + 1) * (1000 // (n + 1)) + kw["steps_offset"])[::-1]
        else:
            visited = spaced_steps(1000, n, "linspace")
        levels = process.levels((visited + 1) / 1000)
    return visited, chain(join(levels, DATA))


def flow_grid(process, run):
    """Even between the shifted ends and then shifted (again); with dynamic shifting the ends are
    not shifted."""
    ratio = np.exp(run["mu"]) if "mu" in run else run["kw"]["shift"]
    ends = (1.0, 1e-3) if "mu" in run else shift(np.array([1.0, 1e-3]), ratio)
    levels = process.levels(shift(np.linspace(*ends, run["n"]), ratio))
    return levels.timestep, chain(join(levels, DATA))


def grid_of(process, run):
    return {"ddim": ddim_grid, "dpm": dpm_grid, "unipc": dpm_grid, "fme": flow_grid}[run["c"]](
        process, run
    )


def trajectory(run):
    process, rule = process_of(run), RULES[run["c"]]
    model = linear_model(ARRAYS)

    def denoise(x, level, frame_mask):
        return process.denoised(model(x, level.timestep), x, level)

    z = jnp.asarray(last(ARRAYS["in/z"]))
    visited, grid = grid_of(process, run)
    return visited, grid, sample(denoise, z, make_steps(rule, grid), rule, trajectory=True)[1]


@pytest.mark.parametrize("name", RUNS)
def test_trajectories(name):
    run = RUNS[name]
    visited, grid, states = trajectory(run)
    assert_golden(states, last(ARRAYS[f"out/{name}/trajectory"]), name)
    np.testing.assert_allclose(visited, ARRAYS[f"out/{name}/timesteps"], rtol=1e-6)
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
