"""An embedder is two verbs: encode video to latents, decode latents to video. VDiT knows nothing else of it.

Latents leave `encode` with zero mean and unit variance a channel; the statistics travel with the parameters, in one
place.
"""

import dataclasses
from typing import Any

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

    @property
    def look_ahead(self) -> int:
        """Frames by which decoding chunk after chunk lags behind; see `VidVAEConfig.look_ahead`."""
        return self.model.config.look_ahead

    @property
    def depends_on_whole_clip(self) -> str:
        """Why there are no chunks, empty where there are; see `VidVAEConfig.depends_on_whole_clip`."""
        return self.model.config.depends_on_whole_clip

    def encode_chunk(self, params: Params, video_BTHWC: Array, history=None) -> tuple[Array, Any]:
        """Video in [-1, 1] -> (normalised latents (B, t, h, w, c), history): the posterior's mean.

        `history` is None for the first chunk, of 1 + f*n frames, and what the call before gave for others, of f*n.
        """
        mean, _, history = self.model.apply(params["model"], video_BTHWC, history, method="encode")
        return (mean - _channels(params["mean"])) / _channels(params["std"]), history

    def decode_chunk(
        self, params: Params, latents_BTHWC: Array, history=None, last: bool = True, key: Array | None = None
    ) -> tuple[Array, Any]:
        """Normalised latents -> (video (B, T, H, W, 3), about [-1, 1], history).

        Unless it is the `last`, a chunk's video ends `look_ahead` frames early. `key` is for generative decoders.
        """
        del key
        z = latents_BTHWC * _channels(params["std"]) + _channels(params["mean"])
        return self.model.apply(params["model"], z, history, last, method="decode")

    def encode(self, params: Params, video_BTHWC: Array) -> Array:
        """A whole clip in [-1, 1] -> normalised latents (B, t, h, w, c).

        Raises:
          UserError: a length or size that the model cannot take.
        """
        self.latent_shape(video_BTHWC.shape)
        return self.encode_chunk(params, video_BTHWC)[0]

    def decode(self, params: Params, latents_BTHWC: Array, key: Array | None = None) -> Array:
        """Normalised latents of a whole clip -> video (B, T, H, W, 3), about [-1, 1]."""
        return self.decode_chunk(params, latents_BTHWC, key=key)[0]


def _channels(x: Array) -> Array:
    return x[None, None, None, None, :]
