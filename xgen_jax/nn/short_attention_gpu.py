"""Attention over the few frames at each place of a clip as one kernel (Pallas, Triton) on GPUs.

Queries, keys and values are read once, and a result of their size is all that is written: the bias,
the normalisation of queries and keys, the rotation and the softmax stay in registers. A program is
of one head and of the places whose tokens fill a tile of the tensor cores; logits of tokens at
different places are masked.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from xgen_jax.nn.choices import KEPT_OF_ATTENTION
from xgen_jax.nn.norms import RMSNorm
from xgen_jax.nn.positions import Placing
from xgen_jax.typing import Array

_TILE, _WARPS = 32, 8  # tokens; of 64 the backward kernel's arrays do not fit into registers
# Tiles of a program of the backward pass, which writes one sum of the gradients of bias and scale.
_TILES_BACKWARD = 4
_LEAST_DOT = 16  # channels that a product on tensor cores takes
# Bytes of a token's channels, rounded up to a power of 2. Of twice as many, the backward kernel's
# operands would not fit into the 99 KiB of shared memory of the smaller GPUs.
_LARGEST_HEAD = 512
_DTYPES = (jnp.bfloat16, jnp.float32)


def takes(frames: int, channels: int, dtype: Any) -> bool:
    """Whether the kernel takes this number of frames, and of channels of a head, in this dtype."""
    if frames > _TILE or channels % 2 or jnp.dtype(dtype) not in _DTYPES:
        return False
    return _power_of_2(channels) * jnp.dtype(dtype).itemsize <= _LARGEST_HEAD


def frames_kernel(
    qkv_BTS3KC: Array,
    bias_3KC: Array,
    scale_2C: Array,
    angles_TC: Array,
    placing: Placing,
    interpret: bool = False,
) -> Array:
    """softmax(q k^T / sqrt(C)) v over the frames T of each place S and head K.

    Args:
      qkv_BTS3KC: what is projected.
      bias_3KC: to be added to it.
      scale_2C: of the normalisation of queries and keys; unused without.
      angles_TC: (T, C / 2) of `rotary_angles`. Has no gradient.
      placing: how queries and keys are made.
      interpret: run the kernel operation by operation, on any device: to test it.

    Returns:
      (B, T, S, K, C) in the dtype of qkv. Products are of arrays of this dtype, as in the flash
      kernels; everything else is float32.
    """
    angles = jnp.repeat(angles_TC, 2, axis=1)
    sign = jnp.where(jnp.arange(angles.shape[1]) % 2, 1.0, -1.0)
    small = [x.astype(jnp.float32) for x in (bias_3KC, scale_2C, jnp.cos(angles))]
    return _attend(placing, interpret, qkv_BTS3KC, *small, jnp.sin(angles) * sign[None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(placing, interpret, *arrays):
    return _call_forward(placing, interpret, arrays)


def _attend_forward(placing, interpret, *arrays):
    y = _call_forward(placing, interpret, arrays)
    return checkpoint_name(y, KEPT_OF_ATTENTION), arrays


def _attend_backward(placing, interpret, arrays, dy):
    qkv, _, scale, cos, sin = arrays
    batch, frames, places, _, heads, channels = qkv.shape
    parts = pl.cdiv(places, _places_of_tile(frames) * _TILES_BACKWARD)
    rows = 5 if placing.norm else 3
    sums = jax.ShapeDtypeStruct((batch, parts, heads, rows, channels), jnp.float32)
    out = [jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), sums]
    dqkv, sums = _call(_backward, _TILES_BACKWARD, placing, interpret, (*arrays, dy), out)
    sums_K5C = sums.sum((0, 1))
    dscale = sums_K5C[:, 3:].sum(0) if placing.norm else jnp.zeros_like(scale)
    return (
        dqkv,
        jnp.moveaxis(sums_K5C[:, :3], 0, 1),
        dscale,
        jnp.zeros_like(cos),
        jnp.zeros_like(sin),
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _call_forward(placing, interpret, arrays):
    qkv = arrays[0]
    batch, frames, places, _, heads, channels = qkv.shape
    out = jax.ShapeDtypeStruct((batch, frames, places, heads, channels), qkv.dtype)
    return _call(_forward, 1, placing, interpret, arrays, out)


def _call(kernel, tiles, placing, interpret, arrays, out_shape):
    """Call a kernel for each head, as many tiles of places, and each clip."""
    batch, frames, places, _, heads, _ = arrays[0].shape
    return pl.pallas_call(
        functools.partial(kernel, placing=placing),
        # Heads first: those of a place are next to one another in memory.
        grid=(heads, pl.cdiv(places, _places_of_tile(frames) * tiles), batch),
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name=f"short_attention{kernel.__name__}",
    )(*arrays)


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _places_of_tile(frames: int) -> int:
    return _TILE // _power_of_2(frames)


class _Tile:
    """The tokens of a program, frames outside and places inside, and how it reads and writes them.

    Sides of arrays are powers of 2: frames and channels beyond the arrays' are masked.
    """

    def __init__(self, head, part, clip, qkv, bias, scale, cos, sin, placing):
        _, self.frames, self.places, _, _, self.channels = qkv.shape
        self.dtype, self.placing = qkv.dtype, placing
        count = _places_of_tile(self.frames)
        self.head, self.clip = head, clip
        token = jnp.arange(count * _power_of_2(self.frames))
        self.frame, self.place = token // count, part * count + token % count
        self.counts = (self.frame < self.frames) & (self.place < self.places)
        channel = jnp.arange(max(_power_of_2(self.channels), _LEAST_DOT))
        # Of each channel, and of the other one of its pair.
        self.channel, self.partner = channel, channel ^ 1
        self.inside = channel < self.channels
        self.qkv, self.bias, self.scale = qkv, bias, scale
        self.tables = cos, sin

    def read(self, ref, *part, channel=None):
        """Return (tokens, channels) of one head in float32."""
        channel = self.channel if channel is None else channel
        x = plgpu.load(self._at(ref, part, channel), mask=self._mask(), other=0.0)
        return x.astype(jnp.float32)

    def write(self, ref, x, *part):
        plgpu.store(self._at(ref, part, self.channel), x.astype(ref.dtype), mask=self._mask())

    def projected(self, part, channel=None):
        """Return queries, keys or values as projected, with the bias."""
        channel = self.channel if channel is None else channel
        bias = plgpu.load(self.bias.at[part, self.head, channel], mask=self.inside, other=0.0)
        return self.read(self.qkv, part, channel=channel) + bias[None]

    def placed(self, part):
        """Return queries or keys, their partners, and what their gradient needs."""
        x, partner = self.projected(part), self.projected(part, self.partner)
        inverse: Any = None
        scales: Any = None
        if self.placing.norm:
            inverse = lax.rsqrt((x * x).sum(1, keepdims=True) / self.channels + RMSNorm.epsilon)
            scales = [
                plgpu.load(self.scale.at[part, channel], mask=self.inside, other=0.0)[None]
                for channel in (self.channel, self.partner)
            ]
        if self.placing.rotate_first:
            x, partner = self._rotated(x, partner)
        unit = x, partner
        if self.placing.norm:
            unit = x * inverse, partner * inverse
            x, partner = unit[0] * scales[0], unit[1] * scales[1]
        if not self.placing.rotate_first:
            x, partner = self._rotated(x, partner)
        return x, partner, (inverse, unit, scales)

    def placed_backward(self, dx, dpartner, kept):
        """Return the gradients of what is projected, and of each token's scale."""
        inverse, unit, scales = kept
        dscale = None
        cos, sin = self._turn()
        if not self.placing.rotate_first:
            dx = dx * cos - dpartner * sin
        if self.placing.norm:
            dscale = dx * unit[0]
            dx = dx * scales[0]
            mean = (dx * unit[0]).sum(1, keepdims=True) / self.channels
            dx = inverse * (dx - unit[0] * mean)
            if self.placing.rotate_first:
                dpartner = inverse * (dpartner * scales[1] - unit[1] * mean)
        if self.placing.rotate_first:
            dx = dx * cos - dpartner * sin
        return dx, dscale

    def weights(self, q, k):
        """Return the softmax (queries, keys) of each place's tokens."""
        logits = self.dot(q, k, trans_b=True) * self.channels**-0.5
        same = (self.place[:, None] == self.place[None]) & (self.frame[None] < self.frames)
        logits = jnp.where(same, logits, -jnp.inf)
        weights = jnp.exp(logits - logits.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def dot(self, a, b, trans_a=False, trans_b=False):
        exact = lax.Precision.HIGHEST if self.dtype == jnp.float32 else None
        a, b = a.astype(self.dtype), b.astype(self.dtype)
        return plgpu.dot(a, b, trans_a=trans_a, trans_b=trans_b, precision=exact)

    def total(self, x):
        """Return the sum over all tokens (channels,)."""
        return jnp.where(self.counts[:, None], x, 0.0).sum(0)

    def _rotated(self, x, partner):
        cos, sin = self._turn()
        return x * cos + partner * sin, partner * cos - x * sin

    def _at(self, ref, part, channel):
        tokens = self.frame[:, None], self.place[:, None]
        return ref.at[(self.clip, *tokens, *part, self.head, channel[None])]

    def _mask(self):
        return self.counts[:, None] & self.inside[None]

    def _turn(self):
        """Return the cosine of each token and channel, and the sine with its partner's sign."""
        mask = (self.frame < self.frames)[:, None] & self.inside[None]
        at = self.frame[:, None], self.channel[None]
        return tuple(plgpu.load(table.at[at], mask=mask, other=0.0) for table in self.tables)


def _forward(qkv, bias, scale, cos, sin, y, *, placing):
    head, part, clip = (pl.program_id(axis) for axis in range(3))
    tile = _Tile(head, part, clip, qkv, bias, scale, cos, sin, placing)
    q, _, _ = tile.placed(0)
    k, _, _ = tile.placed(1)
    tile.write(y, tile.dot(tile.weights(q, k), tile.projected(2)))


def _backward(qkv, bias, scale, cos, sin, dy, dqkv, sums, *, placing):
    head, program, clip = (pl.program_id(axis) for axis in range(3))

    def of_tile(number):
        part = program * _TILES_BACKWARD + number
        return _Tile(head, part, clip, qkv, bias, scale, cos, sin, placing)

    first = of_tile(0)
    totals = (jnp.zeros(first.channel.shape, jnp.float32),) * sums.shape[3]

    def add(number, totals):
        gradients = _tile_backward(of_tile(number), dy, dqkv)
        return tuple(total + more for total, more in zip(totals, gradients, strict=True))

    for row, total in enumerate(lax.fori_loop(0, _TILES_BACKWARD, add, totals)):
        at = sums.at[clip, program, head, row, first.channel]
        plgpu.store(at, total, mask=first.inside)


def _tile_backward(tile, dy, dqkv):
    """Write the gradients of a tile, and return its sums: of biases, then of scales."""
    q, _, _ = tile.placed(0)
    k, _, _ = tile.placed(1)
    dy = tile.read(dy)
    weights = tile.weights(q, k)
    dv = tile.dot(weights, dy, trans_a=True)
    dweights = tile.dot(dy, tile.projected(2), trans_b=True)
    dlogits = weights * (dweights - (weights * dweights).sum(1, keepdims=True))
    dlogits = dlogits * tile.channels**-0.5
    tile.write(dqkv, dv, 2)
    dq, dq_scale = _side_backward(tile, 0, dlogits)
    tile.write(dqkv, dq, 0)
    dk, dk_scale = _side_backward(tile, 1, dlogits)
    tile.write(dqkv, dk, 1)
    scales = (dq_scale, dk_scale) if tile.placing.norm else ()
    return tuple(tile.total(gradient) for gradient in (dq, dk, dv, *scales))


def _side_backward(tile, part, dlogits):
    """Return the gradients of queries (part 0) or keys (1) as projected, and of their scales.

    Both sides are read and placed again: registers cannot hold them until here.
    """
    other, other_partner, _ = tile.placed(1 - part)
    # A program cannot exchange the channels of a pair in registers: the gradients of the partners
    # are products with the partners.
    dx, dpartner = (tile.dot(dlogits, x, trans_a=part == 1) for x in (other, other_partner))
    _, _, kept = tile.placed(part)
    return tile.placed_backward(dx, dpartner, kept)
