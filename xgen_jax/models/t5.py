"""T5 v1.1's encoder (arXiv 1910.10683; the v1.1 changes: arXiv 2002.05202), and UMT5's.

    x = E[ids];  per block: x += O softmax(q k^T + b(j - i)) v,  x += W2 (gelu(W1a h) * W1b h);  out
    = norm(x)

with RMS norms before each part and no biases. Logits are not divided by sqrt(d): the initialisation
does that. b is a table over 32 buckets of the distance, exact up to 7 and logarithmic from 8 to
128; T5 has one table, read in every block, UMT5 one a block.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.embeddings import join_scope
from xgen_jax.nn.norms import RMSNorm
from xgen_jax.nn.stack import Stack
from xgen_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of a T5 encoder.

    Attributes:
      vocabulary: rows of the embedding: the tokenizer's pieces, sentinels and padding.
      width, hidden: of the tokens, and of the feed-forward layer.
      depth, heads, head_dim: heads x head_dim need not be the width.
      buckets, max_distance: of the relative positions, both directions together.
      bias_per_block: UMT5's table in every block.
      epsilon: of the norms.
    """

    vocabulary: int = 32128
    width: int = 4096
    hidden: int = 10240
    depth: int = 24
    heads: int = 64
    head_dim: int = 64
    buckets: int = 32
    max_distance: int = 128
    bias_per_block: bool = False
    epsilon: float = 1e-6

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0 and field.name != "bias_per_block":
                raise UserError(f"a T5's {field.name} must be above 0, not {value}")
        if self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise UserError(
                f"buckets={self.buckets} must be a multiple of 4, and max_distance="
                f"{self.max_distance} above a quarter of it"
            )


# T5 v1.1's published sizes; XXL is the text encoder of Imagen, PixArt-alpha, Open-Sora and, it
# seems, xGen.
PRESETS = {
    "small": T5Config(width=512, hidden=1024, depth=8, heads=6),
    "base": T5Config(width=768, hidden=2048, depth=12, heads=12),
    "large": T5Config(width=1024, hidden=2816, depth=24, heads=16),
    "xl": T5Config(width=2048, hidden=5120, depth=24, heads=32),
    "xxl": T5Config(),
    "umt5-xxl": T5Config(vocabulary=256384, bias_per_block=True),
}


def position_buckets(
    distance: np.ndarray, buckets: int = 32, max_distance: int = 128
) -> np.ndarray:
    """Return the bucket of each distance, key - query.

    The upper half of the buckets is for keys after the query. Half of each half are exact
    distances, half logarithmic up to `max_distance`; the last holds all beyond. The logarithm is
    float32, as in training, which decides at borders.
    """
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    logarithmic = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    return np.where(distance > 0, half, 0) + np.where(
        far < exact, far, np.minimum(logarithmic, half - 1)
    )


class PositionBias(nn.Module):
    """Look up the relative position bias, float32 (heads, queries, keys)."""

    config: T5Config

    @nn.compact
    def __call__(self, queries: int, keys: int) -> Array:
        c = self.config
        table = self.param("embedding", nn.initializers.normal(c.width**-0.5), (c.buckets, c.heads))
        places = position_buckets(
            np.arange(keys)[None, :] - np.arange(queries)[:, None], c.buckets, c.max_distance
        )
        return jnp.moveaxis(table.astype(jnp.float32)[places], -1, 0)


class Block(nn.Module):
    """Self-attention and gated feed-forward layer, each after its norm; float32 residuals."""

    config: T5Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: Array, mask_BL: Array, bias_KLL: Array | None) -> Array:
        c, inner = self.config, self.config.heads * self.config.head_dim

        def dense(features, deviation, name):
            init = nn.initializers.normal(deviation)
            return nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)

        def norm(name):
            return RMSNorm(epsilon=c.epsilon, dtype=self.dtype, name=name)

        if bias_KLL is None:
            bias_KLL = PositionBias(c, name="relative_bias")(x_BLD.shape[1], x_BLD.shape[1])
        qkv = dense(3 * inner, c.width**-0.5, "qkv")(norm("norm_attention")(x_BLD))
        q, k, v = rearrange(qkv, "b l (n k c) -> n b k l c", n=3, k=c.heads)
        logits = (
            jnp.einsum("bknc,bkmc->bknm", q, k, preferred_element_type=jnp.float32) + bias_KLL[None]
        )
        logits = jnp.where(mask_BL[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        h = rearrange(jnp.einsum("bknm,bkmc->bknc", weights, v), "b k n c -> b n (k c)")
        x_BLD = x_BLD + dense(c.width, inner**-0.5, "proj")(h).astype(jnp.float32)

        gate, h = jnp.split(
            dense(2 * c.hidden, c.width**-0.5, "fc1")(norm("norm_mlp")(x_BLD)), 2, axis=-1
        )
        h = dense(c.width, c.hidden**-0.5, "fc2")(nn.gelu(gate, approximate=True) * h)
        x_BLD = x_BLD + h.astype(jnp.float32)
        return nn.with_logical_constraint(x_BLD, ("batch", None, "width"))


class T5Encoder(nn.Module):
    """Encode ids int32 (B, L) with mask bool (B, L), True for a token, to (B, L, width) in `dtype`.

    With `hidden_states=True`, return (that, the states (depth + 1, B, L, width), float32): state i
    goes into block i, and the last is the result, as in Hugging Face's `output_hidden_states`.

    A row needs at least one True; outputs at masked places are meaningless. Parameters may be
    bfloat16 with any `dtype`; norms, softmax and the residual stream are float32.
    """

    config: T5Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, ids_BL: Array, mask_BL: Array | None = None, hidden_states: bool = False
    ) -> Any:
        c = self.config
        mask_BL = jnp.ones(ids_BL.shape, bool) if mask_BL is None else mask_BL.astype(bool)
        table = self.param("embedding", nn.initializers.normal(1.0), (c.vocabulary, c.width))
        # Rows are taken before the cast: a float32 copy of the table would be half a gigabyte.
        x = table[ids_BL].astype(jnp.float32)
        length = ids_BL.shape[1]
        bias = None if c.bias_per_block else PositionBias(c, name="relative_bias")(length, length)
        blocks = Stack(Block, (c, self.dtype), c.depth, block_name=None, collect=hidden_states)
        norm = RMSNorm(epsilon=c.epsilon, dtype=self.dtype, name="norm_out")
        if not hidden_states:
            return norm(join_scope(self, blocks)(x, mask_BL, bias))
        last, states = join_scope(self, blocks)(x, mask_BL, bias)
        out = norm(last)
        return out, jnp.concatenate([x[None], states[:-1], out[None].astype(jnp.float32)])
