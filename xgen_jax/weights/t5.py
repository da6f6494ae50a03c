"""T5 from a local folder in Hugging Face's layout.

    FOLDER/config.json   FOLDER/model.safetensors, or shards with their index   FOLDER/spiece.model

or a pipeline's: FOLDER/text_encoder/ with the first two and FOLDER/tokenizer/spiece.model. A whole
T5 is accepted, its decoder is not read. T5 v1.1 (gated GELU) and UMT5; version 1.0 is another
network.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.files import read_json
from xgen_jax.models.t5 import T5Config, T5Encoder
from xgen_jax.models.t5_tokenizer import T5Tokenizer
from xgen_jax.typing import Params
from xgen_jax.weights.foreign_config import check_config
from xgen_jax.weights.safetensors import iterate_safetensors, sample_safetensors

TOKENIZER = "spiece.model"
# Other tensors of a whole T5, and another name of the embedding, with or without the first.
IGNORED = ("decoder.", "lm_head.")
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
_SAMPLE = 4096  # values of each tensor's beginning, middle and end that go into the fingerprint
_KEYS = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "hidden": "d_ff",
    "depth": "num_layers",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "buckets": "relative_attention_num_buckets",
}
# Keys that change the network, with the values of ours.
_ALLOWED = {
    "model_type": ["t5", "umt5"],
    "feed_forward_proj": ["gated-gelu"],
    "dense_act_fn": ["gelu_new"],
    "is_gated_act": [True],
    "is_decoder": [False],
    "scalable_attention": [True],
    "pruned_heads": [{}],
    "quantization_config": [None],
}
# Keys of the decoder, of training and of generation, and ids that the tokenizer is checked for.
_HARMLESS = (
    *(
        "bos_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "tokenizer_class",
        "vocab_file",
    ),
    *(
        "classifier_dropout",
        "dropout_rate",
        "gradient_checkpointing",
        "initializer_factor",
        "n_positions",
    ),
    *(
        "is_encoder_decoder",
        "num_decoder_layers",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "use_cache",
    ),
    *(
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "return_dict",
        "task_specific_params",
    ),
)

# Place of a tensor: our path, and the part of the array there (one layer, some columns).
Place = tuple[str, tuple]


class T5Folder:
    """A T5 on disk; no weights are read before `load`, and few for the fingerprint.

    Raises:
      UserError: in `__init__`, no such folder; in the other members a folder without configuration,
        weights or tokenizer, weights as pickles, another network, tensors that are missing, extra,
        mis-shaped or not finite.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        if not self.path.is_dir():
            raise UserError(
                f"there is no folder {self.path}; give the T5's, with config.json, weights and "
                f"{TOKENIZER}"
            )

    @functools.cached_property
    def _weights(self) -> pathlib.Path:
        inner = self.path / "text_encoder"
        return inner if not (self.path / "config.json").is_file() and inner.is_dir() else self.path

    @functools.cached_property
    def config(self) -> T5Config:
        """Sizes of the network, read from config.json."""
        return _config(self._weights / "config.json")

    @functools.cached_property
    def tokenizer(self) -> T5Tokenizer:
        """Tokenizer, read from spiece.model."""
        file = self._tokenizer_file()
        tokenizer = T5Tokenizer(file)
        if tokenizer.size > self.config.vocabulary:
            raise UserError(
                f"{file} has {tokenizer.size} tokens, and the network's vocabulary is "
                f"{self.config.vocabulary}: it is the tokenizer of another model"
            )
        return tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the sizes, the tokenizer and a sample of each tensor as bfloat16, 16 hex digits.

        A sample is the first, middle and last 4096 values of a tensor, which any training changes:
        all of T5-XXL would take a minute each time a run starts. The files in which tensors are
        stored, and their dtypes there, do not matter.
        """
        digest = hashlib.sha256(
            json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode()
        )
        digest.update(hashlib.sha256(self._tokenizer_file().read_bytes()).digest())
        samples = {}
        for name, shape, values in sample_safetensors(self._weights, _SAMPLE):
            name = ALIASES.get(name, name)
            if not name.startswith(IGNORED):
                bits = values.astype(jnp.bfloat16).tobytes()
                samples[name] = json.dumps([name, shape, hashlib.sha256(bits).hexdigest()])
        for name in sorted(samples):
            digest.update(samples[name].encode())
        return digest.hexdigest()[:16]

    def load(
        self, dtype=jnp.bfloat16, place: Callable[[str, np.ndarray], Any] | None = None
    ) -> Params:
        """Load the parameters of `T5Encoder` in `dtype`, tensor by tensor: memory holds them and
        one tensor more.

        Args:
          dtype: of the parameters.
          place: (path, array) -> array, e.g. onto a mesh by the path rules; called once a
            parameter, as soon as it is complete. By default they stay on the host.
        """
        abstract = jax.eval_shape(
            T5Encoder(self.config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32)
        )
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        shapes = {
            jax.tree_util.keystr(p, simple=True, separator="/"): leaf.shape for p, leaf in leaves
        }
        places = _places(self.config)
        waiting = {path: sum(other == path for other, _ in places.values()) for path in shapes}
        arrays: dict[str, Any] = {}
        missing, extra, misshaped, broken = dict(places), [], [], []
        for name, tensor in iterate_safetensors(self._weights):
            name = ALIASES.get(name, name)
            if name.startswith(IGNORED) or (name in places and name not in missing):
                continue
            if name not in missing:
                extra.append(f"{name} {tensor.shape}")
                continue
            path, part = missing.pop(name)
            if path not in arrays:
                arrays[path] = np.zeros(shapes[path], dtype)
            value = tensor.T if path.endswith("kernel") else tensor
            if value.shape != arrays[path][part].shape:
                misshaped.append(
                    f"{name} {tensor.shape}: becomes {value.shape}, wanted "
                    f"{arrays[path][part].shape}"
                )
                continue
            if not np.isfinite(tensor.astype(np.float32, copy=False)).all():
                broken.append(name)
            arrays[path][part] = value.astype(dtype)
            waiting[path] -= 1
            if place and not waiting[path]:
                arrays[path] = place(path, arrays[path])
        problems = {
            "missing": list(missing),
            "extra": extra,
            "mis-shaped": misshaped,
            "not finite": broken,
        }
        if any(problems.values()):
            rows = (
                f"{kind}, {len(r)}:" + "".join(f"\n  {x}" for x in r)
                for kind, r in problems.items()
                if r
            )
            raise UserError(
                f"{self._weights} does not fit the T5 of its config.json\n" + "\n".join(rows)
            )
        return tree.unflatten(arrays[path] for path in shapes)

    def _tokenizer_file(self) -> pathlib.Path:
        candidates = [
            self.path,
            self.path / "tokenizer",
            self._weights,
            self.path.parent / "tokenizer",
        ]
        for folder in candidates:
            if (folder / TOKENIZER).is_file():
                return folder / TOKENIZER
        raise UserError(
            f"{self.path} holds no {TOKENIZER}, the tokenizer: fetch it from where the weights "
            f"are from"
        )


def _config(file: pathlib.Path) -> T5Config:
    if not file.is_file():
        raise UserError(f"{file.parent} holds no config.json: it is not the folder of a T5")
    values = read_json(file, "fetch it again")
    kind = values.get("model_type")
    if kind not in ("t5", "umt5"):
        raise UserError(f"{file} describes a {kind!r} model; a text encoder is a 't5' or 'umt5'")
    activation = values.get("feed_forward_proj", "relu")
    if activation != "gated-gelu":
        raise UserError(
            f"{file} describes feed_forward_proj={activation!r}; T5 version 1.1 has 'gated-gelu'"
        )
    absent = [key for key in _KEYS.values() if not isinstance(values.get(key), int)]
    if absent:
        raise UserError(f"{file} lacks {', '.join(absent)}")
    used = {*_KEYS.values(), "relative_attention_max_distance", "layer_norm_epsilon"}
    check_config(values, str(file.parent), allowed=_ALLOWED, used=used, harmless=_HARMLESS)
    return T5Config(
        **{ours: values[theirs] for ours, theirs in _KEYS.items()},
        max_distance=values.get("relative_attention_max_distance", 128),
        epsilon=values.get("layer_norm_epsilon", 1e-6),
        bias_per_block=kind == "umt5",
    )


def _places(config: T5Config) -> dict[str, Place]:
    """Return every tensor's place; PyTorch's weights are (out, in), ours (in, out), with queries,
    keys and values in one array."""
    inner, hidden = config.heads * config.head_dim, config.hidden
    places: dict[str, Place] = {
        "shared.weight": ("params/embedding", ()),
        "encoder.final_layer_norm.weight": ("params/norm_out/scale", ()),
    }
    for layer in range(config.depth):
        attention, mlp = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        for number, name in enumerate("qkv"):
            part = (layer, slice(None), slice(number * inner, (number + 1) * inner))
            places[f"{attention}.SelfAttention.{name}.weight"] = ("params/blocks/qkv/kernel", part)
        for number, name in enumerate(("wi_0", "wi_1")):
            part = (layer, slice(None), slice(number * hidden, (number + 1) * hidden))
            places[f"{mlp}.DenseReluDense.{name}.weight"] = ("params/blocks/fc1/kernel", part)
        places[f"{attention}.SelfAttention.o.weight"] = ("params/blocks/proj/kernel", (layer,))
        places[f"{mlp}.DenseReluDense.wo.weight"] = ("params/blocks/fc2/kernel", (layer,))
        places[f"{attention}.layer_norm.weight"] = ("params/blocks/norm_attention/scale", (layer,))
        places[f"{mlp}.layer_norm.weight"] = ("params/blocks/norm_mlp/scale", (layer,))
        if config.bias_per_block or not layer:
            path = (
                "params/blocks/relative_bias/embedding"
                if config.bias_per_block
                else "params/relative_bias/embedding"
            )
            part = (layer,) if config.bias_per_block else ()
            places[f"{attention}.SelfAttention.relative_attention_bias.weight"] = (path, part)
    return places
