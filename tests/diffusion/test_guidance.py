"""Classifier-free guidance is a line through the null and the conditional prediction, drawn in one
forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.config import GuidanceConfig
from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.guidance import combine, guided
from xgen_jax.diffusion.process import Level
from xgen_jax.errors import UserError

FLOW = RectifiedFlow()
CONDITION = {"gain": jnp.full((3, 2), 2.0), "bias": jnp.arange(6.0).reshape(3, 2)}
NULL = {"gain": jnp.full((3, 2), 0.5), "bias": jnp.zeros((3, 2))}
X = jax.random.normal(jax.random.key(0), (3, 2))


def level(t=0.3, step=0):
    return Level(*(jnp.float32(a) for a in (t, 1 - t, t, 1000 * t)), jnp.int32(step))


def predict(x, time, condition, frame_mask=None):
    del frame_mask
    return x * condition["gain"] + time[:, None] / 1000 + condition["bias"]


def velocity(denoised):
    return denoised.eps - denoised.x0


def at(scale, here=None, **config):
    denoise = guided(predict, CONDITION, NULL, scale, FLOW, GuidanceConfig(**config))
    return velocity(denoise(X, here or level(), None))


def of(condition, t=0.3):
    return predict(X, jnp.full(3, 1000 * t), condition)


def test_scale_one_is_the_condition_and_zero_the_null():
    np.testing.assert_allclose(at(1.0), of(CONDITION), atol=1e-5)
    np.testing.assert_allclose(at(0.0), of(NULL), atol=1e-5)


def test_without_guidance_the_null_is_not_evaluated():
    rows = []

    def counting(x, time, condition, frame_mask):
        rows.append(len(x))
        return predict(x, time, condition)

    for config in (GuidanceConfig(), GuidanceConfig(interval=(0.2, 0.7), zero_star=True)):
        denoise = guided(counting, CONDITION, NULL, None, FLOW, config)
        np.testing.assert_allclose(velocity(denoise(X, level(), None)), of(CONDITION), atol=1e-5)
    assert rows == [3, 3]


def test_guidance_is_linear_in_the_scale_and_each_sample_may_have_its_own():
    np.testing.assert_allclose(at(4.0), at(0.0) + 4 * (at(1.0) - at(0.0)), atol=1e-4)
    each = at(jnp.array([0.0, 1.0, 4.0]))
    np.testing.assert_allclose(
        each, np.stack([at(s)[i] for i, s in enumerate((0.0, 1.0, 4.0))]), atol=1e-6
    )


def test_both_halves_go_through_one_forward():
    shapes = []

    def counting(x, time, condition, frame_mask):
        shapes.append((x.shape, time.shape, frame_mask.shape))
        return predict(x, time, condition)

    guided(counting, CONDITION, NULL, 2.0, FLOW)(X, level(), jnp.ones((3, 5), bool))
    assert shapes == [((6, 2), (6,), (6, 5))]


@pytest.mark.parametrize("t,inside", [(0.2, False), (0.21, True), (0.7, True), (0.71, False)])
def test_outside_its_interval_there_is_the_condition_alone(t, inside):
    expected = of(NULL, t) + (4.0 if inside else 1.0) * (of(CONDITION, t) - of(NULL, t))
    np.testing.assert_allclose(at(4.0, level(t), interval=(0.2, 0.7)), expected, atol=1e-4)


def test_only_the_first_channels_are_guided_when_asked():
    whole, part = at(4.0), at(4.0, channels=1)
    np.testing.assert_allclose(part[:, :1], whole[:, :1], atol=1e-5)
    np.testing.assert_allclose(part[:, 1:], of(CONDITION)[:, 1:], atol=1e-5)


def test_a_learned_variance_is_the_conditions_own():
    process = DDPM()
    here = level()

    def predict(x, time, condition, frame_mask):
        del x, time, frame_mask
        return condition

    condition, null = (jax.random.normal(jax.random.key(i), (2, 3, 4, 4, 8)) for i in range(2))
    x = jax.random.normal(jax.random.key(5), (2, 3, 4, 4, 4))
    denoised = guided(predict, condition, null, 7.0, process, GuidanceConfig(channels=3))(x, here)
    assert np.array_equal(denoised.variance, condition[..., 4:])
    np.testing.assert_allclose(
        denoised.eps[..., :3], (null + 7 * (condition - null))[..., :3], atol=1e-5
    )
    assert np.array_equal(denoised.eps[..., 3], condition[..., 3])


def test_cfg_zero_star_scales_the_null_to_the_best_fit_and_waits_at_first():
    conditional, null = (jax.random.normal(jax.random.key(i), (3, 2, 5)) for i in range(2))
    y = combine(conditional, null, 3.0, GuidanceConfig(zero_star=True))
    for i in range(3):
        # The scale is that of least squares of the condition by the null.
        fit = np.linalg.lstsq(np.ravel(null[i])[:, None], np.ravel(conditional[i]), rcond=None)[0][
            0
        ]
        np.testing.assert_allclose(
            y[i], fit * null[i] + 3.0 * (conditional[i] - fit * null[i]), atol=1e-4
        )
    assert np.abs(at(4.0, level(step=1), zero_steps=2)).max() < 1e-6
    np.testing.assert_allclose(at(4.0, level(step=2), zero_steps=2), at(4.0), atol=1e-6)
    with pytest.raises(UserError, match="zero_steps=1 is for velocities"):
        guided(predict, CONDITION, NULL, 1.0, DDPM(), GuidanceConfig(zero_steps=1))


@pytest.mark.parametrize(
    "config,message",
    [
        ({"interval": (0.7, 0.2)}, "two rising times"),
        ({"channels": 0}, "channels=0"),
        ({"zero_steps": -1}, "=-1"),
    ],
)
def test_impossible_guidance_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        GuidanceConfig(**config)
