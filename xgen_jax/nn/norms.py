"""Normalisations, with float32 statistics whatever the compute dtype."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from xgen_jax.errors import choose
from xgen_jax.nn.choices import VIDEO_NORMS
from xgen_jax.nn.layout import row_major
from xgen_jax.typing import Array


def _group_mean(v_BTC: Array, groups: int) -> Array:
    """Replace the last dim by the means of its groups."""
    grouped = (*v_BTC.shape[:-1], groups, v_BTC.shape[-1] // groups)
    mean = v_BTC.reshape(grouped).mean(-1, keepdims=True)
    return jnp.broadcast_to(mean, grouped).reshape(v_BTC.shape)


def _activated(n: Array, swish: bool) -> Array:
    return n * nn.sigmoid(n) if swish else n


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6, 7))
def group_norm(
    x_BTHWC: Array,
    scale_1C: Array,
    bias_1C: Array,
    groups: int,
    over_time: bool,
    epsilon: float,
    swish: bool,
    dtype: jnp.dtype,
) -> Array:
    """Group normalisation, and swish, in float32; the result is of `dtype`, scale and bias are
    (1, 1, 1, 1, C).

    Sums run over one channel each, and groups are formed of their results: an array of (groups,
    channels of a group) in place of channels would be padded many times over on a TPU. Kept for
    the backward pass are x and statistics, nothing else of the size of x.
    """
    return _group_norm_forward(
        x_BTHWC, scale_1C, bias_1C, groups, over_time, epsilon, swish, dtype
    )[0]


def _group_norm_forward(x_BTHWC, scale_1C, bias_1C, groups, over_time, epsilon, swish, dtype):
    x_BTHWC = row_major(x_BTHWC)
    x, dims = x_BTHWC.astype(jnp.float32), (1, 2, 3) if over_time else (2, 3)
    # One pass over x for both moments. The difference of mean square and squared mean has few
    # digits left where a frame is nearly constant, unless something near the mean is taken from x
    # first: the mean of the first frame, one pass over that alone. What follows are small numbers.
    # The frame is taken before it is converted: XLA would write the whole clip in float32 for it.
    frame = x_BTHWC[:, :1].astype(jnp.float32)
    near = lax.stop_gradient(frame.mean((1, 2, 3), keepdims=True))
    centered = x - near
    first = centered.mean(dims, keepdims=True)
    second = (centered * centered).mean(dims, keepdims=True)
    apart = near - _group_mean(near, groups)
    shift = apart - _group_mean(apart + first, groups)  # x - mean = centered + shift
    spread = jnp.maximum(second - first * first, 0.0) + jnp.square(first + shift)
    inverse = lax.rsqrt(_group_mean(spread, groups) + epsilon)
    y = _activated((centered + shift) * (inverse * scale_1C) + bias_1C, swish).astype(dtype)
    return row_major(y), (x_BTHWC, scale_1C, bias_1C, near, shift, inverse)


def _group_norm_backward(groups, over_time, epsilon, swish, dtype, kept, dy):
    del epsilon, dtype
    x_BTHWC, scale_1C, bias_1C, near, shift, inverse = kept
    dims = (1, 2, 3) if over_time else (2, 3)
    normed = ((x_BTHWC.astype(jnp.float32) - near) + shift) * inverse
    dn = row_major(dy).astype(jnp.float32)
    if swish:
        n = normed * scale_1C + bias_1C
        gate = nn.sigmoid(n)
        dn = dn * (gate * (1 + n * (1 - gate)))
    dbias, dscale = dn.sum(dims, keepdims=True), (dn * normed).sum(dims, keepdims=True)
    values = math.prod(x_BTHWC.shape[dim] for dim in dims)
    offset = _group_mean(scale_1C * dbias, groups) / values
    slope = _group_mean(scale_1C * dscale, groups) / values
    dx = inverse * (dn * scale_1C - offset - normed * slope)
    dscale, dbias = (
        v.sum((0, 1, 2, 3), keepdims=True).astype(scale_1C.dtype) for v in (dscale, dbias)
    )
    return dx.astype(x_BTHWC.dtype), dscale, dbias


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module):
    """Group normalisation of a video (B, T, H, W, C).

    Attributes:
      groups: groups of channels.
      over_time: take statistics over a whole clip, as Open-Sora-Plan's weights were trained: every
        frame then depends on all others. Otherwise each frame is normalised by itself, which is
        strictly causal, and equal for images, hence valid for Stable Diffusion's 2D weights.
      swish: apply x sigmoid(x) to the result, without a rounding between.
    """

    groups: int = 32
    over_time: bool = False
    epsilon: float = 1e-6
    swish: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        channels = x_BTHWC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return group_norm(
            x_BTHWC,
            *(v.reshape(1, 1, 1, 1, -1) for v in (scale, bias)),
            self.groups,
            self.over_time,
            self.epsilon,
            self.swish,
            self.dtype,
        )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over channels, (..., C).

    It is per pixel or token, so exact under any cut of space or time. `swish` applies x sigmoid(x)
    to the result.
    """

    epsilon: float = 1e-6
    swish: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        y = (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)
        return nn.swish(y) if self.swish else y


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Normalise over channels without weights, as adaLN blocks do (arXiv 2212.09748, 3.2)."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return (y * lax.rsqrt((y * y).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def video_norm(
    kind: str,
    channels: int,
    dtype: jnp.dtype,
    name: str,
    groups: int = 32,
    swish: bool = False,
) -> nn.Module:
    """Return a video autoencoder's norm by its kind, one of `VIDEO_NORMS`, as submodule `name`,
    with swish after it or without.

    `group_per_frame` and `group` (over time) take `groups`, Stable Diffusion's 32 by default, or
    the largest common divisor of them and the channels.
    """
    if choose("norm", kind, VIDEO_NORMS) == "rms":
        return RMSNorm(swish=swish, dtype=dtype, name=name)
    return GroupNorm(
        groups=math.gcd(groups, channels),
        over_time=kind == "group",
        swish=swish,
        dtype=dtype,
        name=name,
    )
