"""VDiT: xGen-VideoSyn-1's video diffusion transformer (arXiv 2408.12590, section 3.2).

Latents are cut in 1 x p x p patches. A block attends in space within each latent frame, in time at each place (rotary
positions), to the text (cross-attention), and ends with an MLP. Spatial attention and MLP are modulated by one
network of the diffusion time shared by all blocks plus a table of each block, temporal attention by a second one
(adaLN-single, PixArt-alpha, arXiv 2310.00426). Blocks run as one `lax.scan` over stacked parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.attention import CrossAttention, SelfAttention
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.norms import layer_norm
from xgen_jax.nn.positions import sinusoid, sinusoid_2d
from xgen_jax.typing import Array, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTConfig:
    """Sizes of a VDiT.

    Attributes:
      width: model width; a multiple of heads.
      depth: blocks.
      heads: attention heads.
      patch: side of a patch in latent cells.
      text_width: width of the text tokens.
      text_norm: normalise what goes into cross-attention, and its queries and keys; the paper's ancestry does not.
      time_sinusoid: also add sinusoids of the frame index to the tokens, as the paper's introduction has it.
      qk_norm: normalise queries and keys of the self-attentions.
      scan_layers: one scanned block (compiles once) or `depth` separate ones (for debugging).
      remat: `none`, or `full` to recompute each block in the backward pass.
      attention: the implementation, see `xgen_jax.nn.attention`.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    text_width: int = 4096
    mlp_ratio: int = 4
    qk_norm: bool = True
    text_norm: bool = False
    time_sinusoid: bool = False
    scan_layers: bool = True
    remat: str = "full"
    attention: str = "xla"

    def __post_init__(self):
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(f"width {self.width} over {self.heads} heads must give an even head dimension")
        if self.remat not in ("none", "full"):
            raise UserError(f"remat={self.remat!r} is not known; choose 'none' or 'full'")

    def check_latents(self, latent_shape: Shape) -> None:
        """Refuses (t, h, w) that the patches do not tile."""
        _, height, width = latent_shape
        if height % self.patch or width % self.patch:
            raise UserError(f"latents of {height}x{width} do not divide into patches of {self.patch}x{self.patch}")


PRESETS = {
    # The paper's 731M (counted in units of 1024^2) network.
    "XL/2": VDiTConfig(),
    # Minutes on a laptop's CPU.
    "tiny": VDiTConfig(
        width=96, depth=4, heads=4, patch=2, text_width=96, text_norm=True, time_sinusoid=True, remat="none"
    ),
}

NORMAL = nn.initializers.normal(0.02)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Spatial attention, temporal attention, cross-attention, MLP."""

    config: VDiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTSD, t6_B6D, t3_B3D, text_BLD, mask_BL):
        c, (batch, frames, _, width) = self.config, x_BTSD.shape
        table = self.param("scale_shift_table", nn.initializers.normal(width**-0.5), (6, width))
        table_temporal = self.param("scale_shift_table_temporal", nn.initializers.normal(width**-0.5), (3, width))

        def rows(t, table):
            return [m[:, None, None, :] for m in jnp.moveaxis(t + table[None].astype(self.dtype), 1, 0)]

        shift_s, scale_s, gate_s, shift_m, scale_m, gate_m = rows(t6_B6D, table)
        shift_t, scale_t, gate_t = rows(t3_B3D, table_temporal)
        kwargs = {"implementation": c.attention, "dtype": self.dtype}

        h = rearrange(modulate(layer_norm(x_BTSD), shift_s, scale_s), "b t s d -> (b t) s d")
        h = SelfAttention(c.heads, c.qk_norm, name="attention_space", **kwargs)(h)
        x_BTSD = x_BTSD + gate_s * rearrange(h, "(b t) s d -> b t s d", b=batch)

        h = rearrange(modulate(layer_norm(x_BTSD), shift_t, scale_t), "b t s d -> (b s) t d")
        h = SelfAttention(c.heads, c.qk_norm, zero_init=True, name="attention_time", **kwargs)(h, jnp.arange(frames))
        x_BTSD = x_BTSD + gate_t * rearrange(h, "(b s) t d -> b t s d", b=batch)

        h = rearrange(layer_norm(x_BTSD) if c.text_norm else x_BTSD, "b t s d -> b (t s) d")
        h = CrossAttention(c.heads, c.text_norm, True, name="attention_text", **kwargs)(h, text_BLD, mask_BL)
        x_BTSD = x_BTSD + rearrange(h, "b (t s) d -> b t s d", t=frames)

        h = modulate(layer_norm(x_BTSD), shift_m, scale_m)
        h = MLP(c.mlp_ratio * width, dtype=self.dtype, name="mlp")(h)
        return nn.with_logical_constraint(x_BTSD + gate_m * h, ("batch", "time", "space", "width"))


class ScannedBlock(nn.Module):
    """`Block` in the form that `nn.scan` wants."""

    config: VDiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, *context):
        block = nn.remat(Block, prevent_cse=False) if self.config.remat == "full" else Block
        return block(self.config, self.dtype, name="block")(x, *context), None


class VDiT(nn.Module):
    """The network: latents (B, t, h, w, C), time (B,) in 0 .. 1000, text (B, L, Dt), mask (B, L) -> as the latents."""

    config: VDiTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC: Array, time_B: Array, text_BLD: Array, mask_BL: Array) -> Array:
        c = self.config
        c.check_latents(x_BTHWC.shape[1:4])
        height, width, channels = x_BTHWC.shape[2] // c.patch, x_BTHWC.shape[3] // c.patch, x_BTHWC.shape[4]
        xavier = nn.initializers.xavier_uniform()

        def dense(features, init, name):
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        x = rearrange(x_BTHWC, "b t (h p) (w q) c -> b t (h w) (p q c)", p=c.patch, q=c.patch)
        x = dense(c.width, xavier, "x_embedder")(x)
        x = x + sinusoid_2d(height, width, c.width).astype(self.dtype)[None, None]
        if c.time_sinusoid:
            x = x + sinusoid(jnp.arange(x.shape[1]), c.width).astype(self.dtype)[None, :, None]
        x = nn.with_logical_constraint(x, ("batch", "time", "space", "width"))

        t = dense(c.width, xavier, "t_embedder1")(sinusoid(time_B, 256))
        t = dense(c.width, xavier, "t_embedder2")(nn.silu(t))
        t6 = dense(6 * c.width, NORMAL, "t_block")(nn.silu(t)).reshape(-1, 6, c.width)
        t3 = dense(3 * c.width, NORMAL, "t_block_temporal")(nn.silu(t)).reshape(-1, 3, c.width)

        text = dense(c.width, xavier, "y_embedder1")(text_BLD)
        text = dense(c.width, xavier, "y_embedder2")(nn.gelu(text, approximate=True))

        context = (t6, t3, text, mask_BL)
        if c.scan_layers:
            blocks = nn.scan(
                ScannedBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=c.depth,
            )
            x, _ = blocks(c, self.dtype, name="blocks")(x, *context)
        else:
            for layer in range(c.depth):
                x, _ = ScannedBlock(c, self.dtype, name=f"blocks_{layer}")(x, *context)

        table = self.param("scale_shift_table", nn.initializers.normal(c.width**-0.5), (2, c.width)).astype(self.dtype)
        shift, scale = (m[:, None, None, :] for m in jnp.moveaxis(t[:, None] + table[None], 1, 0))
        x = dense(c.patch**2 * channels, nn.initializers.zeros, "final")(modulate(layer_norm(x), shift, scale))
        x = rearrange(x, "b t (h w) (p q c) -> b t (h p) (w q) c", h=height, w=width, p=c.patch, q=c.patch)
        return x.astype(jnp.float32)


def unstack_layers(params, depth: int):
    """Parameters of a scanned VDiT -> those of the same model with `scan_layers=False`."""
    params = dict(params["params"])
    stacked = params.pop("blocks")
    for layer in range(depth):
        params[f"blocks_{layer}"] = jax.tree.map(lambda x, layer=layer: x[layer], stacked)
    return {"params": params}
