"""The CPU's formulation of the 3D convolution is the 3D convolution: values, derivatives,
transformations, sharding."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from xgen_jax.nn import conv3d
from xgen_jax.nn.conv3d import DIMENSIONS_3D, convolve

SAME = ((1, 1), (1, 1))
CASES = {  # taps, stride, padding, channels in and out
    "3x3x3": ((3, 3, 3), (1, 1, 1), SAME, (3, 5)),
    "fewer channels out": ((3, 3, 3), (1, 1, 1), SAME, (6, 2)),
    "many more channels out": ((3, 3, 3), (1, 1, 1), SAME, (1, 7)),
    "1x1x1": ((1, 1, 1), (1, 1, 1), ((0, 0), (0, 0)), (3, 5)),
    "time only": ((3, 1, 1), (1, 1, 1), ((0, 0), (0, 0)), (3, 5)),
    "space only": ((1, 3, 3), (1, 1, 1), SAME, (3, 5)),
    "stride in time": ((3, 3, 3), (2, 1, 1), SAME, (3, 5)),
    "stride in space": ((1, 3, 3), (1, 2, 2), ((0, 1), (0, 1)), (3, 5)),
    "stride in both, a frame left over": ((2, 3, 3), (2, 2, 2), ((0, 1), (0, 1)), (3, 5)),
    "uneven taps and padding": ((2, 4, 3), (1, 1, 1), ((2, 1), (0, 1)), (3, 5)),
    "PatchGAN": ((4, 4, 4), (2, 2, 2), SAME, (2, 4)),
}


@pytest.fixture(params=["whole clip", "frame by frame", "other platforms"])
def formulation(request, monkeypatch):
    """Each of the ways `convolve` goes, on tiny arrays on CPU."""
    if request.param == "frame by frame":
        monkeypatch.setattr(conv3d, "WHOLE_CLIP_BYTES", 0)
    if request.param == "other platforms":
        monkeypatch.setattr(
            lax, "platform_dependent", lambda *arguments, cpu, default: default(*arguments)
        )
    return request.param


def normal(shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def inputs(taps, channels, dtype=jnp.float32):
    return normal((2, 7, 6, 8, channels[0]), 0, dtype), normal((*taps, *channels), 1, dtype)


def direct(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x, kernel, stride, ((0, 0), *padding), dimension_numbers=DIMENSIONS_3D
    )


def assert_close(ours, reference):
    """Sums of up to some thousand products in another order: a few float32 roundings of the largest
    value."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * np.abs(other).max())


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_3d_convolution(case, formulation):
    taps, stride, padding, channels = CASES[case]

    def both(convolution, x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, padding), x, kernel)
        return y, pullback(normal(y.shape, 2))

    x, kernel = inputs(taps, channels)
    run = jax.jit(both, static_argnums=0)
    assert_close(run(convolve, x, kernel), run(direct, x, kernel))


LOOKING_BACK = [case for case, (taps, stride, *_) in CASES.items() if taps[0] > 1 == stride[0]]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("case", LOOKING_BACK)
def test_frames_in_front_of_a_clip_are_a_part_of_it(case, frames, platform, monkeypatch):
    monkeypatch.setattr(conv3d, "target_device", lambda: SimpleNamespace(platform=platform))
    taps, stride, padding, channels = CASES[case]
    x, kernel = inputs(taps, channels)
    back = taps[0] - 1
    before, x = x[:, :back], x[:, back : back + frames]

    def joined(before, x, kernel):
        return direct(jnp.concatenate([before, x], 1), kernel, stride, padding)

    y, gradient = jax.vjp(joined, before, x, kernel)
    ours, our_gradient = jax.vjp(
        lambda before, x, kernel: convolve(x, kernel, stride, padding, before), before, x, kernel
    )
    dy = normal(y.shape, 2)
    assert_close((ours, our_gradient(dy)), (y, gradient(dy)))


@pytest.mark.parametrize("case", ["3x3x3", "PatchGAN"])
def test_second_derivatives_are_those_of_the_3d_convolution(case, formulation):
    taps, stride, padding, channels = CASES[case]

    def penalty(x, kernel, convolution):
        """The squared gradient with respect to the input, as in R1, through a curved function of
        the output."""
        slope = jax.grad(lambda x: jnp.sin(0.1 * convolution(x, kernel, stride, padding)).sum())(x)
        return (slope**2).sum()

    x, kernel = inputs(taps, channels)
    run = jax.jit(jax.grad(penalty, argnums=(0, 1)), static_argnums=2)
    assert_close(run(x, kernel, convolve), run(x, kernel, direct))


def test_each_of_the_three_is_differentiated_to_the_others(formulation):
    """A third derivative meets every line of the table, that of the kernel's gradient too."""
    taps, stride, padding, channels = CASES["stride in time"]

    def nested(x, kernel, convolution):
        slope = jax.grad(
            lambda kernel: jnp.sin(0.1 * convolution(x, kernel, stride, padding)).sum()
        )
        curved = jax.grad(
            lambda x, kernel: jnp.cos(jax.grad(lambda k: (slope(k) ** 2).sum())(kernel)).sum()
        )
        return curved(x, kernel)

    x, kernel = inputs(taps, channels)
    run = jax.jit(nested, static_argnums=2)
    ours, reference = run(x, 0.1 * kernel, convolve), run(x, 0.1 * kernel, direct)
    # Three differentiations multiply the roundings by the size of what they pass through.
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


def test_under_vmap_remat_and_scan(formulation):
    taps, stride, padding, _ = CASES["3x3x3"]
    x, kernels = normal((4, 2, 5, 4, 4, 3)), normal((3, *taps, 3, 3), 1)
    extend = ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0))

    def loss(kernels, x, convolution):
        def layer(x, kernel):
            return 0.1 * convolution(jnp.pad(x, extend), kernel, stride, padding), None

        return (lax.scan(jax.checkpoint(layer), x, kernels)[0] ** 2).sum()

    def run(convolution):
        gradient = jax.grad(lambda kernels, x: loss(kernels, x, convolution))
        return jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(kernels, x)

    assert_close(run(convolve), run(direct))


def test_bfloat16_gradients_are_summed_in_float32(formulation):
    taps, stride, padding, channels = CASES["3x3x3"]
    x, kernel = inputs(taps, channels, jnp.bfloat16)

    def both(x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, padding), x, kernel)
        return y, *pullback(jnp.ones_like(y))

    exact = both(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for rounded, value in zip(jax.jit(both)(x, kernel), exact):
        assert rounded.dtype == jnp.bfloat16
        # 8 bits hold a value to 2^-9; values and input gradients are also rounded at each of the
        # three taps in time.
        np.testing.assert_allclose(
            rounded.astype(np.float32), value, rtol=0, atol=2**-7 * np.abs(value).max()
        )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_3d_convolution(platform, monkeypatch):
    monkeypatch.setattr(conv3d, "WHOLE_CLIP_BYTES", 0)
    taps, stride, padding, channels = CASES["3x3x3"]

    def loss(x, kernel):
        return (convolve(x, kernel, stride, padding) ** 2).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(*inputs(taps, channels))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(convolutions) == 3  # value, input gradient, kernel gradient
    assert all("0, 1, 2" in line for line in convolutions)
    assert "while" not in text


@pytest.mark.parametrize("whole_clip_bytes", [0, 2**20])
@pytest.mark.parametrize("sharded", ["height", "width"])
def test_sharded_frames_exchange_their_borders_only(sharded, whole_clip_bytes, monkeypatch):
    monkeypatch.setattr(conv3d, "WHOLE_CLIP_BYTES", whole_clip_bytes)
    mesh = jax.make_mesh((4,), ("space",), axis_types=(jax.sharding.AxisType.Auto,))
    axes = (None, None, "space", None) if sharded == "height" else (None, None, None, "space")
    taps, stride, padding, channels = CASES["3x3x3"]
    x, kernel = normal((2, 7, 16, 16, 3)), normal((*taps, *channels), 1)

    def both(x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, padding), x, kernel)
        y = lax.with_sharding_constraint(y, NamedSharding(mesh, PartitionSpec(*axes)))
        return y, *pullback(y)

    expected = jax.jit(both)(x, kernel)
    frames, whole = NamedSharding(mesh, PartitionSpec(*axes)), NamedSharding(mesh, PartitionSpec())
    step = (
        jax.jit(both, in_shardings=(frames, whole), out_shardings=(frames, frames, whole))
        .lower(x, kernel)
        .compile()
    )
    hlo = step.as_text()
    assert "collective-permute" in hlo and "all-reduce" in hlo
    assert "all-gather" not in hlo and "all-to-all" not in hlo
    assert_close(step(*jax.device_put((x, kernel), (frames, whole))), expected)
