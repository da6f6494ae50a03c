"""Normalisations. Statistics are taken in float32 whatever the compute dtype."""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from xgen_jax.errors import UserError
from xgen_jax.typing import Array


class GroupNormPerFrame(nn.Module):
    """Group normalisation of each frame by itself: strictly causal, and valid for Stable Diffusion's 2D weights."""

    groups: int = 32
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        channels = x_BTHWC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x_BTHWC.astype(jnp.float32)
        x = x.reshape(*x.shape[:-1], self.groups, channels // self.groups)
        mean = x.mean((2, 3, 5), keepdims=True)
        variance = (x * x).mean((2, 3, 5), keepdims=True) - mean * mean
        x = (x - mean) * lax.rsqrt(jnp.maximum(variance, 0.0) + self.epsilon)
        shape = (1,) * (x_BTHWC.ndim - 1) + (channels,)
        return (x.reshape(x_BTHWC.shape) * scale.reshape(shape) + bias.reshape(shape)).astype(self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over channels: per pixel or token, so exact under any cut of space or time."""

    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
    """Layer normalisation without weights, as adaLN blocks use it (arXiv 2212.09748, section 3.2)."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return (y * lax.rsqrt((y * y).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def video_norm(name: str, channels: int, dtype: jnp.dtype) -> nn.Module:
    """The normalisation a video autoencoder asks for by name: `group_per_frame` or `rms`."""
    match name:
        case "group_per_frame":
            # 32 groups as in Stable Diffusion, fewer where the channels do not divide.
            groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and channels // g >= 4 or g == 1)
            return GroupNormPerFrame(groups=groups, dtype=dtype)
        case "rms":
            return RMSNorm(dtype=dtype)
    raise UserError(f"norm={name!r} is not known; choose 'group_per_frame' or 'rms'")
