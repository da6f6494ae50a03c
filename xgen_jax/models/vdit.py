"""VDiT: xGen-VideoSyn-1's video diffusion transformer (arXiv 2408.12590, section 3.2).

Latents are cut in 1 x p x p patches. A block attends in space within each latent frame, in time at
each place (rotary positions), to the text (cross-attention), and ends with an MLP; or it attends in
space and time at once. Spatial attention and MLP are modulated by one network of the diffusion time
and the clip's size shared by all blocks plus a table of each block, temporal attention by a second
one, of the diffusion time and the clip's length and frame rate (adaLN-single, PixArt-alpha, arXiv
2310.00426). Blocks run as one `lax.scan` over stacked parameters.

Frames given as conditions are clean: they are modulated as at time 0.

`released=True` computes as the public STDiT2 did (Open-Sora 1.1), with the same parameters. It
differs in three places:
- `nn.attention`: queries and keys are rotated before they are normalised, not after;
- `_grid`: the positions' scale comes from the pixels of the batch's first clip and a rounded side
of the grid;
- `_modulated_last`: the last layer sees the time without the clip's size, but for condition frames:
  these it modulates as the noised ones, and then normalises and modulates once more, at time 0 and
  with the size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.vdit_config import ClipConditions, VDiTConfig
from xgen_jax.nn.attention import CrossAttention, SelfAttention
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.norms import layer_norm
from xgen_jax.nn.positions import sinusoid, sinusoid_2d
from xgen_jax.typing import Array, Params

XAVIER, NORMAL, ZEROS = (
    nn.initializers.xavier_uniform(),
    nn.initializers.normal(0.02),
    nn.initializers.zeros,
)
RELEASED_PATCH_PX = (
    16  # pixels a side of a patch of the public network: 8 a latent cell, 2 cells a patch
)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention (in space, then in time, or in both at once), cross-attention, MLP.

    `t6_BF6D` and `t3_BF3D` modulate each frame (F = T) or all alike (F = 1); the latter, and its
    table, serve attention in time and are None without it.
    """

    config: VDiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BTSD, t6_BF6D, t3_BF3D, text_BLD, mask_BL, positions):
        c, (batch, frames, _, width) = self.config, x_BTSD.shape

        def rows(t, name):
            table = self.param(name, nn.initializers.normal(width**-0.5), (t.shape[2], width))
            return [
                m[:, :, None, :]
                for m in jnp.moveaxis(t + table[None, None].astype(self.dtype), 2, 0)
            ]

        shift_s, scale_s, gate_s, shift_m, scale_m, gate_m = rows(t6_BF6D, "scale_shift_table")
        kwargs = {"implementation": c.attention, "dtype": self.dtype}
        self_kwargs = {"qk_norm": c.qk_norm, "rotate_first": c.released, **kwargs}

        h = modulate(layer_norm(x_BTSD), shift_s, scale_s)
        if c.attention_layout == "full":
            h = rearrange(h, "b t s d -> b (t s) d")
            h = SelfAttention(c.heads, name="attention", **self_kwargs)(h, positions["all"])
            x_BTSD = x_BTSD + gate_s * rearrange(h, "b (t s) d -> b t s d", t=frames)
        else:
            h = rearrange(h, "b t s d -> (b t) s d")
            h = SelfAttention(c.heads, name="attention_space", **self_kwargs)(h, positions["space"])
            x_BTSD = x_BTSD + gate_s * rearrange(h, "(b t) s d -> b t s d", b=batch)

            shift_t, scale_t, gate_t = rows(t3_BF3D, "scale_shift_table_temporal")
            h = rearrange(modulate(layer_norm(x_BTSD), shift_t, scale_t), "b t s d -> (b s) t d")
            h = SelfAttention(c.heads, zero_init=True, name="attention_time", **self_kwargs)(
                h, positions["time"]
            )
            x_BTSD = x_BTSD + gate_t * rearrange(h, "(b s) t d -> b t s d", b=batch)

        h = rearrange(layer_norm(x_BTSD) if c.text_norm else x_BTSD, "b t s d -> b (t s) d")
        h = CrossAttention(c.heads, c.text_norm, True, name="attention_text", **kwargs)(
            h, text_BLD, mask_BL
        )
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
    """The network.

    Attributes:
      config: its sizes and variants.
      dtype: to compute in; parameters are float32.
    """

    config: VDiTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTHWC: Array,
        time_B: Array,
        text_BLD: Array,
        mask_BL: Array | None = None,
        clip: ClipConditions | None = None,
        noised_BT: Array | None = None,
    ) -> Array:
        """One prediction.

        Args:
          x_BTHWC: noisy latents; any height and width.
          time_B: diffusion time in 0..1000.
          text_BLD: text tokens; D is `text_width`.
          mask_BL: True where a token counts, at least one a row; None for all.
          clip: what the clip is, for a network with `clip_conditions`; None for one without.
          noised_BT: False where a latent frame is given clean, as a condition; None where all are
          noised.

        Returns:
          (B, T, H, W, `out_channels(C)`), float32.

        Raises:
          UserError: conditions that the network does not take, or lacks; latents with nothing in
          them.
        """
        c = self.config
        c.check_latents(x_BTHWC.shape[1:4])
        if c.clip_conditions != (clip is not None):
            raise UserError(
                "a network with clip_conditions needs ClipConditions"
                if c.clip_conditions
                else "a network without clip_conditions takes None for them"
            )
        _, frames, rows, columns, channels = x_BTHWC.shape
        height, width = -(-rows // c.patch), -(-columns // c.patch)

        def dense(features, init, name):
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        def embed(scalar, features, name, init=XAVIER, last_init=XAVIER):
            h = dense(features, init, f"{name}1")(sinusoid(scalar, 256))
            return dense(features, last_init, f"{name}2")(nn.silu(h))

        if c.null_caption_tokens and self.is_initializing():
            shape = (c.null_caption_tokens, c.text_width)
            init = nn.initializers.normal(c.text_width**-0.5)
            self.variable("constants", "null_caption", lambda: init(self.make_rng("params"), shape))

        bottom, right = height * c.patch - rows, width * c.patch - columns
        if bottom or right:
            x_BTHWC = jnp.pad(x_BTHWC, ((0, 0), (0, 0), (0, bottom), (0, right), (0, 0)))
        x = rearrange(x_BTHWC, "b t (h p) (w q) c -> b t (h w) (p q c)", p=c.patch, q=c.patch)
        x = dense(c.width, XAVIER, "x_embedder")(x)
        scales = _grid(c, height, width, clip)
        if c.positions == "sinusoid_2d":
            x = (
                x
                + sinusoid_2d(height, width, c.width, scales=scales).astype(self.dtype)[None, None]
            )
        if c.time_sinusoid:
            x = x + sinusoid(jnp.arange(frames), c.width).astype(self.dtype)[None, :, None]
        x = nn.with_logical_constraint(x, ("batch", "time", "space", "width"))

        # Of the time, and, where condition frames are given, of time 0 beside it.
        times_BF = (
            time_B[:, None]
            if noised_BT is None
            else jnp.stack([time_B, jnp.zeros_like(time_B)], axis=1)
        )
        t = embed(times_BF, c.width, "t_embedder")
        in_space = in_time = t
        if clip is not None:
            third = c.width // 3
            if c.width % 3:  # the aspect takes the rest; sides of a round number can be sharded
                third -= third % min(16, third)
            sides = jnp.stack([clip.height, clip.width], axis=1)
            sides = rearrange(
                embed(sides, third, "size_embedder", NORMAL, ZEROS), "b n d -> b (n d)"
            )
            aspect = embed(clip.aspect, c.width - 2 * third, "aspect_embedder", NORMAL, ZEROS)
            size = jnp.concatenate([sides, aspect], axis=-1)[:, None]
            pace = embed(clip.frames, c.width, "frames_embedder", NORMAL, ZEROS)
            pace = (pace + embed(clip.fps, c.width, "fps_embedder", NORMAL, ZEROS))[:, None]
            in_space, in_time = t + size, t + pace
            if c.attention_layout == "full":
                in_space = t + size + pace

        def modulation(h, parts, name):
            m = _per_frame(dense(parts * c.width, NORMAL, name)(nn.silu(h)), noised_BT)
            return rearrange(m, "b f (n d) -> b f n d", n=parts)

        t6 = modulation(in_space, 6, "t_block")
        t3 = (
            modulation(in_time, 3, "t_block_temporal")
            if c.attention_layout == "factorised"
            else None
        )

        text = dense(c.width, XAVIER, "y_embedder1")(text_BLD)
        text = dense(c.width, XAVIER, "y_embedder2")(nn.gelu(text, approximate=True))

        context = (t6, t3, text, mask_BL, _rotations(c, frames, height, width, scales))
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

        table = self.param(
            "scale_shift_table", nn.initializers.normal(c.width**-0.5), (2, c.width)
        ).astype(self.dtype)
        x = _modulated_last(c, x, t, in_space, table, noised_BT)
        x = dense(c.patch**2 * c.out_channels(channels), ZEROS, "final")(x)
        x = rearrange(
            x, "b t (h w) (p q c) -> b t (h p) (w q) c", h=height, w=width, p=c.patch, q=c.patch
        )
        return x[:, :, :rows, :columns].astype(jnp.float32)


def _per_frame(m_BFD: Array, noised_BT: Array | None) -> Array:
    """Modulation at the time, (B, 1, D), or [time, 0], (B, 2, D) -> of each frame, or of all
    alike."""
    return (
        m_BFD if noised_BT is None else jnp.where(noised_BT[:, :, None], m_BFD[:, :1], m_BFD[:, 1:])
    )


def _modulated_last(c: VDiTConfig, x_BTSD, t_BFD, in_space_BFD, table, noised_BT):
    """Normalised and modulated for the last layer."""

    def modulated(x_BTSD, m_BFD):
        shift, scale = (
            m[:, :, None, :] for m in jnp.moveaxis(m_BFD[:, :, None] + table[None, None], 2, 0)
        )
        return modulate(layer_norm(x_BTSD), shift, scale)

    if not c.released:
        return modulated(x_BTSD, _per_frame(in_space_BFD, noised_BT))
    x_BTSD = modulated(x_BTSD, t_BFD[:, :1])
    if noised_BT is None:
        return x_BTSD
    return jnp.where(noised_BT[:, :, None, None], x_BTSD, modulated(x_BTSD, in_space_BFD[:, 1:]))


def _grid(c: VDiTConfig, height: int, width: int, clip: ClipConditions | None):
    """What one patch counts for, down and across."""
    if c.released:
        # Per pixels of the first clip, and with a rounded side: close to, but not, position_span
        # over the whole grid.
        scale = jnp.sqrt(clip.height[0] * clip.width[0]) / (RELEASED_PATCH_PX * c.position_span)
        side = round(np.sqrt(height * width))
        return side / scale / height, side / scale / width
    if c.position_span is None:
        return 1.0, 1.0
    return c.position_span / height, c.position_span / width


def _rotations(
    c: VDiTConfig, frames: int, height: int, width: int, scales
) -> dict[str, Array | None]:
    """The positions, (tokens, axes), by which each self-attention turns its queries and keys; None
    for no turning."""
    time = jnp.arange(frames, dtype=jnp.float32)
    if c.positions == "rope_3d":
        rows, columns = (
            jnp.arange(n, dtype=jnp.float32) * s for n, s in zip((height, width), scales)
        )
        space = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        of_each = [jnp.repeat(time, height * width)[:, None], jnp.tile(space, (frames, 1))]
    else:
        space, of_each = None, [jnp.repeat(time, height * width)[:, None]]
    if c.attention_layout == "full":
        return {"all": jnp.concatenate(of_each, axis=1)}
    return {"space": space, "time": time[:, None]}


def null_caption(params: Params) -> Array:
    """The stored null caption (L, text_width) of a VDiT's variables; no gradient reaches it."""
    return jax.lax.stop_gradient(params["constants"]["null_caption"])


def abstract_inputs(config: VDiTConfig, channels: int = 4) -> tuple:
    """Shapes of the smallest inputs of a VDiT on latents of so many channels."""

    def of(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    clip = ClipConditions(*[of(1)] * 5) if config.clip_conditions else None
    return (
        of(1, 1, config.patch, config.patch, channels),
        of(1),
        of(1, 1, config.text_width),
        None,
        clip,
    )


def abstract_variables(config: VDiTConfig, channels: int = 4) -> Params:
    """Shapes of a VDiT's variables: nothing is computed."""
    return jax.eval_shape(VDiT(config).init, jax.random.key(0), *abstract_inputs(config, channels))


def count_parameters(config: VDiTConfig, channels: int = 4) -> int:
    """Trainable parameters of a VDiT on latents of so many channels."""
    return sum(
        leaf.size for leaf in jax.tree.leaves(abstract_variables(config, channels)["params"])
    )


def unstack_layers(params: Params, depth: int) -> Params:
    """Variables of a scanned VDiT -> those of the same model with `scan_layers=False`."""
    others, params = params, dict(params["params"])
    stacked = params.pop("blocks")
    for layer in range(depth):
        params[f"blocks_{layer}"] = jax.tree.map(lambda x, layer=layer: x[layer], stacked)
    return {**others, "params": params}
