"""DDPM against Open-Sora 1.1's IDDPM, its tables in float64: tables, respacing, corruption, losses,
trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import assert_golden, last, linear_model, load

from xgen_jax.diffusion.ddpm import DDPM, learned_log_variance, make_tables, respaced_betas
from xgen_jax.diffusion.frames import OpenSoraFrames
from xgen_jax.diffusion.grids import chain, make_grid, respaced, spaced_steps
from xgen_jax.diffusion.process import Level, frame_mean
from xgen_jax.diffusion.samplers import make_steps, sample
from xgen_jax.errors import UserError

ARRAYS, ABOUT = load("iddpm")
SCHEDULES = ABOUT["config"]["schedules"]
PROCESS = DDPM()
T_B = (ARRAYS["in/t"] + 1) / 1000
X0, NOISE, OUTPUT = (
    jnp.asarray(last(ARRAYS[f"in/{name}"])) for name in ("x_start", "noise", "model_output")
)


def visited(name):
    count, respacing = SCHEDULES[name]
    if respacing is None:
        return np.arange(count)
    if respacing.startswith("ddim"):
        return spaced_steps(count, int(respacing[4:]), "leading")[::-1]
    return respaced(count, tuple(int(part) for part in respacing.split(",")))


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_of_respaced_chains(name):
    steps = visited(name)
    assert np.array_equal(steps, ARRAYS[f"out/{name}/timestep_map"])
    base = DDPM(num_steps=SCHEDULES[name][0])
    tables = make_tables(respaced_betas(base.tables.alphas_cumprod, steps))
    abar = tables.alphas_cumprod
    actual = {
        "betas": tables.betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": tables.alphas_cumprod_prev,
        "alphas_cumprod_next": tables.alphas_cumprod_next,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "log_one_minus_alphas_cumprod": np.log(1 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": tables.sqrt_recipm1_alphas_cumprod,
        "posterior_variance": tables.posterior_variance,
        "posterior_log_variance_clipped": tables.posterior_log_variance_clipped,
        "posterior_mean_coef1": tables.posterior_mean_coef1,
        "posterior_mean_coef2": tables.posterior_mean_coef2,
        "log_betas": tables.log_betas,
    }
    stored = {key.split("/")[-1] for key in ARRAYS if key.startswith(f"out/{name}/")}
    assert actual.keys() == {key for key in stored if not key.startswith(("dd", "timestep_map"))}
    for key, table in actual.items():
        np.testing.assert_allclose(table, ARRAYS[f"out/{name}/{key}"], rtol=1e-6)


@pytest.mark.parametrize("count", [100, 1000])
def test_betas_scale_with_the_number_of_steps(count):
    assert_golden(
        DDPM(num_steps=count).tables.betas,
        ARRAYS[f"out/named_linear_betas_{count}"],
        f"betas_{count}",
    )


def test_corruption():
    assert_golden(PROCESS.corrupt(X0, NOISE, T_B), last(ARRAYS["out/q_sample"]), "q_sample")
    alpha, sigma = (
        jnp.broadcast_to(a[:, None, None, None, None], X0.shape)
        for a in PROCESS.schedule(jnp.asarray(T_B))
    )
    assert_golden(alpha * X0, last(ARRAYS["out/q_mean"]), "q_mean")
    assert_golden(sigma**2, last(ARRAYS["out/q_variance"]), "q_variance")
    assert_golden(2 * jnp.log(sigma), last(ARRAYS["out/q_log_variance"]), "q_log_variance")


def test_posterior():
    x_t = last(ARRAYS["in/x_t_for_posterior"])
    tables, i = PROCESS.tables, ARRAYS["in/t"]

    def at(table):
        return table[i][:, None, None, None, None]

    mean = at(tables.posterior_mean_coef1) * X0 + at(tables.posterior_mean_coef2) * x_t
    assert_golden(mean, last(ARRAYS["out/post_mean"]), "post_mean")
    for name in ("posterior_variance", "posterior_log_variance_clipped"):
        key = "out/" + name.replace("posterior", "post").replace("_clipped", "")
        assert_golden(np.broadcast_to(at(getattr(tables, name)), x_t.shape), last(ARRAYS[key]), key)


def test_the_step_back():
    x_t = PROCESS.corrupt(X0, NOISE, T_B)
    tables, i = PROCESS.tables, ARRAYS["in/t"]

    def at(table):
        return jnp.asarray(table[i][:, None, None, None, None])

    levels = Level(*(at(field) for field in PROCESS.levels(np.arange(1, 1001) / 1000)))
    denoised = PROCESS.denoised(OUTPUT, x_t, levels)
    assert_golden(denoised.x0, last(ARRAYS["out/p_pred_xstart"]), "p_pred_xstart")
    mean = at(tables.posterior_mean_coef1) * denoised.x0 + at(tables.posterior_mean_coef2) * x_t
    assert_golden(mean, last(ARRAYS["out/p_mean"]), "p_mean")
    lower = at(tables.posterior_log_variance_clipped)
    log_variance = learned_log_variance(denoised.variance, at(tables.log_betas), lower)
    assert_golden(log_variance, last(ARRAYS["out/p_log_variance"]), "p_log_variance")
    assert_golden(jnp.exp(log_variance), last(ARRAYS["out/p_variance"]), "p_variance")


@pytest.mark.parametrize("masked", [False, True])
def test_default_losses(masked):
    losses = PROCESS.losses(OUTPUT, X0, NOISE, T_B)
    mask = jnp.asarray(ARRAYS["in/mask"]) if masked else None
    for name, loss_BT in losses.items():
        key = f"loss_default{'_mask' if masked else ''}/{name}"
        assert_golden(frame_mean(loss_BT, mask), ARRAYS[f"out/{key}"], key)
        np.testing.assert_allclose(frame_mean(loss_BT, mask), ARRAYS[f"out/{key}"], rtol=1e-5)
    assert losses.keys() == {"loss", "mse", "vb"}


def test_other_losses():
    rescaled = DDPM(loss="mse+rescaled_vb").losses(OUTPUT, X0, NOISE, T_B)
    for name, loss_BT in rescaled.items():
        assert_golden(
            frame_mean(loss_BT), ARRAYS[f"out/loss_rescaled_sigma/{name}"], f"rescaled/{name}"
        )
    assert_golden(
        frame_mean(DDPM(loss="vb").losses(OUTPUT, X0, NOISE, T_B)["loss"]),
        ARRAYS["out/loss_kl/loss"],
        "kl",
    )


def test_the_bound_teaches_the_variance_and_leaves_the_mean_alone():
    def vb(output, process):
        return process.losses(output, X0, NOISE, T_B)["vb"].sum()

    gradient = jax.grad(vb)(OUTPUT, PROCESS)
    assert not gradient[..., :4].any()
    assert np.abs(gradient[..., 4:]).min(axis=(1, 2, 3, 4)).max() > 0
    assert jax.grad(vb)(OUTPUT, DDPM(loss="vb"))[..., :4].any()


@pytest.mark.parametrize("prediction", ["x0", "v", "velocity"])
def test_the_bound_does_not_depend_on_the_kind_of_prediction(prediction):
    eps, variance = jnp.split(OUTPUT, 2, axis=-1)
    x_t = PROCESS.corrupt(X0, NOISE, T_B)
    other = PROCESS.convert(eps, x_t, jnp.asarray(T_B), "eps", prediction)
    vb = DDPM(prediction=prediction).losses(jnp.concatenate([other, variance], -1), X0, NOISE, T_B)[
        "vb"
    ]
    # At t = 999 x0 from eps loses two digits and more.
    np.testing.assert_allclose(vb[:4], PROCESS.losses(OUTPUT, X0, NOISE, T_B)["vb"][:4], rtol=2e-3)


def run(name, solver, noise=None, frames=None, clip=None, **options):
    count, _ = SCHEDULES[name]
    process = DDPM(num_steps=count)
    model = linear_model(ARRAYS)

    def denoise(x, level, frame_mask):
        return process.denoised(model(x, level.timestep, frame_mask), x, level, clip)

    steps = make_steps(solver, make_grid(process, 10, "respaced"), **options)
    z = jnp.asarray(last(ARRAYS["in/z"]))
    table = None if noise is None else jnp.asarray(last(noise))

    def draw(step, stream):
        return table[step] if table.ndim == 6 else table[step, 1 - stream]

    return sample(denoise, z, steps, solver, draw, frames, trajectory=True)[1]


@pytest.mark.parametrize("name", ABOUT["config"]["sample"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ancestral_trajectories(name, clip):
    states = run(name, "ancestral", ARRAYS[f"in/step_noise_{name}"], clip=clip)
    key = f"{name}/ddpm_clip{clip is not None}"
    assert_golden(states, last(ARRAYS[f"out/{key}"]), key)
    if clip is None:
        process, grid = (
            DDPM(num_steps=SCHEDULES[name][0]),
            make_grid(DDPM(num_steps=SCHEDULES[name][0]), 10, "respaced"),
        )
        before = jnp.concatenate([last(ARRAYS["in/z"])[None], states[:-1]])
        x0s = [
            process.denoised(linear_model(ARRAYS)(x, level.timestep), x, level).x0
            for x, level in zip(
                before, (Level(*(float(field[k]) for field in grid.now)) for k in range(10))
            )
        ]
        assert_golden(jnp.stack(x0s), last(ARRAYS[f"out/{key}_pred_xstart"]), f"{key}_pred_xstart")


@pytest.mark.parametrize("name", ABOUT["config"]["sample"])
@pytest.mark.parametrize("eta", ABOUT["config"]["ddim_eta"])
def test_ddim_trajectories(name, eta):
    states = run(name, "ddim", ARRAYS[f"in/step_noise_{name}"], eta=eta)
    assert_golden(states, last(ARRAYS[f"out/{name}/ddim_eta{eta}"]), f"{name}/ddim_eta{eta}")


@pytest.mark.parametrize("name", ABOUT["config"]["sample"])
def test_released_frame_mask_trajectories(name):
    frames = OpenSoraFrames(strength_BT=jnp.asarray(ARRAYS["in/frame_mask"]), steps=10)
    states = run(name, "ancestral", ARRAYS[f"in/mask_step_noise_{name}"], frames)
    assert_golden(states, last(ARRAYS[f"out/{name}/ddpm_framemask"]), f"{name}/ddpm_framemask")


@pytest.mark.parametrize("name", ABOUT["config"]["sample"])
def test_ddim_runs_from_data_to_noise_too(name):
    process, model = DDPM(num_steps=SCHEDULES[name][0]), linear_model(ARRAYS)
    times = make_grid(process, 10, "respaced").now.t[::-1]
    levels = process.levels(np.append(times, 1.0))
    # The reference ends on noise alone, beyond its last step.
    levels.alpha[-1], levels.sigma[-1] = 0.0, 1.0

    def denoise(x, level, frame_mask):
        return process.denoised(model(x, level.timestep), x, level)

    x = sample(
        denoise, jnp.asarray(last(ARRAYS["in/z"])), make_steps("ddim", chain(levels)), "ddim"
    )
    assert_golden(x, last(ARRAYS[f"out/{name}/ddim_reverse_final"]), f"{name}/ddim_reverse")


def test_times_are_whole_steps_of_the_distribution():
    process = DDPM(num_steps=4, beta_end=1e-3)
    t = process.sample_times(jax.random.split(jax.random.key(0), 4000), "uniform")
    values, counts = np.unique(t, return_counts=True)
    assert values.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert np.abs(counts - 1000).max() < 5 * (4000 * 0.25 * 0.75) ** 0.5
    assert process.timestep(values).tolist() == [0, 1, 2, 3]
    full = np.arange(1, 1001, dtype=np.float32) / 1000
    assert np.array_equal(PROCESS.timestep(full), np.arange(1000))
    assert np.array_equal(PROCESS.step_of(full), np.arange(1000))


def test_the_schedule_is_the_table_at_whole_steps_and_data_at_zero():
    t = np.arange(0, 1001) / 1000
    abar = np.append(1.0, PROCESS.tables.alphas_cumprod)
    alpha, sigma = PROCESS.schedule(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(alpha, np.sqrt(abar), rtol=2e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 - abar), rtol=2e-6)
    between = PROCESS.levels(np.array([0.0, 0.0015, 0.5004]))
    np.testing.assert_allclose(between.alpha**2 + between.sigma**2, 1.0)
    assert between.alpha[0] == 1.0
    assert abar[2] < between.alpha[1] ** 2 < abar[1]


def test_zero_snr_ends_on_noise_alone():
    process = DDPM(
        betas="scaled_linear", beta_start=0.00085, beta_end=0.012, zero_snr=True, prediction="v"
    )
    x0, eps = (jax.random.normal(jax.random.key(i), (1, 2, 3, 3, 4)) for i in range(2))
    np.testing.assert_allclose(process.corrupt(x0, eps, jnp.ones(1)), eps, atol=1e-6)
    v = process.convert(x0, eps, jnp.ones(1), "x0", "v")
    np.testing.assert_allclose(v, -x0, atol=1e-5)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"zero_snr": True}, "zero_snr needs prediction 'v' or 'x0'"),
        ({"betas": "cosine"}, "betas='cosine' is not known; choose one of linear, scaled_linear"),
        ({"prediction": "score"}, "prediction='score' is not known"),
        ({"loss": "hybrid"}, "loss='hybrid' is not known"),
        ({"num_steps": 1}, "num_steps=1 must be 2 or more"),
        ({"num_steps": 10}, "must rise within 0 .. 1"),
    ],
)
def test_impossible_chains_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DDPM(**options)
