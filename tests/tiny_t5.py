"""A random T5 of a few kilobytes in Hugging Face's layout, with a tokenizer trained on a handful of
sentences."""

import io
import json
import pathlib

import numpy as np
import sentencepiece

from xgen_jax.weights.safetensors import write_safetensors

CONFIG = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 80,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-06,
    "feed_forward_proj": "gated-gelu",
}
COLORS, SHAPES, WAYS = (
    ("red", "green", "blue", "yellow"),
    ("circle", "square", "triangle"),
    ("left", "right", "up"),
)
SENTENCES = [
    f"a {color} {shape} moving {way}" for color in COLORS for shape in SHAPES for way in WAYS
]


def spiece(size: int = 30, **changes) -> bytes:
    """Train a SentencePiece model with T5's ids; the same bytes each time."""
    out = io.BytesIO()
    options = {
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=out,
        vocab_size=size,
        hard_vocab_limit=False,
        **options | changes,
    )
    return out.getvalue()


def tensors(seed: int = 0, config=CONFIG) -> dict[str, np.ndarray]:
    """Make a random state dict of an encoder."""
    rng, c = np.random.default_rng(seed), config
    inner = c["num_heads"] * c["d_kv"]

    def weight(*shape):
        return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    out = {"shared.weight": rng.standard_normal((c["vocab_size"], c["d_model"])).astype(np.float32)}
    for layer in range(c["num_layers"]):
        attention, mlp = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        for name in "qkv":
            out[f"{attention}.SelfAttention.{name}.weight"] = weight(inner, c["d_model"])
        out[f"{attention}.SelfAttention.o.weight"] = weight(c["d_model"], inner)
        if not layer or c["model_type"] == "umt5":
            table = weight(c["relative_attention_num_buckets"], c["num_heads"])
            out[f"{attention}.SelfAttention.relative_attention_bias.weight"] = table
        for name in ("wi_0", "wi_1"):
            out[f"{mlp}.DenseReluDense.{name}.weight"] = weight(c["d_ff"], c["d_model"])
        out[f"{mlp}.DenseReluDense.wo.weight"] = weight(c["d_model"], c["d_ff"])
        for part in (attention, mlp):
            out[f"{part}.layer_norm.weight"] = 1 + 0.1 * weight(c["d_model"])
    out["encoder.final_layer_norm.weight"] = 1 + 0.1 * weight(c["d_model"])
    return out


def write(folder: pathlib.Path, seed: int = 0, config=CONFIG, **changes) -> pathlib.Path:
    """Write the folder of such a T5. `changes` replace or add tensors; None leaves one out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spiece.model").write_bytes(spiece())
    held = {**tensors(seed, config), **changes}
    write_safetensors(
        folder / "model.safetensors", {n: x for n, x in held.items() if x is not None}
    )
    return folder
