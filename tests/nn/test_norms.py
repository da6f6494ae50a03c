"""Normalisations: the statistics they promise, over the values they promise, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.norms import GroupNorm, RMSNorm, layer_norm, video_norm


def video(scale=3.0):
    return scale * jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 16)) + 1.0


def test_group_norm_is_flaxs_on_each_frame():
    x = video()
    y, _ = GroupNorm(groups=4).init_with_output(jax.random.key(0), x)
    frames = x.reshape(6, 4, 4, 16)
    expected, _ = nn.GroupNorm(4, epsilon=1e-6).init_with_output(jax.random.key(0), frames)
    np.testing.assert_allclose(y.reshape(frames.shape), expected, atol=1e-5)


def test_group_norm_of_a_frame_ignores_the_other_frames():
    x = video()
    layer = GroupNorm(groups=4)
    params = layer.init(jax.random.key(0), x)
    changed = x.at[:, 1].multiply(7.0)
    np.testing.assert_array_equal(layer.apply(params, changed)[:, 0], layer.apply(params, x)[:, 0])


def test_rms_norm_gives_unit_root_mean_square():
    y, _ = RMSNorm().init_with_output(jax.random.key(0), video())
    np.testing.assert_allclose(jnp.sqrt(jnp.square(y).mean(-1)), np.ones(y.shape[:-1]), atol=1e-5)


def test_layer_norm_gives_zero_mean_and_unit_variance():
    y = layer_norm(video())
    np.testing.assert_allclose(y.mean(-1), np.zeros(y.shape[:-1]), atol=1e-5)
    np.testing.assert_allclose(y.var(-1), np.ones(y.shape[:-1]), atol=1e-5)


@pytest.mark.parametrize(
    "layer", [GroupNorm(groups=4, dtype=jnp.bfloat16), RMSNorm(dtype=jnp.bfloat16)]
)
def test_statistics_are_taken_in_float32(layer):
    x = video(scale=256.0).astype(jnp.bfloat16)
    y, params = layer.init_with_output(jax.random.key(0), x)
    exact = layer.clone(dtype=jnp.float32).apply(params, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2**-7, rtol=2**-8)


def test_group_norm_over_time_is_flaxs_on_the_clip():
    x = video()
    y, _ = GroupNorm(groups=4, over_time=True).init_with_output(jax.random.key(0), x)
    expected, _ = nn.GroupNorm(4, epsilon=1e-6).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("channels,groups", [(128, 32), (48, 16), (12, 4), (3, 1)])
def test_video_norm_chooses_groups_that_divide(channels, groups):
    assert video_norm("group_per_frame", channels, jnp.float32, "norm").groups == groups
    assert video_norm("group", channels, jnp.float32, "norm").over_time


def test_an_unknown_norm_is_refused():
    with pytest.raises(
        UserError, match="norm='batch' is not known; choose one of group_per_frame, group, rms"
    ):
        video_norm("batch", 8, jnp.float32, "norm")
