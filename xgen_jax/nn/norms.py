"""Normalisations, with float32 statistics whatever the compute dtype."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from xgen_jax.errors import choose
from xgen_jax.nn.choices import VIDEO_NORMS
from xgen_jax.typing import Array


class GroupNorm(nn.Module):
    """Group normalisation of a video (B, T, H, W, C).

    Attributes:
      groups: groups of channels.
      over_time: take statistics over a whole clip, as Open-Sora-Plan's weights were trained: every
        frame then depends on all others. Otherwise each frame is normalised by itself, which is
        strictly causal, and equal for images, hence valid for Stable Diffusion's 2D weights.
    """

    groups: int = 32
    over_time: bool = False
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        channels = x_BTHWC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x_BTHWC.astype(jnp.float32)
        x = x.reshape(*x.shape[:-1], self.groups, channels // self.groups)
        dims = (1, 2, 3, 5) if self.over_time else (2, 3, 5)
        # Centred first: in a nearly constant frame the difference of mean square and squared mean
        # has few digits left.
        x = x - x.mean(dims, keepdims=True)
        x = x * lax.rsqrt((x * x).mean(dims, keepdims=True) + self.epsilon)
        shape = (1,) * (x_BTHWC.ndim - 1) + (channels,)
        return (x.reshape(x_BTHWC.shape) * scale.reshape(shape) + bias.reshape(shape)).astype(
            self.dtype
        )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over channels, (..., C).

    It is per pixel or token, so exact under any cut of space or time.
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Normalise over channels without weights, as adaLN blocks do (arXiv 2212.09748, 3.2)."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return (y * lax.rsqrt((y * y).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def video_norm(
    kind: str, channels: int, dtype: jnp.dtype, name: str, groups: int = 32
) -> nn.Module:
    """Return a video autoencoder's norm by its kind, one of `VIDEO_NORMS`, as submodule `name`.

    `group_per_frame` and `group` (over time) take `groups`, Stable Diffusion's 32 by default, or
    the largest common divisor of them and the channels.
    """
    if choose("norm", kind, VIDEO_NORMS) == "rms":
        return RMSNorm(dtype=dtype, name=name)
    return GroupNorm(
        groups=math.gcd(groups, channels), over_time=kind == "group", dtype=dtype, name=name
    )
