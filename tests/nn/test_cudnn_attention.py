"""Attention for cuDNN, without a GPU: what it is handed is what it takes, and the result is plain
attention's."""

import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.nn import attention as attention_module
from xgen_jax.nn.attention import attention
from xgen_jax.nn.cudnn_attention import cudnn_takes

PLAIN = jax.nn.dot_product_attention
MASKS = {
    "no mask": None,
    "prefixes": lambda keys: np.arange(keys)[None] < np.array([[4], [keys]]),
    "holes": lambda keys: np.arange(keys)[None] % np.array([[2], [3]]) == 1,
}

GPU = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(attention_module, "target_device", lambda: GPU)


def inputs(queries, keys, dtype=jnp.bfloat16, head_dim=8):
    arrays = jax.random.split(jax.random.key(0), 4)
    shapes = ((2, queries, 3, head_dim), *[(2, keys, 3, head_dim)] * 2, (2, queries, 3, head_dim))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(arrays, shapes)]


def kernel(query, key, value, *, implementation, bias=None, mask=None, key_value_seq_lengths=None):
    """Stands for the kernel: the checks of jax 0.10.2 for training, and plain attention."""
    assert implementation == "cudnn"
    assert query.dtype == key.dtype == value.dtype
    assert query.dtype in (jnp.bfloat16, jnp.float16), "Q must be fp16/bf16"
    assert query.shape[-1] % 8 == 0 and query.shape[-1] <= 128, "head dim"
    assert query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0, "Unsupported sequence length"
    for full in (bias, mask):
        assert full is None or full.shape[2:] == (query.shape[1], key.shape[1]), (
            "Bias must have same seq length as QKV"
        )
    lengths = key_value_seq_lengths
    assert lengths is None or (lengths.dtype == jnp.int32 and lengths.shape == query.shape[:1])
    return PLAIN(
        query, key, value, bias=bias, mask=mask, key_value_seq_lengths=lengths, implementation="xla"
    )


def values_and_gradients(implementation, arrays, mask):
    *qkv, cotangent = arrays

    def both(*qkv):
        y, pullback = jax.vjp(lambda q, k, v: attention(q, k, v, mask, implementation), *qkv)
        return y, *pullback(cotangent)

    return [np.asarray(x, np.float32) for x in jax.jit(both)(*qkv)]


@pytest.mark.parametrize("queries,keys", [(6, 8), (5, 7), (5, 8), (6, 7)])
@pytest.mark.parametrize("mask", MASKS)
def test_the_kernel_is_handed_what_it_takes_and_the_result_is_plain_attentions(
    queries, keys, mask, gpu, monkeypatch
):
    arrays, mask = inputs(queries, keys), MASKS[mask] and jnp.asarray(MASKS[mask](keys))
    expected = values_and_gradients("xla", [x.astype(jnp.float32) for x in arrays], mask)
    calls = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    got = values_and_gradients("cudnn", arrays, mask)
    assert calls
    # bfloat16 keeps 8 bits: 2^-8 of values up to 4.
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, atol=2e-2 * np.abs(other).max())


@pytest.mark.parametrize(
    "dtype,head_dim", [(jnp.float32, 8), (jnp.bfloat16, 12), (jnp.bfloat16, 512)]
)
def test_what_the_kernel_does_not_take_is_refused_by_its_name_and_plain_under_auto(
    dtype, head_dim, gpu, monkeypatch
):
    arrays, mask = inputs(65, 70, dtype, head_dim), jnp.asarray(MASKS["prefixes"](70))
    assert not cudnn_takes(*arrays[:3])
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: pytest.fail("the kernel is called")
    )
    for one, other in zip(
        values_and_gradients("auto", arrays, mask), values_and_gradients("xla", arrays, mask)
    ):
        np.testing.assert_array_equal(one, other)
    message = f"'cudnn' takes bfloat16 .*, not heads of {head_dim} channels in {jnp.dtype(dtype)}"
    with pytest.raises(UserError, match=message):
        attention(*arrays[:3], mask, "cudnn")


@pytest.mark.parametrize("nvidia", [False, True])
@pytest.mark.parametrize("tokens", [16, 64])
def test_auto_takes_the_kernel_on_nvidia_gpus_for_sequences_that_are_long_enough(
    tokens, nvidia, monkeypatch
):
    calls = []
    if nvidia:
        monkeypatch.setattr(attention_module, "target_device", lambda: GPU)
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    arrays, mask = inputs(tokens, 65), jnp.asarray(MASKS["prefixes"](65))
    got = values_and_gradients("auto", arrays, mask)
    assert bool(calls) == (nvidia and tokens == 64)
    expected = values_and_gradients("xla", [x.astype(jnp.float32) for x in arrays], mask)
    for one, other in zip(got, expected):
        np.testing.assert_allclose(one, other, atol=2e-2 * np.abs(other).max())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason="needs the CUDA plugin, but no GPU"
)
def test_jax_lowers_it_for_cuda(mask, gpu):
    mask = MASKS[mask] and jnp.asarray(MASKS[mask](7))

    def loss(q, k, v):
        return attention(q, k, v, mask, "cudnn").astype(jnp.float32).sum()

    for function, kernels in ((loss, 1), (jax.grad(loss, argnums=(0, 1, 2)), 2)):
        text = (
            jax.jit(function).trace(*inputs(5, 7)[:3]).lower(lowering_platforms=("cuda",)).as_text()
        )
        assert text.count("@__cudnn$fmha") == kernels
