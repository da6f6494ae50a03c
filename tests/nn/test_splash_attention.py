"""Splash attention without a TPU: interpreted, it is plain attention; JAX lowers it for TPUs."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.nn import attention as attention_module
from xgen_jax.nn import splash_attention
from xgen_jax.nn.attention import attention
from xgen_jax.nn.splash_attention import cut, splash

TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5")
INTERPRETED = functools.partial(splash, interpret=True)


def inputs(queries, keys, head_dim, dtype=jnp.float32, heads=1):
    arrays = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, n, heads, head_dim) for n in (queries, keys, keys, queries)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(arrays, shapes)]


def values_and_gradients(function, arrays):
    *qkv, cotangent = arrays

    def both(*qkv):
        y, pullback = jax.vjp(function, *qkv)
        return y, *pullback(cotangent)

    return [np.asarray(x, np.float32) for x in jax.jit(both)(*qkv)]


def masks(kind, keys):
    counts = {
        "none": None,
        "prefixes": np.arange(keys)[None] < np.array([[4], [keys]]),
        "holes": np.arange(keys)[None] % np.array([[2], [3]]) == 1,
    }[kind]
    return None if counts is None else jnp.asarray(counts)


@pytest.mark.parametrize(
    "queries,keys,head_dim,mask,partial_sums",
    [
        (128, 128, 128, "none", 8),
        (131, 257, 72, "none", 8),  # odd lengths; three blocks of keys
        (131, 257, 72, "holes", 0),  # with a kernel of its own for the queries' gradients
        (5, 70, 128, "prefixes", 8),
    ],
)
def test_values_and_gradients_are_those_of_plain_attention(
    queries, keys, head_dim, mask, partial_sums, monkeypatch
):
    monkeypatch.setattr(splash_attention, "_LARGEST_BLOCK", 128)
    monkeypatch.setattr(splash_attention, "_MOST_PARTIAL_SUMS", partial_sums)
    arrays, mask = inputs(queries, keys, head_dim), masks(mask, keys)
    expected = values_and_gradients(lambda *qkv: attention(*qkv, mask), arrays)
    got = values_and_gradients(lambda *qkv: INTERPRETED(*qkv, mask), arrays)
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("tokens", [1, 64, 250, 540, 1590, 1920, 3600, 7950, 31680, 104400])
@pytest.mark.parametrize("largest", [128, 256, 1024])
def test_blocks_are_what_the_kernel_takes_and_pad_little(tokens, largest):
    block = cut(tokens, largest)
    assert block % 128 == 0 and 128 <= block <= largest
    padded = -(-tokens // block) * block
    assert padded < tokens + block
    assert padded <= max(128, 1.2 * tokens + 64)


@pytest.fixture
def tpu(monkeypatch):
    calls = []
    monkeypatch.setattr(attention_module, "target_device", lambda: TPU)
    monkeypatch.setattr(
        attention_module, "splash", lambda *a: calls.append(a[0].shape) or INTERPRETED(*a)
    )
    return calls


@pytest.mark.parametrize(
    "tokens,head_dim,called", [(64, 8, True), (16, 8, False), (64, 520, False)]
)
def test_auto_takes_the_kernel_on_tpus_for_what_it_takes(tokens, head_dim, called, tpu):
    arrays, mask = inputs(tokens, 65, head_dim), masks("prefixes", 65)
    y = attention(*arrays[:3], mask, "auto")
    assert bool(tpu) == called
    np.testing.assert_allclose(y, attention(*arrays[:3], mask, "xla"), atol=1e-5)


def test_what_the_kernel_does_not_take_is_refused_by_its_name(tpu):
    arrays = inputs(64, 64, 520)[:3]
    with pytest.raises(
        UserError, match="'splash' takes bfloat16 or float32.*512.*, not heads of 520 channels"
    ):
        attention(*arrays, implementation="splash")
    with pytest.raises(
        UserError, match="'cudnn' is for .*, TPU v5, has auto, xla, chunked, splash"
    ):
        attention(*arrays, implementation="cudnn")


def test_jax_lowers_it_for_tpus():
    def loss(q, k, v):
        return splash(q, k, v, masks("holes", 257)).astype(jnp.float32).sum()

    arrays = inputs(131, 257, 72, jnp.bfloat16, heads=2)[:3]
    for function, kernels in ((loss, 1), (jax.grad(loss, argnums=(0, 1, 2)), 2)):
        lowered = jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",))
        assert lowered.as_text().count("@tpu_custom_call") == kernels
