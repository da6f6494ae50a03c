"""Attention by cuDNN's flash kernel, on NVIDIA GPUs: memory grows with the number of tokens.

The kernel (through jax 0.10.2) takes bfloat16 and float16, and head dimensions that are multiples
of 8, up to 128 on every GPU. It takes a mask only as one logit for each query and key, and refuses
odd lengths in training. So masked keys are moved behind the others and lengths are padded to even
ones; the number of keys that count goes in for each sample.
"""

import jax
import jax.numpy as jnp

from xgen_jax.typing import Array

LARGEST_HEAD = 128
# The primitive of jax 0.10.2 that computes, under derivatives, what the backward pass needs. There
# is no name by which a policy of `jax.checkpoint` could keep it.
FORWARD = "dot_product_attention_fwd_wrapper"
CUDNN_LIMITS = f"bfloat16 or float16, and heads of a multiple of 8 channels up to {LARGEST_HEAD}"


def cudnn_takes(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array) -> bool:
    """Whether the kernel takes arrays of these dtypes and head dimensions. It takes every length
    and mask."""
    dtypes = {jnp.dtype(x.dtype) for x in (q_BNKC, k_BMKC, v_BMKC)}
    head_dim = q_BNKC.shape[-1]
    return (
        len(dtypes) == 1
        and dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}
        and head_dim % 8 == 0
        and head_dim <= LARGEST_HEAD
    )


def cudnn(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array, mask_BM: Array | None = None) -> Array:
    """Attention of arrays that `cudnn_takes`; the mask is True where a key counts."""
    queries, keys = q_BNKC.shape[1], k_BMKC.shape[1]
    lengths_B = None
    if mask_BM is not None:
        k_BMKC, v_BMKC = _counting_first(k_BMKC, mask_BM), _counting_first(v_BMKC, mask_BM)
        lengths_B = mask_BM.sum(-1, dtype=jnp.int32)
    elif keys % 2:
        lengths_B = jnp.full(k_BMKC.shape[0], keys, jnp.int32)
    q, k, v = (_pad_to_even(x) for x in (q_BNKC, k_BMKC, v_BMKC))
    y = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths_B, implementation="cudnn"
    )
    return y[:, :queries]


def _pad_to_even(x_BNKC: Array) -> Array:
    return jnp.pad(x_BNKC, ((0, 0), (0, x_BNKC.shape[1] % 2), (0, 0), (0, 0)))


def _counting_first(x_BMKC: Array, mask_BM: Array) -> Array:
    """The keys that count in front, in their order: attention does not depend on the order of
    keys."""
    order_BM = jnp.argsort(~mask_BM, axis=-1, stable=True)

    def reorder(x, order):
        # No index occurs twice, so that the gradient needs no atomic additions.
        return x.at[order].get(mode="promise_in_bounds", unique_indices=True)

    return jax.vmap(reorder)(x_BMKC, order_BM)
