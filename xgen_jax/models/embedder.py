"""An embedder is two verbs: encode video to latents, decode latents to video. VDiT knows nothing else of it.

Latents leave `encode` with zero mean and unit variance a channel; the statistics travel with the parameters, in one
place.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.typing import Array, Params, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEEmbedder:
    """VidVAE as an embedder. Its parameters are {"model": of VidVAE, "mean": (c,), "std": (c,)} (see `bundle`)."""

    model: VidVAE

    @staticmethod
    def bundle(params: Params, mean: np.ndarray, std: np.ndarray) -> Params:
        """Puts the model's parameters and the latent statistics in one tree."""
        return {"model": params, "mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.model.config.latent_channels

    def latent_shape(self, video_shape: Shape) -> Shape:
        """See `VidVAEConfig.latent_shape`."""
        return self.model.config.latent_shape(video_shape)

    def fingerprint(self, params: Params) -> str:
        """16 hex digits of configuration, parameters and latent statistics; the dtype computed in is left out."""
        return fingerprint(self.model.config, params)

    def encode(self, params: Params, video_BTHWC: Array) -> Array:
        """Video in [-1, 1] -> normalised latents (B, t, h, w, c): the posterior's mean."""
        mean, _, _ = self.model.apply(params["model"], video_BTHWC, method="encode")
        return (mean - _channels(params["mean"])) / _channels(params["std"])

    def decode(self, params: Params, latents_BTHWC: Array, key: Array | None = None) -> Array:
        """Normalised latents -> video (B, T, H, W, 3), about [-1, 1]. `key` is for generative decoders; unused here."""
        del key
        z = latents_BTHWC * _channels(params["std"]) + _channels(params["mean"])
        return self.model.apply(params["model"], z, method="decode")[0]


def _channels(x: Array) -> Array:
    return x[None, None, None, None, :]
