"""CLIP's towers, and LAION's aesthetic predictor on the features of images, from local files.

A tower's folder has Hugging Face's layout, config.json and model.safetensors: a whole CLIP such as
openai/clip-vit-large-patch14, of which one tower is read, or a CLIPVisionModelWithProjection or
CLIPTextModelWithProjection.

The predictor (improved-aesthetic-predictor, for ViT-L/14) is linear layers of 1024, 128, 64, 16 and
1 outputs with dropouts between them and no activation: one linear function of the feature. A file
that holds both networks serves for both.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Callable

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.files import read_json
from xgen_jax.models.clip import CLIPVision, CLIPVisionConfig
from xgen_jax.models.clip_text import CLIPText, CLIPTextConfig
from xgen_jax.typing import Params
from xgen_jax.weights.foreign_config import check_config, positive_integer
from xgen_jax.weights.safetensors import (
    Source,
    assemble,
    iterate_safetensors,
    kernel_from_torch,
)

# The other tower, the temperature of training, a table of 0 .. N - 1, and an aesthetic predictor.
IGNORED = (
    *("text_model.", "text_projection.", "logit_scale"),
    *("vision_model.embeddings.position_ids", "layers."),
)
IGNORED_TEXT = (
    *("vision_model.", "visual_projection.", "logit_scale"),
    *("text_model.embeddings.position_ids", "layers."),
)
TOWER = ("vision_model.", "visual_projection.")  # ignored in a predictor's file
# Our sizes; their keys, and the values of keys that a config.json lacks: the library writes only
# those that differ.
_KEYS = {
    "side": ("image_size", 224),
    "patch": ("patch_size", 32),
    "width": ("hidden_size", 768),
    "hidden": ("intermediate_size", 3072),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "features": ("projection_dim", 512),
}
_TEXT_KEYS = {
    "vocabulary": ("vocab_size", 49408),
    "length": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "hidden": ("intermediate_size", 2048),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8),
    "features": ("projection_dim", 512),
}
# Keys that change the network, with the values of ours.
_ALLOWED = {
    "hidden_act": ["quick_gelu"],
    "num_channels": [3],
    "pruned_heads": [{}],
    "quantization_config": [None],
}
# Keys of training, of text generation and of classification, which the library once wrote into
# every configuration.
_HARMLESS = (
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range"),
    *("add_cross_attention", "cross_attention_hidden_size", "is_decoder", "is_encoder_decoder"),
    *("bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "prefix"),
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
    *("chunk_size_feed_forward", "diversity_penalty", "do_sample", "early_stopping", "max_length"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "label2id"),
    *("min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "problem_type"),
    *("num_return_sequences", "output_attentions", "output_hidden_states", "output_scores"),
    *("remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate"),
    *("task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder", "top_k"),
    *("tie_word_embeddings", "tokenizer_class", "top_p", "torchscript", "typical_p"),
    *("use_bfloat16", "attn_implementation", "_attn_implementation_autoset"),
)
_LAYER = re.compile(r"(?P<prefix>.*?)layers\.(?P<number>\d+)\.(?P<kind>weight|bias)")


def load_clip_vision(path: str | os.PathLike) -> tuple[CLIPVision, Params]:
    """Load a vision tower.

    Args:
      path: the folder.

    Returns:
      The module and its parameters, float32 NumPy arrays: `module.apply(params, images)`.

    Raises:
      UserError: no such folder, no config.json or no safetensors in it, weights as pickles, another
        network; tensors that are missing, extra, mis-shaped or not finite, all of them listed.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; give a CLIP's, with config.json and weights")
    model = CLIPVision(_config(path))
    images = jax.ShapeDtypeStruct((1, model.config.side, model.config.side, 3), np.uint8)
    abstract = jax.eval_shape(model.init, jax.random.key(0), images)
    # Not all at once: the text tower takes a quarter of the memory.
    tensors = {
        name: tensor.astype(np.float32, copy=False)
        for name, tensor in iterate_safetensors(path)
        if not name.startswith(IGNORED)
    }
    return model, assemble(abstract, _sources(model.config), tensors, origin=str(path))


def load_clip_text(path: str | os.PathLike) -> tuple[CLIPText, Params]:
    """Load a text tower, for `models.clip_text.TextEncoder`; its tokenizer lies in the same folder.

    Args, returns and errors are those of `load_clip_vision`.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; give a CLIP's, with config.json and weights")
    sizes, epsilon = _tower_config(path, "text", _TEXT_KEYS)
    model = CLIPText(CLIPTextConfig(**sizes, epsilon=epsilon))
    ids = jax.ShapeDtypeStruct((1, model.config.length), np.int32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), ids)
    tensors = {
        name: tensor.astype(np.float32, copy=False)
        for name, tensor in iterate_safetensors(path)
        if not name.startswith(IGNORED_TEXT)
    }
    tower = "text_model."
    sources: dict[str, Source] = {
        "params/tokens": f"{tower}embeddings.token_embedding.weight",
        "params/positions": f"{tower}embeddings.position_embedding.weight",
        "params/proj/kernel": ("text_projection.weight", kernel_from_torch),
        "params/norm_out/scale": f"{tower}final_layer_norm.weight",
        "params/norm_out/bias": f"{tower}final_layer_norm.bias",
        **_blocks(tower, model.config.depth),
    }
    return model, assemble(abstract, sources, tensors, origin=str(path))


def load_aesthetic_head(path: str | os.PathLike, features: int) -> tuple[np.ndarray, float]:
    """Load an aesthetic predictor as the linear function that it is.

    Args:
      path: a safetensors file with `layers.0.weight`, `layers.0.bias`, `layers.2.weight` and so on,
        perhaps after a prefix such as `model.`: linear layers in the order of their numbers, of
        which the dropouts take some. A CLIP's tensors in the same file are not read.
      features: of the CLIP.

    Returns:
      weights float32 (features,) and bias: `feature @ weights + bias` is the score, about 1 to 10,
      of a feature of length 1.

    Raises:
      UserError: no such file, a pickle, tensors of another network or that are not finite.
    """
    tensors = {
        name: tensor.astype(np.float64)
        for name, tensor in iterate_safetensors(path)
        if not name.startswith(TOWER)
    }
    layers: dict[int, dict[str, np.ndarray]] = {}
    prefixes, others = set(), []
    for name, tensor in tensors.items():
        parts = _LAYER.fullmatch(name)
        if parts is None:
            others.append(name)
        else:
            prefixes.add(parts["prefix"])
            layers.setdefault(int(parts["number"]), {})[parts["kind"]] = tensor
    if others or len(prefixes) != 1:
        raise UserError(
            f"{path} is not an aesthetic predictor, whose tensors are layers.0.weight, "
            f"layers.0.bias, layers.2.weight, ...; it has {', '.join(sorted(tensors)[:8])}"
        )
    broken = sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all())
    if broken:
        raise UserError(f"{path} holds numbers that are not finite, in {', '.join(broken)}")
    numbers = sorted(layers)
    if any(second - first > 2 for first, second in zip(numbers, numbers[1:])):
        raise UserError(
            f"{path} has layers {', '.join(map(str, numbers))}, with room for activations between "
            "them: only predictors without any are read, such as LAION's "
            "sac+logos+ava1-l14-linearMSE with layers 0, 2, 4, 6, 7"
        )
    weights, bias, inputs = np.eye(features), np.zeros(features), features
    for number, layer in sorted(layers.items()):
        weight, shift = (layer.get(kind, np.empty(())) for kind in ("weight", "bias"))
        if weight.shape[1:] != (inputs,) or shift.shape != weight.shape[:1]:
            raise UserError(
                f"{path}: layers.{number} has weight {weight.shape} and bias {shift.shape}; "
                f"wanted (N, {inputs}) and (N,) for a CLIP with {features} features"
            )
        weights, bias, inputs = weights @ weight.T, bias @ weight.T + shift, len(weight)
    if inputs != 1:
        raise UserError(f"{path}: the last layer must have one output, not {inputs}")
    return weights[:, 0].astype(np.float32), float(bias[0])


def _config(folder: pathlib.Path) -> CLIPVisionConfig:
    sizes, epsilon = _tower_config(folder, "vision", _KEYS)
    return CLIPVisionConfig(**sizes, epsilon=epsilon)


def _tower_config(
    folder: pathlib.Path, tower: str, keys: dict[str, tuple[str, int]]
) -> tuple[dict[str, int], float]:
    """Return our sizes of a tower, "vision" or "text", and the epsilon of its norms."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"{folder} holds no config.json: it is no CLIP's folder in Hugging Face's layout"
        )
    values = read_json(file, "fetch it again")
    kind, alone = values.get("model_type"), f"clip_{tower}_model"
    if kind not in ("clip", alone):
        raise UserError(f"{file} describes a {kind!r} model; wanted 'clip' or '{alone}'")
    if kind == "clip":
        names = (f"{tower}_config", f"{tower}_config_dict")
        parts = [values.get(key) or {} for key in names]
        if not all(isinstance(part, dict) for part in parts):
            raise UserError(f"{file}: {names[0]} must be an object")
        # A whole CLIP does not use the projection_dim inside.
        values = {**parts[0], **parts[1], "projection_dim": values.get("projection_dim")}
    used = {*(theirs for theirs, _ in keys.values()), "layer_norm_eps", "model_type"}
    check_config(values, str(folder), allowed=_ALLOWED, used=used, harmless=_HARMLESS)
    sizes = {
        ours: positive_integer(values, theirs, default, str(folder))
        for ours, (theirs, default) in keys.items()
    }
    epsilon = values.get("layer_norm_eps", 1e-5)
    if not isinstance(epsilon, float):
        raise UserError(f"{file}: layer_norm_eps must be a number, not {epsilon!r}")
    return sizes, epsilon


def _sources(config: CLIPVisionConfig) -> dict[str, Source]:
    tower = "vision_model."
    sources: dict[str, Source] = {
        "params/class_token": f"{tower}embeddings.class_embedding",
        "params/positions": f"{tower}embeddings.position_embedding.weight",
        "params/patch/kernel": (f"{tower}embeddings.patch_embedding.weight", kernel_from_torch),
        "params/proj/kernel": ("visual_projection.weight", kernel_from_torch),
    }
    # The misspelt name is the library's.
    for ours, theirs in (("norm_in", "pre_layrnorm"), ("norm_out", "post_layernorm")):
        sources[f"params/{ours}/scale"] = f"{tower}{theirs}.weight"
        sources[f"params/{ours}/bias"] = f"{tower}{theirs}.bias"
    return sources | _blocks(tower, config.depth)


def _blocks(tower: str, depth: int) -> dict[str, Source]:
    """Return the sources of the blocks, which both towers have alike."""
    sources: dict[str, Source] = {}
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for ours, theirs, weight in (
        ("norm_attention", ("layer_norm1",), "scale"),
        ("attention/qkv", qkv, "kernel"),
        ("attention/proj", ("self_attn.out_proj",), "kernel"),
        ("norm_mlp", ("layer_norm2",), "scale"),
        ("mlp/fc1", ("mlp.fc1",), "kernel"),
        ("mlp/fc2", ("mlp.fc2",), "kernel"),
    ):
        for leaf, suffix in ((weight, "weight"), ("bias", "bias")):
            names = tuple(
                f"{tower}encoder.layers.{layer}.{name}.{suffix}"
                for layer, name in itertools.product(range(depth), theirs)
            )
            sources[f"params/blocks/{ours}/{leaf}"] = (names, _stack(len(theirs)))
    return sources


def _stack(parts: int) -> Callable[..., np.ndarray]:
    """Return a transform of all layers' tensors, `parts` a layer, to one array."""

    def stack(*tensors: np.ndarray) -> np.ndarray:
        # PyTorch's weights are (out, in); queries, keys and values are joined along the outputs.
        layers = (tensors[first : first + parts] for first in range(0, len(tensors), parts))
        return np.stack([np.concatenate([x.T for x in layer], axis=-1) for layer in layers])

    return stack
