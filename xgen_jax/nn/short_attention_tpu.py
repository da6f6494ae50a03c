"""Attention over the few frames at each place of a clip as one kernel (Pallas) on TPUs.

Queries, keys and values are read once, and a result of their size is all that is written: the bias,
the normalisation of queries and keys, the rotation and the softmax stay in the vector memory. A
block is of one head: all frames, all channels, and some places, which are the lanes of vectors.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xgen_jax.nn.choices import KEPT_OF_ATTENTION
from xgen_jax.nn.norms import RMSNorm
from xgen_jax.nn.positions import Placing
from xgen_jax.nn.splash_attention import cut
from xgen_jax.typing import Array

_LANES, _SUBLANES = 128, 8
_DTYPES = (jnp.bfloat16, jnp.float32)
# Of the vector memory, for the arrays of the backward kernel, and for all of it; the compilers of
# v4, v5e, v5p, v6e and tpu7x accept this.
_ARRAY_BYTES, _VMEM_BYTES = 20 * 2**20, 32 * 2**20


def takes(frames: int, channels: int, dtype: Any) -> bool:
    """Whether the kernel takes this number of frames, and of channels of a head, in this dtype."""
    whole = channels % _SUBLANES == 0 and jnp.dtype(dtype) in _DTYPES
    return whole and _most_places(frames, channels, dtype) >= _LANES


def _most_places(frames: int, channels: int, dtype: Any) -> int:
    """Return how many places a block has at most: queries, keys, values and their gradients, and
    the gradient of the result, twice each, since the next block is read and the last one written
    meanwhile; and four arrays in float32."""
    of_place = frames * channels * (2 * 7 * jnp.dtype(dtype).itemsize + 4 * 4)
    return _ARRAY_BYTES // of_place


def frames_kernel(
    qkv_BT3KCS: Array,
    bias_3KC: Array,
    scale_2C: Array,
    angles_TC: Array,
    placing: Placing,
    interpret: bool = False,
) -> Array:
    """softmax(q k^T / sqrt(C)) v over the frames T of each place S and head K.

    Args:
      qkv_BT3KCS: what is projected, channels as `short_attention.pairs_apart` has them.
      bias_3KC: to be added to it, as ordered.
      scale_2C: of the normalisation of queries and keys, as ordered; unused without.
      angles_TC: (T, C / 2) of `rotary_angles`, in the order of pairs. Has no gradient.
      placing: how queries and keys are made.
      interpret: run the kernel operation by operation, on any device: to test it.

    Returns:
      (B, T, K, C, S) in the dtype of qkv; everything in between is float32.
    """
    cos, sin = _tables(angles_TC)
    return _attend(placing, interpret, qkv_BT3KCS, bias_3KC, scale_2C, cos, sin)


def _tables(angles_TC: Array) -> tuple[Array, Array]:
    """Return the cosine of each channel (T, C), and the sine with the sign that its partner has."""
    frames, pairs = angles_TC.shape
    four = angles_TC.reshape(frames, pairs // 4, 4)
    both = [jnp.concatenate(two, axis=-1) for two in ((four, four), (-four, four))]
    return jnp.cos(both[0]).reshape(frames, -1), jnp.sin(both[1]).reshape(frames, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(placing, interpret, qkv, bias, scale, cos, sin):
    return _call_forward(placing, interpret, qkv, bias, scale, cos, sin)


def _attend_forward(placing, interpret, *arrays):
    y = _call_forward(placing, interpret, *arrays)
    return checkpoint_name(y, KEPT_OF_ATTENTION), arrays


def _attend_backward(placing, interpret, arrays, dy):
    qkv, bias, scale, cos, sin = arrays
    dqkv, sums = _call_backward(placing, interpret, qkv, bias, scale, cos, sin, dy)
    sums = sums.sum(-1)  # (K, 5, C)
    dbias, dscale = jnp.moveaxis(sums[:, :3], 0, 1), sums[:, 3:].sum(0)
    return (
        dqkv,
        dbias.astype(bias.dtype),
        dscale.astype(scale.dtype),
        jnp.zeros_like(cos),
        jnp.zeros_like(sin),
    )


_attend.defvjp(_attend_forward, _attend_backward)


class _Cut(NamedTuple):
    """How arrays of a shape are cut into blocks."""

    grid: tuple[int, int, int]
    qkv: pl.BlockSpec
    y: pl.BlockSpec
    small: list[pl.BlockSpec]
    places: int


def _blocks(qkv: Array) -> _Cut:
    batch, frames, _, heads, channels, places = qkv.shape
    block = cut(places, _most_places(frames, channels, qkv.dtype) // _LANES * _LANES)
    column = (channels, 1)
    return _Cut(
        (heads, batch, pl.cdiv(places, block)),
        pl.BlockSpec((None, frames, 3, None, channels, block), lambda k, b, s: (b, 0, 0, k, 0, s)),
        pl.BlockSpec((None, frames, None, channels, block), lambda k, b, s: (b, 0, k, 0, s)),
        [
            pl.BlockSpec((None, 3, *column), lambda k, b, s: (k, 0, 0, 0)),
            pl.BlockSpec((2, *column), lambda k, b, s: (0, 0, 0)),
            pl.BlockSpec((frames, *column), lambda k, b, s: (0, 0, 0)),
            pl.BlockSpec((frames, *column), lambda k, b, s: (0, 0, 0)),
        ],
        block,
    )


def _small(bias, scale, cos, sin) -> list[Array]:
    """Channels as a column, which is broadcast over the lanes."""
    return [x.astype(jnp.float32)[..., None] for x in (jnp.moveaxis(bias, 1, 0), scale, cos, sin)]


def _call_forward(placing, interpret, qkv, bias, scale, cos, sin):
    how, (batch, frames, _, heads, channels, places) = _blocks(qkv), qkv.shape
    return pl.pallas_call(
        functools.partial(_forward, placing=placing),
        grid=how.grid,
        in_specs=[how.qkv, *how.small],
        out_specs=how.y,
        out_shape=jax.ShapeDtypeStruct((batch, frames, heads, channels, places), qkv.dtype),
        scratch_shapes=[pltpu.VMEM((frames, channels, how.places), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3, vmem_limit_bytes=_VMEM_BYTES
        ),
        interpret=interpret,
        name="short_attention_forward",
    )(qkv, *_small(bias, scale, cos, sin))


def _call_backward(placing, interpret, qkv, bias, scale, cos, sin, dy):
    how, (_, frames, _, heads, channels, places) = _blocks(qkv), qkv.shape
    sums = (heads, 5, channels, _LANES)
    return pl.pallas_call(
        functools.partial(_backward, placing=placing, places=places),
        grid=how.grid,
        in_specs=[how.qkv, *how.small, how.y],
        out_specs=[how.qkv, pl.BlockSpec((None, *sums[1:]), lambda k, b, s: (k, 0, 0, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct(sums, jnp.float32),
        ],
        scratch_shapes=[pltpu.VMEM((frames, channels, how.places), jnp.float32)] * 4,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_VMEM_BYTES,
        ),
        interpret=interpret,
        name="short_attention_backward",
    )(qkv, *_small(bias, scale, cos, sin), dy)


def _rotate(x, cos, sin):
    """Rotate the pairs of x (C, S) by angles whose tables (C, 1) are given."""
    vectors = x.reshape(-1, _SUBLANES, x.shape[-1])
    partners = pltpu.roll(vectors, _SUBLANES // 2, axis=1).reshape(x.shape)
    return x * cos + partners * sin


def _place(x, scale, cos, sin, placing):
    """Return queries or keys (C, S) of what is projected, and what their gradient needs."""
    if placing.rotate_first:
        x = _rotate(x, cos, sin)
    inverse = unit = None
    if placing.norm:
        inverse = lax.rsqrt((x * x).mean(0, keepdims=True) + RMSNorm.epsilon)
        unit = x * inverse
        x = unit * scale
    if not placing.rotate_first:
        x = _rotate(x, cos, sin)
    return x, (inverse, unit)


def _place_backward(dx, kept, scale, cos, sin, placing):
    """Return the gradients of what is projected, and of the scale for each lane."""
    inverse, unit = kept
    dscale = None
    if not placing.rotate_first:
        dx = _rotate(dx, cos, -sin)
    if placing.norm:
        dscale = dx * unit
        dx = dx * scale
        dx = inverse * (dx - unit * (dx * unit).mean(0, keepdims=True))
    if placing.rotate_first:
        dx = _rotate(dx, cos, -sin)
    return dx, dscale


def _weights(q, keys, channels):
    """Return the softmax (T, S) over the keys (T, C, S) of a frame's query (C, S)."""
    logits = (keys * q[None]).sum(1) * channels**-0.5
    logits = jnp.exp(logits - logits.max(0, keepdims=True))
    return logits / logits.sum(0, keepdims=True)


def _forward(qkv, bias, scale, cos, sin, y, keys, values, *, placing):
    frames, channels = keys.shape[:2]

    @pl.loop(0, frames)
    def _(t):
        k = qkv[t, 1].astype(jnp.float32) + bias[1]
        keys[t], _ = _place(k, scale[1], cos[t], sin[t], placing)
        values[t] = qkv[t, 2].astype(jnp.float32) + bias[2]

    @pl.loop(0, frames)
    def _(t):
        q = qkv[t, 0].astype(jnp.float32) + bias[0]
        q, _ = _place(q, scale[0], cos[t], sin[t], placing)
        weights = _weights(q, keys[...], channels)
        y[t] = (weights[:, None] * values[...]).sum(0).astype(y.dtype)


def _backward(
    qkv, bias, scale, cos, sin, dy, dqkv, sums, keys, values, dkeys, dvalues, *, placing, places
):
    frames, channels, lanes = keys.shape
    block = pl.program_id(2)

    @pl.when((pl.program_id(1) == 0) & (block == 0))
    def _():
        sums[...] = jnp.zeros_like(sums)

    # What the last block has beyond the array is not defined.
    inside = lax.broadcasted_iota(jnp.int32, (1, lanes), 1) < places - block * lanes

    def add(row, x):
        x = jnp.where(inside, x, 0.0)
        sums[row] += sum(x[:, n : n + _LANES] for n in range(0, lanes, _LANES))

    @pl.loop(0, frames)
    def _(t):
        k = qkv[t, 1].astype(jnp.float32) + bias[1]
        keys[t], _ = _place(k, scale[1], cos[t], sin[t], placing)
        values[t] = qkv[t, 2].astype(jnp.float32) + bias[2]
        dkeys[t] = jnp.zeros_like(k)
        dvalues[t] = jnp.zeros_like(k)

    @pl.loop(0, frames)
    def _(t):
        q = qkv[t, 0].astype(jnp.float32) + bias[0]
        q, kept = _place(q, scale[0], cos[t], sin[t], placing)
        dy_t = dy[t].astype(jnp.float32)
        weights = _weights(q, keys[...], channels)
        dweights = (values[...] * dy_t[None]).sum(1)
        dlogits = weights * (dweights - (weights * dweights).sum(0, keepdims=True))
        dlogits = dlogits * channels**-0.5
        dvalues[...] += weights[:, None] * dy_t[None]
        dkeys[...] += dlogits[:, None] * q[None]
        dq = (dlogits[:, None] * keys[...]).sum(0)
        dq, dscale = _place_backward(dq, kept, scale[0], cos[t], sin[t], placing)
        dqkv[t, 0] = dq.astype(dqkv.dtype)
        add(0, dq)
        if dscale is not None:
            add(3, dscale)

    @pl.loop(0, frames)
    def _(t):
        k = qkv[t, 1].astype(jnp.float32) + bias[1]
        _, kept = _place(k, scale[1], cos[t], sin[t], placing)
        dk, dscale = _place_backward(dkeys[t], kept, scale[1], cos[t], sin[t], placing)
        dqkv[t, 1] = dk.astype(dqkv.dtype)
        dqkv[t, 2] = dvalues[t].astype(dqkv.dtype)
        add(1, dk)
        add(2, dvalues[t])
        if dscale is not None:
            add(4, dscale)
