"""Attention a block of queries at a time, in plain XLA: memory grows with the number of keys, not
with its square.

The logits of a block are computed, used and dropped, and computed again in the backward pass; only
inputs and outputs are kept. Blocks are of queries alone: the batch, which devices share, is never
cut.
"""

import jax
import jax.numpy as jnp

from xgen_jax.typing import Array

_LOGITS = 2**19  # of a head and a sample at a time
_LANES = 128  # blocks are whole multiples of it


def chunked(
    attend, q_BNKC: Array, k_BMKC: Array, v_BMKC: Array, mask_BM: Array | None = None
) -> Array:
    """`attend(q, k, v, mask)` of all queries, (B, N, K, C), a block of them at a time."""
    queries, keys = q_BNKC.shape[1], k_BMKC.shape[1]
    block = max(1, _LOGITS // (keys * _LANES)) * _LANES
    if queries <= block:
        return attend(q_BNKC, k_BMKC, v_BMKC, mask_BM)
    blocks = -(-queries // block)
    q = jnp.pad(q_BNKC, ((0, 0), (0, blocks * block - queries), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(q.shape[0], blocks, block, *q.shape[2:]), 1, 0)
    y = jax.lax.map(
        jax.checkpoint(lambda q: attend(q, k_BMKC, v_BMKC, mask_BM), prevent_cse=False), q
    )
    return jnp.moveaxis(y, 0, 1).reshape(q_BNKC.shape[0], blocks * block, *q_BNKC.shape[2:])[
        :, :queries
    ]
