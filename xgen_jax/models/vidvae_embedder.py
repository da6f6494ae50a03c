"""VidVAE as an embedder."""

import dataclasses
from typing import Any

from xgen_jax.models import flops
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.posterior import Posterior
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.typing import Array, Params, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEEmbedder(Embedder):
    """VidVAE as an embedder; decoding is deterministic."""

    model: VidVAE

    @property
    def unit(self) -> int:
        """1: any number of latent frames is a chunk."""
        return 1

    def whole_latents(self, frames: int) -> int:
        """See `Embedder`; the first frame is a latent frame by itself."""
        return 1 + (frames - 1) // self.model.config.time_factor

    @property
    def look_ahead(self) -> int:
        """See `VidVAEConfig.look_ahead`."""
        return self.model.config.look_ahead

    @property
    def halo(self) -> int | None:
        """See `VidVAEConfig.halo`."""
        return self.model.config.halo

    @property
    def depends_on_whole_clip(self) -> str:
        """See `VidVAEConfig.depends_on_whole_clip`."""
        return self.model.config.depends_on_whole_clip

    def encode_flops(self, video_shape: Shape) -> float:
        """See `Embedder.encode_flops`."""
        return flops.vidvae_encode_flops(self.model.config, video_shape)

    def decode_flops(self, latent_shape: Shape, started: bool = False) -> float:
        """See `Embedder.decode_flops`."""
        return flops.vidvae_decode_flops(self.model.config, latent_shape, started)

    def encode_chunk(self, params: Params, video_BTHWC: Array, cache=None) -> tuple[Array, Any]:
        """See `Embedder`. The first chunk has 1 + f*n frames, others have f*n."""
        posterior, cache = self.posterior_chunk(params, video_BTHWC, cache)
        return self.normalise(params, posterior.mode()), cache

    def posterior_chunk(
        self, params: Params, video_BTHWC: Array, cache=None
    ) -> tuple[Posterior, Any]:
        """See `Embedder`."""
        encoded: Any = self.model.apply(params["model"], video_BTHWC, cache, method="encode")
        return encoded

    def decode_chunk(
        self,
        params: Params,
        latents_BTHWC: Array,
        cache=None,
        last: bool = True,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """See `Embedder`; `key` is not used."""
        del key
        return self.model.apply(
            params["model"], self.denormalise(params, latents_BTHWC), cache, last, method="decode"
        )
