"""Normalisations: the statistics they promise, over the values they promise, in float32."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn import layout
from xgen_jax.nn.norms import GroupNorm, RMSNorm, group_norm, layer_norm, video_norm


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


def test_on_a_tpu_frames_stay_in_the_order_of_their_dims(monkeypatch):
    x, weights = video(), jnp.ones((1, 1, 1, 1, 16))

    def placed():
        def gradient(x):  # a new function each time, so that it is traced again
            return jax.grad(
                lambda x: group_norm(x, weights, weights, 4, False, 1e-6, True, jnp.float32).sum()
            )(x)

        traced = jax.jit(gradient).trace(x)
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("@LayoutConstraint")

    assert placed() == 0  # the arrays are for this CPU
    monkeypatch.setattr(layout, "target_device", lambda: SimpleNamespace(platform="tpu"))
    assert placed() >= 2  # what comes in, forward and backward


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


def in_float64(x, scale, bias, groups, over_time, swish, dy):
    """Two passes and the textbook's gradient, in float64: (y, dx, dscale, dbias)."""
    x, scale, bias, dy = (np.asarray(v, np.float64) for v in (x, scale, bias, dy))
    shape = (*x.shape[:-1], groups, -1)
    dims = (1, 2, 3, 5) if over_time else (2, 3, 5)
    grouped = x.reshape(shape)
    centered = grouped - grouped.mean(dims, keepdims=True)
    inverse = 1 / np.sqrt(np.square(centered).mean(dims, keepdims=True) + 1e-6)
    normed = centered * inverse
    n = normed.reshape(x.shape) * scale + bias
    gate = 1 / (1 + np.exp(-n)) if swish else 1.0
    dn = dy * (gate * (1 + n * (1 - gate)) if swish else 1.0)
    to_normed = (dn * scale).reshape(shape)
    slope = (to_normed * normed).mean(dims, keepdims=True)
    dx = inverse * (to_normed - to_normed.mean(dims, keepdims=True) - normed * slope)
    others = (0, 1, 2, 3)
    dscale = (dn * normed.reshape(x.shape)).sum(others, keepdims=True)
    return n * gate, dx.reshape(x.shape), dscale, dn.sum(others, keepdims=True)


FRAMES = {
    "plain": lambda x: 3 * x + 1,
    "nearly constant": lambda x: 50 + 1e-3 * x,
    "constant": lambda x: 0 * x + 7,
    "one bright pixel": lambda x: np.where(np.abs(x) > 3.2, 300, 0.01 * x),
}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("over_time,swish", [(False, True), (True, False)])
def test_one_pass_is_as_exact_as_two(kind, over_time, swish):
    rng = np.random.default_rng(0)
    x = np.float32(FRAMES[kind](rng.normal(size=(2, 3, 16, 16, 8))))
    scale, bias = np.float32(rng.normal(size=(2, 1, 1, 1, 1, 8)))
    dy = np.float32(rng.normal(size=x.shape))

    @jax.jit
    def run(x, scale, bias, dy):
        def function(*arguments):
            return group_norm(*arguments, 4, over_time, 1e-6, swish, jnp.float32)

        y, pullback = jax.vjp(function, x, scale, bias)
        return y, *pullback(dy)

    got = run(x, scale, bias, dy)
    expected = in_float64(x, scale, bias, 4, over_time, swish, dy)
    # Pixels that make the first frame's mean unlike that of others cost three digits.
    atol = 1e-3 if kind == "one bright pixel" else 2e-5
    for name, a, b in zip(("y", "dx", "dscale", "dbias"), got, expected):
        unit = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a / unit, b / unit, atol=atol, err_msg=name)


def test_the_gradient_of_a_gradient_is_right():
    x = video()
    scale, bias = jnp.ones((1, 1, 1, 1, 16)), jnp.zeros((1, 1, 1, 1, 16))

    def by(norm):
        energy = jax.grad(lambda x: jnp.sum(jnp.sin(norm(x))))
        return jax.jit(jax.grad(lambda x: jnp.square(energy(x)).sum()))(x)

    def plain(x):
        grouped = x.reshape(*x.shape[:-1], 4, 4)
        centered = grouped - grouped.mean((2, 3, 5), keepdims=True)
        variance = jnp.square(centered).mean((2, 3, 5), keepdims=True)
        return nn.swish((centered / jnp.sqrt(variance + 1e-6)).reshape(x.shape))

    ours = by(lambda x: group_norm(x, scale, bias, 4, False, 1e-6, True, jnp.float32))
    np.testing.assert_allclose(ours, by(plain), atol=1e-4)
