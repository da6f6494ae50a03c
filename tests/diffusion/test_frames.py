"""Frames that are given: exact at every step and in the result, whatever the rule, and told to the
network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.frames import KnownFrames
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.process import Denoised, frame_mean
from xgen_jax.diffusion.samplers import SOLVERS, key_noise, make_steps, sample

SHAPE = (4, 2, 2, 3)  # T, H, W, C
KNOWN = jnp.array([[True, False, False, True], [False, True, False, False]])
LATENTS = 3.0 + jax.random.normal(jax.random.key(0), (2, *SHAPE))
NOISE = jax.random.normal(jax.random.key(1), (2, *SHAPE))


def draw(process, solver, latents, steps=4, seen=None):
    def denoise(x, level, frame_mask):
        if seen is not None:
            jax.debug.callback(
                lambda x, frame_mask: seen.append((x, frame_mask)), x, frame_mask, ordered=True
            )
        # Every frame becomes the mean of all, so that what is drawn depends on what is known.
        x0 = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
        return Denoised(x0, (x - level.alpha * x0) / jnp.maximum(level.sigma, 1e-3))

    noise = key_noise(jax.random.split(jax.random.key(2), 2), SHAPE)
    frames = KnownFrames(latents=latents, known_BT=KNOWN)
    return sample(
        denoise,
        NOISE,
        make_steps(solver, make_grid(process, steps)),
        solver,
        noise,
        frames,
        trajectory=True,
    )


@pytest.mark.parametrize("process", [RectifiedFlow(), DDPM()], ids=["flow", "ddpm"])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_known_frames_are_exact_at_every_step_and_others_follow_them(solver, process):
    x, states = draw(process, solver, LATENTS)
    for state in (*states, x):
        assert np.array_equal(state[KNOWN], LATENTS[KNOWN])
    # What the latents hold elsewhere is not looked at.
    elsewhere = jnp.where(KNOWN[:, :, None, None, None], LATENTS, jnp.nan)
    assert np.array_equal(draw(process, solver, elsewhere)[0], x)
    other = draw(process, solver, LATENTS + 1.0)[0]
    assert np.abs(other - x)[~KNOWN].max() > 0.1


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_network_sees_them_clean_and_is_told(solver):
    seen = []
    draw(RectifiedFlow(), solver, LATENTS, seen=seen)
    jax.effects_barrier()
    assert len(seen) == (7 if solver == "heun" else 4)
    for x, frame_mask in seen:
        assert np.array_equal(x[KNOWN], LATENTS[KNOWN])
        assert np.array_equal(frame_mask, ~KNOWN)


@pytest.mark.parametrize("process", [RectifiedFlow(), DDPM()], ids=["flow", "ddpm"])
def test_training_corrupts_the_noised_frames_alone(process):
    x_t = process.corrupt(LATENTS, NOISE, jnp.array([0.5, 0.9]), ~KNOWN)
    whole = process.corrupt(LATENTS, NOISE, jnp.array([0.5, 0.9]))
    assert np.array_equal(x_t[KNOWN], LATENTS[KNOWN])
    np.testing.assert_allclose(x_t[~KNOWN], whole[~KNOWN], atol=1e-6)
    released = process.corrupt(
        LATENTS, NOISE, jnp.array([0.5, 0.9]), ~KNOWN, condition_time=1 / 1000
    )
    slight = process.corrupt(LATENTS, NOISE, jnp.full(2, 1 / 1000))
    np.testing.assert_allclose(released[KNOWN], slight[KNOWN], atol=1e-6)


def test_the_mean_over_noised_frames():
    values = jnp.arange(8.0).reshape(2, 4)
    assert frame_mean(values).tolist() == [1.5, 5.5]
    assert frame_mean(values, ~KNOWN).tolist() == [1.5, pytest.approx(17 / 3)]
    assert frame_mean(values, jnp.zeros((2, 4), bool)).tolist() == [0, 0]
    # A frame that does not count may hold anything.
    assert frame_mean(values.at[0, 0].set(jnp.nan), ~KNOWN)[0] == 1.5
