"""Score the reconstructions of a VidVAE or a REGEN: `--suite=reconstruction`."""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.suites.results import SHOWN, results_folder
from xgen_jax.config.runs import Run
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import (
    DataConfig,
    ShardsConfig,
    TFDSConfig,
    VideoFolderConfig,
    kind_of_folder,
)
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.perceptual import load_lpips_distance
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction, side_by_side
from xgen_jax.evaluation.reconstruction_table import expand_shapes, table
from xgen_jax.files import write_json, write_text
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.parallel.agreement import is_first
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Video

# Sources of videos that a person gave, which have clips that are held out.
_Videos = VideoFolderConfig | ShardsConfig | TFDSConfig
_VIDEOS = (VideoFolderConfig, ShardsConfig, TFDSConfig)


def reconstruction(request: EvaluateRequest) -> dict[str, Any]:
    folder = results_folder(request.out, "reconstruction")
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
            _Progress(results_folder(folder, name), count),
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
