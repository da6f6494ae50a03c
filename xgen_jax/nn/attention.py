"""One attention function, one name for each way to compute it.

    softmax(q k^T / sqrt(d) + mask) v

Names: `xla` runs anywhere; so does `chunked`, which works on a block of queries at a time and needs
little memory, and is `xla` where there are few logits; `cudnn` is the flash kernel of NVIDIA GPUs,
and `chunked` for arrays which that does not take; `auto` is `cudnn` on NVIDIA GPUs, but for few
tokens, and `chunked` elsewhere. Every name gives the same values and gradients as `xla` within its
precision.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax

from xgen_jax.errors import choose
from xgen_jax.nn.choices import IMPLEMENTATIONS
from xgen_jax.nn.chunked_attention import chunked
from xgen_jax.nn.cudnn_attention import cudnn, cudnn_takes
from xgen_jax.nn.embeddings import XAVIER, ZEROS
from xgen_jax.nn.norms import RMSNorm
from xgen_jax.nn.positions import rotary
from xgen_jax.typing import Array

# `auto` leaves shorter sequences, such as the frames at one place of a clip, to plain XLA: the
# flash kernel works on blocks of 64 tokens or more, most of which would be padding.
FEWEST_FLASH_TOKENS = 64
# On CPU more logits than these are computed head by head, forward and backward, for out of the
# cache they cost more than the products: at 1,024 tokens that halves the time of the forward pass.
LOGITS_BYTES = 16 * 2**20


def _weigh(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """softmax(q k^T) v over the last two dims (N, C), (M, C); leading dims are alike, and the mask
    broadcasts to them.

    The sum of the weights divides the result, which is smaller than the weights.
    """
    logits = jnp.einsum("...nc,...mc->...nm", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    y = jnp.einsum(
        "...nm,...mc->...nc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


def _xla_attention(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array, mask_BM: Array | None) -> Array:
    # Heads are moved next to the batch first: both products are then plain batched matrix products,
    # which XLA:CPU runs up to three times faster than the same einsum over (B, N, K, C).
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BNKC * q_BNKC.shape[-1] ** -0.5, k_BMKC, v_BMKC))
    masks = () if mask_BM is None else (mask_BM,)

    def at_once(q, k, v, *masks):
        return _weigh(
            q, k, v, *(mask_BM[:, None, None, :] for mask_BM in masks) if masks else (None,)
        )

    def head_by_head(q, k, v, *masks):
        batch, heads = q.shape[:2]
        masks = (jnp.repeat(mask_BM[:, None], heads, axis=0) for mask_BM in masks)
        one = jax.checkpoint(lambda arrays: _weigh(*arrays[:3], *arrays[3:] or (None,)))
        y = lax.map(one, (*(x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v)), *masks))
        return y.reshape(batch, heads, *y.shape[1:])

    if 4 * q[..., 0].size * k.shape[2] <= LOGITS_BYTES:
        y = at_once(q, k, v, *masks)
    else:
        y = lax.platform_dependent(q, k, v, *masks, cpu=head_by_head, default=at_once)
    return jnp.swapaxes(y, 1, 2)


def _on_nvidia() -> bool:
    """Whether what is traced now is for NVIDIA GPUs: the devices of the mesh, else the default
    ones."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return "nvidia" in device.device_kind.lower()


def attention(
    q_BNKC: Array,
    k_BMKC: Array,
    v_BMKC: Array,
    mask_BM: Array | None = None,
    implementation: str = "xla",
) -> Array:
    """Multi-head attention.

    Args:
      q_BNKC: queries (batch, queries, heads, head dimension).
      k_BMKC: keys; their number M may differ from the queries'.
      v_BMKC: values.
      mask_BM: True where a key may be attended, or None for all. A row must have at least one True.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      (B, N, K, C) in the dtype of the queries; the softmax is taken in float32.
    """
    choose("attention", implementation, IMPLEMENTATIONS)
    if implementation == "auto":
        tokens = min(q_BNKC.shape[1], k_BMKC.shape[1])
        implementation = "cudnn" if tokens >= FEWEST_FLASH_TOKENS and _on_nvidia() else "chunked"
    if implementation == "cudnn" and not cudnn_takes(q_BNKC, k_BMKC, v_BMKC):
        implementation = "chunked"
    match implementation:
        case "xla":
            return _xla_attention(q_BNKC, k_BMKC, v_BMKC, mask_BM)
        case "chunked":
            return chunked(attention, q_BNKC, k_BMKC, v_BMKC, mask_BM)
        case _:
            return cudnn(q_BNKC, k_BMKC, v_BMKC, mask_BM)


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional QK-norm and rotary positions.

    Attributes:
      heads: number of heads; the width must be a multiple of it.
      qk_norm: root-mean-square normalisation of queries and keys per head, before the rotation.
      rotate_first: the rotation before the normalisation instead, as the public STDiT2 has it
        (Open-Sora 1.1): learnt scales that differ between the channels of a pair then break the
        dependence on distance alone.
      zero_init: start the output projection at zero, so that the layer starts as the identity of a
      residual block.
    """

    heads: int
    qk_norm: bool = False
    zero_init: bool = False
    rotate_first: bool = False
    implementation: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x_BND: Array, positions: Array | None = None, mask_BN: Array | None = None
    ) -> Array:
        """x, the tokens' positions (see `rotary`) and which of them are keys -> as x."""
        width = x_BND.shape[-1]
        qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=XAVIER, name="qkv")(x_BND)
        q, k, v = (
            rearrange(y, "b n (k c) -> b n k c", k=self.heads) for y in jnp.split(qkv, 3, axis=-1)
        )
        if self.rotate_first and positions is not None:
            q, k = rotary(q, positions), rotary(k, positions)
        if self.qk_norm:
            q, k = (
                RMSNorm(dtype=self.dtype, name="q_norm")(q),
                RMSNorm(dtype=self.dtype, name="k_norm")(k),
            )
        if not self.rotate_first and positions is not None:
            q, k = rotary(q, positions), rotary(k, positions)
        y = rearrange(attention(q, k, v, mask_BN, self.implementation), "b n k c -> b n (k c)")
        return nn.Dense(
            width, dtype=self.dtype, kernel_init=ZEROS if self.zero_init else XAVIER, name="proj"
        )(y)


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context of another length, e.g. text. Attributes as in
    `SelfAttention`."""

    heads: int
    qk_norm: bool = False
    zero_init: bool = False
    implementation: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BND: Array, context_BLD: Array, mask_BL: Array | None = None) -> Array:
        width = x_BND.shape[-1]
        q = nn.Dense(width, dtype=self.dtype, kernel_init=XAVIER, name="q")(x_BND)
        k, v = jnp.split(
            nn.Dense(2 * width, dtype=self.dtype, kernel_init=XAVIER, name="kv")(context_BLD),
            2,
            axis=-1,
        )
        q, k, v = (rearrange(y, "b n (k c) -> b n k c", k=self.heads) for y in (q, k, v))
        if self.qk_norm:
            q, k = (
                RMSNorm(dtype=self.dtype, name="q_norm")(q),
                RMSNorm(dtype=self.dtype, name="k_norm")(k),
            )
        y = rearrange(attention(q, k, v, mask_BL, self.implementation), "b n k c -> b n (k c)")
        return nn.Dense(
            width, dtype=self.dtype, kernel_init=ZEROS if self.zero_init else XAVIER, name="proj"
        )(y)
