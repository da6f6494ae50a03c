"""VDiT: xGen-VideoSyn-1's video diffusion transformer (arXiv 2408.12590, section 3.2).

Latents are cut into 1 x p x p patches. A block attends in space within each latent frame, in time
at each place (rotary positions), and to the text (cross-attention), and ends with an MLP; or it
attends in space and time at once. Modulation is adaLN-single (PixArt-alpha, arXiv 2310.00426): one
network, shared by all blocks, of the diffusion time and the clip's size modulates spatial attention
and MLP; a second one, of the diffusion time and the clip's length and frame rate, modulates
temporal attention; each block adds a table. Blocks run as one `lax.scan` over stacked parameters.

Frames given as conditions are clean: they are modulated as at time 0.

`opensora_compat=True` computes as the public STDiT2 did (Open-Sora 1.1), with the same parameters.
It differs in three places:
- `nn.attention`: queries and keys are rotated before they are normalised, not after;
- `_patch_scales`: the positions' scale comes from the pixels of the batch's first clip and a
  rounded side of the grid;
- `FinalLayer`: modulation is of the time without the clip's size. Condition frames are modulated
  like noised ones first, and then normalised and modulated again, at time 0 and with the size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.micro_conditions import MicroConditions, SizeEmbedder, TemporalEmbedder
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.nn.attention import CrossAttention, SelfAttention
from xgen_jax.nn.embeddings import (
    NORMAL,
    XAVIER,
    ZEROS,
    CaptionPositions,
    CaptionProjection,
    TimestepEmbedder,
    join_scope,
    patchify,
    unpatchify,
)
from xgen_jax.nn.layout import TOKENS, axis_size, constrain
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.norms import layer_norm
from xgen_jax.nn.positions import sinusoid, sinusoid_2d
from xgen_jax.nn.short_attention import ShortAttention, takes_short
from xgen_jax.nn.stack import Stack
from xgen_jax.typing import Array, Params

RELEASED_PATCH_PX = 16  # a side of the public network's patch: 2 latent cells of 8 pixels


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """Return x * (1 + scale) + shift."""
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
        c, (_, frames, _, width) = self.config, x_BTSD.shape

        def rows(t, name):
            table = self.param(name, nn.initializers.normal(width**-0.5), (t.shape[2], width))
            return [
                m[:, :, None, :]
                for m in jnp.moveaxis(t + table[None, None].astype(self.dtype), 2, 0)
            ]

        shift_s, scale_s, gate_s, shift_m, scale_m, gate_m = rows(t6_BF6D, "scale_shift_table")
        kwargs = {"implementation": c.attention, "dtype": self.dtype}
        self_kwargs = {"qk_norm": c.qk_norm, "rotate_first": c.opensora_compat, **kwargs}

        h = modulate(layer_norm(x_BTSD), shift_s, scale_s)
        if c.attention_layout == "full":
            attention = SelfAttention(
                c.heads, name="attention", dims=TOKENS[:-1], attended=2, **self_kwargs
            )
            x_BTSD = x_BTSD + gate_s * attention(h, positions["all"])
        else:
            # Whole frames on a device; where they cannot be shared out, all frames for some heads.
            by_frames = frames % axis_size("frames") == 0
            dims = ("batch", "frames", None) if by_frames else TOKENS[:-1]
            h = constrain(h, TOKENS)
            attention = SelfAttention(c.heads, name="attention_space", dims=dims, **self_kwargs)
            x_BTSD = x_BTSD + gate_s * constrain(attention(h, positions["space"]), TOKENS)

            shift_t, scale_t, gate_t = rows(t3_BF3D, "scale_shift_table_temporal")
            h = modulate(layer_norm(x_BTSD), shift_t, scale_t)
            x_BTSD = x_BTSD + gate_t * self._in_time(h, positions["time"], self_kwargs)

        x_BTSD = x_BTSD + CrossAttention(
            c.heads, c.text_norm, True, name="attention_text", dims=TOKENS[:-1], **kwargs
        )(layer_norm(x_BTSD) if c.text_norm else x_BTSD, text_BLD, mask_BL)

        h = modulate(layer_norm(x_BTSD), shift_m, scale_m)
        h = MLP(c.mlp_ratio * width, dtype=self.dtype, name="mlp")(h)
        return constrain(x_BTSD + gate_m * h, TOKENS)

    def _in_time(self, x_BTSD: Array, positions: Array, self_kwargs: dict[str, Any]) -> Array:
        """Attend over the frames at each place."""
        (_, frames, _, width), heads = x_BTSD.shape, self.config.heads
        kwargs: dict[str, Any] = {**self_kwargs, "zero_init": True, "name": "attention_time"}
        if takes_short(kwargs["implementation"], frames, width // heads, self.dtype):
            del kwargs["implementation"]
            return ShortAttention(heads, **kwargs)(x_BTSD, positions)
        attention = SelfAttention(heads, dims=("batch", "space", None), **kwargs)
        h = attention(rearrange(x_BTSD, "b t s d -> b s t d"), positions)
        return rearrange(h, "b s t d -> b t s d")


class Modulation(nn.Module):
    """Make `parts` modulation vectors a frame, by SiLU and Dense.

    (B, F, D) -> (B, T or 1, parts, D); see `select_frames`.
    """

    parts: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h_BFD: Array, frame_mask_BT: Array | None) -> Array:
        features = self.parts * h_BFD.shape[-1]
        dense = join_scope(self, nn.Dense(features, dtype=self.dtype, kernel_init=NORMAL))
        m = select_frames(dense(nn.silu(h_BFD)), frame_mask_BT)
        return rearrange(m, "b f (n d) -> b f n d", n=self.parts)


class FinalLayer(nn.Module):
    """Norm and modulation, by `t` plus a table, then Dense to the pixels of a patch.

    (B, T, S, D) -> (B, T, S, features).
    """

    config: VDiTConfig
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BTSD: Array, t_BFD: Array, in_space_BFD: Array, frame_mask_BT: Array | None
    ) -> Array:
        width = x_BTSD.shape[-1]
        init = nn.initializers.normal(width**-0.5)
        table = self.param("scale_shift_table", init, (2, width)).astype(self.dtype)

        def modulated(x_BTSD, m_BFD):
            rows = jnp.moveaxis(m_BFD[:, :, None] + table[None, None], 2, 0)
            shift, scale = (m[:, :, None, :] for m in rows)
            return modulate(layer_norm(x_BTSD), shift, scale)

        if not self.config.opensora_compat:
            x_BTSD = modulated(x_BTSD, select_frames(in_space_BFD, frame_mask_BT))
        else:
            x_BTSD = modulated(x_BTSD, t_BFD[:, :1])
            if frame_mask_BT is not None:
                again = modulated(x_BTSD, in_space_BFD[:, 1:])
                x_BTSD = jnp.where(frame_mask_BT[:, :, None, None], x_BTSD, again)
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=ZEROS, name="final")(x_BTSD)


class VDiT(nn.Module):
    """The transformer: noisy latents, timestep and text to a prediction.

    Attributes:
      config: sizes and variants.
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
        micro_cond: MicroConditions | None = None,
        frame_mask_BT: Array | None = None,
        hidden_states: bool = False,
    ) -> Any:
        """Predict, from noisy latents, what the diffusion process asks for.

        Args:
          x_BTHWC: noisy latents; any height and width.
          time_B: diffusion timestep in 0 .. 1000.
          text_BLD: text tokens; D is `text_width`.
          mask_BL: True where a token counts, at least one a row; None for all.
          micro_cond: the clip's size, length and rate, for a network with `micro_cond`, else None.
          frame_mask_BT: True where a latent frame is noised, False where it is given clean, as a
            condition; None where all are noised.
          hidden_states: also return the tokens after each block, which are then all in memory.

        Returns:
          (B, T, H, W, `out_channels(C)`), float32. With `hidden_states` (that, the tokens
          (depth, B, T, S, `width`) in `dtype`), where S counts patches, row after row.

        Raises:
          UserError: conditions that the network does not take, or lacks; empty latents.
        """
        c, (_, frames, rows, columns, channels) = self.config, x_BTHWC.shape
        _check_inputs(c, x_BTHWC, micro_cond)
        height, width = -(-rows // c.patch), -(-columns // c.patch)  # in patches
        join = functools.partial(join_scope, self)
        self._store_null_caption()

        # Patches and their positions: (B, T, S, D), S = height * width.
        x = _pad(x_BTHWC, height * c.patch - rows, width * c.patch - columns)
        x = rearrange(patchify(x, c.patch), "b t h w d -> b t (h w) d")
        x = nn.Dense(c.width, dtype=self.dtype, kernel_init=XAVIER, name="x_embedder")(x)
        scales = _patch_scales(c, height, width, micro_cond)
        place_SD = sinusoid_2d(height, width, c.width, scales=scales).astype(self.dtype)
        time_TD = sinusoid(jnp.arange(frames), c.width).astype(self.dtype)
        x = _add_positions(c, x, place_SD, time_TD)
        x = constrain(x, TOKENS)

        # Conditions, (B, F, D): F = 2 is [the diffusion time, time 0] where frames are given clean.
        zero = () if frame_mask_BT is None else (jnp.zeros_like(time_B),)
        t_embedder = join(TimestepEmbedder(c.width, dtype=self.dtype, name="t_embedder"))
        t = t_embedder(jnp.stack([time_B, *zero], axis=1))
        in_space = in_time = t
        if micro_cond is not None:
            size = join(SizeEmbedder(c.width, self.dtype))(micro_cond)
            temporal = join(TemporalEmbedder(c.width, self.dtype))(micro_cond)
            in_space, in_time = t + size, t + temporal
            if c.attention_layout == "full":
                in_space = t + size + temporal

        # One modulation for all blocks, of each frame, (B, T or 1, 6 or 3, D): adaLN-single.
        t6 = Modulation(6, self.dtype, name="t_block")(in_space, frame_mask_BT)
        t3 = None
        if c.attention_layout == "factorised":
            t3 = Modulation(3, self.dtype, name="t_block_temporal")(in_time, frame_mask_BT)
        project = join(CaptionProjection(c.width, dtype=self.dtype, name="y_embedder"))
        text = project(text_BLD)  # (B, L, D)
        if c.caption_positions:
            place_TSD = place_SD[None] + time_TD[:, None]
            positioned = CaptionPositions(c.width, self.dtype, name="caption_positions")
            x = constrain(x + positioned(place_TSD, t[:, 0], text_BLD, mask_BL), TOKENS)

        positions = _rotations(c, frames, height, width, scales)
        blocks = Stack(
            Block,
            (c, self.dtype),
            c.depth,
            c.scan_layers,
            c.remat,
            collect=hidden_states,
        )
        x = join(blocks)(x, t6, t3, text, mask_BL, positions)  # (B, T, S, D)
        x, states = x if hidden_states else (x, None)

        features = c.patch**2 * c.out_channels(channels)
        x = join(FinalLayer(c, features, self.dtype))(x, t, in_space, frame_mask_BT)
        x = unpatchify(rearrange(x, "b t (h w) d -> b t h w d", h=height), c.patch)
        x = x[:, :, :rows, :columns].astype(jnp.float32)
        return (x, states) if hidden_states else x

    def _store_null_caption(self) -> None:
        """Make the null caption, in the collection `constants`: no optimiser sees it."""
        c = self.config
        if c.null_caption_tokens and self.is_initializing():
            shape = (c.null_caption_tokens, c.text_width)
            init = nn.initializers.normal(c.text_width**-0.5)
            self.variable("constants", "null_caption", lambda: init(self.make_rng("params"), shape))


def _check_inputs(c: VDiTConfig, x_BTHWC: Array, micro_cond: MicroConditions | None) -> None:
    c.check_latents(x_BTHWC.shape[1:4])
    if c.micro_cond and micro_cond is None:
        raise UserError("a network with micro_cond needs MicroConditions")
    if not c.micro_cond and micro_cond is not None:
        raise UserError("a network without micro_cond takes None for them")


def _pad(x_BTHWC: Array, bottom: int, right: int) -> Array:
    """Pad rows and columns with zeros, so that patches tile the frames."""
    if not (bottom or right):
        return x_BTHWC
    return jnp.pad(x_BTHWC, ((0, 0), (0, 0), (0, bottom), (0, right), (0, 0)))


def select_frames(m_BFD: Array, frame_mask_BT: Array | None) -> Array:
    """Select each frame's conditions by its mask.

    Args:
      m_BFD: at the diffusion time, (B, 1, D), or at [the diffusion time, time 0], (B, 2, D).
      frame_mask_BT: True for a frame at the diffusion time; None where all are, and F = 1.

    Returns:
      (B, T, D), or m_BFD itself, (B, 1, D), for all frames.
    """
    if frame_mask_BT is None:
        return m_BFD
    return jnp.where(frame_mask_BT[:, :, None], m_BFD[:, :1], m_BFD[:, 1:])


def _patch_scales(c: VDiTConfig, height: int, width: int, micro_cond: MicroConditions | None):
    """Return the distance of neighbouring patches in the units of positions, (down, across)."""
    if c.opensora_compat:
        assert micro_cond is not None and c.position_span is not None
        # By the pixels of the batch's first clip and a rounded side of the grid: near, but not,
        # position_span over the whole grid.
        scale = jnp.sqrt(micro_cond.height[0] * micro_cond.width[0]) / (
            RELEASED_PATCH_PX * c.position_span
        )
        side = round(np.sqrt(height * width))
        return side / scale / height, side / scale / width
    if c.position_span is None:
        return 1.0, 1.0
    return c.position_span / height, c.position_span / width


def _add_positions(c: VDiTConfig, x_BTSD: Array, place_SD: Array, time_TD: Array) -> Array:
    """Add the fixed embeddings of place and time that the configuration asks for."""
    if c.positions == "sinusoid_2d":
        x_BTSD = x_BTSD + place_SD[None, None]
    if c.time_sinusoid:
        x_BTSD = x_BTSD + time_TD[None, :, None]
    return x_BTSD


def _rotations(
    c: VDiTConfig, frames: int, height: int, width: int, scales
) -> dict[str, Array | None]:
    """Return the rotary positions, (tokens, axes), of each self-attention; None for none."""
    time_T = jnp.arange(frames, dtype=jnp.float32)
    axes, space_S2 = [jnp.repeat(time_T, height * width)[:, None]], None
    if c.positions == "rope_3d":
        rows, columns = (
            jnp.arange(n, dtype=jnp.float32) * s for n, s in zip((height, width), scales)
        )
        grid = jnp.meshgrid(rows, columns, indexing="ij")
        space_S2 = jnp.stack(grid, axis=-1).reshape(-1, 2)
        axes.append(jnp.tile(space_S2, (frames, 1)))
    if c.attention_layout == "full":
        return {"all": jnp.concatenate(axes, axis=1)}
    return {"space": space_S2, "time": time_T[:, None]}


def null_caption(params: Params) -> Array:
    """Return the stored null caption (L, text_width); no gradient reaches it."""
    return jax.lax.stop_gradient(params["constants"]["null_caption"])


def abstract_inputs(config: VDiTConfig, channels: int = 4) -> tuple:
    """Return the shapes of the smallest inputs of a VDiT on latents of `channels`."""

    def of(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    micro_cond = MicroConditions(*[of(1)] * 5) if config.micro_cond else None
    return (
        of(1, 1, config.patch, config.patch, channels),
        of(1),
        of(1, 1, config.text_width),
        None,
        micro_cond,
    )


def abstract_variables(config: VDiTConfig, channels: int = 4) -> Params:
    """Return the shapes of a VDiT's variables, without computing anything."""
    return jax.eval_shape(VDiT(config).init, jax.random.key(0), *abstract_inputs(config, channels))


def count_parameters(config: VDiTConfig, channels: int = 4) -> int:
    """Count the trainable parameters of a VDiT on latents of `channels`."""
    return sum(
        leaf.size for leaf in jax.tree.leaves(abstract_variables(config, channels)["params"])
    )


def unstack_layers(params: Params, depth: int) -> Params:
    """Turn a scanned VDiT's variables into those of the same model with `scan_layers=False`."""
    others, params = params, dict(params["params"])
    stacked = params.pop("blocks")
    for layer in range(depth):
        params[f"blocks_{layer}"] = jax.tree.map(lambda x, layer=layer: x[layer], stacked)
    return {**others, "params": params}
