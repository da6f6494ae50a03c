"""Attention over few frames by the kernels of TPUs and GPUs, which run operation by operation here:
`SelfAttention` in another order."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from xgen_jax.models.vdit import VDiT, abstract_inputs
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.nn import short_attention, short_attention_gpu, short_attention_tpu
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.short_attention import ShortAttention, takes_short
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import on_mesh

TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5")
GPU = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
KERNELS = {"tpu": (TPU, short_attention_tpu), "gpu": (GPU, short_attention_gpu)}


@pytest.fixture(params=list(KERNELS))
def kernel(request, monkeypatch):
    """A kernel's module; its device is the one that programs are for."""
    device, module = KERNELS[request.param]
    interpreted = functools.partial(module.frames_kernel, interpret=True)
    monkeypatch.setattr(module, "frames_kernel", interpreted)
    monkeypatch.setattr(short_attention_tpu, "_most_places", lambda *_: 128)  # several blocks
    monkeypatch.setattr(short_attention, "target_device", lambda: device)
    return module


def layers(heads, dtype=jnp.float32, **kwargs):
    """The same function of x (B, T, S, D), positions: transposed, and not."""
    whole = SelfAttention(heads, dtype=dtype, dims=("batch", "space", None), **kwargs)

    def transposed(params, x, positions):
        x = rearrange(x, "b t s d -> b s t d")
        return rearrange(whole.apply(params, x, positions), "b s t d -> b t s d")

    return whole, transposed, ShortAttention(heads, dtype=dtype, **kwargs)


def random_like(params):
    """Parameters none of which is 0 or 1."""
    rng = np.random.default_rng(0)

    def random(x):
        return (0.3 * rng.standard_normal(x.shape)).astype(np.float32)

    return jax.tree.map(random, params)


def case(frames, heads=2, width=32, places=4, **kwargs):
    whole, transposed, short = layers(heads, **kwargs)
    x = jax.random.normal(jax.random.key(0), (2, frames, places, width))
    positions = jnp.arange(frames, dtype=jnp.float32)[:, None]
    params = whole.init(jax.random.key(1), rearrange(x, "b t s d -> b s t d"), positions)
    same = short.init(jax.random.key(1), x, positions)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    return random_like(params), x, positions, transposed, short.apply


def values_and_gradients(function, params, x, positions):
    cotangent = jax.random.normal(jax.random.key(3), x.shape)

    @jax.jit
    def both(params, x):
        y, pullback = jax.vjp(lambda *a: function(*a, positions), params, x)
        return y, *pullback(cotangent)

    return both(params, x)


# One frame; some that fill no tile, and more places than a block of a TPU or a program of a GPU
# has, with part of a block left; the most frames, and heads that are padded to a power of 2.
@pytest.mark.parametrize("frames,places,width", [(1, 4, 32), (5, 1000, 32), (32, 130, 48)])
@pytest.mark.parametrize(
    "kwargs", [{}, {"qk_norm": True}, {"qk_norm": True, "rotate_first": True}], ids=str
)
def test_parameters_values_and_gradients_are_those_of_self_attention(
    kernel, frames, places, width, kwargs
):
    params, x, positions, transposed, short = case(frames, places=places, width=width, **kwargs)
    expected = values_and_gradients(transposed, params, x, positions)
    found = values_and_gradients(short, params, x, positions)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * max(1.0, np.abs(other).max()))


def test_in_bfloat16_it_is_as_near_to_float32_as_self_attention(kernel):
    params, x, positions, transposed, _ = case(5, qk_norm=True, places=40)
    exact = values_and_gradients(transposed, params, x, positions)
    _, of_half, half = layers(2, jnp.bfloat16, qk_norm=True)

    def error(function):
        found = values_and_gradients(
            lambda *a: function(*a).astype(jnp.float32), params, x.astype(jnp.bfloat16), positions
        )
        pairs = zip(*map(jax.tree.leaves, (found, exact)), strict=True)
        return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])

    assert (error(half.apply) < 1.2 * error(of_half)).all()


def test_on_several_devices_it_is_the_same(kernel):
    params, x, positions, _, short = case(5, qk_norm=True)
    one = values_and_gradients(short, params, x, positions)
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=1, tensor=2, sequence=2), jax.devices())):
        several = values_and_gradients(short, params, x, positions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), several, one)


def test_it_is_taken_for_few_frames_under_auto_where_the_device_has_a_kernel(monkeypatch):
    def takes(name="auto", frames=5, channels=72, dtype=jnp.bfloat16):
        return takes_short(name, frames, channels, dtype)

    assert not takes()
    for device in (TPU, GPU):
        monkeypatch.setattr(short_attention, "target_device", lambda device=device: device)
        assert takes()
        assert takes(dtype=jnp.float32)
        assert not takes(frames=33)
        assert not takes("chunked")
        assert not takes(dtype=jnp.float16)
    assert not takes(channels=136, dtype=jnp.float32), "too large for a GPU"
    monkeypatch.setattr(short_attention, "target_device", lambda: TPU)
    assert not takes(channels=36), "no multiple of a TPU's vector"
    assert takes(channels=256) and not takes(frames=32, channels=256), "too large for a TPU"


def test_a_transformer_that_takes_it_is_the_same(kernel, monkeypatch):
    config = VDiTConfig(width=32, depth=2, heads=2, text_width=8, attention="auto")
    inputs = list(abstract_inputs(config))
    inputs[0] = jax.ShapeDtypeStruct((1, 3, 4, 4, 4), jnp.float32)
    rng = np.random.default_rng(1)
    inputs = jax.tree.map(lambda x: (1 + rng.random(x.shape)).astype(np.float32), tuple(inputs))
    model = VDiT(config)
    params = random_like(jax.eval_shape(model.init, jax.random.key(1), *inputs))
    attend, used = kernel.frames_kernel, []
    monkeypatch.setattr(kernel, "frames_kernel", lambda *x: used.append(x) or attend(*x))
    found = jax.jit(model.apply)(params, *inputs)
    assert used
    monkeypatch.setattr(short_attention, "target_device", lambda: jax.devices()[0])
    # Another function, so that nothing is taken from the cache.
    expected = jax.jit(lambda *arguments: model.apply(*arguments))(params, *inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4)
