"""VidVAE: xGen-VideoSyn-1's 3D-causal video autoencoder (arXiv 2408.12590, section 3.1).

A residual pyramid as in Stable Diffusion's VAE, with every convolution causal in time, and time
reduction after the spatial one. 1 + f*n frames become 1 + n latent frames (f = 4 in the paper).
Every layer that mixes frames takes a cache of the frames before, so `encode` and `decode` may be
called chunk after chunk: 1 + f*n frames first, then f*n at a time. Variants for published weights
(`VidVAEConfig`) may look ahead by a few frames, which then come a chunk later, or depend on a whole
clip, and then refuse chunks.

The tiny preset has a space-to-depth stem and works at low resolution throughout: on two CPU cores
it trains far faster than a full-resolution pyramid of the same size.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.posterior import Posterior
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.nn.attention import attention, implementation_of
from xgen_jax.nn.convolution import (
    CausalConv3D,
    Kernel,
    UpsampledConv,
    causal_average_pool,
    causal_depth_to_space,
    causal_repeat,
    causal_space_to_depth,
    trilinear_double,
)
from xgen_jax.nn.embeddings import XAVIER
from xgen_jax.nn.layout import row_major
from xgen_jax.nn.norms import video_norm
from xgen_jax.typing import Array


class _Carry:
    """Pass each layer its part of a cache, in order, and collect the new one."""

    def __init__(self, cache: tuple | None):
        self._old, self._new = cache, []

    def __call__(self, layer: Callable, x: Array, *arguments) -> Array:
        old = None if self._old is None else self._old[len(self._new)]
        x, new = layer(x, old, *arguments)
        self._new.append(new)
        return x

    @property
    def cache(self) -> tuple:
        return tuple(self._new)


def _flat(kernel: Kernel) -> Kernel:
    return (1, *kernel[1:])


def _constrained(x_BTHWC: Array) -> Array:
    """Constrain an activation's sharding; over height or width, neighbours exchange rows."""
    x_BTHWC = row_major(x_BTHWC)
    return nn.with_logical_constraint(x_BTHWC, ("batch", "time", "height", "columns", "width"))


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, plus the identity (1x1x1 where the width changes)."""

    config: VidVAEConfig
    features: int
    dtype: jnp.dtype
    flat: bool = False  # each frame by itself

    @nn.compact
    def __call__(self, x, cache=None):
        carry, norm, kernels = _Carry(cache), self.config.norm, self.config.kernels
        if self.flat:
            norm, kernels = {"group": "group_per_frame"}.get(norm, norm), map(_flat, kernels)
        h = x
        for i, kernel in enumerate(kernels, start=1):
            groups = self.config.norm_groups
            h = video_norm(norm, h.shape[-1], self.dtype, f"norm{i}", groups, swish=True)(h)
            h = carry(CausalConv3D(self.features, kernel, dtype=self.dtype, name=f"conv{i}"), h)
        if x.shape[-1] != self.features:
            x, _ = CausalConv3D(self.features, (1, 1, 1), dtype=self.dtype, name="shortcut")(x)
        return _constrained(x + h), carry.cache


class MidAttention(nn.Module):
    """Attention with one head, within each frame; or in Open-Sora-Plan's layout."""

    config: VidVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTHWC):
        c, (b, t, height, width, channels) = self.config, x_BTHWC.shape
        qkv = nn.Dense(3 * channels, dtype=self.dtype, kernel_init=XAVIER, name="qkv")(x_BTHWC)
        q, k, v = jnp.split(qkv, 3, axis=-1)

        def tokens(x):
            if c.attention_layout == "released":
                # (C, T) in memory is read as (T, C), as if the frames came first.
                x = rearrange(x, "b t h w c -> b (c t) (h w)").reshape(
                    b * t, channels, height * width
                )
                return rearrange(x, "f c n -> f n 1 c")
            return x.reshape(b * t, height * width, 1, channels)

        implementation = implementation_of(self, c.attention)
        y = attention(tokens(q), tokens(k), tokens(v), implementation=implementation)
        if c.attention_layout == "released":
            y = rearrange(y, "f n 1 c -> f c n").reshape(b, channels, t, height, width)
            y = rearrange(y, "b c t h w -> b t h w c")
        return nn.Dense(channels, dtype=self.dtype, kernel_init=XAVIER, name="proj")(
            y.reshape(x_BTHWC.shape)
        )


def _block(config: VidVAEConfig) -> type[ResidualBlock]:
    """The class of residual blocks: with `remat="block"` one that is recomputed, from its input,
    while its level is, from the level's."""
    return nn.remat(ResidualBlock) if config.remat == "block" else ResidualBlock


class Mid(nn.Module):
    """Residual block, attention, residual block."""

    config: VidVAEConfig
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache=None):
        carry, block = _Carry(cache), _block(self.config)
        x = carry(block(self.config, self.features, self.dtype, name="block1"), x)
        if self.config.mid_attention and x.shape[1]:
            h = video_norm(
                self.config.norm, self.features, self.dtype, "norm", self.config.norm_groups
            )(x)
            x = _constrained(x + MidAttention(self.config, self.dtype, name="attention")(h))
        x = carry(block(self.config, self.features, self.dtype, name="block2"), x)
        return x, carry.cache


class TimeMix(nn.Module):
    """Mix x and y by a learnt weight of x, 0.88 at first (Open-Sora-Plan v1.1's mix factor)."""

    @nn.compact
    def __call__(self, x, y):
        weight = nn.sigmoid(self.param("mix", nn.initializers.constant(2.0), ())).astype(x.dtype)
        return weight * x + (1 - weight) * y


class EncoderLevel(nn.Module):
    """Residual blocks, then half the height and width, then half the frame rate, by config."""

    config: VidVAEConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache=None):
        c, level, carry = self.config, self.level, _Carry(cache)
        for block in range(c.blocks):
            flat = level < c.flat_levels
            x = carry(_block(c)(c, c.channels[level], self.dtype, flat, name=f"block{block}"), x)
        if c.space_reduction[level]:
            x, _ = CausalConv3D(x.shape[-1], (1, 3, 3), (1, 2, 2), dtype=self.dtype, name="down")(x)
        if c.time_reduction[level]:
            x = carry(self._halve_time, x)
        return _constrained(x), carry.cache

    def _halve_time(self, x, cache):
        pooled, new = causal_average_pool(x, cache)
        if self.config.time_down == "convolution":
            # It sees the same frames as the pool, so one cache serves both.
            conv = CausalConv3D(
                x.shape[-1], (3, 3, 3), (2, 1, 1), dtype=self.dtype, name="time_conv"
            )
            pooled = TimeMix(name="time_mix")(pooled, conv(x, cache)[0])
        return pooled, new


class DecoderLevel(nn.Module):
    """The mirror of an encoder's level: doubles before its blocks what that halved after them."""

    config: VidVAEConfig
    level: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache, last):
        c, level, carry = self.config, self.level, _Carry(cache)
        if c.space_reduction[level]:
            x = _constrained(UpsampledConv(x.shape[-1], self.dtype, name="up")(x))
        if c.expansion[level]:
            x = carry(self._double_time, x, last)
        for block in range(c.blocks + 1):
            x = carry(_block(c)(c, c.channels[level], self.dtype, name=f"block{block}"), x)
        return x, carry.cache

    def _double_time(self, x, cache, last):
        own, of_conv = (None, None) if cache is None else cache
        if self.config.time_up == "trilinear":
            x, own = trilinear_double(x, own, last)
        else:
            x, own = causal_repeat(x, started=own is not None), ()
        if self.config.time_up_convolution:
            y, of_conv = CausalConv3D(x.shape[-1], dtype=self.dtype, name="time_conv")(x, of_conv)
            x = TimeMix(name="time_mix")(x, y)
        return _constrained(x), (own, of_conv)


class Encoder(nn.Module):
    """Encode video (B, T, H, W, 3) in [-1, 1] to [mean | log-variance], (B, t, h, w, 2c)."""

    config: VidVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache=None):
        c, carry = self.config, _Carry(cache)
        level_class = EncoderLevel if c.remat == "none" else nn.remat(EncoderLevel)
        x = carry(lambda x, h: causal_space_to_depth(x, c.stem, h), x.astype(self.dtype))
        if c.stem_hidden:
            x = nn.swish(nn.Dense(c.stem_hidden, dtype=self.dtype, name="stem")(x))
        kernel = _flat(c.pixel_kernel) if c.flat_levels else c.pixel_kernel
        x = _constrained(
            carry(
                CausalConv3D(c.channels[0], kernel, dtype=self.dtype, name="conv_in"),
                _constrained(x),
            )
        )
        for level in range(len(c.channels)):
            x = carry(level_class(c, level, self.dtype, name=f"level{level}"), x)
        x = carry(Mid(c, c.channels[-1], self.dtype, name="mid"), x)
        x = video_norm(c.norm, x.shape[-1], self.dtype, "norm_out", c.norm_groups, swish=True)(x)
        x = carry(CausalConv3D(2 * c.latent_channels, dtype=self.dtype, name="conv_out"), x)
        return nn.Dense(2 * c.latent_channels, dtype=jnp.float32, name="quant")(x), carry.cache


class Decoder(nn.Module):
    """Decode latents (B, t, h, w, c) to features (B, T/pt, H/ph, W/pw, C) for the `Head`."""

    config: VidVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z, cache=None, last=True):
        c, carry = self.config, _Carry(cache)
        level_class = DecoderLevel
        if c.remat != "none":
            level_class = nn.remat(DecoderLevel, static_argnums=(3,))
        x = nn.Dense(c.latent_channels, dtype=self.dtype, name="post_quant")(z)
        x = _constrained(
            carry(CausalConv3D(c.channels[-1], dtype=self.dtype, name="conv_in"), _constrained(x))
        )
        x = carry(Mid(c, c.channels[-1], self.dtype, name="mid"), x)
        for level in reversed(range(len(c.channels))):
            x = carry(level_class(c, level, self.dtype, name=f"level{level}"), x, last)
        return x, carry.cache


class Head(nn.Module):
    """Turn features into video (B, T, H, W, 3), about [-1, 1], not clipped."""

    config: VidVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, cache=None):
        c = self.config
        x = video_norm(c.norm, x.shape[-1], self.dtype, "norm", c.norm_groups, swish=True)(x)
        if c.stem_hidden:
            x = nn.swish(nn.Dense(c.stem_hidden, dtype=self.dtype, name="stem")(x))
        conv = CausalConv3D(
            (c.head_channels or 3) * math.prod(c.stem),
            c.pixel_kernel,
            dtype=self.dtype,
            name="conv_out",
        )
        x, new = conv(x, None if cache is None else cache[0])
        x = causal_depth_to_space(x, c.stem, started=cache is not None)
        if c.head_channels:
            x, _ = CausalConv3D(3, (1, 3, 3), dtype=self.dtype, name="pixels")(nn.swish(x))
        return x.astype(jnp.float32), (new,)


class VidVAE(nn.Module):
    """The autoencoder; `dtype` is to compute in, parameters, moments and video are float32.

    `cache` is None for the first chunk of a clip and then what the call before returned. With
    `last=False`, `decode` gives only final frames; the last `config.look_ahead` come with a later
    chunk, which may be empty.

    Raises:
      UserError: chunks of a model that depends on the whole clip.
    """

    config: VidVAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.head = Head(self.config, self.dtype)

    def encode(self, video_BTHWC: Array, cache: tuple | None = None):
        """Encode video in [-1, 1] to (`Posterior` of latents (B, t, h, w, c), cache)."""
        self._check_chunk(cache is not None)
        moments, cache = self.encoder(video_BTHWC, cache)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0)), cache

    def decode(self, z_BTHWC: Array, cache: tuple | None = None, last: bool = True):
        """Decode latents to (video (B, T, H, W, 3), cache)."""
        of_features, of_head = (None, None) if cache is None else cache
        features, of_features = self.decode_features(z_BTHWC, of_features, last)
        video, of_head = self.decode_pixels(features, of_head)
        return video, (of_features, of_head)

    def decode_features(self, z_BTHWC: Array, cache: tuple | None = None, last: bool = True):
        """Decode latents to (features, cache), all but the last convolution."""
        self._check_chunk(cache is not None or not last)
        return self.decoder(z_BTHWC, cache, last)

    def decode_pixels(self, features_BTHWC: Array, cache: tuple | None = None):
        """Decode features to (video, cache): the last convolution, `Head`."""
        return self.head(features_BTHWC, cache)

    def _check_chunk(self, chunked: bool):
        if chunked and self.config.depends_on_whole_clip:
            raise UserError(
                f"this model cannot work chunk after chunk: {self.config.depends_on_whole_clip}"
            )

    def __call__(self, video_BTHWC: Array, noise_BTHWC: Array | None = None):
        """Encode, sample (without noise take the mean) and decode: (video, mean, log-variance)."""
        posterior, _ = self.encode(video_BTHWC)
        z = posterior.mode() if noise_BTHWC is None else posterior.at(noise_BTHWC)
        return self.decode(z)[0], *posterior
