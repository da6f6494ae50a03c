"""VidVAE from other projects' weights.

- `sd-vae`: Stable Diffusion's 2D autoencoder, in the names of diffusers' AutoencoderKL (new or old)
  or of the original checkpoints. Each 3x3 kernel becomes the last of three taps in time, the others
  zero ("tail initialisation", Open-Sora-Plan's report): an image, and every frame of a static
  video, is encoded and decoded as by the 2D model.
- `osp-vae`: Open-Sora-Plan's CausalVAE v1.0.0 and v1.1.0. Widths, depths and the layers that mix no
  frames are read from the tensors; the time levels and the kind of attention from the config.json
  next to them.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from xgen_jax.errors import UserError, choose
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS, VidVAEConfig
from xgen_jax.typing import Params
from xgen_jax.weights.foreign_config import check_config, positive_integer
from xgen_jax.weights.safetensors import Source, assemble

# Ours -> the names of the original (LDM) checkpoints, which Open-Sora-Plan uses too. The decoder
# doubles before a level here and after the one above it there.
LDM_NAMES = (
    (r"^encoder/quant$", lambda m: "quant_conv"),
    (r"^decoder/post_quant$", lambda m: "post_quant_conv"),
    (r"^head/norm$", lambda m: "decoder.norm_out"),
    (r"^head/conv_out$", lambda m: "decoder.conv_out"),
    (r"^(encoder|decoder)/(conv_in|conv_out|norm_out)$", lambda m: f"{m[1]}.{m[2]}"),
    (r"^(encoder|decoder)/mid/block(\d)/(\w+)$", lambda m: f"{m[1]}.mid.block_{m[2]}.{m[3]}"),
    (r"^(encoder|decoder)/mid/norm$", lambda m: f"{m[1]}.mid.attn_1.norm"),
    (r"^(encoder|decoder)/mid/attention/(qkv|proj)$", lambda m: f"{m[1]}.mid.attn_1.{m[2]}"),
    (r"^encoder/level(\d)/block(\d)/(\w+)$", lambda m: f"encoder.down.{m[1]}.block.{m[2]}.{m[3]}"),
    (r"^decoder/level(\d)/block(\d)/(\w+)$", lambda m: f"decoder.up.{m[1]}.block.{m[2]}.{m[3]}"),
    (r"^encoder/level(\d)/down$", lambda m: f"encoder.down.{m[1]}.downsample.conv"),
    (r"^decoder/level(\d)/up$", lambda m: f"decoder.up.{int(m[1]) + 1}.upsample.conv"),
    (r"^encoder/level(\d)/time_conv$", lambda m: f"encoder.down.{m[1]}.time_downsample.conv"),
    (r"^decoder/level(\d)/time_conv$", lambda m: f"decoder.up.{int(m[1]) + 1}.time_upsample.conv"),
    (r"^encoder/level(\d)/time_mix$", lambda m: f"encoder.down.{m[1]}.time_downsample.mix_factor"),
    (
        r"^decoder/level(\d)/time_mix$",
        lambda m: f"decoder.up.{int(m[1]) + 1}.time_upsample.mix_factor",
    ),
)
# The names of the original checkpoints -> those of diffusers; {last} is the lowest level, which it
# counts from.
DIFFUSERS_NAMES = (
    (r"\.down\.(\d)\.block\.(\d)", lambda m, last: f".down_blocks.{m[1]}.resnets.{m[2]}"),
    (r"\.up\.(\d)\.block\.(\d)", lambda m, last: f".up_blocks.{last - int(m[1])}.resnets.{m[2]}"),
    (r"\.down\.(\d)\.downsample", lambda m, last: f".down_blocks.{m[1]}.downsamplers.0"),
    (r"\.up\.(\d)\.upsample", lambda m, last: f".up_blocks.{last - int(m[1])}.upsamplers.0"),
    (r"\.mid\.block_(\d)", lambda m, last: f".mid_block.resnets.{int(m[1]) - 1}"),
    (r"\.mid\.attn_1\.norm$", lambda m, last: ".mid_block.attentions.0.group_norm"),
    (r"\.mid\.attn_1", lambda m, last: ".mid_block.attentions.0"),
    (r"\.norm_out$", lambda m, last: ".conv_norm_out"),
    (r"\.nin_shortcut$", lambda m, last: ".conv_shortcut"),
)
ATTENTION_NAMES = {  # q, k, v, output
    "ldm": ("q", "k", "v", "proj_out"),
    "diffusers": ("to_q", "to_k", "to_v", "to_out.0"),
    "diffusers before 0.17": ("query", "key", "value", "proj_attn"),
}
# Keys of diffusers' AutoencoderKL that change nothing: latents are scaled by statistics that are
# measured here, and tiling or casting a decoder does not change the network.
SD_HARMLESS = (
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
    "force_upcast",
)
# Keys of Open-Sora-Plan's CausalVAEModel that change nothing: training, and the size to which
# attn_resolutions refers.
OSP_HARMLESS = ("dropout", "loss_params", "loss_type", "lr", "resolution")
OSP_ATTENTION = {"AttnBlock3D": "released", "AttnBlock3DFix": "per_frame"}
IGNORED = ("loss.", "model_ema.")  # other tensors of Open-Sora-Plan's training
KINDS = ("sd-vae", "osp-vae")


def load_vidvae(
    kind: str,
    tensors: Mapping[str, np.ndarray],
    config: dict[str, Any] | None = None,
    origin: str = "",
) -> tuple[VidVAEConfig, Params]:
    """Convert a foreign checkpoint to a VidVAE.

    Args:
      kind: one of `KINDS`.
      tensors: from `read_safetensors`.
      config: the checkpoint's own config.json, if it has one.
      origin: name of the checkpoint in errors.

    Returns:
      (VidVAEConfig, its parameters).

    Raises:
      UserError: tensors that are missing, extra or mis-shaped, all of them listed; a kind or a
        configuration that is not known.
    """
    choose("kind", kind, KINDS)
    origin = origin or "the checkpoint"
    style = _style(tensors, origin)
    config = config or {}
    if kind == "sd-vae":
        base = dataclasses.replace(
            PRESETS["paper"],
            norm_groups=positive_integer(config, "norm_num_groups", 32, origin),
            mid_attention=config.get("mid_block_add_attention") is not False,
        )
    else:
        if style != "ldm":
            raise UserError(
                f"{origin} has diffusers' names, which Open-Sora-Plan's weights have not; try "
                f"--kind=sd-vae"
            )
        base = _osp_config(tensors, config)
    model_config = _sizes(base, tensors, style, origin)
    (_check_sd_config if kind == "sd-vae" else _check_osp_config)(
        config, model_config, tensors, origin
    )
    abstract = jax.eval_shape(
        VidVAE(model_config).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 1, 32, 32, 3), jnp.float32),
    )
    sources = {path: _source(path, shape, tensors, style) for path, shape in _leaves(abstract)}
    return model_config, assemble(abstract, sources, tensors, ignored=IGNORED, origin=origin)


def _leaves(tree: Params) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
        for path, leaf in leaves
    ]


def _style(tensors: Mapping[str, np.ndarray], origin: str) -> str:
    """Return the style of the tensors' names."""
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        old = any(".attentions.0.query." in name for name in tensors)
        return "diffusers before 0.17" if old else "diffusers"
    if any(name.startswith("encoder.down.") for name in tensors):
        return "ldm"
    some = ", ".join(sorted(tensors)[:3]) or "no tensors"
    raise UserError(
        f"{origin} is not an autoencoder of this kind: it has no encoder.down.* or "
        f"encoder.down_blocks.* ({some})"
    )


def foreign_name(ours: str, style: str, last: int) -> str:
    """Return the foreign name of one of our layers, "encoder/level0/block0/conv1"."""
    for pattern, name in LDM_NAMES:
        if match := re.match(pattern, ours):
            foreign = re.sub(r"\.shortcut$", ".nin_shortcut", name(match))
            break
    else:
        raise KeyError(ours)
    if style != "ldm":
        for pattern, name in DIFFUSERS_NAMES:
            foreign = re.sub(pattern, lambda m, name=name: name(m, last), foreign)
    return foreign


def _source(
    path: str, shape: tuple[int, ...], tensors: Mapping[str, np.ndarray], style: str
) -> Source:
    """Return the source of one of our parameters; see `assemble`."""
    _, *layer, leaf = path.split("/")
    last = (
        len({m[0] for name in tensors if (m := re.match(r"encoder\.down(_blocks)?\.\d+", name))})
        - 1
    )
    foreign = foreign_name("/".join(layer), style, last)
    if leaf == "mix":
        return foreign, lambda x: x.reshape(())
    if leaf in ("scale", "bias") and "norm" in layer[-1]:
        return f"{foreign}.{'weight' if leaf == 'scale' else 'bias'}", np.asarray
    if layer[-1] in ("qkv", "proj"):
        before, q, k, v, out = foreign.rsplit(".", 1)[0], *ATTENTION_NAMES[style]
        names = [f"{before}.{name}" for name in ((q, k, v) if layer[-1] == "qkv" else (out,))]
    else:
        names = [foreign]
        if layer[-1] in ("quant", "post_quant") and not _tensor(tensors, foreign, "weight")[1]:
            # Later 2D autoencoders, of 16 channels for instance, have no such layer.
            identity = (
                np.eye(*shape, dtype=np.float32)
                if leaf == "kernel"
                else np.zeros(shape, np.float32)
            )
            return (), lambda: identity
    names = tuple(
        _tensor(tensors, name, "weight" if leaf == "kernel" else "bias")[0] for name in names
    )
    if leaf == "bias":
        return names, lambda *parts: np.concatenate(parts)
    return names, lambda *parts: np.concatenate([_kernel(part, shape) for part in parts], axis=-1)


def _tensor(tensors: Mapping[str, np.ndarray], layer: str, kind: str) -> tuple[str, bool]:
    """Return the name of a layer's tensor, and whether it is there."""
    # The tensor of a causal convolution is one level deeper.
    for name in (f"{layer}.{kind}", f"{layer}.conv.{kind}"):
        if name in tensors:
            return name, True
    return f"{layer}.{kind}", False


def _kernel(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert (O, I), (O, I, h, w) or (O, I, t, h, w) to a kernel with our layer's taps; a weight
    without time is the last tap."""
    if len(shape) == 2:
        return rearrange(weight.reshape(weight.shape[:2]), "o i -> i o")
    while weight.ndim < 4:
        weight = weight[..., None]
    if weight.ndim == 4:
        weight = np.pad(weight[:, :, None], ((0, 0), (0, 0), (shape[0] - 1, 0), (0, 0), (0, 0)))
    return rearrange(weight, "o i t h w -> t h w i o")


def _sizes(
    base: VidVAEConfig, tensors: Mapping[str, np.ndarray], style: str, origin: str
) -> VidVAEConfig:
    """Return the configuration with the tensors' widths, depths and latent channels."""
    widths, blocks = [], 0
    while True:
        name = foreign_name(f"encoder/level{len(widths)}/block0/conv1", style, 0)
        name, there = _tensor(tensors, name, "weight")
        if not there:
            break
        widths.append(tensors[name].shape[0])
    while True:
        name = foreign_name(f"encoder/level0/block{blocks}/conv1", style, 0)
        if not _tensor(tensors, name, "weight")[1]:
            break
        blocks += 1
    latent, there = _tensor(tensors, "decoder.conv_in", "weight")
    if len(widths) != len(base.channels) or not blocks or not there or tensors[latent].ndim < 2:
        raise UserError(
            f"{origin} has {len(widths)} levels of {blocks} blocks; wanted {len(base.channels)} "
            f"levels"
        )
    return dataclasses.replace(
        base, channels=tuple(widths), blocks=blocks, latent_channels=tensors[latent].shape[1]
    )


def _osp_config(tensors: Mapping[str, np.ndarray], config: dict[str, Any]) -> VidVAEConfig:
    """Return the variant of Open-Sora-Plan's network that has these tensors."""
    levels = range(4)

    def mixed(side, layer):
        return tuple(f"{side}.{level}.{layer}.mix_factor" in tensors for level in levels)

    def named(key):
        return tuple(bool(name) for name in config[key]) if key in config else None

    down, up = mixed("encoder.down", "time_downsample"), mixed("decoder.up", "time_upsample")
    default = PRESETS["osp-v1.0"]
    reduction = (
        down if any(down) else named("encoder_temporal_downsample") or default.time_reduction
    )
    above = up if any(up) else named("decoder_temporal_upsample")
    flat = [f"encoder.down.{level}.block.0.conv1.weight" in tensors for level in levels]
    layouts = {config.get(f"{side}_attention", "AttnBlock3D") for side in ("encoder", "decoder")}
    if len(layouts) != 1 or not layouts <= OSP_ATTENTION.keys():
        raise UserError(
            f"attention {sorted(layouts)} of the checkpoint is not known; known are "
            f"{', '.join(OSP_ATTENTION)}"
        )
    return dataclasses.replace(
        default,
        time_reduction=reduction,
        time_expansion=default.time_expansion if above is None else (*above[1:], False),
        time_down="convolution" if any(down) else "average_pool",
        time_up_convolution=any(up),
        flat_levels=sum(flat),
        attention_layout=OSP_ATTENTION[layouts.pop()],
    )


def _check_sd_config(
    config: dict[str, Any], model: VidVAEConfig, tensors: Mapping[str, np.ndarray], origin: str
) -> None:
    """Refuse what diffusers' AutoencoderKL may have and ours lacks."""
    levels = len(model.channels)
    allowed = {
        "_class_name": ["AutoencoderKL"],
        "act_fn": ["silu", "swish"],
        "in_channels": [3],
        "out_channels": [3],
        "down_block_types": [("DownEncoderBlock2D",) * levels],
        "up_block_types": [("UpDecoderBlock2D",) * levels],
        "block_out_channels": [model.channels],
        "layers_per_block": [model.blocks],
        "latent_channels": [model.latent_channels],
        "use_quant_conv": [_tensor(tensors, "quant_conv", "weight")[1]],
        "use_post_quant_conv": [_tensor(tensors, "post_quant_conv", "weight")[1]],
        "mid_block_add_attention": [True, False],
    }
    check_config(config, origin, allowed=allowed, used=["norm_num_groups"], harmless=SD_HARMLESS)


def _check_osp_config(
    config: dict[str, Any], model: VidVAEConfig, tensors: Mapping[str, np.ndarray], origin: str
) -> None:
    """Refuse what Open-Sora-Plan's CausalVAEModel may have and ours lacks."""
    levels, width = len(model.channels), model.channels[0]
    blocks = ("ResnetBlock2D",) * model.flat_levels + ("ResnetBlock3D",) * (
        levels - model.flat_levels
    )
    down = "TimeDownsampleRes2x" if model.time_down == "convolution" else "TimeDownsample2x"
    up = "TimeUpsampleRes2x" if model.time_up_convolution else "TimeUpsample2x"
    # There the decoder doubles after the level above, here before the level.
    expansion = (False, *model.expansion[:-1])
    allowed = {
        "_class_name": ["CausalVAEModel"],
        "attn_resolutions": [()],
        "double_z": [True],
        "in_channels": [3],
        "out_channels": [3],
        "hidden_size": [width],
        "hidden_size_mult": [tuple(channels // width for channels in model.channels)],
        "num_res_blocks": [model.blocks],
        "z_channels": [model.latent_channels],
        "embed_dim": [model.latent_channels],
        "use_quant_layer": [_tensor(tensors, "quant_conv", "weight")[1]],
        "encoder_resnet_blocks": [blocks],
        "decoder_resnet_blocks": [("ResnetBlock3D",) * levels],
        "encoder_spatial_downsample": [
            (name,) * (levels - 1) + ("",) for name in ("SpatialDownsample2x", "Downsample")
        ],
        "decoder_spatial_upsample": [("",) + ("SpatialUpsample2x",) * (levels - 1)],
        "encoder_temporal_downsample": [
            tuple(down if there else "" for there in model.time_reduction)
        ],
        "decoder_temporal_upsample": [tuple(up if there else "" for there in expansion)],
    }
    # The tensor of such a layer shows whether it mixes frames.
    layers = [f"{side}_conv_{end}" for side in ("encoder", "decoder") for end in ("in", "out")]
    allowed |= dict.fromkeys([*layers, "q_conv"], ["CausalConv3d", "Conv2d"])
    allowed |= dict.fromkeys(["encoder_mid_resnet", "decoder_mid_resnet"], ["ResnetBlock3D"])
    allowed |= dict.fromkeys(["encoder_nonlinearity", "decoder_nonlinearity"], ["SiLU", "swish"])
    check_config(
        config,
        origin,
        allowed=allowed,
        used=["encoder_attention", "decoder_attention"],
        harmless=OSP_HARMLESS,
    )
