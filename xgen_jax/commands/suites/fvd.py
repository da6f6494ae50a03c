"""FVD of a model's samples, or of a folder of videos, against a folder: `--suite=fvd`."""

import itertools
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.sample import make_batches, read_prompts
from xgen_jax.commands.suites.clips import of_shapes, of_videos, trained_on
from xgen_jax.commands.suites.results import SHOWN, results_folder
from xgen_jax.commands.suites.samples import settings_of
from xgen_jax.data.config import ShardsConfig, TFDSConfig, VideoFolderConfig, kind_of_folder
from xgen_jax.data.sources.base import Sample, Source
from xgen_jax.data.sources.factory import shapes_style
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.fvd import FrechetVideoDistance
from xgen_jax.files import write_json
from xgen_jax.inference.request import VideoPlan, VideoRequest
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import TextToVideo, load_text_to_video
from xgen_jax.models.i3d import LEAST_FRAMES
from xgen_jax.parallel.agreement import gather, is_first
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Video

FRAMES = 16  # of clips from folders; what most papers report
NO_WEIGHTS = (
    "--suite=fvd needs the I3D network that FVD is defined by, and computes nothing in its place: "
    "give --i3d=FOLDER, made once by launch/convert.py --kind=i3d --source=i3d_torchscript.pt "
    "--out=FOLDER"
)


def fvd(request: EvaluateRequest) -> dict[str, Any]:
    if not request.i3d:
        raise UserError(NO_WEIGHTS)
    if bool(request.model) == bool(request.videos):
        raise UserError("--suite=fvd needs one of --model=DIR and --videos=FOLDER")
    distance = FrechetVideoDistance(request.i3d)
    started, folder = time.monotonic(), results_folder(request.out, "fvd")
    score = _score_model if request.model else _score_folder
    facts = {**score(request, distance, folder), "seed": request.seed}
    result = distance.result()
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if is_first():
        write_json(folder / "fvd.json", {**result, **facts})
    kept = ("fvd", "clips_real", "clips_generated", "frames", "size_generated", "notes")
    return {
        "suite": "fvd",
        **{name: result[name] for name in kept},
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "fvd.json"),
    }


def _score_model(
    request: EvaluateRequest, distance: FrechetVideoDistance, folder: pathlib.Path
) -> dict[str, Any]:
    """Add samples of a model, and the clips whose captions are their prompts."""
    loaded = load_text_to_video(request.model, step=request.restore)
    plan = loaded.plan(
        VideoRequest(
            frames=request.frames, steps=request.steps, guidance_scale=request.guidance_scale
        )
    )
    if plan.frames < LEAST_FRAMES:
        raise UserError(
            f"FVD needs clips of {LEAST_FRAMES} frames or more, and {request.model} samples "
            f"{plan.frames}: give --frames=N, a longer one that it can take"
        )
    source = _reference(request, loaded, plan)
    indices = _chosen(source, plan.frames, request.count, request.seed)
    captions = []
    for clip in _read(source, indices, request.seed, (plan.frames, plan.height, plan.width)):
        distance.update(real=clip["video"])
        captions.append(clip["caption"])
    if request.prompts_file:
        prompts = read_prompts(request.prompts_file)
    else:  # clips were dealt out to the processes one by one
        dealt = itertools.zip_longest(*gather(captions))
        prompts = [caption for turn in dealt for caption in turn if caption is not None]
    if not all(prompts):
        raise UserError(
            f"clips of {request.data} have no captions to sample: give --prompts_file=FILE"
        )
    loaded.networks.text.check(prompts)
    rows = [BatchRow(prompt, request.seed, n) for n, prompt in enumerate(prompts)]
    for number, video in sample_own(loaded, plan, rows):
        distance.update(generated=video)
        if number < SHOWN:
            write_video(folder / f"{number:03d}.mp4", video, plan.fps)
    return {
        "model": str(request.model),
        "step": loaded.step,
        "settings": settings_of(loaded, request),
        "data": request.data or "moving shapes, held out",
        "fps": plan.fps,
        "prompts": request.prompts_file or "captions of the real clips",
    }


def _score_folder(
    request: EvaluateRequest, distance: FrechetVideoDistance, folder: pathlib.Path
) -> dict[str, Any]:
    """Add the clips of two folders, those of --data at the size and rate of --videos."""
    del folder
    if not request.data:
        raise UserError("--suite=fvd compares --videos with the videos of --data=FOLDER: give it")
    request.only_for_samples("steps", "guidance_scale", "prompts_file", "restore")
    frames = request.frames or FRAMES
    generated = _folder(request.videos, None)
    sizes = np.unique(generated.extents()[:, 1:], axis=0)
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sizes[:5])
        raise UserError(
            f"the videos of {request.videos} have several sizes ({listed}): FVD is of one"
        )
    rates = generated.rates()
    if len(rates) > 1:
        raise UserError(
            f"the videos of {request.videos} have several frame rates "
            f"({', '.join(f'{rate:g}' for rate in sorted(rates))}): FVD is of one"
        )
    fps = next(iter(rates), None)
    shape = (frames, int(sizes[0][0]), int(sizes[0][1]))
    real = _folder(request.data, fps)
    for name, source in (("real", real), ("generated", generated)):
        indices = _chosen(source, frames, request.count, request.seed)
        for clip in _read(source, indices, request.seed, shape):
            distance.update(**{name: clip["video"]})
    return {"videos": str(request.videos), "data": str(request.data), "fps": fps}


def sample_own(
    loaded: TextToVideo, plan: VideoPlan, rows: list[BatchRow]
) -> Iterator[tuple[int, Video]]:
    """Yield (number, video) of this process's part of the rows, batch by batch."""
    size = min(loaded.batch_size(plan), len(rows))
    generator = loaded.generator(plan, size)
    own = make_batches(range(len(rows)), size)[jax.process_index() :: jax.process_count()]
    for done, batch in enumerate(own, 1):
        made = generator([None if n is None else rows[n] for n in batch])
        videos = np.concatenate(list(made), axis=1)
        yield from ((n, video) for n, video in zip(batch, videos) if n is not None)
        print(f"{done}/{len(own)} batches of {size} videos", file=sys.stderr)


def _reference(request: EvaluateRequest, loaded: TextToVideo, plan: VideoPlan) -> Source:
    if request.data:
        return _folder(request.data, plan.fps)
    instead = "give --data=FOLDER"
    source = trained_on(RunFolder(request.model), loaded.config.data.source, instead)
    style = shapes_style(source)
    if style is None:
        raise UserError(f"--suite=fvd compares samples of {request.model} with videos: {instead}")
    return of_shapes(request.count, request.seed, style)


def _folder(path: str, fps: float | None) -> VideoFolderSource | ShardSource:
    """Return the videos of a folder, each a clip, at the frame rate of the other set."""
    kind = kind_of_folder(path) or VideoFolderConfig.kind
    if kind == TFDSConfig.kind:
        raise UserError(f"{path} is a dataset without sizes of its own; give a folder of videos")
    config: ShardsConfig | VideoFolderConfig
    if kind == ShardsConfig.kind:
        config = ShardsConfig(path=path, split="all", fps=fps)
    else:
        config = VideoFolderConfig(path=path, split="all", fps=fps, seconds_per_clip=None)
    source = of_videos(config)
    assert isinstance(source, (VideoFolderSource, ShardSource))
    return source


def _chosen(source: Source, frames: int, count: int, seed: int) -> list[int]:
    """Choose clips that are long enough, at random but the same for the same seed."""
    long = np.arange(len(source))
    if isinstance(source, (VideoFolderSource, ShardSource)):
        long = np.flatnonzero(source.extents()[:, 0] >= frames)
        if short := len(source) - len(long):
            print(
                f"{short} of {len(source)} clips of {source.path} are shorter than {frames} frames "
                "and left out",
                file=sys.stderr,
            )
    order = np.random.default_rng(seed).permutation(len(long))[:count]
    return long[np.sort(order)].tolist()


def _read(
    source: Source, indices: list[int], seed: int, shape: tuple[int, int, int]
) -> Iterator[Sample]:
    """Yield this process's part of the clips."""
    for index in indices[jax.process_index() :: jax.process_count()]:
        yield source.read(index, np.random.default_rng((seed, index)), *shape)
