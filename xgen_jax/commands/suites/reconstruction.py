"""Score the reconstructions of a VidVAE or a REGEN: `--suite=reconstruction`."""

import dataclasses
import heapq
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.suites.clips import VIDEOS, of_shapes, of_videos
from xgen_jax.commands.suites.results import SHOWN, WORST, results_folder
from xgen_jax.config.runs import Run
from xgen_jax.data.buckets import shape_name
from xgen_jax.data.config import (
    VideoFolderConfig,
    kind_of_folder,
)
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.factory import shapes_style
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.fvd import CONVENTION, FrechetVideoDistance
from xgen_jax.evaluation.perceptual import load_lpips_distance
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction, side_by_side
from xgen_jax.evaluation.reconstruction_table import check_sides, expand_shapes, figures, table
from xgen_jax.files import write_json, write_text
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.models.i3d import LEAST_FRAMES
from xgen_jax.parallel.agreement import is_first
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Video

# What stands in the results besides the conventions of the metrics.
_CLIPS = (
    "spread evenly over the set; each starts at a frame, and is cropped at a place, that the seed "
    "and its number choose; frames are scaled until they cover the shape, by area average where "
    "they get smaller and else bicubically; moving shapes are rendered at the shape"
)


def reconstruction(request: EvaluateRequest) -> dict[str, Any]:
    folder = results_folder(request.out, "reconstruction")
    run, seed = RunFolder(request.embedder), request.seed
    wanted = expand_shapes(request.shapes) if request.shapes else run.shapes("shapes")[:1]
    check_sides(wanted)
    distance = load_lpips_distance(request.lpips) if request.lpips else None
    source, split = _clips_to_score(request, run)
    # Before the network is loaded: a set without a clip of a shape ends the command.
    chosen = {shape: _choose(source, request.count, shape) for shape in wanted}
    if request.i3d:
        _check_fvd({shape: len(indices) for shape, (indices, _) in chosen.items()})
    reconstruct = load_reconstructor(
        request.embedder, steps=request.steps, checkpoint=request.restore
    )
    embedder, entries, conventions = reconstruct.embedder, [], {}
    for shape, (indices, facts) in chosen.items():
        name = "x".join(map(str, shape))
        # One a shape; images have none.
        sets = [_RFVD(request.i3d)] if request.i3d and shape[0] >= LEAST_FRAMES else []
        kept = _Kept(results_folder(folder, name), len(indices))
        result = evaluate_reconstruction(
            reconstruct,
            _clips(source, indices, seed, shape),
            kept,
            worst=WORST,
            lpips=distance,
            patch=embedder.patch,
            chunk_starts=embedder.chunk_starts,
            sets=sets,
        )
        if request.i3d and not sets:
            result["not_computed"]["rfvd"] = _TOO_SHORT
        kept.write_worst(result)
        if enlarged := facts.get("enlarged"):
            result["notes"].append(
                f"{enlarged} of {len(indices)} clips were enlarged to {name}: their originals have "
                "less detail than the size promises."
            )
        conventions = {"clips": _CLIPS, **result.pop("conventions")}
        entries.append({"shape": name, **facts, **result})
    text = table(entries)
    print(text, file=sys.stderr)
    facts = {
        "source": source.name,
        "split": split,
        "embedder": str(request.embedder),
        "seed": seed,
        **embedder.settings,
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
                **{key: round(x, 5) for key, x in figures(entry).items()},
            }
            for entry in entries
        },
        "file": str(folder / "reconstruction.json"),
        "table": str(folder / "reconstruction.md"),
    }


def _choose(
    source: Source, count: int, shape: tuple[int, int, int]
) -> tuple[list[int], dict[str, int]]:
    """Choose the clips to score at a shape.

    Returns:
      Their numbers, and {"shorter": clips left out for having fewer frames, "enlarged": those
      chosen whose frames are smaller than the shape}, where the sizes of clips are known.

    Raises:
      UserError: no clip has as many frames.
    """
    frames, height, width = shape
    extents, facts = source.extents(), {}
    numbers = np.arange(len(source))
    if extents is not None:
        # A clip that repeats its last frame would be scored on a still.
        numbers = np.flatnonzero(extents[:, 0] >= frames)
        facts["shorter"] = len(source) - len(numbers)
        if not len(numbers):
            raise UserError(
                f"no clip of {source.path} has {frames} frames; the longest has "
                f"{extents[:, 0].max()}: give --shapes=FRAMESxHEIGHTxWIDTH with that many or fewer"
            )
        if facts["shorter"]:
            print(
                f"{facts['shorter']} of {len(source)} clips are left out: they have fewer than "
                f"{frames} frames",
                file=sys.stderr,
            )
    # Spread over the files: the first clips may all be of one long video.
    count = min(count, len(numbers))
    chosen = numbers[np.linspace(0, len(numbers) - 1, count).round().astype(int)]
    if extents is not None:
        facts["enlarged"] = int((extents[chosen, 1:] < (height, width)).any(axis=1).sum())
    return chosen.tolist(), facts


_TOO_SHORT = f"I3D takes clips of {LEAST_FRAMES} frames or more"


def _check_fvd(counts: dict[tuple[int, int, int], int]) -> None:
    """Raise UserError unless there is a shape, given the clips of each, that has an rFVD."""
    counts = {shape: count for shape, count in counts.items() if shape[0] >= LEAST_FRAMES}
    if not counts:
        raise UserError(
            f"rFVD cannot be computed at any of the shapes: {_TOO_SHORT}; give --shapes with as "
            "many, or leave out --i3d"
        )
    for shape, count in counts.items():
        if count < 2:
            raise UserError(
                f"rFVD needs 2 clips or more, and says something from some hundred on; of "
                f"{shape_name(shape)} there is {count}: give --count=N and --data with more clips, "
                "or leave out --i3d"
            )


class _RFVD:
    """FVD of reconstructions as a `SetDistance`."""

    name = "rfvd"
    convention = f"of all reconstructions to all originals of a shape: {CONVENTION}"

    def __init__(self, weights: str):
        self._fvd = FrechetVideoDistance(weights)

    def add(self, original: Video, reconstruction: Video) -> None:
        self._fvd.update(real=original, generated=reconstruction)

    def result(self) -> dict[str, Any]:
        result = self._fvd.result()
        return {
            "value": result["fvd"],
            "clips": result["clips_real"],
            **{name: result[name] for name in ("frames", "preprocessing", "weights", "notes")},
        }


def _clips_to_score(request: EvaluateRequest, run: RunFolder) -> tuple[Source, str]:
    """Return the clips to reconstruct, and the name of their split."""
    config = run.config()
    own = config.data.source if isinstance(config, Run) else None
    kind = kind_of_folder(request.data) if request.data else None
    if isinstance(own, VIDEOS) and (kind is None or (request.split and kind == own.kind)):
        config = dataclasses.replace(
            own, path=request.data or own.path, split=request.split or "all"
        )
        if request.split is None:
            some = len(of_videos(config).held_out_clips())
            config = dataclasses.replace(config, split="held_out" if some else "train")
            if not some:
                print("no clip is held out: those trained on are scored", file=sys.stderr)
        return of_videos(config), config.split
    if request.data is not None:
        # A folder of latents has no videos to score: that is said by the source of videos.
        made = {one.kind: one for one in VIDEOS}.get(kind or "", VideoFolderConfig)
        folder = made(path=request.data, split=request.split or "all")
        return of_videos(folder), folder.split
    if request.split not in (None, "held_out"):
        raise UserError(
            f"--split={request.split} is for folders of videos: give --data=FOLDER; of the moving "
            "shapes only held-out clips are scored"
        )
    style = own and shapes_style(own)
    return of_shapes(request.count, request.seed, style or "filled"), "held_out"


def _clips(
    source: Source, indices: list[int], seed: int, shape: tuple[int, int, int]
) -> Iterator[tuple[str, Video]]:
    """Yield names and clips of this process's part: a file is named by its path, so that the worst
    can be looked at, a synthetic clip by its caption."""
    for index in indices[jax.process_index() :: jax.process_count()]:
        clip = source.read(index, np.random.default_rng((seed, index)), *shape)
        yield (
            ": ".join(part for part in (source.where(index), clip["caption"]) if part),
            clip["video"],
        )


class _Kept:
    """Keeps the first clips as videos and the worst in memory, and prints the progress; called with
    each clip."""

    def __init__(self, folder: pathlib.Path, count: int):
        # The number of the next clip; those between are of other processes.
        self.folder, self.count, self.number = folder, count, jax.process_index()
        self._worst: list[tuple[float, int, Video]] = []  # a heap, the best of them first

    def __call__(self, row: dict[str, Any], original: Video, reconstruction: Video) -> None:
        both = side_by_side(original, reconstruction)
        if self.number < SHOWN:
            row["file"] = self._write(self.number, both)
        # As many in each process as in all: theirs may be the worst of all.
        keep = heapq.heappushpop if len(self._worst) == WORST else heapq.heappush
        keep(self._worst, (-row["psnr_db"], -self.number, both))
        place = f"{self.number + 1}/{self.count}"
        print(
            f"{self.folder.name} {place}  {row['psnr_db']:.2f} dB  {row['name']}", file=sys.stderr
        )
        self.number += jax.process_count()

    def write_worst(self, result: dict[str, Any]) -> None:
        """Write the worst clips of all processes, whatever their numbers, and name their files in
        their rows and in `worst_clips`."""
        held = {-number: both for _, number, both in self._worst}
        for entry in result["worst_clips"]:
            row = result["videos"][entry["clip"]]
            if "file" not in row:
                row["file"] = self._name(entry["clip"])
                if entry["clip"] in held:
                    self._write(entry["clip"], held[entry["clip"]])
            entry["file"] = row["file"]

    def _write(self, number: int, both: Video) -> str:
        write_video(self.folder.parent / self._name(number), both)
        return self._name(number)

    def _name(self, number: int) -> str:
        return f"{self.folder.name}/{number:03d}.mp4"
