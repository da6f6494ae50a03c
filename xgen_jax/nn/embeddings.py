"""Embeddings of a transformer's inputs: scalars, captions and patches.

A module called `t_embedder` keeps its layers as `t_embedder1` and `t_embedder2` in the scope of the
network that uses it (see `join_scope`): parameter trees are flat, as checkpoints and
`weights/vdit.py` have them.
"""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from xgen_jax.nn.layout import TOKENS, constrain
from xgen_jax.nn.norms import layer_norm
from xgen_jax.nn.positions import sinusoid
from xgen_jax.typing import Array

# The initialisers of every transformer here, as DiT has them (arXiv 2212.09748, section 3.2).
XAVIER = nn.initializers.xavier_uniform()
NORMAL = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros

FREQUENCIES = 256  # sines and cosines of a scalar

M = TypeVar("M", bound=nn.Module)


def join_scope(parent: nn.Module, child: M) -> M:
    """Return the child with its parameters directly among the parent's, under no name of its own.

    Args:
      parent: the module whose compact method is running.
      child: made there; its layers must have names that the parent does not use.
    """
    nn.share_scope(parent, child)
    return child


class TimestepEmbedder(nn.Module):
    """Embed a scalar: sinusoids, Dense, SiLU, Dense; (...,) -> (..., features).

    Serves diffusion timesteps in 0 .. 1000 and, with other initialisers, the scalars of
    micro-conditioning.

    Attributes:
      features: width of the result.
      init, last_init: initialisers of the first and the second kernel.
      dtype: to compute in.
    """

    features: int
    init: Callable = XAVIER
    last_init: Callable = XAVIER
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, scalar: Array) -> Array:
        first, last = (
            nn.Dense(self.features, dtype=self.dtype, kernel_init=init, name=f"{self.name}{i}")
            for i, init in enumerate((self.init, self.last_init), start=1)
        )
        return last(nn.silu(first(sinusoid(scalar, FREQUENCIES))))


class CaptionProjection(nn.Module):
    """Project text tokens to the width of a transformer: Dense, GELU (tanh form), Dense.

    (B, L, D) -> (B, L, features), as PixArt-alpha does (arXiv 2310.00426).
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text_BLD: Array) -> Array:
        first, last = (
            nn.Dense(self.features, dtype=self.dtype, kernel_init=XAVIER, name=f"{self.name}{i}")
            for i in (1, 2)
        )
        return last(nn.gelu(first(text_BLD), approximate=True))


class CaptionPositions(nn.Module):
    """Positions that depend on the caption: (B, T, S, features), zero at initialisation.

    An MLP of each token's place and frame, the diffusion time and the pooled caption. It is to a
    caption what a content-aware positional embedding is to a content latent (arXiv 2503.08665,
    section 3). "Moving left" says where a shape is in which frame, a product of text, place and
    frame; in tokens near pure noise the blocks find it late (docs/quality.md), here no noise is.

    Attributes:
      features: width of the result.
      dtype: to compute in.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, place_TSD: Array, time_BD: Array, text_BLD: Array, mask_BL: Array | None
    ) -> Array:
        """Return the positions.

        Args:
          place_TSD: embedding of each token's place and frame.
          time_BD: embedding of the diffusion time.
          text_BLD: text tokens.
          mask_BL: True where a token counts; None for all.
        """

        def dense(features: int, name: str, init: Callable = XAVIER, **kwargs) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name, **kwargs)

        def whole(x, kernel, bias, **kwargs):
            # Without a batch to divide, XLA would divide the product as these are, and gather the
            # result for all tokens.
            kernel, bias = constrain(kernel, (None, None)), constrain(bias, (None,))
            return promote_dtype(x, kernel, bias, **kwargs)

        hidden = 2 * self.features
        # Words are found in tokens first: in a mean of tokens one word of a caption is little.
        words_BLD = nn.gelu(dense(hidden, "word")(text_BLD))
        weights_BL1 = jnp.ones_like(words_BLD[..., :1])
        if mask_BL is not None:
            weights_BL1 = mask_BL[..., None].astype(self.dtype)
        caption_BD = layer_norm((words_BLD * weights_BL1).sum(1) / weights_BL1.sum(1))
        of_clip_BD = dense(hidden, "caption")(caption_BD) + dense(hidden, "time")(time_BD)
        of_place_TSD = dense(hidden, "place", promote_dtype=whole)(place_TSD)
        h = nn.gelu(constrain(of_place_TSD[None] + of_clip_BD[:, None, None], TOKENS))
        h = nn.gelu(constrain(dense(hidden, "hidden")(h), TOKENS))
        return constrain(dense(self.features, "out", ZEROS)(h), TOKENS)


def patchify(x_BTHWC: Array, patch: int) -> Array:
    """Cut frames in patches: (B, T, H, W, C) -> (B, T, H / p, W / p, p * p * C)."""
    return rearrange(x_BTHWC, "b t (h p) (w q) c -> b t h w (p q c)", p=patch, q=patch)


def unpatchify(x_BThwD: Array, patch: int) -> Array:
    """Put patches together again: the inverse of `patchify`."""
    return rearrange(x_BThwD, "b t h w (p q c) -> b t (h p) (w q) c", p=patch, q=patch)
