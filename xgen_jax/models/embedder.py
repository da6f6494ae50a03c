"""An embedder is two verbs: encode video to latents, decode latents to video. VDiT knows nothing
else of it.

Latents leave `encode` with zero mean and unit variance a channel; the statistics travel with the
parameters, in one place. A clip may go through either verb in chunks of whole units: a latent frame
of a VidVAE, two of a REGEN.
"""

import abc
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.process import Process
from xgen_jax.errors import UserError
from xgen_jax.models import regen_decoding, regen_windows
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.regen import REGEN
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.typing import Array, Params, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder(abc.ABC):
    """What `VidVAEEmbedder` and `REGENEmbedder` have in common; static to `jax.jit`.

    Its parameters are {"model": of the model, "mean": (c,), "std": (c,)} (see `bundle`).
    """

    model: Any

    @staticmethod
    def bundle(params: Params, mean: np.ndarray, std: np.ndarray) -> Params:
        """Puts the model's parameters and the latent statistics in one tree."""
        return {
            "model": params,
            "mean": jnp.asarray(mean, jnp.float32),
            "std": jnp.asarray(std, jnp.float32),
        }

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.model.config.latent_channels

    @property
    def space_factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.model.config.space_factor

    def latent_shape(self, video_shape: Shape) -> Shape:
        """See `VidVAEConfig.latent_shape` and `REGENConfig.latent_shape`."""
        return self.model.config.latent_shape(video_shape)

    def frames(self, latent_frames: int) -> int:
        """Frames of a clip of so many latent frames, from its start; 0 of 0."""
        return self.model.config.frames(latent_frames)

    def padded_frames(self, frames: int) -> int:
        """The least length that can be encoded and is not below `frames`."""
        return self.model.config.padded_frames(frames)

    @property
    @abc.abstractmethod
    def unit(self) -> int:
        """Latent frames that belong together: chunks are multiples of it, but for the end of a
        clip."""

    @abc.abstractmethod
    def whole_latents(self, frames: int) -> int:
        """Latent frames, in whole units, of so many frames from the start of a clip that may go
        on."""

    @property
    @abc.abstractmethod
    def look_ahead(self) -> int:
        """Frames by which decoding chunk after chunk lags behind."""

    @property
    @abc.abstractmethod
    def halo(self) -> int | None:
        """Latent rows (columns) around one that it depends on, see `VidVAEConfig.halo`; None for
        all of them."""

    @property
    @abc.abstractmethod
    def depends_on_whole_clip(self) -> str:
        """Why there are no chunks, empty where there are; see
        `VidVAEConfig.depends_on_whole_clip`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decoding depends on beside parameters, latents and key, as JSON has it."""
        return {}

    def with_steps(self, steps: int) -> Self:
        """Return this embedder with another number of decoder evaluations.

        Raises:
          UserError: a decoder that is not generative, or steps that its process does not have.
        """
        raise UserError(
            f"steps={steps} is for a REGEN, whose decoder is generative; a VidVAE decodes in one "
            "evaluation"
        )

    def check_speed(self, speed: float) -> None:
        """Check that the decoder can show a clip at another speed; 0.5 is twice as slow.

        Raises:
          UserError: a speed other than 1, unless the decoder takes continuous time.
        """
        if speed != 1.0:
            raise UserError(
                f"speed={speed:g} is for a REGEN, whose decoder takes any time; a VidVAE decodes "
                "only the frames that were encoded"
            )

    def fingerprint(self, params: Params) -> str:
        """16 hex digits of configuration, parameters and latent statistics; how they are computed
        is left out."""
        return fingerprint(self.model.config, params)

    @abc.abstractmethod
    def encode_chunk(self, params: Params, video_BTHWC: Array, cache=None) -> tuple[Array, Any]:
        """Video in [-1, 1] -> (normalised latents (B, t, h, w, c), cache): the posterior's mean.

        `cache` is None for the first chunk and then what the call before gave. A chunk is
        `frames` of whole units; the last may have what else `latent_shape` allows.
        """

    @abc.abstractmethod
    def decode_chunk(
        self,
        params: Params,
        latents_BTHWC: Array,
        cache=None,
        last: bool = True,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """Normalised latents -> (video (B, T, H, W, 3), about [-1, 1], cache).

        Unless it is the `last`, a chunk is of whole units, and its video ends `look_ahead` frames
        early. The last may be empty. `key` is for generative decoders: one for all clips, or one a
        clip (B,); None is that of seed 0.
        """

    def encode(self, params: Params, video_BTHWC: Array) -> Array:
        """A whole clip in [-1, 1] -> normalised latents (B, t, h, w, c).

        Raises:
          UserError: a length or size that the model cannot take.
        """
        self.latent_shape(video_BTHWC.shape)
        return self.encode_chunk(params, video_BTHWC)[0]

    def decode(self, params: Params, latents_BTHWC: Array, key: Array | None = None) -> Array:
        """Normalised latents of a whole clip -> video (B, T, H, W, 3), about [-1, 1]; `key` as of
        `decode_chunk`."""
        return self.decode_chunk(params, latents_BTHWC, key=key)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEEmbedder(Embedder):
    """VidVAE as an embedder: decoding draws nothing at random."""

    model: VidVAE

    @property
    def unit(self) -> int:
        """Each latent frame may come alone."""
        return 1

    def whole_latents(self, frames: int) -> int:
        """The first frame is a latent frame by itself."""
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

    def encode_chunk(self, params: Params, video_BTHWC: Array, cache=None) -> tuple[Array, Any]:
        """See `Embedder`. The first chunk has 1 + f*n frames, others have f*n."""
        encoded: Any = self.model.apply(params["model"], video_BTHWC, cache, method="encode")
        mean, _, cache = encoded
        return _normalised(params, mean), cache

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
            params["model"], _scaled(params, latents_BTHWC), cache, last, method="decode"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENEmbedder(Embedder):
    """REGEN as an embedder: decoding draws frames out of noise.

    Attributes:
      process: of the diffusion that its decoder was trained for.
      steps: evaluations of the decoder a window.
      windows: those that its decoder was trained on, see `regen_windows.WINDOWS`.
    """

    model: REGEN
    process: Process
    steps: int = 1
    windows: str = "chunk"

    @property
    def unit(self) -> int:
        """Content and motion latent of a chunk."""
        return 2

    def whole_latents(self, frames: int) -> int:
        """Two of each whole chunk; a frame that is left may be an image, or the first of another
        chunk."""
        return 2 * (frames // self.model.config.chunk_frames)

    @property
    def look_ahead(self) -> int:
        """See `regen_windows.look_ahead`."""
        return regen_windows.look_ahead(self.model.config, self.windows)

    @property
    def halo(self) -> int | None:
        """The decoder attends everywhere."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """The evaluations."""
        return {"decode_steps": self.steps}

    @property
    def depends_on_whole_clip(self) -> str:
        """It does not."""
        return ""

    def with_steps(self, steps: int) -> Self:
        """See `Embedder`."""
        self.process.grid_times(steps)  # refuses what the process does not have
        return dataclasses.replace(self, steps=steps)

    def check_speed(self, speed: float) -> None:
        """Any speed; `resample_time.moments` checks the range."""

    def encode_chunk(self, params: Params, video_BTHWC: Array, cache=None) -> tuple[Array, Any]:
        """See `Embedder`. Chunks know nothing of one another; a single frame at the end is an
        image."""
        batch, length = video_BTHWC.shape[0], self.model.config.chunk_frames
        chunks, tail = divmod(video_BTHWC.shape[1], length)
        if tail > 1:
            self.latent_shape(video_BTHWC.shape)  # tells the nearest lengths
        parts = []
        if chunks:
            folded = video_BTHWC[:, : chunks * length].reshape(
                batch * chunks, length, *video_BTHWC.shape[2:]
            )
            mean, _ = self.model.apply(params["model"], folded, method="encode")
            parts.append(mean.reshape(batch, 2 * chunks, *mean.shape[2:]))
        if tail:
            mean, _ = self.model.apply(params["model"], video_BTHWC[:, -1:], method="encode")
            parts.append(mean)
        return _normalised(params, jnp.concatenate(parts, axis=1)), ()

    def decode_chunk(
        self,
        params: Params,
        latents_BTHWC: Array,
        cache=None,
        last: bool = True,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """See `Embedder`.

        Raises:
          UserError: an odd number of latent frames that is not the end of the clip.
        """
        if not last and latents_BTHWC.shape[1] % 2:
            raise UserError(
                f"{latents_BTHWC.shape[1]} latent frames are no whole chunks, which are two each, content and motion; "
                "a single one, an image, can only be the last of a clip"
            )
        z, keys_B = _scaled(params, latents_BTHWC), _clip_keys(key, len(latents_BTHWC))
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
        """See `regen_decoding.decode_at`; of normalised latents, and with `key` as of
        `decode_chunk`."""
        z = _scaled(params, latents_BNtHWC.reshape(-1, *latents_BNtHWC.shape[2:])).reshape(
            latents_BNtHWC.shape
        )
        keys_B = _clip_keys(key, len(z))
        return regen_decoding.decode_at(
            self.model, params["model"], self.process, self.steps, z, window, keys_B
        )


def _normalised(params: Params, latents: Array) -> Array:
    return (latents - _channels(params["mean"])) / _channels(params["std"])


def _scaled(params: Params, latents: Array) -> Array:
    return latents * _channels(params["std"]) + _channels(params["mean"])


def _channels(x: Array) -> Array:
    return x[None, None, None, None, :]


def _clip_keys(key: Array | None, batch: int) -> Array:
    """A key a clip: what a clip is drawn from does not depend on the others, or on its place among
    them."""
    key = jax.random.key(0) if key is None else key
    return key if key.ndim else jnp.broadcast_to(key, (batch,))
