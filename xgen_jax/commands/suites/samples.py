"""Sample a list of prompts in all processes: `--suite=samples`, and what other suites score."""

import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.sample import read_prompts
from xgen_jax.commands.suites.results import SHOWN, results_folder
from xgen_jax.data.batches import batches
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.files import write_json
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import TextToVideo, load_text_to_video
from xgen_jax.parallel.agreement import gather_arrays, is_first
from xgen_jax.typing import Video


def samples(request: EvaluateRequest) -> dict[str, Any]:
    folder = results_folder(request.out, "samples")
    assert request.prompts_file is not None
    prompts = read_prompts(request.prompts_file)
    loaded = load_text_to_video(request.model, step=request.restore)
    started = time.monotonic()
    rows = [{"prompt": prompt} for prompt in prompts]
    videos = sample_prompts(loaded, request, prompts, request.seed)
    for number, video in enumerate(videos):
        if number < SHOWN:
            write_sample(folder, rows[number], number, video, loaded.fps)
    results = {"samples": rows, "settings": settings_of(loaded, request), "model": request.model}
    if is_first():
        write_json(folder / "samples.json", results)
    return {
        "suite": "samples",
        "prompts": len(prompts),
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "samples.json"),
    }


def sample_prompts(
    loaded: TextToVideo, request: EvaluateRequest, prompts: list[str], seed: int
) -> Iterator[Video]:
    """Yield a video for each prompt, sampled in batches in turns of all processes; all get all
    videos. A prompt that repeats is sampled from other noise, that of its place in the list."""
    loaded.networks.text.check(prompts)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be 0 or more, and below 2^32")
    plan = loaded.plan(VideoRequest(steps=request.steps, guidance_scale=request.guidance_scale))
    size = min(loaded.batch_size(plan), len(prompts))
    generator = loaded.generator(plan, size)
    rows = [BatchRow(prompt, seed, index) for index, prompt in enumerate(prompts)]
    done = 0
    for turn in batches(list(batches(rows, size)), jax.process_count()):
        # A process without a batch repeats the last one, for all must take part.
        own = turn[min(jax.process_index(), len(turn) - 1)]
        made = np.concatenate(list(generator(own)), axis=1)
        for batch, theirs in zip(turn, gather_arrays(made)):
            yield from theirs[: len(batch)]
            done += len(batch)
        print(f"{done}/{len(prompts)} videos", file=sys.stderr)


def write_sample(
    folder: pathlib.Path, row: dict[str, Any], number: int, video: Video, fps: float
) -> None:
    """Write a video, and name it in its row."""
    row["file"] = f"{number:03d}.mp4"
    if is_first():
        write_video(folder / row["file"], video, fps)


def settings_of(loaded: TextToVideo, request: EvaluateRequest) -> dict[str, Any]:
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
