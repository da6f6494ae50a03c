"""REGEN as an embedder."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

from xgen_jax.diffusion.process import Process
from xgen_jax.errors import UserError
from xgen_jax.models import flops, regen_decoding, regen_windows
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.posterior import Posterior
from xgen_jax.models.regen import REGEN, abstract_variables, decoding_parameters
from xgen_jax.typing import Array, Params, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENEmbedder(Embedder):
    """REGEN as an embedder; decoding samples frames from noise.

    Attributes:
      model: the network.
      process: diffusion process that its decoder was trained for.
      steps: evaluations of the decoder per window.
      windows: windows that its decoder was trained on, see `models.regen_windows`.
    """

    model: REGEN
    process: Process
    steps: int = 1
    windows: str = "chunk"

    @property
    def unit(self) -> int:
        """2: content and motion latent of a chunk."""
        return 2

    def whole_latents(self, frames: int) -> int:
        """See `Embedder`; a frame left over may be an image or begin another chunk."""
        return 2 * (frames // self.model.config.chunk_frames)

    def default_chunk(self, latent_shape: Shape) -> int:
        """See `regen_windows.windows_at_once`: a chunk for each."""
        return self.unit * regen_windows.windows_at_once(self.model.config, latent_shape)

    @property
    def decodes_in_windows(self) -> bool:
        """True."""
        return True

    def in_compute_dtype(self, params: Params) -> Params:
        """See `models.regen.decoding_parameters`."""
        return params | {"model": decoding_parameters(params["model"], self.model.dtype)}

    @property
    def look_ahead(self) -> int:
        """See `regen_windows.look_ahead`."""
        return regen_windows.look_ahead(self.model.config, self.windows)

    @property
    def halo(self) -> int | None:
        """None: the decoder attends everywhere."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """{"decode_steps": evaluations per window}."""
        return {"decode_steps": self.steps}

    @property
    def depends_on_whole_clip(self) -> str:
        """Empty: chunks are encoded one by one."""
        return ""

    def with_steps(self, steps: int) -> Self:
        """See `Embedder`."""
        self.process.grid_times(steps)  # refuses what the process does not have
        return dataclasses.replace(self, steps=steps)

    def check_speed(self, speed: float) -> None:
        """Any speed; `resample_time.moments` checks the range."""

    def abstract_model(self) -> Params:
        """See `Embedder.abstract_model`."""
        return abstract_variables(self.model.config)

    def encode_flops(self, video_shape: Shape) -> float:
        """See `Embedder.encode_flops`."""
        return flops.regen_encode_flops(self.model.config, video_shape)

    def decode_flops(self, latent_shape: Shape, started: bool = False) -> float:
        """See `Embedder.decode_flops`."""
        config, steps, windows = self.model.config, self.steps, self.windows
        return flops.regen_decode_flops(config, latent_shape, steps, windows, started)

    def encode_chunk(self, params: Params, video_BTHWC: Array, cache=None) -> tuple[Array, Any]:
        """See `Embedder`. Chunks are independent; a single frame at the end is an image."""
        posterior, cache = self.posterior_chunk(params, video_BTHWC, cache)
        return self.normalise(params, posterior.mode()), cache

    def posterior_chunk(
        self, params: Params, video_BTHWC: Array, cache=None
    ) -> tuple[Posterior, Any]:
        """See `Embedder`."""
        del cache
        batch, length = video_BTHWC.shape[0], self.model.config.chunk_frames
        chunks, tail = divmod(video_BTHWC.shape[1], length)
        if tail > 1:
            self.latent_shape(video_BTHWC.shape)  # raises, with the nearest lengths
        parts: list[Any] = []
        if chunks:
            folded = video_BTHWC[:, : chunks * length].reshape(
                batch * chunks, length, *video_BTHWC.shape[2:]
            )
            encoded: Any = self.model.apply(params["model"], folded, method="encode")
            parts.append([x.reshape(batch, 2 * chunks, *x.shape[2:]) for x in encoded])
        if tail:
            parts.append(self.model.apply(params["model"], video_BTHWC[:, -1:], method="encode"))
        return Posterior(*(jnp.concatenate(each, axis=1) for each in zip(*parts))), ()

    def decode_chunk(
        self,
        params: Params,
        latents_BTHWC: Array,
        cache=None,
        last: bool = True,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """See `Embedder`; an odd number of latent frames before the end of the clip is an error."""
        if not last and latents_BTHWC.shape[1] % 2:
            raise UserError(
                f"{latents_BTHWC.shape[1]} latent frames are no whole chunks, which are two each, "
                "content and motion; a single one, an image, can only be the last of a clip"
            )
        z, keys_B = self.denormalise(params, latents_BTHWC), _clip_keys(key, len(latents_BTHWC))
        return regen_decoding.decode_chunks(
            self.model,
            params["model"],
            self.process,
            self.steps,
            z,
            cache,
            last,
            keys_B,
            self.windows,
        )

    def decode_at(
        self,
        params: Params,
        latents_BNtHWC: Array,
        window: regen_windows.Window,
        key: Array | None = None,
    ) -> Array:
        """Decode one window of normalised latents; see `regen_decoding.decode_at`.

        `key` as of `decode_chunk`.
        """
        z = self.denormalise(params, latents_BNtHWC.reshape(-1, *latents_BNtHWC.shape[2:])).reshape(
            latents_BNtHWC.shape
        )
        keys_B = _clip_keys(key, len(z))
        return regen_decoding.decode_at(
            self.model, params["model"], self.process, self.steps, z, window, keys_B
        )


def _clip_keys(key: Array | None, batch: int) -> Array:
    """Return a key a clip, so that a clip's noise does not depend on its batch."""
    key = jax.random.key(0) if key is None else key
    return key if key.ndim else jnp.broadcast_to(key, (batch,))
