"""Attention over few frames, in the layout of a clip: `SelfAttention` in another order."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from xgen_jax.models.vdit import VDiT, abstract_inputs
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.nn import short_attention
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.short_attention import ShortAttention, takes_short
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import on_mesh

TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5")


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


def case(frames, heads=2, **kwargs):
    whole, transposed, short = layers(heads, **kwargs)
    x = jax.random.normal(jax.random.key(0), (2, frames, 4, 24))
    positions = jnp.arange(frames, dtype=jnp.float32)[:, None]
    params = whole.init(jax.random.key(1), rearrange(x, "b t s d -> b s t d"), positions)
    same = short.init(jax.random.key(1), x, positions)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    return random_like(params), x, positions, transposed, short.apply


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize(
    "kwargs", [{}, {"qk_norm": True}, {"qk_norm": True, "rotate_first": True}], ids=str
)
def test_parameters_values_and_gradients_are_those_of_self_attention(frames, kwargs):
    params, x, positions, transposed, short = case(frames, **kwargs)
    cotangent = jax.random.normal(jax.random.key(3), x.shape)

    def both(function, params, x):
        y, pullback = jax.vjp(lambda *a: function(*a, positions), params, x)
        return y, *pullback(cotangent)

    run = jax.jit(both, static_argnums=0)
    for one, other in zip(*(jax.tree.leaves(run(f, params, x)) for f in (short, transposed))):
        np.testing.assert_allclose(one, other, atol=2e-6 * max(1.0, np.abs(other).max()))


def test_in_bfloat16_it_is_as_near_to_float32_as_self_attention():
    params, x, positions, transposed, short = case(5, qk_norm=True)
    exact = transposed(params, x, positions)
    _, half, of_half = layers(2, jnp.bfloat16, qk_norm=True)
    errors = [
        np.abs(f(params, x.astype(jnp.bfloat16), positions) - exact).max()
        for f in (of_half.apply, half)
    ]
    assert errors[0] < 1.5 * errors[1]


def test_on_several_devices_it_is_the_same():
    params, x, positions, _, short = case(5, qk_norm=True)
    cotangent = jax.random.normal(jax.random.key(3), x.shape)

    def both(params, x):
        y, pullback = jax.vjp(lambda *a: short(*a, positions), params, x)
        return y, *pullback(cotangent)

    one = jax.jit(both)(params, x)
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=1, tensor=2, sequence=2), jax.devices())):
        several = jax.jit(both)(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), several, one)


def test_it_is_taken_for_few_frames_on_accelerators_under_auto(monkeypatch):
    assert not takes_short("auto", 5)
    monkeypatch.setattr(short_attention, "target_device", lambda: TPU)
    assert takes_short("auto", 5)
    assert not takes_short("auto", 33)
    assert not takes_short("chunked", 5)


def test_a_transformer_that_takes_it_is_the_same(monkeypatch):
    config = VDiTConfig(width=24, depth=2, heads=2, text_width=8, attention="auto")
    inputs = list(abstract_inputs(config))
    inputs[0] = jax.ShapeDtypeStruct((1, 3, 4, 4, 4), jnp.float32)
    rng = np.random.default_rng(1)
    inputs = jax.tree.map(lambda x: (1 + rng.random(x.shape)).astype(np.float32), tuple(inputs))
    model = VDiT(config)
    params = random_like(jax.eval_shape(model.init, jax.random.key(1), *inputs))
    expected = jax.jit(model.apply)(params, *inputs)
    monkeypatch.setattr(short_attention, "target_device", lambda: TPU)
    # Another function, so that nothing is taken from the cache.
    apply = jax.jit(lambda *arguments: model.apply(*arguments))
    lowered = apply.lower(params, *inputs)
    assert "2x2x6x1x3x4x" in lowered.as_text(), "places are not last"
    np.testing.assert_allclose(lowered.compile()(params, *inputs), expected, atol=1e-4)
