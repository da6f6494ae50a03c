"""REGEN: two latent frames a chunk of video, and a diffusion transformer that draws it again (arXiv
2503.08665).

The encoder, causal in time, turns k + 1 frames into a content latent z_c, which sees the first
frame alone, and a motion latent z_m. To decode, the latents are expanded to any times t of the
chunk, at each place (x, y) of their grid:

    z_e(x, y, t) = M_s [ z_c(x, y), M_t(t | z_m(x, y)) ]

M_t is a SIREN that z_m modulates, M_s linear; at t = 0 M_t's value stands in for z_c as well, so
that an image, which has one latent alone, and the first frame of a video are expanded alike. z_e is
added to the tokens of the noisy frames, a token a place and a frame. The transformer has no other
embedding of position: which token belongs where, the content says, and any size can be decoded. It
attends in space and time at once, over a window of about a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.vidvae import Encoder
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.embeddings import (
    NORMAL,
    XAVIER,
    ZEROS,
    TimestepEmbedder,
    join_scope,
    patchify,
    unpatchify,
)
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.norms import layer_norm
from xgen_jax.nn.positions import sinusoid, sinusoid_2d
from xgen_jax.nn.siren import ModulatedSIREN
from xgen_jax.nn.stack import Stack
from xgen_jax.typing import Array, Params


class Conditioning(NamedTuple):
    """What the decoder is told of frames.

    Attributes:
      added_BFHWD: for each token, added to it.
      tokens_BND: beside them, to attend to; None for a content-aware model.
    """

    added_BFHWD: Array
    tokens_BND: Array | None = None


class LatentExpansion(nn.Module):
    """Latents of a chunk and times -> `Conditioning`; see the module."""

    config: REGENConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z_BtHWC: Array, times_BF: Array) -> Conditioning:
        c, (height, width) = self.config, z_BtHWC.shape[2:4]
        if c.conditioning == "in_context":
            z = nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="latent_embedder")(
                z_BtHWC
            )
            place = (
                sinusoid_2d(height, width, c.width)
                .reshape(height, width, c.width)
                .astype(self.dtype)
            )
            kind = self.param("kind", NORMAL, (2, c.width)).astype(self.dtype)
            # The motion latent is the second of a chunk; an image has the content latent alone.
            z = z + place[None, None] + kind[None, : z.shape[1], None, None]
            at = sinusoid(times_BF * c.ratio, c.width).astype(self.dtype)[:, :, None, None]
            return Conditioning(at + place[None, None], rearrange(z, "b t h w d -> b (t h w) d"))
        motion = ModulatedSIREN(
            c.siren_features,
            c.siren_hidden,
            c.siren_depth,
            c.siren_bands,
            dtype=self.dtype,
            name="siren",
        )(times_BF, z_BtHWC[:, -1])
        content = nn.Dense(c.siren_features, dtype=self.dtype, name="content")(z_BtHWC[:, 0])[
            :, None
        ]
        first = (times_BF == 0)[:, :, None, None, None]
        expanded = jnp.concatenate([jnp.where(first, motion, content), motion], axis=-1)
        return Conditioning(
            nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="project")(expanded)
        )


class Block(nn.Module):
    """Self-attention over all tokens of the window, then an MLP."""

    config: REGENConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        c, kwargs = self.config, {"zero_init": True, "dtype": self.dtype}
        attention = SelfAttention(
            c.heads, qk_norm=True, implementation=c.attention, name="attention", **kwargs
        )
        x_BND = x_BND + attention(layer_norm(x_BND))
        x_BND = x_BND + MLP(c.mlp_ratio * c.width, name="mlp", **kwargs)(layer_norm(x_BND))
        return nn.with_logical_constraint(x_BND, ("batch", "space", "width"))


class Decoder(nn.Module):
    """Predict, from noisy frames (B, F, H, W, 3), a diffusion timestep (B,) in 0 .. 1000 and a
    `Conditioning`, what the process asks for: float32, as the frames."""

    config: REGENConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BFHWC: Array, time_B: Array, conditioning: Conditioning) -> Array:
        c, patch = self.config, self.config.space_factor
        _, frames, rows, columns, _ = x_BFHWC.shape
        height, width = rows // patch, columns // patch  # in patches, one a latent cell

        t_embedder = TimestepEmbedder(c.width, dtype=self.dtype, name="t_embedder")
        t = join_scope(self, t_embedder)(time_B)  # (B, D)
        x = patchify(x_BFHWC, patch)  # (B, F, h, w, p * p * 3)
        x = nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="x_embedder")(x)
        x = x + conditioning.added_BFHWD + t[:, None, None, None]
        x = rearrange(x, "b f h w d -> b (f h w) d")
        if conditioning.tokens_BND is not None:
            x = jnp.concatenate([x, conditioning.tokens_BND + t[:, None]], axis=1)
        x = nn.with_logical_constraint(x, ("batch", "space", "width"))

        blocks = Stack(Block, (c, self.dtype), c.depth, c.scan_layers, c.remat == "full")
        x = join_scope(self, blocks)(x)

        x = layer_norm(x[:, : frames * height * width])  # without the latents' own tokens
        x = nn.Dense(3 * patch**2, dtype=self.dtype, kernel_init=ZEROS, name="final")(x)
        x = rearrange(x, "b (f h w) d -> b f h w d", f=frames, h=height)
        return unpatchify(x, patch).astype(jnp.float32)


class REGEN(nn.Module):
    """The embedder's three networks. `dtype` is the compute dtype; parameters, moments and
    predictions are float32."""

    config: REGENConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config.encoder, self.dtype)
        self.expansion = LatentExpansion(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(self, chunk_BTHWC: Array) -> tuple[Array, Array]:
        """A chunk of k + 1 frames, or an image, in [-1, 1] -> (mean, log-variance) of (B, 2, h, w,
        c), or (B, 1, ...).

        [:, 0] is the content latent, [:, 1] the motion latent.
        """
        moments, _ = self.encoder(chunk_BTHWC)
        mean, raw = jnp.split(moments, 2, axis=-1)
        # The posterior is never wider than the prior. Without that bound its noise drowns the
        # latents while the decoder does not yet listen to them, and then it never learns to: three
        # of three runs went so.
        return mean, jnp.clip(nn.log_sigmoid(raw), -30.0)

    def expand(self, z_BtHWC: Array, times_BF: Array) -> Conditioning:
        """Latents of a chunk, (B, 2 or 1, h, w, c), at times (B, F): frame i of k + 1 is at i / k,
        an image at 0."""
        return self.expansion(z_BtHWC.astype(self.dtype), times_BF)

    def denoise(self, x_BFHWC: Array, time_B: Array, conditioning: Conditioning) -> Array:
        """Noisy frames of a window, the diffusion time in 0..1000 and what is known of them -> a
        prediction."""
        return self.decoder(x_BFHWC.astype(self.dtype), time_B, conditioning)

    def __call__(self, chunk_BTHWC: Array, time_B: Array) -> Array:
        """Encodes, and makes one prediction at the chunk itself: for initialisation."""
        z, _ = self.encode(chunk_BTHWC)
        times_BF = jnp.broadcast_to(
            frame_times(self.config, chunk_BTHWC.shape[1])[None], chunk_BTHWC.shape[:2]
        )
        return self.denoise(chunk_BTHWC, time_B, self.expand(z, times_BF))


def frame_times(config: REGENConfig, frames: int) -> Array:
    """The times (frames,) of a chunk's own frames: 0, 1 / k, ..., 1."""
    return jnp.arange(frames, dtype=jnp.float32) / config.ratio


def abstract_variables(config: REGENConfig) -> Params:
    """Shapes of a REGEN's variables: nothing is computed."""
    side = config.space_factor
    chunk = jax.ShapeDtypeStruct((1, config.chunk_frames, side, side, 3), jnp.float32)
    return jax.eval_shape(
        REGEN(config).init, jax.random.key(0), chunk, jax.ShapeDtypeStruct((1,), jnp.float32)
    )


def count_parameters(config: REGENConfig) -> dict[str, int]:
    """Parameters of the `encoder`, the `expansion` and the `decoder`."""
    params = abstract_variables(config)["params"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
