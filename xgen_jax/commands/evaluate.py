"""Score a trained model, from folders to folders: `launch/evaluate.py`."""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from xgen_jax.commands.hosts import check_hosts
from xgen_jax.commands.sample import read_prompts
from xgen_jax.config.runs import Run, VDiTRun
from xgen_jax.data.batches import batches
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import (
    DataConfig,
    LatentsConfig,
    ShardsConfig,
    SyntheticConfig,
    TFDSConfig,
    VideoFolderConfig,
    kind_of_folder,
)
from xgen_jax.data.latent_shards import read_manifest
from xgen_jax.data.sources.base import SPLITS, Source
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.synthetic import SyntheticSource, held_out_prompts
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.captions import evaluate_captions
from xgen_jax.evaluation.perceptual import load_lpips_distance
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction, side_by_side
from xgen_jax.evaluation.reconstruction_table import expand_shapes, table
from xgen_jax.evaluation.report import write_report
from xgen_jax.files import write_json, write_text
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import TextToVideo, load_text_to_video
from xgen_jax.parallel.agreement import gather_arrays, is_first, together
from xgen_jax.runs.checkpoint import LATEST
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Video

SHOWN = 64  # videos kept with the figures
# Sources of videos that a person gave, which have clips that are held out.
_Videos = VideoFolderConfig | ShardsConfig | TFDSConfig
_VIDEOS = (VideoFolderConfig, ShardsConfig, TFDSConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The flags of `launch/evaluate.py`.

    Attributes:
      suite: `reconstruction`, `captions`, `samples` or `report`.
      out: folder for the results; for `report` the folder of a quickstart.
      embedder: run folder of a VidVAE or a REGEN (reconstruction).
      model: run folder of a VDiT (captions, samples).
      data: folder of videos, or of curated clips (reconstruction); by default that of the run, or
        the moving-shapes dataset if the run was trained on it.
      split: clips of the folder, "held_out", "train" or "all" (reconstruction); by default those
        held out of the run's own folder, and all of another one.
      prompts_file: text file with a prompt on each line (samples).
      count: number of prompts, or of clips a shape; of a folder at most as many as there are.
      seed: of the clips, crops, prompts and noise.
      steps: of sampling, or of a REGEN's decoder; the run's by default.
      guidance_scale: the run's by default (captions, samples).
      shapes: of the clips, "FRAMESxHEIGHTxWIDTH" each, or "paper" for the paper's three; the shape
        trained on by default (reconstruction).
      lpips: safetensors files of LPIPS (see `weights.lpips`); without them it is left out.
      restore: checkpoint of the run: "latest", "latest_good", which steps over damaged ones,
        "best" (see `LoopConfig.keep_best`), or the number of a step.

    Raises:
      UserError: an unknown suite, or one without the flags that it needs.
    """

    suite: str = ""
    out: str = ""
    embedder: str = ""
    model: str = ""
    data: str | None = None
    split: str | None = None
    prompts_file: str | None = None
    count: int = 64
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    shapes: Sequence[str] | None = None
    lpips: Sequence[str] | None = None
    restore: str = LATEST

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
        if self.split is not None:
            choose("split", self.split, SPLITS)


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Score a trained model, and keep the videos it was scored on.

    `reconstruction` writes reconstruction.json, .md and SHAPE/NNN.mp4 into OUT/reconstruction;
    `captions` samples held-out prompts of moving shapes and writes captions.json and NNN.mp4 into
    OUT/captions (see `evaluation.captions` for the verifier); `samples` samples the prompts of a
    file, and writes samples.json and NNN.mp4 into OUT/samples; `report` writes the page of a folder
    with runs and these results.

    Several processes (`jax.process_count()`) divide clips and prompts, and need a common folder;
    the results are those of one process. A report is for one process.

    Returns:
      The scores, and the paths of the files.

    Raises:
      UserError: no such run, videos or weights that cannot be read, a shape that is none.
    """
    *_, suite = SUITES[request.suite]
    if suite is _report and jax.process_count() > 1:
        raise UserError("--suite=report writes one page: start it in one process")
    check_hosts(dataclasses.asdict(request))
    with together():  # a mistake that one process finds ends all of them
        return suite(request)


def _reconstruction(request: EvaluateRequest) -> dict[str, Any]:
    folder = _results(request.out, "reconstruction")
    run, count, seed = RunFolder(request.embedder), request.count, request.seed
    wanted = expand_shapes(request.shapes) if request.shapes else run.shapes("shapes")[:1]
    distance = load_lpips_distance(request.lpips) if request.lpips else None
    source, split = _clips_to_score(request, run)
    count = min(count, len(source))
    reconstruct = load_reconstructor(
        request.embedder, steps=request.steps, checkpoint=request.restore
    )
    entries, conventions = [], {}
    for shape in wanted:
        name = "x".join(map(str, shape))
        clips = _clips(source, count, seed, shape)
        result = evaluate_reconstruction(
            reconstruct,
            clips,
            _Progress(_results(folder, name), count),
            lpips=distance,
            patch=reconstruct.embedder.patch,
        )
        conventions = result.pop("conventions")
        entries.append({"shape": name, **result})
    text = table(entries)
    print(text, file=sys.stderr)
    facts = {
        "source": source.name,
        "split": split,
        "embedder": str(request.embedder),
        "seed": seed,
        **reconstruct.embedder.settings,
    }
    if is_first():
        write_text(folder / "reconstruction.md", text)
        results = {"shapes": entries, "conventions": conventions, **facts}
        write_json(folder / "reconstruction.json", results)
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


def _clips_to_score(request: EvaluateRequest, run: RunFolder) -> tuple[Source, str]:
    """Return the clips to reconstruct, and the name of their split."""
    config = run.config()
    own = config.data.source if isinstance(config, Run) else None
    kind = kind_of_folder(request.data) if request.data else None
    if isinstance(own, _VIDEOS) and (kind is None or (request.split and kind == own.kind)):
        config = dataclasses.replace(
            own, path=request.data or own.path, split=request.split or "all"
        )
        if request.split is None:
            some = len(_folder(config).held_out_clips())
            config = dataclasses.replace(config, split="held_out" if some else "train")
            if not some:
                print("no clip is held out: those trained on are scored", file=sys.stderr)
        return _folder(config), config.split
    if request.data is not None:
        # A folder of latents has no videos to score: that is said by the source of videos.
        made = {one.kind: one for one in _VIDEOS}.get(kind or "", VideoFolderConfig)
        folder = made(path=request.data, split=request.split or "all")
        return _folder(folder), folder.split
    if request.split not in (None, "held_out"):
        raise UserError(
            f"--split={request.split} is for folders of videos: give --data=FOLDER; of the moving "
            "shapes only held-out clips are scored"
        )
    # Another seed than any run trains on, and combinations that none has seen.
    clips = SyntheticSource(seed=10_000 + request.seed, split="held_out", num_clips=request.count)
    return clips, "held_out"


def _folder(source: _Videos) -> Source:
    buckets = (Bucket(frames=2, height=1, width=1, batch_size=1),)  # no images
    if not isinstance(source, TFDSConfig):
        source = dataclasses.replace(source, require_captions=False)
    if isinstance(source, VideoFolderConfig):
        source = dataclasses.replace(source, memory_gb=0.0)  # each clip is read once
    return make_source(DataConfig(source=source, buckets=buckets))


def _clips(
    source: Source, count: int, seed: int, shape: tuple[int, int, int]
) -> Iterator[tuple[str, Video]]:
    """Yield names and clips of this process's part: a file is named by its path, so that the worst
    can be looked at, a synthetic clip by its caption."""
    # Spread over the files: the first clips may all be of one long video.
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    for index in indices[jax.process_index() :: jax.process_count()]:
        clip = source.read(index, np.random.default_rng((seed, index)), *shape)
        yield (
            ": ".join(part for part in (source.where(index), clip["caption"]) if part),
            clip["video"],
        )


class _Progress:
    """Keeps the first clips as videos, and prints the progress; called with each clip."""

    def __init__(self, folder: pathlib.Path, count: int):
        # The number of the next clip; those between are of other processes.
        self.folder, self.count, self.number = folder, count, jax.process_index()

    def __call__(self, row: dict[str, Any], original: Video, reconstruction: Video) -> None:
        if self.number < SHOWN:
            file = self.folder / f"{self.number:03d}.mp4"
            write_video(file, side_by_side(original, reconstruction))
            row["file"] = f"{self.folder.name}/{file.name}"
        place = f"{self.number + 1}/{self.count}"
        print(
            f"{self.folder.name} {place}  {row['psnr_db']:.2f} dB  {row['name']}", file=sys.stderr
        )
        self.number += jax.process_count()


def _captions(request: EvaluateRequest) -> dict[str, Any]:
    _check_shapes(request.model)
    folder = _results(request.out, "captions")
    loaded, seed = load_text_to_video(request.model, step=request.restore), request.seed
    started = time.monotonic()
    report = evaluate_captions(
        lambda prompts, seed: _sample(loaded, request, prompts, seed),
        prompts=held_out_prompts(request.count, seed),
        seed=seed,
    )
    _write_samples(folder, report.scores["samples"], report.videos, loaded.fps)
    if is_first():
        settings = {"settings": _settings(loaded, request), "model": str(request.model)}
        write_json(folder / "captions.json", {**report.scores, **settings})
    return {
        "suite": "captions",
        "prompts": report.scores["prompts"],
        **{name: round(value, 4) for name, value in report.scores["accuracy"].items()},
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "captions.json"),
    }


def _check_shapes(model: str) -> None:
    """Raise UserError unless a run was trained on moving shapes, whose captions can be verified."""
    config = RunFolder(model).expect(VDiTRun, "a model: a vdit run")
    source = config.data.source
    if isinstance(source, SyntheticConfig):
        return
    path = source.path or "other videos"
    encoded = isinstance(source, LatentsConfig) and os.path.isdir(path)
    if encoded and read_manifest(path)["source"] == SyntheticConfig.kind:
        return
    raise UserError(
        f"--suite=captions verifies captions of moving shapes, and {model} was trained on "
        f"{path}: give --suite=samples and --prompts_file=FILE"
    )


def _samples(request: EvaluateRequest) -> dict[str, Any]:
    folder = _results(request.out, "samples")
    assert request.prompts_file is not None
    prompts = read_prompts(request.prompts_file)
    loaded = load_text_to_video(request.model, step=request.restore)
    started = time.monotonic()
    videos = _sample(loaded, request, prompts, request.seed)
    rows = [{"prompt": prompt} for prompt in prompts]
    _write_samples(folder, rows, videos, loaded.fps)
    results = {"samples": rows, "settings": _settings(loaded, request), "model": request.model}
    if is_first():
        write_json(folder / "samples.json", results)
    return {
        "suite": "samples",
        "prompts": len(prompts),
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "samples.json"),
    }


def _sample(
    loaded: TextToVideo, request: EvaluateRequest, prompts: list[str], seed: int
) -> list[Video]:
    """Sample a video for each prompt, the batches in turns of all processes; all get all videos."""
    loaded.networks.text.check(prompts)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be 0 or more, and below 2^32")
    plan = loaded.plan(VideoRequest(steps=request.steps, guidance_scale=request.guidance_scale))
    size = min(loaded.batch_size(plan), len(prompts))
    generator = loaded.generator(plan, size)
    rows = [BatchRow(prompt, seed, index) for index, prompt in enumerate(prompts)]
    videos: list[Video] = []
    for turn in batches(list(batches(rows, size)), jax.process_count()):
        # A process without a batch repeats the last one, for all must take part.
        own = turn[min(jax.process_index(), len(turn) - 1)]
        made = np.concatenate(list(generator(own)), axis=1)
        for batch, theirs in zip(turn, gather_arrays(made)):
            videos += list(theirs[: len(batch)])
        print(f"{len(videos)}/{len(prompts)} videos", file=sys.stderr)
    return videos


def _write_samples(
    folder: pathlib.Path, rows: list[dict[str, Any]], videos: Sequence[Video], fps: float
) -> None:
    """Write the first videos, and name them in their rows."""
    for number, (row, video) in enumerate(zip(rows[:SHOWN], videos)):
        row["file"] = f"{number:03d}.mp4"
        if is_first():
            write_video(folder / row["file"], video, fps)


def _settings(loaded: TextToVideo, request: EvaluateRequest) -> dict[str, Any]:
    """The settings of sampling, the run's own where none was given."""
    own = loaded.config
    return {
        "steps": own.sample_steps if request.steps is None else request.steps,
        "guidance_scale": (
            own.guidance_scale if request.guidance_scale is None else request.guidance_scale
        ),
        "sampler": own.sampler,
        "seed": request.seed,
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
        ("data", "split", "count", "seed", "steps", "shapes", "lpips", "restore"),
        _reconstruction,
    ),
    "captions": (("model",), ("count", "seed", "steps", "guidance_scale", "restore"), _captions),
    "samples": (
        ("model", "prompts_file"),
        ("seed", "steps", "guidance_scale", "restore"),
        _samples,
    ),
    "report": ((), (), _report),
}
