"""REGEN: a video autoencoder with two latent frames a chunk and a generative decoder.

The decoder is a diffusion transformer (arXiv 2503.08665). The encoder, causal in time, turns k + 1
frames into a content latent z_c, which sees only the first frame, and a motion latent z_m. To
decode, the latents are expanded at any times t of the chunk, at each place (x, y) of their grid:

    z_e(x, y, t) = M_s [ z_c(x, y), M_t(t | z_m(x, y)) ]

M_t is a SIREN modulated by z_m, M_s is linear. At t = 0 the value of M_t replaces z_c as well, so
that an image, which has only one latent, and the first frame of a video are expanded by the same
function. z_e is added to the tokens of the noisy frames, one token per place and frame (or per
`latent_patch` x `latent_patch` places, of which M_s then takes all). The
transformer has no other embedding of position: the content tells tokens apart, and any size can be
decoded. It attends in space and time at once, over a window of about a chunk; in space everywhere,
or near a token (`attention_window`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from xgen_jax.models.posterior import Posterior
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.vidvae import Encoder
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.convolution import CausalConv3D
from xgen_jax.nn.embeddings import (
    NORMAL,
    XAVIER,
    ZEROS,
    TimestepEmbedder,
    join_scope,
    patchify,
    unpatchify,
)
from xgen_jax.nn.layout import TOKENS, constrain
from xgen_jax.nn.local_attention import SpaceWindow
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.norms import layer_norm
from xgen_jax.nn.positions import sinusoid, sinusoid_2d
from xgen_jax.nn.siren import ModulatedSIREN
from xgen_jax.nn.stack import Stack
from xgen_jax.typing import Array, Params


class Conditioning(NamedTuple):
    """The decoder's conditioning of a window of frames.

    Attributes:
      added_BFHWD: added to each token of the frames.
      tokens_BtHWD: further frames of tokens to attend to; None for a content-aware model.
    """

    added_BFHWD: Array
    tokens_BtHWD: Array | None = None


class LatentExpansion(nn.Module):
    """Expand a chunk's latents (B, 2 or 1, h, w, c) at times (B, F): z_e of the module."""

    config: REGENConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z_BtHWC: Array, times_BF: Array) -> Conditioning:
        if self.config.conditioning == "in_context":
            return self._as_tokens(z_BtHWC, times_BF)
        c = self.config
        content_BHWD = nn.Dense(c.siren_features, dtype=self.dtype, name="content")(z_BtHWC[:, 0])
        sizes = (c.siren_features, c.siren_hidden, c.siren_depth, c.siren_bands)
        siren = ModulatedSIREN(*sizes, dtype=self.dtype, name="siren")
        motion_BFHWD = siren(times_BF, z_BtHWC[:, -1])
        first = (times_BF == 0)[:, :, None, None, None]
        content_BFHWD = jnp.where(first, motion_BFHWD, content_BHWD[:, None])
        expanded = merge_cells(
            jnp.concatenate([content_BFHWD, motion_BFHWD], axis=-1), c.latent_patch
        )
        project = nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="project")
        return Conditioning(project(expanded))

    def _as_tokens(self, z_BtHWC: Array, times_BF: Array) -> Conditioning:
        """Make tokens of the latents (in-context conditioning), with fixed embeddings for all."""
        c, z_BtHWC = self.config, merge_cells(z_BtHWC, self.config.latent_patch)
        height, width = z_BtHWC.shape[2:4]
        embedder = nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="latent_embedder")
        place_HWD = sinusoid_2d(height, width, c.width).reshape(height, width, c.width)
        place_HWD = place_HWD.astype(self.dtype)
        # The motion latent is a chunk's second; an image has only the content latent.
        kind = self.param("kind", NORMAL, (2, c.width)).astype(self.dtype)
        kind = kind[None, : z_BtHWC.shape[1], None, None]
        z = embedder(z_BtHWC) + place_HWD[None, None] + kind
        time = sinusoid(times_BF * c.ratio, c.width).astype(self.dtype)[:, :, None, None]
        return Conditioning(time + place_HWD[None, None], z)


class Block(nn.Module):
    """Self-attention over the tokens of the window of frames, then an MLP.

    Attributes:
      config, dtype: of the network.
      grid: rows and columns of the tokens of a frame.
    """

    config: REGENConfig
    dtype: jnp.dtype
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x_BTSD: Array) -> Array:
        c, kwargs = self.config, {"zero_init": True, "dtype": self.dtype}
        attention = SelfAttention(
            c.heads,
            qk_norm=True,
            implementation=c.attention,
            dims=TOKENS[:-1],
            attended=2,
            window=SpaceWindow(self.grid, c.attention_window) if c.attention_window else None,
            name="attention",
            **kwargs,
        )
        x_BTSD = x_BTSD + attention(layer_norm(x_BTSD))
        x_BTSD = x_BTSD + MLP(c.mlp_ratio * c.width, name="mlp", **kwargs)(layer_norm(x_BTSD))
        return constrain(x_BTSD, TOKENS)


class Decoder(nn.Module):
    """Predict, from the noisy frames of a window, what the diffusion process asks for.

    Noisy frames (B, F, H, W, 3), a timestep (B,) in 0 .. 1000 and a `Conditioning` -> float32, in
    the shape of the frames.
    """

    config: REGENConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BFHWC: Array, time_B: Array, conditioning: Conditioning) -> Array:
        c, patch = self.config, self.config.patch
        _, frames, rows, columns, _ = x_BFHWC.shape

        t_embedder = TimestepEmbedder(c.width, dtype=self.dtype, name="t_embedder")
        t = join_scope(self, t_embedder)(time_B)  # (B, D)
        # Columns are gathered as pixels, not as features; so are those of latents in `expand`.
        x_BFHWC = constrain(x_BFHWC, ("batch", None, "height", None, None))
        x = merge_cells(x_BFHWC, patch)  # (B, F, h, w, p * p * 3)
        grid = x.shape[2:4]
        x = nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="x_embedder")(x)
        x = x + conditioning.added_BFHWD + t[:, None, None, None]
        if conditioning.tokens_BtHWD is not None:
            x = jnp.concatenate([x, conditioning.tokens_BtHWD + t[:, None, None, None]], axis=1)
        x = constrain(rearrange(x, "b t h w d -> b t (h w) d"), TOKENS)

        blocks = Stack(Block, (c, self.dtype, grid), c.depth, c.scan_layers, c.remat)
        x = join_scope(self, blocks)(x)

        x = layer_norm(x[:, :frames])  # without the latents' own tokens
        channels, init = (c.head_channels, XAVIER) if c.head_channels else (3, ZEROS)
        final = nn.Dense(channels * patch**2, dtype=self.dtype, kernel_init=init, name="final")
        x = unpatchify(rearrange(final(x), "b f (h w) d -> b f h w d", h=grid[0]), patch)
        if c.head_channels:
            # Frame by frame: decoding at other speeds has frames at other distances in a window.
            pixels = CausalConv3D(3, (1, 3, 3), zero_init=True, dtype=self.dtype, name="pixels")
            x, _ = pixels(nn.swish(x))
        return x[:, :, :rows, :columns].astype(jnp.float32)


class REGEN(nn.Module):
    """Encoder, latent expansion and decoder.

    `dtype` is to compute in; parameters, moments and predictions are float32.
    """

    config: REGENConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config.encoder, self.dtype)
        self.expansion = LatentExpansion(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(self, chunk_BTHWC: Array) -> Posterior:
        """Encode a chunk of k + 1 frames, or an image, in [-1, 1].

        Returns:
          The posterior of (B, 2, h, w, c), content latent and motion latent; (B, 1, ...) of an
          image.
        """
        moments, _ = self.encoder(chunk_BTHWC)
        mean, raw = jnp.split(moments, 2, axis=-1)
        # The posterior is never wider than the prior. Without this bound its noise swamps the
        # latents before the decoder has learnt to use them, and it never does (3 of 3 runs).
        return Posterior(mean, jnp.clip(nn.log_sigmoid(raw), -30.0))

    def expand(self, z_BtHWC: Array, times_BF: Array) -> Conditioning:
        """Expand a chunk's latents (B, 2 or 1, h, w, c) at times (B, F).

        Frame i of k + 1 is at time i / k, an image at 0.
        """
        z_BtHWC = constrain(z_BtHWC, ("batch", None, "height", None, None))
        return self.expansion(z_BtHWC.astype(self.dtype), times_BF)

    def denoise(self, x_BFHWC: Array, time_B: Array, conditioning: Conditioning) -> Array:
        """Predict from noisy frames (B, F, H, W, 3) of a window; see `Decoder`."""
        return self.decoder(x_BFHWC.astype(self.dtype), time_B, conditioning)

    def __call__(self, chunk_BTHWC: Array, time_B: Array) -> Array:
        """Encode a chunk and predict from it, unnoised: for initialisation."""
        z = self.encode(chunk_BTHWC).mode()
        times_BF = jnp.broadcast_to(
            frame_times(self.config, chunk_BTHWC.shape[1])[None], chunk_BTHWC.shape[:2]
        )
        return self.denoise(chunk_BTHWC, time_B, self.expand(z, times_BF))


def merge_cells(x_BFHWC: Array, patch: int) -> Array:
    """Merge patches of cells, `patch` a side, to one each: (B, F, ceil(H / p), ceil(W / p), p p C).

    The last row and column are repeated to fill the last patches.
    """
    fill = [(0, 0), (0, 0), *((0, -side % patch) for side in x_BFHWC.shape[2:4]), (0, 0)]
    return patchify(jnp.pad(x_BFHWC, fill, mode="edge") if any(map(sum, fill)) else x_BFHWC, patch)


def frame_times(config: REGENConfig, frames: int) -> Array:
    """Return the times (frames,) of a chunk's own frames: 0, 1 / k, ..., 1."""
    return jnp.arange(frames, dtype=jnp.float32) / config.ratio


def abstract_variables(config: REGENConfig) -> Params:
    """Return the shapes of a REGEN's variables, without computing anything."""
    side = config.space_factor
    chunk = jax.ShapeDtypeStruct((1, config.chunk_frames, side, side, 3), jnp.float32)
    return jax.eval_shape(
        REGEN(config).init, jax.random.key(0), chunk, jax.ShapeDtypeStruct((1,), jnp.float32)
    )


def count_parameters(config: REGENConfig) -> dict[str, int]:
    """Count the parameters of `encoder`, `expansion` and `decoder`."""
    params = abstract_variables(config)["params"]
    return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}


def decoding_parameters(variables: Params, dtype: jnp.dtype) -> Params:
    """Return a REGEN's variables with those that decoding casts at each call in `dtype`: kernels
    and biases of the expansion and the decoder. The frames are the same.

    Norms keep float32. So does the encoder, whose convolutions sum taps before they are cast.
    """

    def cast(path, leaf):
        return leaf.astype(dtype) if path[-1].key in ("kernel", "bias") else leaf

    network = variables["params"]
    decoding = {name: network[name] for name in ("expansion", "decoder")}
    return {"params": network | jax.tree_util.tree_map_with_path(cast, decoding)}
