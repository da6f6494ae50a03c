"""Attention a block of queries at a time, in plain XLA: memory grows with the number of keys, not
with its square.

The logits of a block are computed, used and dropped, and computed once more in the backward pass;
only inputs, outputs and the sums of the softmax are kept. Blocks are of queries alone: the batch,
which devices share, is never cut.
"""

from xgen_jax.nn.plain_attention import in_blocks, plain
from xgen_jax.typing import Array

_LOGITS = 2**19  # of a head and a sample at a time
_LANES = 128  # blocks are whole multiples of it


def chunked(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array, mask_BM: Array | None = None) -> Array:
    """Attention of all queries, (B, N, K, C), a block of them at a time; plain for one block."""
    block = max(1, _LOGITS // (k_BMKC.shape[1] * _LANES)) * _LANES
    if q_BNKC.shape[1] <= block:
        return plain(q_BNKC, k_BMKC, v_BMKC, mask_BM)
    return in_blocks(q_BNKC, k_BMKC, v_BMKC, mask_BM, block)
