"""VidVAE's objective: reconstruction + KL (arXiv 2408.12590, section 3.1; the weights are not printed there)."""

import dataclasses

import jax
import jax.numpy as jnp

from xgen_jax.models.vidvae import VidVAE
from xgen_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAELossConfig:
    """loss = l1 |x - y| + l2 (x - y)^2 + kl KL(q(z|x) || N(0, 1)), each a mean over its values; x in [-1, 1]."""

    l1: float = 1.0
    l2: float = 0.0
    kl: float = 1e-6


def to_unit_range(video_uint8: Array) -> Array:
    """uint8 0..255 -> float32 [-1, 1]."""
    return video_uint8.astype(jnp.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEObjective:
    """Trains an autoencoder on video alone."""

    model: VidVAE
    loss_config: VidVAELossConfig

    def frozen(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def arrays(self, batch):
        """Host batch -> {"video": uint8 (B, T, H, W, 3)}."""
        return {"video": batch["video"]}

    def prepare(self, arrays):
        """Nothing is frozen."""
        return arrays

    def init(self, key: Array, arrays) -> Params:
        """Parameters from one key."""
        return self.model.init(key, to_unit_range(arrays["video"]))

    def loss(self, params: Params, arrays, keys_B: Array):
        """Scalar loss and metrics of a batch."""
        video = to_unit_range(arrays["video"])
        shape = self.model.config.latent_shape(video.shape)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys_B)
        reconstruction, mean, logvar = self.model.apply(params, video, noise)
        error = reconstruction - video
        l1, l2 = jnp.abs(error).mean(), jnp.square(error).mean()
        kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
        c = self.loss_config
        loss = c.l1 * l1 + c.l2 * l2 + c.kl * kl
        psnr = -10.0 * jnp.log10(jnp.square(error / 2).mean((1, 2, 3, 4)) + 1e-10).mean()
        return loss, {"l1": l1, "l2": l2, "kl": kl, "psnr_db": psnr}
