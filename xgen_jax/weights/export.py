"""Our networks in other projects' layouts, for `runs.export`: tensors, and their config.json.

A layout is for a network that the other project computes as we do, and what is written is read back
here bit for bit; there is none for any other network.

- `autoencoder_kl`: diffusers' AutoencoderKL, for a VidVAE whose kernels see one frame, such as
  Stable Diffusion's inflated one.
- `stdit2`: Open-Sora 1.1's STDiT2, for a VDiT with `opensora_compat`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange

from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.vdit import RELEASED_PATCH_PX
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.sharding import path_name
from xgen_jax.typing import Params
from xgen_jax.weights import vdit, vidvae


class Layout(NamedTuple):
    """A network in another project's layout.

    Attributes:
      name: of the layout.
      stem: of the file of tensors.
      tensors: by their names there.
      config: of config.json.
    """

    name: str
    stem: str
    tensors: dict[str, np.ndarray]
    config: dict[str, Any]


def foreign_layout(model: Any, params: Params, statistics: Mapping[str, Any]) -> Layout | None:
    """Return a network in the layout of another project, or None if no other project has it.

    Args:
      model: its configuration.
      params: its parameters, NumPy arrays.
      statistics: of an embedder's latents, for the keys that diffusers has for them.
    """
    for make, read in _LAYOUTS.get(type(model), ()):
        try:
            layout = make(model, params, statistics)
            same = fingerprint(*read(layout)) == fingerprint(model, params)
        except (UserError, KeyError, ValueError):  # a layer or a size that the other lacks
            continue
        if same:
            return layout
    return None


def _autoencoder_kl(model: VidVAEConfig, params: Params, statistics: Mapping[str, Any]) -> Layout:
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        _, *layer, last = path_name(path).split("/")
        foreign = vidvae.foreign_name("/".join(layer), "diffusers", len(model.channels) - 1)
        leaf, kind = np.asarray(leaf), "bias" if last == "bias" else "weight"
        if layer[-1] in ("qkv", "proj"):
            before, *names = foreign.rsplit(".", 1)[0], *vidvae.ATTENTION_NAMES["diffusers"]
            names = names[:3] if layer[-1] == "qkv" else names[3:]
            for name, part in zip(names, np.split(leaf, len(names), axis=-1), strict=True):
                tensors[f"{before}.{name}.{kind}"] = part.T
            continue
        if last == "kernel":
            leaf = _image_kernel(leaf)
        tensors[f"{foreign}.{kind}"] = leaf
    levels = len(model.channels)
    config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(model.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": model.latent_channels,
        "layers_per_block": model.blocks,
        "mid_block_add_attention": model.mid_attention,
        "norm_num_groups": model.norm_groups,
        "out_channels": 3,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
    if statistics:
        config["latents_mean"], config["latents_std"] = statistics["mean"], statistics["std"]
    return Layout("autoencoder_kl", "diffusion_pytorch_model", tensors, config)


def _image_kernel(kernel: np.ndarray) -> np.ndarray:
    """Convert our kernel of a convolution to a 2D one's weight.

    Raises:
      ValueError: it mixes frames.
    """
    if kernel.ndim == 2:
        return kernel.T[..., None, None]
    *taps, last = kernel
    if any(np.any(tap) for tap in taps):
        raise ValueError("a kernel that mixes frames")
    return rearrange(last, "h w i o -> o i h w")


def _stdit2(model: VDiTConfig, params: Params, statistics: Mapping[str, Any]) -> Layout:
    del statistics  # of an embedder
    tensors = vdit.stdit2_tensors(model, params)
    patch, span = model.patch, model.position_span
    if span is None:
        raise ValueError("positions that do not depend on the size")
    config = {
        "model_type": "STDiT2",
        "caption_channels": model.text_width,
        "depth": model.depth,
        "hidden_size": model.width,
        "in_channels": tensors["x_embedder.proj.weight"].shape[1],
        "input_sq_size": int(span * RELEASED_PATCH_PX),
        "mlp_ratio": model.mlp_ratio,
        "model_max_length": model.null_caption_tokens,
        "num_heads": model.heads,
        "patch_size": [1, patch, patch],
        "pred_sigma": model.learned_variance,
        "qk_norm": model.qk_norm,
        "qk_norm_legacy": True,
    }
    return Layout("stdit2", "model", tensors, config)


def _read_autoencoder_kl(layout: Layout) -> tuple[VidVAEConfig, Params]:
    return vidvae.load_vidvae("sd-vae", layout.tensors, layout.config)


def _read_stdit2(layout: Layout) -> tuple[VDiTConfig, Params]:
    read = vdit.load_vdit("stdit2", layout.tensors, layout.config)
    return read.config, read.params


_LAYOUTS: dict[type, tuple[tuple[Callable[..., Layout], Callable[..., Any]], ...]] = {
    VidVAEConfig: ((_autoencoder_kl, _read_autoencoder_kl),),
    VDiTConfig: ((_stdit2, _read_stdit2),),
}
