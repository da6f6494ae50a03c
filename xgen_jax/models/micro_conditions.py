"""Micro-conditioning of VDiT: a clip's size, length and rate, and the networks that embed them."""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from xgen_jax.nn.embeddings import NORMAL, ZEROS, TimestepEmbedder, join_scope
from xgen_jax.typing import Array


class MicroConditions(NamedTuple):
    """Micro-conditioning: a clip's size, length and rate, each (B,) float (SDXL, arXiv 2307.01952).

    Attributes:
      height, width: in pixels.
      aspect: height / width.
      frames: number of pixel frames; 1 for an image.
      fps: frames a second; Open-Sora gives images 120.
    """

    height: Array
    width: Array
    aspect: Array
    frames: Array
    fps: Array


class SizeEmbedder(nn.Module):
    """Embed a clip's height, width and aspect side by side: (B, 1, features)."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, micro_cond: MicroConditions) -> Array:
        third = self.features // 3
        if self.features % 3:  # the aspect takes the rest; sides of a round number can be sharded
            third -= third % min(16, third)
        sides = jnp.stack([micro_cond.height, micro_cond.width], axis=1)
        sides = scalar_embedder(self, third, "size_embedder")(sides)
        aspect = scalar_embedder(self, self.features - 2 * third, "aspect_embedder")(
            micro_cond.aspect
        )
        return jnp.concatenate([rearrange(sides, "b n d -> b (n d)"), aspect], axis=-1)[:, None]


class TemporalEmbedder(nn.Module):
    """Embed a clip's number of frames and its frame rate, and add them: (B, 1, features)."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, micro_cond: MicroConditions) -> Array:
        frames = scalar_embedder(self, self.features, "frames_embedder")(micro_cond.frames)
        fps = scalar_embedder(self, self.features, "fps_embedder")(micro_cond.fps)
        return (frames + fps)[:, None]


def scalar_embedder(parent: nn.Module, features: int, name: str) -> TimestepEmbedder:
    """Return an embedder of micro-conditioning, zero at initialisation."""
    embedder = TimestepEmbedder(features, NORMAL, ZEROS, parent.dtype, name=name)
    return join_scope(parent, embedder)
