"""The golden's narrow I3D as files: a state dict in safetensors, and a converted folder."""

import json
import pathlib

import numpy as np

from xgen_jax.weights.i3d import convert_i3d
from xgen_jax.weights.safetensors import write_safetensors

GOLDENS = pathlib.Path(__file__).parent / "goldens"
GOLDEN = dict(np.load(GOLDENS / "i3d.npz"))
CLASSES = json.loads((GOLDENS / "i3d.json").read_text())["config"]["classes"]


def tensors() -> dict[str, np.ndarray]:
    """Return the reference's state dict."""
    return {n.removeprefix("params/"): x for n, x in GOLDEN.items() if n.startswith("params/")}


def write_source(path: pathlib.Path, held=None, **metadata: str) -> pathlib.Path:
    """Write what `weights.torch_file` would of the reference's file."""
    return write_safetensors(path, held or tensors(), metadata=metadata)


def converted(folder: pathlib.Path) -> pathlib.Path:
    """Write the folder that --i3d takes."""
    source = write_source(folder.with_suffix(".safetensors"))
    convert_i3d(source, str(folder))
    return folder
