"""A 3D PatchGAN: classifies patches of clips as real or reconstructed.

It is Open-Sora-Plan v1.1's for training its video autoencoder (PatchGAN: arXiv 1611.07004, section
3.2.2): convolutions of 3x3x3 with padding 1 and leaky rectifiers (slope 0.2), with norms except in
the first and last layer. The first two layers stride by 2 in time and space, the others before the
last two by 2 in space. Each remaining patch has one logit.

The reference normalises over the batch. Here each sample is normalised by itself, in groups of
channels: running statistics would be state outside the parameters, those of a batch of one clip
would be poor, and a sample's logits would depend on the rest of the batch. The parameter count is
the same.
"""

import jax.numpy as jnp
from flax import linen as nn

from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.nn.convolution import convolve
from xgen_jax.nn.layout import constrain
from xgen_jax.typing import Array, Kernel

FEATURES = ("batch", "time", "height", "columns", "width")


class Convolution3D(nn.Module):
    """Convolve (B, T, H, W, C) with 3x3x3 taps, zero padding in space and time; not causal."""

    features: int
    stride: Kernel
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        # PatchGAN's initialisation (arXiv 1611.07004, section 6.2).
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (3, 3, 3, x_BTHWC.shape[-1], self.features))
        x_BTHWC = jnp.pad(x_BTHWC.astype(self.dtype), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        y = convolve(x_BTHWC, kernel.astype(self.dtype), self.stride, ((1, 1), (1, 1)))
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class Discriminator(nn.Module):
    """Classify video (B, T, H, W, 3) in [-1, 1]: logits (B, t, h, w), high where it looks real.

    `dtype` is to compute in; parameters, statistics and logits are float32.
    """

    config: DiscriminatorConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, video_BTHWC: Array) -> Array:
        # A loss that begins later is a branch of the step, in which XLA for GPUs loses shardings
        # that are not written there: each device would work on all clips.
        x = constrain(video_BTHWC, FEATURES)
        for layer, (features, stride) in enumerate(self.config.features()):
            x = Convolution3D(features, stride, layer == 0, self.dtype, name=f"conv{layer}")(x)
            if layer:
                groups = next(
                    g
                    for g in (32, 16, 8, 4, 2, 1)
                    if features % g == 0 and features // g >= 4 or g == 1
                )
                x = nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, name=f"norm{layer}")(x)
            x = constrain(nn.leaky_relu(x, 0.2), FEATURES)
        return Convolution3D(1, (1, 1, 1), True, jnp.float32, name="logits")(x)[..., 0]
