"""The reference's tiny CLIP vision tower as a folder in Hugging Face's layout, and a random
aesthetic predictor for it."""

import json
import pathlib

import numpy as np

from xgen_jax.weights.safetensors import write_safetensors

GOLDENS = pathlib.Path(__file__).parent / "goldens"
GOLDEN = dict(np.load(GOLDENS / "clip.npz"))
ABOUT = json.loads((GOLDENS / "clip.json").read_text())
FEATURES = ABOUT["config"]["projection_dim"]


def tensors() -> dict[str, np.ndarray]:
    """Return the reference's state dict."""
    return {n.removeprefix("params/"): x for n, x in GOLDEN.items() if n.startswith("params/")}


def write(folder: pathlib.Path, config=ABOUT["config"], **changes) -> pathlib.Path:
    """Write the folder. `changes` replace or add tensors; None leaves one out."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    held = {**tensors(), **changes}
    write_safetensors(
        folder / "model.safetensors", {n: x for n, x in held.items() if x is not None}
    )
    return folder


def head(seed: int = 0, widths=(FEATURES, 12, 8, 6, 4, 1)) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a random predictor's layers: weights (out, in) and biases (out,)."""
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((m, n), np.float32), rng.standard_normal(m, np.float32))
        for n, m in zip(widths, widths[1:])
    ]


def head_tensors(layers, prefix: str = "", numbers=(0, 2, 4, 6, 7)) -> dict[str, np.ndarray]:
    """Name the layers as LAION's file does: dropouts take numbers 1, 3 and 5."""
    return {
        f"{prefix}layers.{number}.{kind}": value
        for number, layer in zip(numbers, layers)
        for kind, value in zip(("weight", "bias"), layer)
    }
