"""Embedders, the video autoencoders that VDiT works on: encode video to latents, decode them.

Latents are normalised to zero mean and unit variance per channel; the statistics are kept with the
parameters. A clip may be encoded and decoded in chunks of whole units: one latent frame of a
VidVAE, two of a REGEN.
"""

import abc
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.posterior import Posterior
from xgen_jax.typing import Array, Params, Shape

CHUNK = 4  # latent frames of a VidVAE at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder(abc.ABC):
    """A video autoencoder; a static argument of `jax.jit`.

    Its parameters are {"model": of the network, "mean": (c,), "std": (c,)}, see `bundle`.

    Attributes:
      model: the network, a flax module with a `config`.
    """

    model: Any

    @staticmethod
    def bundle(params: Params, mean: np.ndarray, std: np.ndarray) -> Params:
        """Join the network's parameters and the latent statistics to an embedder's parameters."""
        return {
            "model": params,
            "mean": jnp.asarray(mean, jnp.float32),
            "std": jnp.asarray(std, jnp.float32),
        }

    @staticmethod
    def normalise(params: Params, latents_BTHWC: Array) -> Array:
        """Bring latents to mean 0 and variance 1 a channel, by the statistics in `params`."""
        return (latents_BTHWC - _channels(params["mean"])) / _channels(params["std"])

    @staticmethod
    def denormalise(params: Params, latents_BTHWC: Array) -> Array:
        """The inverse of `normalise`."""
        return latents_BTHWC * _channels(params["std"]) + _channels(params["mean"])

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.model.config.latent_channels

    @property
    def space_factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.model.config.space_factor

    @property
    def patch(self) -> int:
        """Pixels a side of the patches that the decoder puts together."""
        return self.model.config.patch

    def latent_shape(self, video_shape: Shape) -> Shape:
        """Return the shape of a clip's latents.

        Args:
          video_shape: (T, H, W), or (B, T, H, W, 3).

        Returns:
          (t, h, w), or (B, t, h, w, c).

        Raises:
          UserError: a length or size that cannot be encoded; the message gives the nearest.
        """
        return self.model.config.latent_shape(video_shape)

    def frames(self, latent_frames: int) -> int:
        """Return the frames of a clip of `latent_frames`, from its start; 0 of 0."""
        return self.model.config.frames(latent_frames)

    def padded_frames(self, frames: int) -> int:
        """Return the least length, `frames` or more, that can be encoded."""
        return self.model.config.padded_frames(frames)

    def chunk_starts(self, frames: int) -> list[int]:
        """Return the frames of a clip of `frames`, but the first, at which the pixels of a unit of
        latents begin: of a chunk of a REGEN, of a latent frame of a VidVAE."""
        starts, latents = [], self.unit
        while (start := self.frames(latents)) < frames:
            starts.append(start)
            latents += self.unit
        return starts

    @property
    @abc.abstractmethod
    def unit(self) -> int:
        """Latent frames that belong together; chunks are multiples, except at a clip's end."""

    @abc.abstractmethod
    def whole_latents(self, frames: int) -> int:
        """Return the latent frames, in whole units, that the first `frames` of a clip give.

        The clip may go on after them.
        """

    def default_chunk(self, latent_shape: Shape) -> int:
        """Return the latent frames at a time, whole units, of latents (B, t, h, w, c), where no
        memory budget sets them."""
        del latent_shape
        return CHUNK

    @property
    def decodes_in_windows(self) -> bool:
        """Whether devices can share the decoding of one clip: its windows are independent."""
        return False

    def in_compute_dtype(self, params: Params) -> Params:
        """Return the parameters, for the same video with those that decoding casts at each call in
        the dtype to compute in. Their fingerprint is another."""
        return params

    @property
    @abc.abstractmethod
    def look_ahead(self) -> int:
        """Frames by which decoding chunk after chunk lags behind the latents."""

    @property
    @abc.abstractmethod
    def halo(self) -> int | None:
        """Latent rows and columns around one that it depends on; None for all.

        See `VidVAEConfig.halo`.
        """

    @property
    @abc.abstractmethod
    def depends_on_whole_clip(self) -> str:
        """Reason why a clip cannot be cut into chunks; empty where it can."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings, besides parameters, latents and key, on which decoding depends, for JSON."""
        return {}

    def with_steps(self, steps: int) -> Self:
        """Return this embedder with another number of decoder evaluations.

        Raises:
          UserError: a decoder that is not generative, or steps that its process does not have.
        """
        raise UserError(
            f"steps={steps} is for a REGEN, whose decoder is generative; this embedder decodes "
            "in one evaluation"
        )

    def check_speed(self, speed: float) -> None:
        """Check that the decoder can show a clip at another speed; 0.5 is twice as slow.

        Raises:
          UserError: a speed other than 1, unless the decoder takes continuous time.
        """
        if speed != 1.0:
            raise UserError(
                f"speed={speed:g} is for a REGEN, whose decoder takes any time; this embedder "
                "decodes only the frames that were encoded"
            )

    def fingerprint(self, params: Params) -> str:
        """Return the fingerprint of configuration, parameters and latent statistics.

        See `models.fingerprint`.
        """
        return fingerprint(self.model.config, params)

    def abstract_model(self) -> Params:
        """Return the shapes of the network's parameters."""
        side = self.space_factor
        video = jax.ShapeDtypeStruct((1, self.frames(2), side, side, 3), np.float32)
        return jax.eval_shape(self.model.init, jax.random.key(0), video)

    def encode_flops(self, video_shape: Shape) -> float | None:
        """Return the operations of encoding clips (B, T, H, W, 3), see `models.flops`; None for an
        embedder without a formula, which works like any other but has no plan."""
        del video_shape
        return None

    def decode_flops(self, latent_shape: Shape, started: bool = False) -> float | None:
        """Return the operations of decoding latents (B, t, h, w, c): of a clip, or of a chunk of
        one that has `started` before. See `encode_flops`."""
        del latent_shape, started
        return None

    @abc.abstractmethod
    def encode_chunk(self, params: Params, video_BTHWC: Array, cache=None) -> tuple[Array, Any]:
        """Encode a chunk of a clip to the posterior's mean.

        Args:
          params: see `bundle`.
          video_BTHWC: in [-1, 1]; `frames` of whole units, the last chunk any length that
            `latent_shape` allows.
          cache: None for the first chunk, then what the call before returned.

        Returns:
          (normalised latents (B, t, h, w, c), cache).
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
        """Decode a chunk of a clip.

        Args:
          params: see `bundle`.
          latents_BTHWC: normalised; whole units, unless the chunk is the last, which may be empty.
          cache: None for the first chunk, then what the call before returned.
          last: whether the clip ends here; otherwise the video ends `look_ahead` frames early.
          key: for generative decoders: one for all clips, or one a clip (B,); None is seed 0.

        Returns:
          (video (B, T, H, W, 3), about [-1, 1], cache).
        """

    def posterior_chunk(
        self, params: Params, video_BTHWC: Array, cache=None
    ) -> tuple[Posterior, Any]:
        """Encode a chunk of a clip; as `encode_chunk`, to the posterior of latents as they are
        before `normalise`."""
        raise UserError(f"{type(self).__name__} encodes to latents, and has no posterior")

    def posterior(self, params: Params, video_BTHWC: Array) -> Posterior:
        """Return the posterior of whole clips in [-1, 1]; `encode` gives its mode, normalised.

        Raises:
          UserError: a length or size that cannot be encoded; an embedder without a posterior.
        """
        self.latent_shape(video_BTHWC.shape)
        return self.posterior_chunk(params, video_BTHWC)[0]

    def encode(self, params: Params, video_BTHWC: Array) -> Array:
        """Encode whole clips in [-1, 1] to normalised latents (B, t, h, w, c).

        Raises:
          UserError: a length or size that cannot be encoded.
        """
        self.latent_shape(video_BTHWC.shape)
        return self.encode_chunk(params, video_BTHWC)[0]

    def decode(self, params: Params, latents_BTHWC: Array, key: Array | None = None) -> Array:
        """Decode normalised latents of whole clips to video (B, T, H, W, 3), about [-1, 1].

        `key` as of `decode_chunk`.
        """
        return self.decode_chunk(params, latents_BTHWC, key=key)[0]


def _channels(x: Array) -> Array:
    return x[None, None, None, None, :]
