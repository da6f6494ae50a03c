"""CLIP score of a model's samples, or of a folder of videos: `--suite=clip_score`."""

import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.sample import read_prompts
from xgen_jax.commands.suites.fvd import sample_own
from xgen_jax.commands.suites.results import SHOWN, results_folder
from xgen_jax.commands.suites.samples import settings_of
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.clip_score import CONVENTION, CLIPScore
from xgen_jax.files import read_json, write_json
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.parallel.agreement import gather, is_first
from xgen_jax.typing import Video

_T = TypeVar("_T")
# (number among all, its row in the results, the video)
_Scored = tuple[int, dict[str, Any], Video]


def clip_score(request: EvaluateRequest) -> dict[str, Any]:
    if bool(request.model) == bool(request.videos):
        raise UserError("--suite=clip_score needs one of --model=DIR and --videos=FOLDER")
    score = CLIPScore(request.clip)
    started, folder = time.monotonic(), results_folder(request.out, "clip_score")
    facts: dict[str, Any] = {"clip": str(request.clip), "convention": CONVENTION}
    videos = _samples(request, folder, facts) if request.model else _files(request, facts)
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, row, video in videos:
        frames = score.frames(row["prompt"], video)
        mean = float(frames.mean())
        rows.append((number, {**row, "clip_score": mean, "frames": len(frames)}))
        print(f"{mean:6.2f}  {row['prompt']}", file=sys.stderr)
    everyone = gather({"rows": rows, "cut": score.cut})
    numbered = {number: row for one in everyone for number, row in one["rows"]}
    together = [numbered[number] for number in sorted(numbered)]
    figures = np.array([row["clip_score"] for row in together])
    result = {
        "clip_score": float(figures.mean()),
        "standard_error": float(figures.std(ddof=1) / len(figures) ** 0.5)
        if len(figures) > 1
        else None,
        "videos": len(figures),
        "prompts_cut": sum(one["cut"] for one in everyone),
    }
    if is_first():
        write_json(folder / "clip_score.json", {**result, **facts, "samples": together})
    return {
        "suite": "clip_score",
        **result,
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "clip_score.json"),
    }


def _samples(
    request: EvaluateRequest, folder: pathlib.Path, facts: dict[str, Any]
) -> Iterator[_Scored]:
    """Yield samples of a model for the prompts of a file, this process's part."""
    if not request.prompts_file:
        raise UserError(
            "--suite=clip_score samples the prompts of a file: give --prompts_file=FILE"
        )
    prompts = _first(read_prompts(request.prompts_file), request.count, "prompts")
    loaded = load_text_to_video(request.model, step=request.restore)
    loaded.networks.text.check(prompts)
    plan = loaded.plan(
        VideoRequest(
            frames=request.frames, steps=request.steps, guidance_scale=request.guidance_scale
        )
    )
    settings = {**settings_of(loaded, request), "frames": plan.frames}
    facts |= {"model": str(request.model), "step": loaded.step, "settings": settings}
    rows = [BatchRow(prompt, request.seed, n) for n, prompt in enumerate(prompts)]
    for number, video in sample_own(loaded, plan, rows):
        row = {"prompt": prompts[number]}
        if number < SHOWN:
            row["file"] = f"{number:03d}.mp4"
            write_video(folder / row["file"], video, plan.fps)
        yield number, row, video


def _first(items: list[_T], count: int, name: str) -> list[_T]:
    if left := len(items[count:]):
        print(f"{left} of {len(items)} {name} are left out by --count={count}", file=sys.stderr)
    return items[:count]


def _files(request: EvaluateRequest, facts: dict[str, Any]) -> Iterator[_Scored]:
    """Yield the videos of a folder, this process's part."""
    request.only_for_samples("steps", "guidance_scale", "prompts_file", "frames", "seed", "restore")
    facts["source"] = str(request.videos)
    pairs = _first(prompts_of(pathlib.Path(request.videos)), request.count, "videos")
    for number in range(jax.process_index(), len(pairs), jax.process_count()):
        path, prompt = pairs[number]
        yield number, {"prompt": prompt, "file": str(path)}, read_video(path)[0]


def prompts_of(folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """Return the videos of a folder with their prompts: those that launch/sample.py,
    --suite=samples or --suite=vbench_export wrote, else captions as a folder to train on has them.

    Raises:
      UserError: no folder, no video with a prompt.
    """
    pairs: list[tuple[pathlib.Path, str]] = []
    if (folder / "samples.json").is_file():
        held = read_json(folder / "samples.json")
        pairs = [(folder / row.get("file", ""), row["prompt"]) for row in held.get("samples", [])]
        pairs += [
            (folder / f"{line:05d}.mp4", prompt)
            for line, prompt in enumerate(held.get("prompts", []), 1)
        ]
    elif (folder / "vbench.json").is_file():
        held = read_json(folder / "vbench.json")
        pairs = [(folder / "videos" / row["file"], row["prompt"]) for row in held["videos"]]
    else:
        captions = VideoFolderSource(folder).captions()
        pairs = list({path: (pathlib.Path(path), text) for path, text in captions}.values())
    pairs = [(path, prompt) for path, prompt in pairs if path.is_file()]
    if not pairs:
        raise UserError(f"{folder} holds no video with a prompt")
    return pairs
