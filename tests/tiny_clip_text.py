"""The reference's tiny CLIP as a whole folder in Hugging Face's layout: both towers, tokenizer."""

import json
import pathlib

import numpy as np
import tiny_clip

GOLDENS = pathlib.Path(__file__).parent / "goldens"
GOLDEN = dict(np.load(GOLDENS / "clip_text.npz"))
ABOUT = json.loads((GOLDENS / "clip_text.json").read_text())


def tensors() -> dict[str, np.ndarray]:
    """Return the text tower's state dict."""
    return {n.removeprefix("params/"): x for n, x in GOLDEN.items() if n.startswith("params/")}


def config() -> dict:
    """Return the configuration of a whole CLIP with both references' towers."""
    text, vision = ABOUT["config"], dict(tiny_clip.ABOUT["config"])
    projection = vision.pop("projection_dim")
    return {
        "model_type": "clip",
        "projection_dim": projection,
        "text_config": {n: x for n, x in text.items() if n != "projection_dim"},
        "vision_config": vision,
    }


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """Write vocab.json and merges.txt of the reference's merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    units = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges = ABOUT["merges"]
    tokens = [*units, *(f"{unit}</w>" for unit in units), *("".join(m.split()) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def write(folder: pathlib.Path) -> pathlib.Path:
    """Write the folder that --clip takes."""
    tiny_clip.write(folder, config(), **tensors(), logit_scale=np.array(4.6, np.float32))
    return write_tokenizer(folder)
