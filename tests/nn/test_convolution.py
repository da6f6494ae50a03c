"""Causal layers: a clip cut in chunks gives what the whole clip gives."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xgen_jax.nn import conv3d
from xgen_jax.nn.convolution import (
    CausalConv3D,
    UpsampledConv,
    causal_average_pool,
    causal_depth_to_space,
    causal_repeat,
    causal_space_to_depth,
    convolve_in_phases,
    convolve_upsampled,
    nearest_upsample,
    trilinear_double,
)


def normal(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def in_chunks(layer, x, lengths):
    """Runs layer(x, cache) chunk after chunk and joins the outputs."""
    outs, cache = [], None
    for start, length in zip(np.cumsum([0, *lengths]), lengths):
        y, cache = layer(x[:, start : start + length], cache)
        outs.append(y)
    return outs


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("kernel,stride", [((3, 3, 3), (1, 1, 1)), ((4, 3, 3), (2, 2, 2))])
def test_convolution_in_chunks_is_the_whole(kernel, stride, platform, monkeypatch):
    monkeypatch.setattr(conv3d, "target_device", lambda: SimpleNamespace(platform=platform))
    layer = CausalConv3D(5, kernel, stride)
    x = normal((2, 7, 6, 6, 3))
    params = layer.init(jax.random.key(1), x)
    apply = jax.jit(layer.apply)
    whole, _ = apply(params, x)
    assert whole.shape[1] == 1 + 6 // stride[0]
    for later in ((2, 2, 2), (6,), (4, 2), *([(1,) * 6] if stride[0] == 1 else [])):
        outs = in_chunks(lambda x, cache: apply(params, x, cache), x, (1, *later))
        # The map of lengths: 1 + s*n frames give 1 + n, later chunks of s*n frames give n.
        assert [y.shape[1] for y in outs] == [1, *(n // stride[0] for n in later)]
        np.testing.assert_allclose(np.concatenate(outs, 1), whole, atol=1e-6)


def test_a_tpu_joins_no_chunk_to_the_frames_before_it(monkeypatch):
    layer, x = CausalConv3D(5), normal((2, 7, 6, 6, 3))
    params = layer.init(jax.random.key(1), x)

    def value_and_gradients(params, x):
        y, gradients = jax.vjp(lambda *arguments: layer.apply(*arguments)[0], params, x)
        return y, gradients(jnp.sin(y))

    def joined():  # a new function each time, so that it is traced again
        lowered = jax.jit(lambda *arguments: value_and_gradients(*arguments)).lower(params, x)
        return "tensor<2x9x6x6x3xf32>" in lowered.as_text()

    expected = value_and_gradients(params, x)
    assert joined()
    monkeypatch.setattr(conv3d, "target_device", lambda: SimpleNamespace(platform="tpu"))
    assert not joined()
    ours = value_and_gradients(params, x)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * np.abs(other).max())


@pytest.mark.parametrize("kernel,stride", [((3, 3, 3), (1, 1, 1)), ((4, 3, 3), (2, 2, 2))])
def test_an_image_is_a_clip_that_stands_still(kernel, stride):
    layer = CausalConv3D(5, kernel, stride)
    image = normal((2, 1, 6, 6, 3))
    params = layer.init(jax.random.key(1), image)
    apply = jax.jit(layer.apply)
    (y, cache), (clip, later_cache) = (
        apply(params, image),
        apply(params, jnp.repeat(image, 1 + 2 * stride[0], 1)),
    )
    assert y.shape[1] == 1 and clip.shape[1] == 3
    np.testing.assert_allclose(jnp.repeat(y, 3, 1), clip, atol=1e-6)
    assert np.array_equal(cache, later_cache)


def test_convolution_looks_back_only():
    layer = CausalConv3D(2, (3, 1, 1))
    x = normal((1, 5, 2, 2, 2))
    params = layer.init(jax.random.key(1), x)
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply(params, x)[0].sum((0, 2, 3, 4))))(x)
    touched = np.abs(jacobian).sum((1, 3, 4, 5)) > 0  # (frame out, frame in)
    seen = [[0 <= j - i <= 2 for i in range(5)] for j in range(5)]
    assert np.array_equal(touched, seen)


def test_a_time_kernel_of_one_carries_no_history():
    layer = CausalConv3D(4, (1, 3, 3))
    x = normal((1, 2, 4, 4, 3))
    (y, cache), _ = layer.init_with_output(jax.random.key(0), x)
    assert cache is None
    assert y.shape == (1, 2, 4, 4, 4)


def test_average_pool_is_the_mean_of_the_last_three_frames():
    x = normal((2, 7, 2, 2, 3))
    y, _ = causal_average_pool(x)
    padded = np.concatenate([x[:, :1], x[:, :1], x], axis=1)
    expected = np.stack([padded[:, 2 * j : 2 * j + 3].mean(1) for j in range(4)], axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("later", [(2, 2, 2), (6,), (2, 4)])
def test_average_pool_in_chunks_is_the_whole(later):
    x = normal((2, 7, 2, 2, 3))
    pool = jax.jit(causal_average_pool)
    np.testing.assert_allclose(
        np.concatenate(in_chunks(pool, x, (1, *later)), 1), pool(x)[0], atol=1e-6
    )


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 1), (4, 2, 3)])
def test_space_to_depth_and_back_is_the_identity(patch):
    x = normal((2, 1 + 2 * patch[0], 4, 6, 3))
    y, _ = causal_space_to_depth(x, patch)
    assert y.shape == (2, 3, 4 // patch[1], 6 // patch[2], 3 * np.prod(patch))
    assert np.array_equal(causal_depth_to_space(y, patch, started=False), x)


def test_space_to_depth_in_chunks_is_the_whole_there_and_back():
    x, patch = normal((2, 13, 4, 4, 3)), (4, 2, 2)
    outs = in_chunks(lambda x, cache: causal_space_to_depth(x, patch, cache), x, (5, 4, 4))
    assert np.array_equal(np.concatenate(outs, 1), causal_space_to_depth(x, patch)[0])
    back = [causal_depth_to_space(y, patch, started=i > 0) for i, y in enumerate(outs)]
    assert np.array_equal(np.concatenate(back, 1), x)


def test_repetition_doubles_every_frame_but_the_first_of_a_clip():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    assert causal_repeat(x, started=False).ravel().tolist() == [0, 1, 1, 2, 2]
    assert causal_repeat(x, started=True).ravel().tolist() == [0, 0, 1, 1, 2, 2]


def test_nearest_upsampling_doubles_the_sides():
    x = jnp.arange(4.0).reshape(1, 1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert nearest_upsample(x)[0, 0, :, :, 0].tolist() == expected


@pytest.mark.parametrize("symmetric", [False, True])
def test_four_small_kernels_are_one_on_the_doubled_frames(symmetric):
    x, kernel, dy = normal((2, 2, 5, 4, 3)), normal((1, 3, 3, 3, 6), 1), normal((2, 2, 10, 8, 6), 2)

    def run(function):
        y, pullback = jax.jit(lambda x, k: jax.vjp(function, x, k))(x, kernel)
        return y, *pullback(dy)

    phases = functools.partial(convolve_in_phases, symmetric=symmetric)
    for a, b in zip(run(phases), run(convolve_upsampled)):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_an_upsampling_convolution_has_the_parameters_of_the_plain_one():
    x = normal((1, 2, 4, 4, 3))
    plain, fused = CausalConv3D(5, (1, 3, 3)), UpsampledConv(5)
    y, _ = plain.apply(
        params := plain.init(jax.random.key(1), nearest_upsample(x)), nearest_upsample(x)
    )
    jax.tree.map(np.testing.assert_array_equal, params, fused.init(jax.random.key(1), x))
    np.testing.assert_allclose(fused.apply(params, x), y, atol=1e-6)


def test_small_kernels_exchange_rows_between_devices():
    x, kernel = normal((2, 2, 8, 8, 3)), normal((1, 3, 3, 3, 6), 1)
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, None, "rows", "columns")))
    with jax.set_mesh(mesh):
        sharded = jax.jit(convolve_in_phases)(placed, kernel)
    np.testing.assert_allclose(sharded, convolve_in_phases(x, kernel), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_trilinear_doubling_is_interpolation_at_quarters(frames):
    x = np.random.default_rng(0).standard_normal(frames)
    y, _ = trilinear_double(x.reshape(1, -1, 1, 1, 1), None, True)
    # The first frame stays; of the others each stands for two moments, a quarter before and a
    # quarter after its own.
    at = (np.arange(2 * (frames - 1)) + 0.5) / 2 - 0.5
    others = np.interp(at, np.arange(frames - 1), x[1:]) if frames > 1 else []
    np.testing.assert_allclose(y.ravel(), [x[0], *others], atol=1e-6)


def test_trilinear_doubling_in_chunks_waits_for_one_frame():
    x = np.random.default_rng(0).standard_normal((1, 7, 1, 1, 1)).astype(np.float32)
    whole, _ = trilinear_double(x, None, True)
    parts, cache = [], None
    for begin, end in ((0, 1), (1, 2), (2, 5), (5, 7)):
        y, cache = trilinear_double(x[:, begin:end], cache, False)
        parts.append(y)
    assert [y.shape[1] for y in parts] == [1, 1, 6, 4]
    parts.append(trilinear_double(x[:, :0], cache, True)[0])
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
