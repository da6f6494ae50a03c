"""Attention by the splash kernel (Pallas, in JAX) on TPUs: memory grows with the number of tokens.

The kernel works on blocks of queries and of keys, whole multiples of 128 that divide the lengths.
So tokens are padded to whole blocks, and keys that do not count, padding or masked ones, are of
another segment than all queries.
"""

from typing import cast

import jax
import jax.numpy as jnp

from xgen_jax.nn.choices import KEPT_OF_ATTENTION
from xgen_jax.typing import Array

LARGEST_HEAD = 512
SPLASH_LIMITS = f"bfloat16 or float32, and heads of up to {LARGEST_HEAD} channels"

_LANES = 128
# The largest side of a block of heads of up to 128 in 16 bits. 2048, all that 16 MiB of the
# vector memory would hold on some generations, is refused by the compilers of v5e and v5p.
_LARGEST_BLOCK = 1024
# A block has costs of its own, as of this many tokens: of two ways to cut, which pad alike, that of
# fewer blocks is better.
_TOKENS_OF_A_BLOCK = 40
# The kernel that makes all gradients at once writes those of the queries once for each block of
# keys. With more blocks a second kernel makes them, and the logits once more.
_MOST_PARTIAL_SUMS = 8


def splash_takes(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array) -> bool:
    """Whether the kernel takes arrays of these dtypes and head dimensions. It takes every length
    and mask."""
    dtypes = {jnp.dtype(x.dtype) for x in (q_BNKC, k_BMKC, v_BMKC)}
    return (
        len(dtypes) == 1
        and dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)}
        and q_BNKC.shape[-1] <= LARGEST_HEAD
    )


def splash(
    q_BNKC: Array,
    k_BMKC: Array,
    v_BMKC: Array,
    mask_BM: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Attention of arrays that `splash_takes`; the mask is True where a key counts.

    With `interpret` the kernel runs operation by operation, on any device: to test it.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    heads, head_dim = q_BNKC.shape[2:]
    keys, queries = k_BMKC.shape[1], q_BNKC.shape[1]
    largest = _largest_block(head_dim, q_BNKC.dtype)
    block_q, block_kv = cut(queries, largest), cut(keys, largest)
    q, k, v = (
        jnp.swapaxes(_pad(x, block), 1, 2)
        for x, block in (
            (q_BNKC * head_dim**-0.5, block_q),
            (k_BMKC, block_kv),
            (v_BMKC, block_kv),
        )
    )
    segments = None
    if mask_BM is not None or k.shape[2] != keys:
        if mask_BM is None:
            mask_BM = jnp.ones(k_BMKC.shape[:2], bool)
        counts_BM = jnp.pad(mask_BM, ((0, 0), (0, k.shape[2] - keys))).astype(jnp.int32)
        segments = library.SegmentIds(jnp.ones(q.shape[:1] + q.shape[2:3], jnp.int32), counts_BM)
    fused = k.shape[2] // block_kv <= _MOST_PARTIAL_SUMS
    # The last dim in memory is padded to whole lanes: channels only where they are that already.
    whole = head_dim % _LANES == 0
    layout = library.QKVLayout.HEAD_DIM_MINOR if whole else library.QKVLayout.SEQ_MINOR
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library.FullMask((q.shape[2], k.shape[2]))] * heads),
        block_sizes=library.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=None if fused else block_q,
            block_kv_dq=None if fused else block_kv,
            use_fused_bwd_kernel=fused,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT_OF_ATTENTION,
        interpret=interpret,
    )
    y = cast(Array, jax.vmap(kernel)(q, k, v, segments))  # without residuals
    return jnp.swapaxes(y, 1, 2)[:, :queries]


def cut(tokens: int, largest: int = _LARGEST_BLOCK) -> int:
    """Return the side of the blocks to cut a number of tokens into: a multiple of 128, at most
    `largest`, that pads little and makes few blocks."""

    def cost(block):
        blocks = -(-tokens // block)
        return blocks * (block + _TOKENS_OF_A_BLOCK)

    return min(range(_LANES, largest + 1, _LANES), key=lambda block: (cost(block), -block))


def _largest_block(head_dim: int, dtype: jnp.dtype) -> int:
    """As many tokens as need the vector memory of 1024 of a head of 128 in 16 bits."""
    lanes = -(-head_dim // _LANES) * _LANES
    size = _LARGEST_BLOCK * _LANES * 2 // (lanes * jnp.dtype(dtype).itemsize)
    return max(_LANES, size // _LANES * _LANES)


def _pad(x_BNKC: Array, block: int) -> Array:
    return jnp.pad(x_BNKC, ((0, 0), (0, -x_BNKC.shape[1] % block), (0, 0), (0, 0)))
