"""Classifier-free guidance is a line through the null and the conditional prediction, drawn in one forward."""

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.guidance import guided


def predict(x, t, condition):
    return x * condition["gain"] + t[:, None] + condition["bias"]


CONDITION = {"gain": jnp.full((3, 2), 2.0), "bias": jnp.arange(6.0).reshape(3, 2)}
NULL = {"gain": jnp.full((3, 2), 0.5), "bias": jnp.zeros((3, 2))}
X = jax.random.normal(jax.random.key(0), (3, 2))
T = jnp.full(3, 0.3)


def at(scale):
    return guided(predict, CONDITION, NULL, scale)(X, jnp.float32(0.3))


def test_scale_one_is_the_condition_and_zero_the_null():
    np.testing.assert_allclose(at(1.0), predict(X, T, CONDITION), atol=1e-6)
    np.testing.assert_allclose(at(0.0), predict(X, T, NULL), atol=1e-6)


def test_guidance_is_linear_in_the_scale():
    np.testing.assert_allclose(at(4.0), at(0.0) + 4 * (at(1.0) - at(0.0)), atol=1e-5)


def test_both_halves_go_through_one_forward():
    shapes = []

    def counting(x, t, condition):
        shapes.append((x.shape, t.shape))
        return predict(x, t, condition)

    guided(counting, CONDITION, NULL, 2.0)(X, jnp.float32(0.3))
    assert shapes == [((6, 2), (6,))]
