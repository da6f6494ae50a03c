"""VDiT from other projects' weights, and back.

- `stdit2`: Open-Sora 1.1's STDiT2 (hpcai-tech/OpenSora-STDiT-v2-stage2 and -stage3), a whole
  network; sizes are read from the tensors, and `opensora_compat=True` is set, since the weights
  were trained with it. `stdit2_tensors` converts back.
- `pixart`: PixArt-alpha (arXiv 2310.00426), an image network for all spatial layers, in its own
  names or those of diffusers' PixArtTransformer2DModel. Layers that it does not have are newly
  initialised: attention in time, which starts as zero (its projection is zero), with its modulation
  and table; frames and frame rate; the scales of QK-norm; and, unless the file has them (that of
  1024 pixels has), height, width and aspect. The paper starts so (section 3.2).
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from xgen_jax.errors import UserError, choose
from xgen_jax.models.vdit import RELEASED_PATCH_PX, VDiT, abstract_inputs, abstract_variables
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.parallel.sharding import path_name
from xgen_jax.typing import Params
from xgen_jax.weights.foreign_config import check_config, positive_integer
from xgen_jax.weights.safetensors import Source, assemble, write_safetensors

# Our layer; its name in STDiT2 and PixArt-alpha; its name, or those of its parts, in diffusers.
NAMES = (
    ("x_embedder", "x_embedder.proj", "pos_embed.proj"),
    ("t_embedder1", "t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1"),
    ("t_embedder2", "t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2"),
    ("size_embedder1", "csize_embedder.mlp.0", "adaln_single.emb.resolution_embedder.linear_1"),
    ("size_embedder2", "csize_embedder.mlp.2", "adaln_single.emb.resolution_embedder.linear_2"),
    ("aspect_embedder1", "ar_embedder.mlp.0", "adaln_single.emb.aspect_ratio_embedder.linear_1"),
    ("aspect_embedder2", "ar_embedder.mlp.2", "adaln_single.emb.aspect_ratio_embedder.linear_2"),
    ("frames_embedder1", "fl_embedder.mlp.0", ""),
    ("frames_embedder2", "fl_embedder.mlp.2", ""),
    ("fps_embedder1", "fps_embedder.mlp.0", ""),
    ("fps_embedder2", "fps_embedder.mlp.2", ""),
    ("t_block", "t_block.1", "adaln_single.linear"),
    ("t_block_temporal", "t_block_temp.1", ""),
    ("y_embedder1", "y_embedder.y_proj.fc1", "caption_projection.linear_1"),
    ("y_embedder2", "y_embedder.y_proj.fc2", "caption_projection.linear_2"),
    ("null_caption", "y_embedder.y_embedding", ""),
    ("scale_shift_table", "final_layer.scale_shift_table", "scale_shift_table"),
    ("final", "final_layer.linear", "proj_out"),
    ("blocks/block/scale_shift_table", "scale_shift_table", "scale_shift_table"),
    ("blocks/block/scale_shift_table_temporal", "scale_shift_table_temporal", ""),
    ("blocks/block/attention_space/qkv", "attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    ("blocks/block/attention_space/q_norm", "attn.q_norm", ""),
    ("blocks/block/attention_space/k_norm", "attn.k_norm", ""),
    ("blocks/block/attention_space/proj", "attn.proj", "attn1.to_out.0"),
    ("blocks/block/attention_time/qkv", "attn_temp.qkv", ""),
    ("blocks/block/attention_time/q_norm", "attn_temp.q_norm", ""),
    ("blocks/block/attention_time/k_norm", "attn_temp.k_norm", ""),
    ("blocks/block/attention_time/proj", "attn_temp.proj", ""),
    ("blocks/block/attention_text/q", "cross_attn.q_linear", "attn2.to_q"),
    ("blocks/block/attention_text/kv", "cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v")),
    ("blocks/block/attention_text/proj", "cross_attn.proj", "attn2.to_out.0"),
    ("blocks/block/mlp/fc1", "mlp.fc1", "ff.net.0.proj"),
    ("blocks/block/mlp/fc2", "mlp.fc2", "ff.net.2"),
)
BLOCKS = {"original": "blocks", "diffusers": "transformer_blocks"}
# Parameters that an image network lacks; the second only in some files. All others must be there.
NEW = re.compile(
    r"(^|/)(t_block_temporal|(frames|fps)_embedder\d|scale_shift_table_temporal|attention_time|[qk]_norm)"
)
OPTIONAL = re.compile(r"(^|/)(size|aspect)_embedder\d|null_caption")
SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}
FREQUENCIES = "rope.freqs"
IGNORED = {"stdit2": (FREQUENCIES,), "pixart": ("pos_embed",)}  # tables that are computed here
INPUT_SIDE_PX = 512  # the public networks' input_sq_size
KINDS = ("stdit2", "pixart")
# Keys of config.json that change nothing: of training and memory; places that are computed for any
# size; and, of diffusers' one class for many networks, what networks of this form do not use.
STDIT2_HARMLESS = (
    *(
        "class_dropout_prob",
        "drop_path",
        "freeze",
        "input_size",
        "no_temporal_pos_emb",
        "use_cache",
    ),
    *(
        "enable_flash_attn",
        "enable_flashattn",
        "enable_layernorm_kernel",
        "enable_sequence_parallelism",
    ),
)
PIXART_HARMLESS = (
    "dropout",
    "norm_num_groups",
    "num_embeds_ada_norm",
    "num_vector_embeds",
    "upcast_attention",
)


class Converted(NamedTuple):
    """A VDiT from foreign weights.

    Attributes:
      config: sizes of the network.
      channels: of the latents that it works on.
      params: variables, NumPy arrays.
      new: our layers that the checkpoint lacks, newly initialised.
    """

    config: VDiTConfig
    channels: int
    params: Params
    new: tuple[str, ...]


def load_vdit(
    kind: str,
    tensors: Mapping[str, np.ndarray],
    config: dict[str, Any] | None = None,
    *,
    origin: str = "",
    qk_norm: bool = True,
    text_tokens: int = 250,
    seed: int = 0,
) -> Converted:
    """Convert a foreign checkpoint to a VDiT.

    Args:
      kind: one of `KINDS`.
      tensors: from `read_safetensors`.
      config: the checkpoint's own config.json, if it has one.
      origin: name of the checkpoint in errors.
      qk_norm: for `pixart`: whether the network normalises queries and keys, which PixArt-alpha
        does not. It changes the learnt attention, but trains more steadily (Open-Sora 1.1 added it
        midway).
      text_tokens: for `pixart`: length of the null caption; PixArt-alpha's 120 tokens are continued
        with the last.
      seed: for `pixart`: of the newly initialised layers.

    Raises:
      UserError: tensors that are missing, extra or mis-shaped, all of them listed; a kind that is
        not known.
    """
    choose("kind", kind, KINDS)
    origin = origin or "the checkpoint"
    style = (
        "diffusers"
        if any(name.startswith("transformer_blocks.") for name in tensors)
        else "original"
    )
    if kind == "stdit2" and not any(".attn_temp." in name for name in tensors):
        raise UserError(
            f"{origin} is not an STDiT2: no tensor's name has attn_temp; PixArt-alpha's are "
            f"--kind=pixart"
        )
    if kind == "pixart" and any(".attn_temp." in name for name in tensors):
        raise UserError(
            f"{origin} is a network of videos: its tensors have attn_temp; try --kind=stdit2"
        )
    model, channels = _sizes(kind, tensors, config or {}, style, origin)
    if kind == "pixart":
        model = dataclasses.replace(model, qk_norm=qk_norm, null_caption_tokens=text_tokens)
    else:
        _check_frequencies(tensors, model, origin)
    abstract = abstract_variables(model, channels)
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    absent = [path for path in leaves if kind == "pixart" and _is_new(path, tensors, style)]
    fresh = _fresh(model, channels, absent, seed)
    sources: dict[str, Source] = {
        path: ((), lambda path=path: fresh[path])
        if path in fresh
        else _source(path, leaf.shape, model, style)
        for path, leaf in leaves.items()
    }
    params = assemble(abstract, sources, tensors, ignored=IGNORED[kind], origin=origin)
    return Converted(
        model, channels, params, tuple(dict.fromkeys(_layer(path)[0] for path in absent))
    )


def stdit2_tensors(config: VDiTConfig, params: Params) -> dict[str, np.ndarray]:
    """Convert our network to the tensors of an STDiT2; `load_vdit` reads them back bit for bit.

    Raises:
      UserError: a network without `opensora_compat`, which STDiT2's code would compute otherwise.
    """
    if not config.opensora_compat or not config.scan_layers or config.mlp_ratio != 4:
        raise UserError(
            "only a network with opensora_compat=True, scan_layers=True and mlp_ratio=4 computes "
            "as STDiT2 does"
        )
    tensors = {FREQUENCIES: _frequencies(config)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layer, suffix = _layer(path_name(path))
        names, leaf = _names(layer, suffix, config.depth, "original"), np.asarray(leaf)
        for name, value in zip(
            names, leaf if layer.startswith("blocks/") else leaf[None], strict=True
        ):
            if layer == "x_embedder" and suffix == "kernel":
                value = rearrange(value, "(p q c) o -> o c 1 p q", p=config.patch, q=config.patch)
            elif suffix == "kernel":
                value = value.T
            tensors[name] = np.ascontiguousarray(value)
    return tensors


def write_stdit2(
    path: str | os.PathLike, config: VDiTConfig, params: Params, *, overwrite: bool = False
) -> pathlib.Path:
    """Write `stdit2_tensors` as a safetensors file.

    Raises:
      UserError: see `stdit2_tensors`; a file that exists and is not to be overwritten.
    """
    return write_safetensors(path, stdit2_tensors(config, params), overwrite=overwrite)


def _layer(path: str) -> tuple[str, str]:
    """Split "params/blocks/block/mlp/fc1/kernel" in ("blocks/block/mlp/fc1", "kernel").

    An array without a layer is its own name, with the suffix "".
    """
    layer, _, last = path.partition("/")[2].rpartition("/")
    return (layer, last) if last in SUFFIXES else (f"{layer}/{last}".lstrip("/"), "")


def _parts(layer: str, style: str) -> tuple[str, ...]:
    """Return the foreign names of the parts of one of our layers; none if the style lacks it."""
    for ours, original, diffusers in NAMES:
        if ours == layer:
            found = original if style == "original" else diffusers
            return (found,) * bool(found) if isinstance(found, str) else found
    raise KeyError(layer)


def _names(layer: str, suffix: str, depth: int, style: str) -> list[str]:
    """Return the tensor names of one of our parameters, by block, and in a block by part."""
    parts = [part + SUFFIXES.get(suffix, "") for part in _parts(layer, style)]
    if not layer.startswith("blocks/"):
        return parts
    return [f"{BLOCKS[style]}.{block}.{part}" for block in range(depth) for part in parts]


def _source(path: str, shape: tuple[int, ...], config: VDiTConfig, style: str) -> Source:
    """Return the source of one of our parameters; see `assemble`."""
    layer, suffix = _layer(path)
    names, stacked = _names(layer, suffix, config.depth, style), layer.startswith("blocks/")
    count = len(_parts(layer, style))

    def one(*parts):
        if layer == "null_caption" and len(parts[0]) != shape[0] and not config.opensora_compat:
            return np.concatenate(
                [parts[0], np.repeat(parts[0][-1:], max(0, shape[0] - len(parts[0])), 0)]
            )[: shape[0]]
        if suffix != "kernel":
            return np.concatenate(parts)
        if layer == "x_embedder":  # an image network's has no time axis
            weight = parts[0].reshape(*parts[0].shape[:2], *parts[0].shape[-2:])
            return rearrange(weight, "o c p q -> (p q c) o")
        return np.concatenate([rearrange(part, "o i -> i o") for part in parts], axis=-1)

    def transform(*tensors):
        values = [one(*tensors[at : at + count]) for at in range(0, len(tensors), count)]
        return np.stack(values) if stacked else values[0]

    return tuple(names), transform


def _is_new(path: str, tensors: Mapping[str, np.ndarray], style: str) -> bool:
    """Return whether an image network's checkpoint lacks one of our parameters, and may."""
    layer, suffix = _layer(path)
    if NEW.search(layer):
        return True
    return bool(OPTIONAL.search(layer)) and not any(
        name in tensors for name in _names(layer, suffix, 1, style)
    )


def _fresh(config: VDiTConfig, channels: int, paths: list[str], seed: int) -> dict[str, np.ndarray]:
    """Initialise the parameters at these paths; no others are computed."""
    if not paths:
        return {}

    def init(key, inputs):
        variables = jax.tree_util.tree_leaves_with_path(VDiT(config).init(key, *inputs))
        return {name: leaf for path, leaf in variables if (name := path_name(path)) in paths}

    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_inputs(config, channels))
    return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(seed), inputs))


def _sizes(
    kind: str, tensors: Mapping[str, np.ndarray], config: dict[str, Any], style: str, origin: str
):
    """Read the configuration from the tensors' sizes, and the channels of the latents."""

    def shape(layer, suffix="kernel"):
        """Return a tensor's shape, or () if it is missing; `assemble` reports it."""
        names = _names(layer, suffix, 1, style)
        return tensors[names[0]].shape if names and names[0] in tensors else ()

    patch = shape("x_embedder")
    if len(patch) not in (4, 5):
        some = ", ".join(sorted(tensors)[:3]) or "no tensors"
        raise UserError(
            f"{origin} is not of --kind={kind}: it has no "
            f"{_names('x_embedder', 'kernel', 1, style)[0]} ({some})"
        )
    width, channels, side = patch[0], patch[1], patch[-1]
    blocks = (re.match(rf"{BLOCKS[style]}\.(\d+)\.", name) for name in tensors)
    depth = 1 + max((int(match[1]) for match in blocks if match), default=0)
    norms = shape("blocks/block/attention_space/q_norm", "scale")
    # PixArt-alpha's tensors do not show the head dimension; all its networks have 72.
    head_dim = (
        norms[0] if norms else 2 * tensors[FREQUENCIES].size if FREQUENCIES in tensors else 72
    )
    heads = config.get("num_attention_heads") or config.get("num_heads") or width // head_dim
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(f"{origin} has width {width}, which cannot be that of {heads} heads")
    caption, text, out = shape("null_caption", ""), shape("y_embedder1"), shape("final")
    hidden = shape("blocks/block/mlp/fc1")
    model = VDiTConfig(
        width=width,
        depth=depth,
        heads=heads,
        patch=side,
        text_width=text[1] if len(text) == 2 else 4096,
        null_caption_tokens=caption[0] if caption else 0,
        mlp_ratio=hidden[0] // width if hidden else 4,
        micro_cond=True,
        learned_variance=not out or out[0] != side**2 * channels,
        position_span=_position_span(kind, config, side, origin),
        qk_norm=any(name.endswith("attn.q_norm.weight") for name in tensors),
        opensora_compat=kind == "stdit2",
    )
    sized = bool(shape("size_embedder1"))
    allowed = (
        _stdit2_values(model, channels)
        if kind == "stdit2"
        else _pixart_values(model, channels, sized)
    )
    used = {"num_heads", "num_attention_heads"}
    used |= (
        {"sample_size", "interpolation_scale"} if trained_size(config, kind) else {"input_sq_size"}
    )
    harmless = STDIT2_HARMLESS if kind == "stdit2" else PIXART_HARMLESS
    check_config(config, origin, allowed=allowed, used=used, harmless=harmless)
    return model, channels


def trained_size(config: dict[str, Any], kind: str) -> bool:
    """Return whether config.json gives the size trained at, by which diffusers scales positions."""
    return kind == "pixart" and config.get("sample_size") is not None


def _position_span(kind: str, config: dict[str, Any], patch: int, origin: str) -> float:
    """Return the number up to which rows and columns count, by config.json; 32 by default."""
    if not trained_size(config, kind):
        return positive_integer(config, "input_sq_size", INPUT_SIDE_PX, origin) / RELEASED_PATCH_PX
    # diffusers: positions of the size that was trained at, in units of 64 latent cells.
    side = positive_integer(config, "sample_size", 64, origin)
    scale = config.get("interpolation_scale") or max(side // 64, 1)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or scale <= 0:
        raise UserError(
            f"the config.json of {origin} has interpolation_scale={scale!r}; it must be above 0"
        )
    return side // patch / scale


def _stdit2_values(model: VDiTConfig, channels: int) -> dict[str, list]:
    """Return the values allowed in the config.json of an STDiT2 with these tensors."""
    return {
        "model_type": ["STDiT2"],
        "in_channels": [channels],
        "patch_size": [(1, model.patch, model.patch)],
        "hidden_size": [model.width],
        "depth": [model.depth],
        "mlp_ratio": [model.mlp_ratio],
        "pred_sigma": [model.learned_variance],
        "caption_channels": [model.text_width],
        "model_max_length": [model.null_caption_tokens],
        "qk_norm": [model.qk_norm],
        # The later way normalises before it rotates.
        "qk_norm_legacy": [True] if model.qk_norm else [True, False],
    }


def _pixart_values(model: VDiTConfig, channels: int, sized: bool) -> dict[str, list]:
    """Return the values allowed in the config.json of a PixArtTransformer2DModel with these
    tensors."""
    out = model.out_channels(channels)
    return {
        "_class_name": ["PixArtTransformer2DModel", "Transformer2DModel"],
        "attention_head_dim": [model.width // model.heads],
        "in_channels": [channels],
        "out_channels": [out, None] if out == channels else [out],
        "num_layers": [model.depth],
        "cross_attention_dim": [model.width],
        "patch_size": [model.patch],
        "caption_channels": [model.text_width],
        "use_additional_conditions": [None, sized],
        "attention_bias": [True],
        "activation_fn": ["gelu-approximate"],
        "norm_type": ["ada_norm_single"],
        "norm_elementwise_affine": [False],
        "norm_eps": [1e-6],
        "only_cross_attention": [False],
        "double_self_attention": [False],
        "attention_type": ["default"],
        "use_linear_projection": [False],
    }


def _frequencies(config: VDiTConfig) -> np.ndarray:
    channels = config.width // config.heads
    return (10_000.0 ** -(np.arange(0, channels, 2) / channels)).astype(np.float32)


def _check_frequencies(tensors: Mapping[str, np.ndarray], config: VDiTConfig, origin: str) -> None:
    """Refuse a network whose positions rotate at other frequencies than ours."""
    found, ours = tensors.get(FREQUENCIES), _frequencies(config)
    if found is not None and (
        found.shape != ours.shape or not np.allclose(found, ours, rtol=1e-5, atol=0)
    ):
        raise UserError(
            f"{origin} turns positions by other frequencies ({FREQUENCIES} {found.shape}) than "
            f"{ours.shape[0]} from 1 down to {ours[-1]:.3g}, those of {config.heads} heads"
        )
