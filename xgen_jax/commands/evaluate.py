"""Score a trained model, from folders to folders: `launch/evaluate.py`."""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.synthetic import SyntheticSource, held_out_prompts
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.captions import evaluate_captions
from xgen_jax.evaluation.perceptual import load_lpips_distance
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction, side_by_side
from xgen_jax.evaluation.reconstruction_table import expand_shapes, table
from xgen_jax.evaluation.report import write_report
from xgen_jax.files import write_json, write_text
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Video

SHOWN = 64  # videos kept with the figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The flags of `launch/evaluate.py`.

    Attributes:
      suite: `reconstruction`, `captions` or `report`.
      out: folder for the results; for `report` the folder of a quickstart.
      embedder: run folder of a VidVAE or a REGEN (reconstruction).
      model: run folder of a VDiT (captions).
      data: folder of videos (reconstruction); held-out clips of the moving-shapes dataset by
        default.
      count: number of prompts, or of clips a shape; of a folder at most as many as there are.
      seed: of the clips, crops, prompts and noise.
      steps: of sampling, or of a REGEN's decoder; the run's by default.
      guidance_scale: the run's by default (captions).
      shapes: of the clips, "FRAMESxHEIGHTxWIDTH" each, or "paper" for the paper's three; the shape
        trained on by default (reconstruction).
      lpips: safetensors files of LPIPS (see `weights.lpips`); without them it is left out.

    Raises:
      UserError: an unknown suite, or one without the flags that it needs.
    """

    suite: str = ""
    out: str = ""
    embedder: str = ""
    model: str = ""
    data: str | None = None
    count: int = 64
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    shapes: Sequence[str] | None = None
    lpips: Sequence[str] | None = None

    def __post_init__(self):
        if not self.suite:
            raise UserError(f"give --suite, one of {', '.join(SUITES)}")
        needed, optional, _ = SUITES[choose("suite", self.suite, SUITES)]
        for field in dataclasses.fields(self):
            if field.name in ("suite", "out", *needed, *optional):
                continue
            if getattr(self, field.name) != field.default:
                takers = [name for name, each in SUITES.items() if field.name in each[0] + each[1]]
                raise UserError(f"--{field.name} is for --suite={' and '.join(takers)}")
        if missing := [name for name in (*needed, "out") if not getattr(self, name)]:
            raise UserError(f"give {', '.join(f'--{name}' for name in missing)}")


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Score a trained model, and keep the videos it was scored on.

    `reconstruction` writes reconstruction.json, .md and SHAPE/NNN.mp4 into OUT/reconstruction;
    `captions` samples held-out prompts and writes captions.json and NNN.mp4 into OUT/captions (see
    `evaluation.captions` for the verifier); `report` writes the page of a quickstart's folder.

    Returns:
      The scores, and the paths of the files.

    Raises:
      UserError: no such run, videos or weights that cannot be read, a shape that is none.
    """
    *_, suite = SUITES[request.suite]
    return suite(request)


def _reconstruction(request: EvaluateRequest) -> dict[str, Any]:
    folder = _results(request.out, "reconstruction")
    run, count, seed = RunFolder(request.embedder), request.count, request.seed
    wanted = expand_shapes(request.shapes) if request.shapes else run.shapes("shapes")[:1]
    distance = load_lpips_distance(request.lpips) if request.lpips else None
    if request.data is None:
        # Another seed than any run trains on, and combinations that none has seen.
        source = SyntheticSource(seed=10_000 + seed, split="held_out", num_clips=count)
    else:
        source = VideoFolderSource(request.data, require_captions=False)
        count = min(count, len(source))
    reconstruct = load_reconstructor(request.embedder, steps=request.steps)
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
        "embedder": str(request.embedder),
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
    """Yield names and clips: a file is named by its path, so that the worst can be looked at, a
    synthetic clip by its caption."""
    for index in range(count):
        clip = source.read(index, np.random.default_rng((seed, index)), *shape)
        yield (
            ": ".join(part for part in (source.where(index), clip["caption"]) if part),
            clip["video"],
        )


class _Progress:
    """Keeps the first clips as videos, and prints the progress; called with each clip."""

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


def _captions(request: EvaluateRequest) -> dict[str, Any]:
    folder = _results(request.out, "captions")
    loaded, seed = load_text_to_video(request.model), request.seed
    options = {"steps": request.steps, "guidance_scale": request.guidance_scale}
    started = time.monotonic()

    def generate(prompts: list[str], seed: int) -> list[Video]:
        def progress(done, total):
            print(f"{done}/{total} videos", file=sys.stderr)

        return list(loaded(prompts, seed, progress=progress, **options))

    report = evaluate_captions(generate, prompts=held_out_prompts(request.count, seed), seed=seed)
    for number, (sample, video) in enumerate(zip(report.scores["samples"], report.videos)):
        if number < SHOWN:
            sample["file"] = f"{number:03d}.mp4"
            write_video(folder / sample["file"], video, loaded.fps)
    defaults = {
        "steps": loaded.config.sample_steps,
        "guidance_scale": loaded.config.guidance_scale,
        "sampler": loaded.config.sampler,
        "seed": seed,
    }
    settings = defaults | {name: value for name, value in options.items() if value is not None}
    write_json(
        folder / "captions.json",
        {**report.scores, "settings": settings, "model": str(request.model)},
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


def _report(request: EvaluateRequest) -> dict[str, Any]:
    return {"suite": "report", "report": str(write_report(request.out))}


Flags = tuple[str, ...]
# By name the flags that a suite needs besides --out, those that it takes, and what it does.
SUITES: dict[str, tuple[Flags, Flags, Callable[[EvaluateRequest], dict[str, Any]]]] = {
    "reconstruction": (
        ("embedder",),
        ("data", "count", "seed", "steps", "shapes", "lpips"),
        _reconstruction,
    ),
    "captions": (("model",), ("count", "seed", "steps", "guidance_scale"), _captions),
    "report": ((), (), _report),
}
