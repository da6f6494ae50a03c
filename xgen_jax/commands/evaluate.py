"""Evaluations of runs, from folders to folders: `launch/evaluate.py`."""

import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.synthetic import SyntheticSource, held_out_prompts
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.captions import evaluate_captions
from xgen_jax.evaluation.perceptual import load_lpips_distance
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction, side_by_side
from xgen_jax.evaluation.reconstruction_table import expand_shapes, table
from xgen_jax.files import write_json, write_text
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Video

SHOWN = 64  # videos saved with the figures


def require(name: str, value: Any) -> Any:
    """Return a flag's value; UserError if it was not given."""
    if value is None:
        raise UserError(f"give --{name}")
    return value


def reconstruction_suite(
    *,
    embedder: str | None,
    out: str | None,
    data: str | None = None,
    count: int = 64,
    seed: int = 0,
    shapes: Sequence[str] | None = None,
    lpips: Sequence[str] | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Score reconstructions of clips; write reconstruction.json, .md and SHAPE/NNN.mp4 into
    OUT/reconstruction.

    Args:
      embedder: run folder of a VidVAE or a REGEN.
      out: folder for the results.
      data: folder of videos; without it held-out clips of the moving-shapes dataset.
      count: clips a shape; of a folder at most as many as there are.
      seed: of the synthetic clips or the crops.
      shapes: of the clips, "FRAMESxHEIGHTxWIDTH" each, or "paper" for the paper's three; by default
        the shape trained on.
      lpips: safetensors files of LPIPS (see `weights.lpips`); without them it is left out.
      steps: see `load_reconstructor`.

    Returns:
      The means by shape, and the paths of the JSON and the table.

    Raises:
      UserError: missing arguments, a wrong shape, weights or videos that cannot be read.
    """
    folder = _results(require("out", out), "reconstruction")
    run = RunFolder(require("embedder", embedder))
    wanted = expand_shapes(shapes) if shapes else run.shapes("shapes")[:1]
    distance = load_lpips_distance(lpips) if lpips else None
    if data is None:
        # Another seed than any run trains on, and combinations that none has seen.
        source = SyntheticSource(seed=10_000 + seed, split="held_out", num_clips=count)
    else:
        source = VideoFolderSource(data, require_captions=False)
        count = min(count, len(source))
    reconstruct = load_reconstructor(embedder, steps=steps)
    entries, conventions = [], {}
    for shape in wanted:
        name = "x".join(map(str, shape))
        clips = _clips(source, count, seed, shape)
        result = evaluate_reconstruction(
            reconstruct, clips, _Progress(_results(folder, name), count), lpips=distance
        )
        conventions = result.pop("conventions")
        entries.append({"shape": name, **result})
    text = table(entries)
    print(text, file=sys.stderr)
    facts = {
        "source": source.name,
        "embedder": str(embedder),
        "seed": seed,
        **reconstruct.embedder.settings,
    }
    write_text(folder / "reconstruction.md", text)
    write_json(
        folder / "reconstruction.json", {"shapes": entries, "conventions": conventions, **facts}
    )
    return {
        "suite": "reconstruction",
        "shapes": {
            entry["shape"]: {
                "clips": entry["clips"],
                **{key: round(x, 5) for key, x in entry["mean"].items()},
            }
            for entry in entries
        },
        "file": str(folder / "reconstruction.json"),
        "table": str(folder / "reconstruction.md"),
    }


def _clips(
    source: Source, count: int, seed: int, shape: tuple[int, int, int]
) -> Iterator[tuple[str, Video]]:
    """Yield names and clips: a file's path, so that the worst can be looked at, and the caption."""
    for index in range(count):
        clip = source.read(index, np.random.default_rng((seed, index)), *shape)
        yield (
            ": ".join(part for part in (source.where(index), clip["caption"]) if part),
            clip["video"],
        )


class _Progress:
    """A visitor of each clip that saves the first ones as videos and prints progress."""

    def __init__(self, folder: pathlib.Path, count: int):
        self.folder, self.count, self.done = folder, count, 0

    def __call__(self, row: dict[str, Any], original: Video, reconstruction: Video) -> None:
        if self.done < SHOWN:
            file = self.folder / f"{self.done:03d}.mp4"
            write_video(file, side_by_side(original, reconstruction))
            row["file"] = f"{self.folder.name}/{file.name}"
        self.done += 1
        print(
            f"{self.folder.name} {self.done}/{self.count}  {row['psnr_db']:.2f} dB  {row['name']}",
            file=sys.stderr,
        )


def captions_suite(
    *,
    model: str | None,
    out: str | None,
    count: int = 64,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> dict[str, Any]:
    """Generate videos of held-out prompts and verify them, see `evaluation.captions`.

    Writes OUT/captions/{captions.json, NNN.mp4}.

    Args:
      model: run folder of a VDiT.
      out: folder for the results.
      count: number of prompts.
      seed: of the prompts and the noise.
      steps, guidance_scale: the run's own by default.

    Returns:
      The accuracy by attribute, and the path of the JSON.

    Raises:
      UserError: missing arguments; whatever loading and sampling refuse.
    """
    folder = _results(require("out", out), "captions")
    loaded = load_text_to_video(require("model", model))
    started = time.monotonic()

    def generate(prompts: list[str], seed: int) -> list[Video]:
        def progress(done, total):
            print(f"{done}/{total} videos", file=sys.stderr)

        return list(
            loaded(prompts, seed, steps=steps, guidance_scale=guidance_scale, progress=progress)
        )

    report = evaluate_captions(generate, prompts=held_out_prompts(count, seed), seed=seed)
    for number, (sample, video) in enumerate(zip(report.scores["samples"], report.videos)):
        if number < SHOWN:
            sample["file"] = f"{number:03d}.mp4"
            write_video(folder / sample["file"], video, loaded.fps)
    settings = {
        "steps": steps or loaded.config.sample_steps,
        "guidance_scale": loaded.config.guidance_scale
        if guidance_scale is None
        else guidance_scale,
        "sampler": loaded.config.sampler,
        "seed": seed,
    }
    write_json(
        folder / "captions.json", {**report.scores, "settings": settings, "model": str(model)}
    )
    return {
        "suite": "captions",
        "prompts": report.scores["prompts"],
        **{name: round(value, 4) for name, value in report.scores["accuracy"].items()},
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "captions.json"),
    }


def _results(out: str | os.PathLike, name: str) -> pathlib.Path:
    folder = pathlib.Path(out) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({error.strerror})") from error
    return folder
