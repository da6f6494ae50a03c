"""A trained embedder as a callable: video in, its reconstruction out."""

import dataclasses

import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.inference.streaming import decode, encode
from xgen_jax.inference.video_range import to_uint8
from xgen_jax.models.embedder import Embedder
from xgen_jax.training.run_folder import load_embedder
from xgen_jax.typing import Params, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructor:
    """Encodes and decodes a video. Made by `load_reconstructor`, or `xgen_jax.load` of an embedder's run.

    Attributes:
      embedder, params: as `load_embedder` gives them.
      memory_budget_gb: what the device may use, see `inference.streaming.decode`.
    """

    embedder: Embedder
    params: Params
    memory_budget_gb: float | None = None

    def __call__(self, video: Video) -> Video:
        """uint8 (T, H, W, 3) -> the same shape.

        Any length and size: what the embedder cannot take as it is, is extended by repeating the last frame, row and
        column, and cut off again.

        Raises:
          UserError: not a uint8 video, or one that does not fit the budget.
        """
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
            raise UserError(f"a video is uint8 (T, H, W, 3), not {video.dtype} {video.shape}")
        frames, height, width, _ = video.shape
        extra_t = self.embedder.padded_frames(frames) - frames
        extra_h, extra_w = -height % self.embedder.space_factor, -width % self.embedder.space_factor
        padded = np.pad(video, ((0, extra_t), (0, extra_h), (0, extra_w), (0, 0)), mode="edge")
        latents = encode(self.embedder, self.params, padded[None], self.memory_budget_gb)
        out = decode(self.embedder, self.params, latents, self.memory_budget_gb)
        return to_uint8(out[0])[:frames, :height, :width]


def load_reconstructor(path, memory_budget_gb: float | None = None) -> Reconstructor:
    """Loads the run folder of an embedder; raises UserError where there is none."""
    embedder, params = load_embedder(path, require_statistics=False)
    return Reconstructor(embedder=embedder, params=params, memory_budget_gb=memory_budget_gb)
