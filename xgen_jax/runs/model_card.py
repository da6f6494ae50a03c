"""The model card of an exported model: README.md with the hub's header.

It says what the model is, how to load it, what it was trained on and how, and its figures; only
what the run's own files say.
"""

import dataclasses
import functools
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

from xgen_jax.config.build import flat
from xgen_jax.config.keys import shown
from xgen_jax.config.runs import Run, Weights
from xgen_jax.errors import UserError
from xgen_jax.files import read_json
from xgen_jax.runs.folder import package_version

WHAT = {
    "vidvae": "A video autoencoder (VidVAE, arXiv 2408.12590, section 3.1)",
    "regen": "A video autoencoder with a generative decoder (REGEN, arXiv 2503.08665)",
    "vdit": "A text-to-video diffusion transformer (VDiT, arXiv 2408.12590, section 3.2)",
}
TAGS = {"vdit": "text-to-video"}
USE = {
    "vdit": (
        'model = xgen_jax.load("{name}")\n'
        'video = model("a prompt", seed=0)  # uint8 (T, H, W, 3)\n'
        'xgen_jax.write_video("video.mp4", video, model.fps)'
    ),
    "embedder": (
        'embedder, params = xgen_jax.load_embedder("{name}")\n'
        'video, fps = xgen_jax.read_video("clip.mp4")\n'
        "latents = xgen_jax.encode(embedder, params, video[None])"
    ),
    "weights": 'config = {{..., "init_from": "{name}"}}  # of a vdit run that starts from them',
}
COMMAND = {
    "vdit": 'python -m xgen_jax sample --model={name} --prompt="a prompt" --out=video.mp4',
    "embedder": (
        "python -m xgen_jax reconstruct --embedder={name} --video=clip.mp4 --out=both.mp4"
    ),
    "weights": (
        "python -m xgen_jax train --config=vdit/240p --workdir=runs/vdit --config.init_from={name} "
        "--config.embedder=EMBEDDER --config.data.source.path=LATENTS"
    ),
}
LAYOUTS = {
    "autoencoder_kl": "diffusers' AutoencoderKL, which loads the folder for images",
    "stdit2": "Open-Sora 1.1's STDiT2",
}
# Groups of the configuration that the card shows, and keys that say nothing about the weights.
SHOWN = ("model", "text", "loss", "data", "optimizer")
SHOWN_LOOP = ("steps", "ema_decay", "compute_dtype", "accumulate", "seed")
LEFT_OUT = ("data.num_threads", "data.prefetch", "data.prefetch_gb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """What a card is made of.

    Attributes:
      name: of the folder.
      config: of the run.
      published: the same as nested dicts, without paths of this machine.
      data: step, held-out figures and fingerprints of the checkpoint.
      facts: of run.json.
      dtype: of the tensors.
      layouts: of each network's tensors, by the network's folder.
      parameters: of each network, likewise.
      files: of the folder.
      licence: of the weights; None if it is not given.
      figures: of an evaluation, by suite.
      fingerprint: of the network.
    """

    name: str
    config: Run | Weights
    published: dict[str, Any]
    data: dict[str, Any]
    facts: dict[str, Any]
    dtype: str
    layouts: dict[str, str]
    parameters: dict[str, int]
    files: list[str]
    licence: str | None
    figures: dict[str, dict[str, float]]
    fingerprint: str


def card(about: About) -> str:
    """Return the text of a model card."""
    family, run = about.config.family, isinstance(about.config, Run)
    use = family if family in USE and run else "weights" if family in USE else "embedder"
    header = ["library_name: xgen_jax"]
    header += [f"license: {about.licence}"] if about.licence else []
    header += [f"pipeline_tag: {TAGS[family]}"] if family in TAGS else []
    header += ["tags:", "- video", "- jax", f"- {family}"]
    sizes = ", ".join(
        f"{name or family} {count:,} parameters" for name, count in about.parameters.items()
    )
    steps = f"step {about.data['step']:,} of its run" if run else "converted weights"
    sections = [
        "---\n" + "\n".join(header) + "\n---",
        f"# {about.name}",
        f"{WHAT[family]}: {sizes}, {about.dtype}. EMA parameters, {steps}.",
        "## Use",
        '```sh\npip install "xgen_jax[hub]"\n```',
        f"```python\nimport xgen_jax\n\n{USE[use].format(name=about.name)}\n```",
        f"```sh\n{COMMAND[use].format(name=about.name)}\n```",
        f"`{about.name}` is this folder, or its address `hf://OWNER/NAME`.",
        *_frozen_text(about.published),
        "## Figures",
        *_figures(about),
        "## Training",
        *_training(about, run),
        "## Files",
        "\n".join(f"- `{name}`" for name in [*about.files, "README.md"]),
        *_layouts(about.layouts),
        "## Licence",
        about.licence or "Not stated. Whoever exported it can name one with `--licence`.",
        "## Where it is from",
        f"Exported by {version()}. Fingerprint of the network: `{about.fingerprint}`.",
    ]
    return "\n\n".join(sections) + "\n"


def read_figures(paths: str | None) -> dict[str, dict[str, float]]:
    """Read the figures that `launch/evaluate.py` has written.

    Args:
      paths: JSON files, or folders of them, with commas between; None for none.

    Returns:
      Figures by suite, the name of the file.

    Raises:
      UserError: no such file, or none in a folder.
    """
    figures = {}
    for path in (paths or "").split(",") if paths else []:
        given = pathlib.Path(path)
        files = [given]
        if given.is_dir():
            # SUITE/SUITE.json, as the command writes it.
            inside = [*given.glob("*.json"), *given.glob("*/*.json")]
            files = sorted(file for file in inside if file.stem == file.parent.name)
        if not files:
            raise UserError(
                f"--evaluation={path} holds no figures: give the JSON file of "
                "launch/evaluate.py, or its --out"
            )
        for file in files:
            figures[file.stem] = _numbers(read_json(file))
    return figures


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of an evaluation by name; of lists only those by shape."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, bool) or key in ("seed",):
            continue
        if isinstance(value, int | float):
            found[name] = value
        elif isinstance(value, dict):
            found |= _numbers(value, f"{name}.")
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, dict) and isinstance(each.get("shape"), str):
                    found |= _numbers(each, f"{each['shape']} ")
    return found


def _figures(about: About) -> list[str]:
    rows = {}
    for name, value in about.data.get("held_out", {}).items():
        rows["training", name] = value
    for suite, figures in about.figures.items():
        rows |= {(suite, name): value for name, value in figures.items()}
    if not rows:
        return ["None are recorded. `launch/evaluate.py` measures them."]
    lines = ["| Suite | Figure | Value |", "|---|---|---|"]
    lines += [f"| {suite} | {name} | {value:.6g} |" for (suite, name), value in rows.items()]
    return ["\n".join(lines)]


def _training(about: About, run: bool) -> list[str]:
    if not run:
        return [f"Weights of another project, converted from `{about.published['source']}`."]
    groups = {name: about.published[name] for name in SHOWN if name in about.published}
    loop = about.published["loop"]
    groups["loop"] = {name: loop[name] for name in SHOWN_LOOP}
    keys = {key: value for key, value in flat(groups).items() if key not in LEFT_OUT}
    lines = ["| Key | Value |", "|---|---|"]
    lines += [f"| {key} | `{shown(value)}` |" for key, value in keys.items() if value is not None]
    machine = [f"{name}: {about.facts[name]}" for name in ("device", "host") if name in about.facts]
    if "wall_s" in about.facts:
        machine.append(f"{about.facts['wall_s'] / 3600:.2f} h")
    return [*([", ".join(machine) + "."] if machine else []), "\n".join(lines)]


def _layouts(layouts: dict[str, str]) -> list[str]:
    """Return what to say about layouts that another project reads too."""
    return [
        f"The tensors{f' in `{place}`' if place else ''} have the names of {LAYOUTS[layout]}."
        for place, layout in layouts.items()
        if layout in LAYOUTS
    ]


def _frozen_text(values: dict[str, Any]) -> list[str]:
    """Return what to say about a text encoder that is not in the folder."""
    text = values.get("text") or {}
    if "path" not in text:
        return []
    return [
        f"Its text encoder is the T5 `{text['path']}`, which is not in this folder: give its "
        "folder or address as `--text_encoder` (`text_encoder=` in Python)."
    ]


@functools.cache
def version() -> str:
    """Return the library's version, and its commit where it runs from a checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]
    name = f"xgen_jax {package_version('xgen_jax')}"
    if not (root / ".git").exists():
        return name
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):  # no git, or no commit
        return name
    return f"{name}, commit {done.stdout.strip()}"
