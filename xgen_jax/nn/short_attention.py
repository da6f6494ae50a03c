"""Attention over the few frames at each place of a clip, without moving places and frames.

A matrix product for each place and head, of a few frames by the channels of a head, is almost only
padding on an accelerator: at 480p (5 latent frames) the logits took 41 times their size on a TPU,
and transposing the clip before and after it as much memory traffic as the projections. Here places
stay the last dim, in the lanes of vectors. The projection puts the channels first, as (even, odd)
halves of the pairs that are rotated. Products of queries and keys are sums of products of vectors,
which XLA fuses with normalisation, rotation and softmax.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from xgen_jax.nn.attention import HeadsDense
from xgen_jax.nn.embeddings import XAVIER, ZEROS
from xgen_jax.nn.layout import TOKENS, constrain, target_device
from xgen_jax.nn.positions import rotary_angles
from xgen_jax.typing import Array

Pairs = tuple[Array, Array]

# The work grows with the square of the number of frames, and is not that of the matrix units.
MOST_FRAMES = 32


def takes_short(implementation: str, frames: int) -> bool:
    """Whether the frames of a place attend to one another here: of few frames under `auto`, on
    accelerators. A CPU has no tiles to pad."""
    few = implementation == "auto" and frames <= MOST_FRAMES
    return few and target_device().platform != "cpu"


class ShortAttention(nn.Module):
    """Attention in time: (B, T, S, D) -> the same, with the parameters and the values of
    `nn.attention.SelfAttention` on (B, S, T, D).

    Attributes: see there; the head dimension is even.
    """

    heads: int
    qk_norm: bool = False
    zero_init: bool = False
    rotate_first: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTSD: Array, positions_T1: Array) -> Array:
        """x, and the frames' positions (T, 1) -> as x."""
        width = x_BTSD.shape[-1]
        x_BTSD = constrain(x_BTSD, TOKENS)
        qkv = _PairsFirst(3, self.heads, width, self.dtype, name="qkv")(x_BTSD)
        q, k, v = constrain(qkv, (None, "heads", None, None, "batch", "time", "space"))
        angles_TC = rotary_angles(positions_T1, width // self.heads)
        q, k = self._placed(q, angles_TC, "q_norm"), self._placed(k, angles_TC, "k_norm")
        y = constrain(short_attention(q, k, v), ("heads", None, None, "batch", "time", "space"))
        y = _PairsMerged(width, self.zero_init, self.dtype, name="proj")(y)
        return constrain(y, TOKENS)

    def _placed(self, x: Array, angles_TC: Array, name: str) -> Pairs:
        """Normalise and rotate queries or keys (K, 2, C/2, B, T, S), in float32."""
        pairs = x[:, 0].astype(jnp.float32), x[:, 1].astype(jnp.float32)
        if self.rotate_first:
            pairs = _rotate(pairs, angles_TC)
        if self.qk_norm:
            pairs = _PairsNorm(name=name)(pairs)
        if not self.rotate_first:
            pairs = _rotate(pairs, angles_TC)
        return pairs[0].astype(self.dtype), pairs[1].astype(self.dtype)


def short_attention(q: Pairs, k: Pairs, v: Array) -> Array:
    """softmax(q k^T / sqrt(C)) v, over frames, at each place.

    Args:
      q, k: the even and the odd channels (K, C/2, B, T, S) of heads K.
      v: (K, 2, C/2, B, T, S).

    Returns:
      As v; sums and the softmax are taken in float32.
    """
    channels = 2 * v.shape[2]

    def products(q, k):
        return q[:, :, :, :, None].astype(jnp.float32) * k[:, :, :, None].astype(jnp.float32)

    logits_KBTUS = (products(q[0], k[0]) + products(q[1], k[1])).sum(1) * channels**-0.5
    weights = jax.nn.softmax(logits_KBTUS, axis=3)[:, None, None]
    return (weights * v[:, :, :, :, None].astype(jnp.float32)).sum(5).astype(v.dtype)


def _rotate(pairs: Pairs, angles_TC: Array) -> Pairs:
    angles = angles_TC.T[None, :, None, :, None]  # (K, C/2, B, T, S)
    (even, odd), cos, sin = pairs, jnp.cos(angles), jnp.sin(angles)
    return even * cos - odd * sin, even * sin + odd * cos


class _PairsFirst(HeadsDense):
    """`HeadsDense`, in another order: (B, T, S, D) -> (parts, K, 2, C/2, B, T, S)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x, kernel, bias = self.arrays(x)

        def halves(a):
            """(..., features) -> (..., parts, channels), in each head the even ones first."""
            lead = a.shape[:-1]
            a = a.reshape(*lead, self.parts, self.heads, -1, 2)
            return jnp.swapaxes(a, -1, -2).reshape(*lead, self.parts, self.width)

        # The channels of all heads are one dim of the product, see `HeadsDense`.
        kernel = constrain(halves(kernel), (None, None, "heads"))
        y = lax.dot_general(kernel, x, (((0,), (x.ndim - 1,)), ((), ())))
        y = y + halves(bias)[..., None, None, None]
        return y.reshape(self.parts, self.heads, 2, -1, *x.shape[:-1])


class _PairsMerged(nn.Module):
    """`nn.Dense` of heads in the order of `_PairsFirst`: (K, 2, C/2, B, T, S) -> (B, T, S, D)."""

    width: int
    zero_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = ZEROS if self.zero_init else XAVIER
        kernel = self.param("kernel", init, (self.width, self.width), jnp.float32)
        bias = self.param("bias", ZEROS, (self.width,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        kernel = jnp.swapaxes(kernel.reshape(x.shape[0], -1, 2, self.width), 1, 2)
        kernel = constrain(kernel.reshape(self.width, self.width), ("heads", None))
        x = x.reshape(self.width, *x.shape[3:])
        y = lax.dot_general(x, kernel, (((0,), (0,)), ((), ())))
        return y + bias.reshape(1, 1, 1, -1)


class _PairsNorm(nn.Module):
    """`nn.norms.RMSNorm` over the channels of pairs (K, C/2, B, T, S)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, pairs: Pairs) -> Pairs:
        even, odd = pairs
        scale = self.param("scale", nn.initializers.ones, (2 * even.shape[1],))
        scale = scale.reshape(1, -1, 2, 1, 1, 1)
        mean = (even * even + odd * odd).mean(1, keepdims=True) / 2
        inverse = lax.rsqrt(mean + self.epsilon)
        return even * inverse * scale[:, :, 0], odd * inverse * scale[:, :, 1]
