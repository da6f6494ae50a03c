"""Attention: every name gives the values and gradients of JAX's own; a masked key counts for
nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.nn import chunked_attention, plain_attention
from xgen_jax.nn.attention import CrossAttention, SelfAttention, attention
from xgen_jax.nn.choices import KEPT_OF_ATTENTION


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 5, 3, 8))
    k, v = (jax.random.normal(key, (2, 7, 3, 8)) for key in keys[1:3])
    return q, k, v, jax.random.normal(keys[3], q.shape)


@pytest.mark.parametrize("logits_bytes", [0, 2**20], ids=["head by head", "at once"])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_jax(masked, logits_bytes, monkeypatch):
    monkeypatch.setattr(plain_attention, "LOGITS_BYTES", logits_bytes)
    q, k, v, cotangent = inputs()
    mask = jnp.arange(7)[None] < jnp.array([[4], [7]]) if masked else None

    def reference(q, k, v):
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[:, None, None, :] if masked else None
        )

    def both(function):
        y, pullback = jax.vjp(function, q, k, v)
        return y, *pullback(cotangent)

    run = jax.jit(both, static_argnums=0)
    for one, other in zip(run(lambda q, k, v: attention(q, k, v, mask)), run(reference)):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.fixture
def small_blocks(monkeypatch):
    """5 queries on 7 keys in blocks of 2: the last is not full."""
    monkeypatch.setattr(chunked_attention, "_LOGITS", 14)
    monkeypatch.setattr(chunked_attention, "_LANES", 2)


@pytest.mark.parametrize("logits_bytes", [0, 2**20], ids=["head by head", "at once"])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_of_queries_give_the_values_and_gradients_of_the_whole(
    masked, logits_bytes, small_blocks, monkeypatch
):
    q, k, v, cotangent = inputs()
    mask = jnp.arange(7)[None] < jnp.array([[4], [7]]) if masked else None

    def both(name):
        y, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, mask, name), q, k, v)
        return y, *pullback(cotangent)

    run = jax.jit(both, static_argnums=0)
    expected = run("xla")
    monkeypatch.setattr(plain_attention, "LOGITS_BYTES", logits_bytes)
    assert "while" in run.lower("chunked").as_text(), "nothing was cut"
    for one, other in zip(run("chunked"), expected):
        np.testing.assert_allclose(one, other, atol=2e-6)


def products(function, dtype):
    """The operands' dtypes of each matrix product in a program of values and gradients."""
    q, k, v, cotangent = (x.astype(dtype) for x in inputs())

    def both(q, k, v):
        y, pullback = jax.vjp(function, q, k, v)
        return y, *pullback(cotangent)

    text = jax.jit(both).lower(q, k, v).as_text()
    found = re.findall(r"dot_general .*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\)", text)
    assert len(found) == text.count("dot_general")
    return found


# Logits and result; of a kept softmax four products more, otherwise the logits again.
@pytest.mark.parametrize("name,count", [("xla", 2 + 4), ("chunked", 2 + 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_in_bfloat16_multiplies_nothing_in_float32(name, count, masked, small_blocks):
    mask = jnp.arange(7)[None] < jnp.array([[4], [7]]) if masked else None
    found = products(lambda q, k, v: attention(q, k, v, mask, name), jnp.bfloat16)
    assert found == [("bf16", "bf16")] * count


def test_logits_are_made_twice_where_remat_keeps_what_attention_names(small_blocks):
    policy = jax.checkpoint_policies.save_only_these_names(KEPT_OF_ATTENTION)

    def counted(policy):
        layer = jax.checkpoint(
            lambda q, k, v: 2 * attention(q, k, v, None, "chunked"), policy=policy
        )
        return len(products(layer, jnp.float32))

    assert counted(policy) == 2 + 5
    assert counted(None) > counted(policy)


@pytest.mark.parametrize("name", ["xla", "chunked"])
def test_gradients_in_bfloat16_are_those_of_float32(name, small_blocks):
    arrays = inputs()
    mask = jnp.arange(7)[None] < jnp.array([[4], [7]])

    def gradients(q, k, v, cotangent):
        return jax.vjp(lambda q, k, v: attention(q, k, v, mask, name), q, k, v)[1](cotangent)

    expected = gradients(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in arrays))
    for one, other in zip(gradients(*(x.astype(jnp.bfloat16) for x in arrays)), expected):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=1e-2 * np.abs(other).max())


def test_masked_keys_do_not_count():
    q, k, v, _ = inputs()
    mask = jnp.arange(7)[None] < jnp.array([[4], [4]])
    short = attention(q, k[:, :4], v[:, :4])
    np.testing.assert_allclose(attention(q, k, v.at[:, 4:].set(1e6), mask), short, atol=1e-6)


def test_half_precision_keeps_its_dtype_and_takes_the_softmax_in_float32():
    q, k, v, _ = inputs()
    y = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert y.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 2^-8 of values of about 1.
    np.testing.assert_allclose(y.astype(jnp.float32), attention(q, k, v), atol=2e-2)


def test_an_unknown_name_is_refused_with_the_known_ones():
    q, k, v, _ = inputs()
    with pytest.raises(
        UserError, match="'flash' is not known .*choose one of auto, xla, chunked, cudnn, splash"
    ):
        attention(q, k, v, implementation="flash")


@pytest.mark.parametrize("name,devices", [("cudnn", "NVIDIA GPUs"), ("splash", "TPUs")])
def test_a_kernel_that_the_device_does_not_have_is_refused_with_those_that_it_has(name, devices):
    q, k, v, _ = inputs()
    message = f"attention='{name}' is for {devices}; this device, cpu, has auto, xla, chunked$"
    with pytest.raises(UserError, match=message):
        attention(q, k, v, implementation=name)


@pytest.mark.parametrize("layer", [SelfAttention, CrossAttention])
@pytest.mark.parametrize("name", ["cudnn", "splash"])
def test_parameters_are_made_where_the_kernel_does_not_run(layer, name):
    x = jnp.ones((1, 6, 8))
    context = (x,) if layer is CrossAttention else ()
    layer = layer(2, implementation=name)
    params = layer.init(jax.random.key(0), x, *context)
    with pytest.raises(UserError, match=f"attention='{name}'"):
        layer.apply(params, x, *context)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_self_attention_treats_tokens_alike(qk_norm):
    layer = SelfAttention(heads=2, qk_norm=qk_norm)
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    params = layer.init(jax.random.key(1), x)
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(
        layer.apply(params, x[:, order]), layer.apply(params, x)[:, order], atol=1e-6
    )


def test_positions_tell_tokens_apart_by_distance_only():
    layer = SelfAttention(heads=2)
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    params = layer.init(jax.random.key(1), x)
    placed = layer.apply(params, x, jnp.arange(6))
    assert np.abs(placed - layer.apply(params, x)).max() > 1e-3
    np.testing.assert_allclose(layer.apply(params, x, jnp.arange(6) + 11), placed, atol=1e-5)


@pytest.mark.parametrize(
    "layer", [SelfAttention(2, zero_init=True), CrossAttention(2, zero_init=True)]
)
def test_a_zero_initialised_layer_starts_at_zero(layer):
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    context = (x[:, :3],) if isinstance(layer, CrossAttention) else ()
    y, _ = layer.init_with_output(jax.random.key(1), x, *context)
    assert y.shape == x.shape
    assert not np.any(y)


def test_rotation_before_the_normalisation_is_another_function():
    # With scales of one they are the same: a rotation keeps the norm. With others they are not.
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    layers = [SelfAttention(heads=2, qk_norm=True, rotate_first=first) for first in (False, True)]
    params = layers[0].init(jax.random.key(1), x)
    one, other = (layer.apply(params, x, jnp.arange(6)) for layer in layers)
    np.testing.assert_allclose(one, other, atol=1e-5)
    params["params"]["q_norm"]["scale"] = jnp.array([1.0, 3.0, 0.5, 2.0])
    one, other = (layer.apply(params, x, jnp.arange(6)) for layer in layers)
    assert np.abs(one - other).max() > 1e-3
