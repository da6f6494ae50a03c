"""VidVAE: xGen-VideoSyn-1's 3D-causal video autoencoder (arXiv 2408.12590, section 3.1).

A residual pyramid as in Stable Diffusion's VAE with every convolution causal in time, and time reduction after the
spatial one. 1 + f*n frames become 1 + n latent frames (f = 4 in the paper). Every layer that mixes frames carries a
history, so `encode` and `decode` may be called chunk after chunk: 1 + f*n frames first, then f*n at a time.

The tiny preset puts a space-to-depth stem in front and works at low resolution throughout: on two CPU cores it trains
far faster than a full-resolution pyramid of the same size.
"""

import dataclasses
import math

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.convolution import (
    CausalConv3D,
    Kernel,
    causal_average_pool,
    causal_depth_to_space,
    causal_repeat,
    causal_space_to_depth,
    nearest_upsample,
)
from xgen_jax.nn.norms import video_norm
from xgen_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEConfig:
    """Sizes of a VidVAE.

    Attributes:
      channels: width of each level of the pyramid, highest resolution first.
      space_reduction: for each level, whether height and width are halved after it.
      time_reduction: for each level, whether the frame rate is halved after it.
      latent_channels: channels of the latent.
      blocks: residual blocks a level in the encoder; the decoder has one more.
      stem: (T, H, W) of the patches in front of the pyramid; (1, 1, 1) for none.
      stem_hidden: width of a hidden layer between a patch and the pyramid, at both ends; 0 for none. A patch holds more
        values than a narrow pyramid has channels, and a linear map of few channels cannot draw its edges.
      mid_attention: attention within each frame at the lowest resolution.
      kernels: taps (T, H, W) of the two convolutions of a residual block.
      norm: `group_per_frame` or `rms`.
      attention: the implementation, see `xgen_jax.nn.attention`.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    space_reduction: tuple[bool, ...] = (True, True, True, False)
    time_reduction: tuple[bool, ...] = (True, True, False, False)
    latent_channels: int = 4
    blocks: int = 2
    stem: Kernel = (1, 1, 1)
    stem_hidden: int = 0
    mid_attention: bool = True
    kernels: tuple[Kernel, Kernel] = ((3, 3, 3), (3, 3, 3))
    norm: str = "group_per_frame"
    attention: str = "xla"

    def __post_init__(self):
        if self.stem[1] != self.stem[2]:
            raise UserError(f"stem {self.stem} must be as wide as high")
        if not len(self.channels) == len(self.space_reduction) == len(self.time_reduction):
            raise UserError(
                "channels, space_reduction and time_reduction need one entry a level, but have "
                f"{len(self.channels)}, {len(self.space_reduction)} and {len(self.time_reduction)}"
            )

    @property
    def pixel_kernel(self) -> Kernel:
        """Taps of the first and the last convolution: behind a stem a patch is its own neighbourhood."""
        return (3, 3, 3) if self.stem == (1, 1, 1) else (1, 1, 1)

    @property
    def space_factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.stem[1] * 2 ** sum(self.space_reduction)

    @property
    def time_factor(self) -> int:
        """Frames of one latent frame, but for the first."""
        return self.stem[0] * 2 ** sum(self.time_reduction)

    def latent_shape(self, video_shape: Shape) -> Shape:
        """(T, H, W) or (B, T, H, W, 3) of a clip -> (t, h, w) or (B, t, h, w, c) of its latents.

        Raises:
          UserError: a length or size that the model cannot take; the message names the nearest ones that it can.
        """
        if len(video_shape) == 5:
            return (video_shape[0], *self.latent_shape(video_shape[1:4]), self.latent_channels)
        frames, height, width = video_shape
        f, s = self.time_factor, self.space_factor
        if frames < 1 or (frames - 1) % f:
            below = max(1, (frames - 1) // f * f + 1)
            raise UserError(
                f"{frames} frames cannot be encoded: lengths are 1 + {f}n; the nearest are {below}, {below + f}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < s or side % s:
                below = max(s, side // s * s)
                raise UserError(f"{name} {side} is not a multiple of {s}; the nearest are {below} and {below + s}")
        return 1 + (frames - 1) // f, height // s, width // s


PRESETS = {
    # The paper's table 3 network: 4x8x8, initialised from Stable Diffusion's VAE.
    "paper": VidVAEConfig(),
    # Minutes on a laptop's CPU: 4x4x4.
    "tiny": VidVAEConfig(
        channels=(64,),
        space_reduction=(False,),
        time_reduction=(False,),
        latent_channels=8,
        blocks=1,
        stem=(4, 4, 4),
        stem_hidden=256,
        mid_attention=False,
        kernels=((1, 3, 3), (3, 1, 1)),
        norm="rms",
    ),
}


def _history(history, index):
    return None if history is None else history[index]


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, twice, beside the identity (or a 1x1x1 convolution where the width changes)."""

    config: VidVAEConfig
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, history=None):
        norm, (kernel1, kernel2) = self.config.norm, self.config.kernels
        h = nn.swish(video_norm(norm, x.shape[-1], self.dtype)(x))
        h, first = CausalConv3D(self.features, kernel1, dtype=self.dtype, name="conv1")(h, _history(history, 0))
        h = nn.swish(video_norm(norm, self.features, self.dtype)(h))
        h, second = CausalConv3D(self.features, kernel2, dtype=self.dtype, name="conv2")(h, _history(history, 1))
        if x.shape[-1] != self.features:
            x, _ = CausalConv3D(self.features, (1, 1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h, (first, second)


class Mid(nn.Module):
    """Residual block, attention within each frame, residual block."""

    config: VidVAEConfig
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, history=None):
        c = self.config
        x, first = ResidualBlock(c, self.features, self.dtype, name="block1")(x, _history(history, 0))
        if c.mid_attention:
            h = video_norm(c.norm, self.features, self.dtype)(x)
            h = SelfAttention(1, implementation=c.attention, dtype=self.dtype, name="attention")(
                rearrange(h, "b t h w c -> (b t) (h w) c")
            )
            x = x + h.reshape(x.shape)
        x, second = ResidualBlock(c, self.features, self.dtype, name="block2")(x, _history(history, 1))
        return x, (first, second)


class Encoder(nn.Module):
    """Video (B, T, H, W, 3) in [-1, 1] -> mean and log-variance side by side, (B, t, h, w, 2c)."""

    config: VidVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, history=None):
        c, new = self.config, []

        def carry(layer, x):
            x, h = layer(x, _history(history, len(new)))
            new.append(h)
            return x

        x = carry(lambda x, h: causal_space_to_depth(x, c.stem, h), x.astype(self.dtype))
        if c.stem_hidden:
            x = nn.swish(nn.Dense(c.stem_hidden, dtype=self.dtype, name="stem")(x))
        x = carry(CausalConv3D(c.channels[0], c.pixel_kernel, dtype=self.dtype, name="conv_in"), x)
        for level, width in enumerate(c.channels):
            for block in range(c.blocks):
                x = carry(ResidualBlock(c, width, self.dtype, name=f"level{level}_block{block}"), x)
            if c.space_reduction[level]:
                down = CausalConv3D(width, (1, 3, 3), (1, 2, 2), dtype=self.dtype, name=f"level{level}_down")
                x, _ = down(x)
            if c.time_reduction[level]:
                x = carry(causal_average_pool, x)
        x = carry(Mid(c, c.channels[-1], self.dtype, name="mid"), x)
        x = nn.swish(video_norm(c.norm, x.shape[-1], self.dtype)(x))
        x = carry(CausalConv3D(2 * c.latent_channels, dtype=self.dtype, name="conv_out"), x)
        return nn.Dense(2 * c.latent_channels, dtype=jnp.float32, name="quant")(x), tuple(new)


class Decoder(nn.Module):
    """Latents (B, t, h, w, c) -> video (B, T, H, W, 3), about [-1, 1], not clipped."""

    config: VidVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z, history=None):
        c, new = self.config, []

        def carry(layer, x):
            x, h = layer(x, _history(history, len(new)))
            new.append(h)
            return x

        x = nn.Dense(c.latent_channels, dtype=self.dtype, name="post_quant")(z)
        x = carry(CausalConv3D(c.channels[-1], dtype=self.dtype, name="conv_in"), x)
        x = carry(Mid(c, c.channels[-1], self.dtype, name="mid"), x)
        for level in reversed(range(len(c.channels))):
            # The mirror of the encoder: what it halved after this level is doubled before it here.
            if c.space_reduction[level]:
                up = CausalConv3D(x.shape[-1], (1, 3, 3), dtype=self.dtype, name=f"level{level}_up")
                x, _ = up(nearest_upsample(x))
            if c.time_reduction[level]:
                x = causal_repeat(x, started=history is not None)
            for block in range(c.blocks + 1):
                x = carry(ResidualBlock(c, c.channels[level], self.dtype, name=f"level{level}_block{block}"), x)
        x = nn.swish(video_norm(c.norm, x.shape[-1], self.dtype)(x))
        if c.stem_hidden:
            x = nn.swish(nn.Dense(c.stem_hidden, dtype=self.dtype, name="stem")(x))
        x = carry(CausalConv3D(3 * math.prod(c.stem), c.pixel_kernel, dtype=self.dtype, name="conv_out"), x)
        return causal_depth_to_space(x, c.stem, started=history is not None).astype(jnp.float32), tuple(new)


class VidVAE(nn.Module):
    """The autoencoder. `dtype` is the compute dtype; parameters, moments and the output video are float32."""

    config: VidVAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(self, video_BTHWC: Array, history=None):
        """Video in [-1, 1] -> (mean, log-variance, history), the first two (B, t, h, w, c)."""
        moments, history = self.encoder(video_BTHWC, history)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0), history

    def decode(self, z_BTHWC: Array, history=None):
        """Latents -> (video (B, T, H, W, 3), history)."""
        return self.decoder(z_BTHWC, history)

    def __call__(self, video_BTHWC: Array, noise_BTHWC: Array | None = None):
        """Encodes, samples (or takes the mean where `noise` is None) and decodes: (video, mean, log-variance)."""
        mean, logvar, _ = self.encode(video_BTHWC)
        z = mean if noise_BTHWC is None else mean + jnp.exp(0.5 * logvar) * noise_BTHWC
        return self.decode(z)[0], mean, logvar
