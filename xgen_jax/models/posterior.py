"""The posterior of a video autoencoder: what its encoder says of a clip's latents."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xgen_jax.typing import Array


class Posterior(NamedTuple):
    """A normal distribution of latents, N(mean, exp(logvar)), independent from value to value.

    The same as `DiagonalGaussianDistribution` of diffusers, with channels last. Latents are the
    network's own, before `Embedder.normalise`.

    Attributes:
      mean, logvar: (B, t, h, w, c), float32; the logarithm is natural, and is bounded by the
        encoder.
    """

    mean: Array
    logvar: Array

    @property
    def std(self) -> Array:
        """Standard deviation, (B, t, h, w, c)."""
        return jnp.exp(0.5 * self.logvar)

    def mode(self) -> Array:
        """Return the most probable latents, which are the mean."""
        return self.mean

    def at(self, noise: Array) -> Array:
        """Return the latents that standard normal noise (B, t, h, w, c) stands for."""
        return self.mean + self.std * noise

    def sample(self, key: Array) -> Array:
        """Sample latents (B, t, h, w, c).

        Args:
          key: one for all clips, or one a clip (B,), so that a clip's noise does not depend on the
            batch around it.
        """
        if jnp.ndim(key):
            noise = jax.vmap(lambda key: jax.random.normal(key, self.mean.shape[1:]))(key)
        else:
            noise = jax.random.normal(key, self.mean.shape)
        return self.at(noise)

    def kl_values(self) -> Array:
        """Return the KL divergence from N(0, 1) of each value, in nats, (B, t, h, w, c)."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar)

    def kl(self) -> Array:
        """Return the KL divergence from N(0, 1) of each clip, in nats, (B,)."""
        return self.kl_values().sum((1, 2, 3, 4))

    def nll(self, x: Array) -> Array:
        """Return the negative log likelihood of latents x (B, t, h, w, c), in nats, (B,)."""
        error = jnp.square(x - self.mean) * jnp.exp(-self.logvar)
        return 0.5 * (math.log(2.0 * math.pi) + self.logvar + error).sum((1, 2, 3, 4))
