"""A trained embedder as a callable: video in, its reconstruction out."""

import dataclasses
from typing import cast

import numpy as np

from xgen_jax.data.pixels import check_clip, to_uint8
from xgen_jax.errors import choose
from xgen_jax.inference.resample_time import BETWEEN, decode_at_speed, moments
from xgen_jax.inference.streaming import decode, encode
from xgen_jax.models.embedder import Embedder, REGENEmbedder
from xgen_jax.runs.load import describe_embedder, load_embedder
from xgen_jax.typing import Array, Params, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructor:
    """Encodes and decodes videos. Made by `load_reconstructor`, or `xgen_jax.load` of an embedder's
    run.

    Attributes:
      embedder, params: see `load_embedder`.
      memory_budget_gb: memory of the device, in GB (1e9 bytes), see `streaming.decode`.
    """

    embedder: Embedder
    params: Params
    memory_budget_gb: float | None = None

    def __repr__(self) -> str:
        budget = "none" if self.memory_budget_gb is None else f"{self.memory_budget_gb:g} GB"
        return (
            f"Reconstructor of a {describe_embedder(self.embedder, self.params)}\n"
            f"  memory budget  {budget}\n"
            "  call           reconstructor(video, speed=1.0): uint8 (T, H, W, 3), both ways"
        )

    def __call__(
        self, video: Video, speed: float = 1.0, key: Array | None = None, between: str = BETWEEN[0]
    ) -> Video:
        """Reconstruct a video of any length and size.

        A size that the embedder cannot take is padded by repeating the last frame, row and column;
        the padding is cut off again.

        Args:
          video: uint8 (T, H, W, 3).
          speed: 0.5 is twice as slow, 2 twice as fast, at the same frames per second; for a REGEN
            only.
          key: of a generative decoder's noise; that of seed 0 by default.
          between: conditioning between frames at another speed; see `resample_time`.

        Returns:
          uint8 of the shape of `video`; at another speed as many frames as `moments` has.

        Raises:
          UserError: not a uint8 video, or one that does not fit the budget; a speed that the
            embedder cannot decode.
        """
        check_clip(video)
        self.embedder.check_speed(speed)
        choose("between", between, BETWEEN)
        frames, height, width, _ = video.shape
        shown = len(moments(frames, speed))
        extra_t = self.embedder.padded_frames(frames) - frames
        extra_h, extra_w = -height % self.embedder.space_factor, -width % self.embedder.space_factor
        padded = np.pad(video, ((0, extra_t), (0, extra_h), (0, extra_w), (0, 0)), mode="edge")
        latents = encode(self.embedder, self.params, padded[None], self.memory_budget_gb)
        if speed == 1.0:
            out = decode(self.embedder, self.params, latents, self.memory_budget_gb, key=key)
        else:
            embedder = cast(REGENEmbedder, self.embedder)  # `check_speed` has refused any other
            out = decode_at_speed(
                embedder, self.params, latents, speed, self.memory_budget_gb, key, between
            )
        return to_uint8(out[0])[:shown, :height, :width]


def load_reconstructor(
    path, memory_budget_gb: float | None = None, steps: int | None = None
) -> Reconstructor:
    """Load the run folder of an embedder.

    Args:
      path: the folder.
      memory_budget_gb: see `Reconstructor`.
      steps: evaluations of a generative decoder; by default the run's.

    Raises:
      UserError: no such folder; steps for a decoder that is not generative, or that its process
        does not have.
    """
    embedder, params = load_embedder(path, require_statistics=False)
    if steps is not None:
        embedder = embedder.with_steps(steps)
    return Reconstructor(embedder=embedder, params=params, memory_budget_gb=memory_budget_gb)
