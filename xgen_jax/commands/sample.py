"""Generate video files from text: `launch/sample.py`."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from xgen_jax.commands.hosts import check_hosts
from xgen_jax.data.video_writer import WRITE_SUFFIXES, VideoWriter
from xgen_jax.errors import UserError
from xgen_jax.files import (
    differences,
    locked,
    read_json,
    refuse_differences,
    remove_temporaries,
    write_json,
)
from xgen_jax.inference.conditioning import fit_condition, read_condition
from xgen_jax.inference.request import VideoPlan, VideoRequest
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import TextToVideo, load_text_to_video
from xgen_jax.inference.video_generator import VideoGenerator
from xgen_jax.parallel.agreement import check_equal, from_first, is_first, together
from xgen_jax.runs.checkpoint import LATEST
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Video

SETTINGS = "samples.json"
_SHOWN_SIDE = 256  # pixels that a person sees without enlarging
# Settings that earlier versions wrote under another name.
_RENAMED = {"piece_frames": "segment_frames"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """The flags of `launch/sample.py`; None takes the run's own value.

    Attributes:
      model: run folder of a VDiT.
      prompt, prompts_file: one prompt, or a text file with a prompt on each line.
      out: the file to write, or the folder for a file of prompts.
      seed: of the noise; line n of a file has seed + n - 1.
      steps, guidance_scale, sampler, spacing, steps_offset, set_alpha_to_one, negative_prompt,
        frames, fps, segment_frames, overlap: see `VideoRequest`.
      scale: factor by which the files are larger than what the model makes, each pixel repeated; by
        default what brings the shorter side to 256 pixels or next below.
      size: "HEIGHTxWIDTH" in pixels.
      condition_image, condition_video: files that each video begins with, see `read_condition`.
      batch_size: prompts at once; by default enough to occupy the devices.
      overwrite: replace videos that exist.
      embedder, text_encoder, lora, text_cache, compute_dtype, attention, offload,
        memory_budget_gb: see `load_text_to_video`.
      restore: checkpoint of the model: "latest", "latest_good", which steps over damaged ones,
        "best" (see `LoopConfig.keep_best`), or the number of a step.

    Raises:
      UserError: missing or contradicting values.
    """

    model: str = ""
    prompt: str | None = None
    prompts_file: str | None = None
    out: str = ""
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    spacing: str | None = None
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None
    negative_prompt: str | None = None
    scale: int | None = None
    size: str | None = None
    frames: int | None = None
    fps: float | None = None
    condition_image: str | None = None
    condition_video: str | None = None
    segment_frames: int | None = None
    overlap: int | None = None
    batch_size: int | None = None
    overwrite: bool = False
    embedder: str | None = None
    text_encoder: str | None = None
    lora: str | None = None
    text_cache: str | None = None
    compute_dtype: str | None = None
    attention: str | None = None
    offload: bool = False
    memory_budget_gb: float | None = None
    restore: str = LATEST

    def __post_init__(self):
        if not self.model or not self.out:
            kind = "FILE" if self.prompt is not None else "FILE|DIR"
            raise UserError(f"give --model=DIR and --out={kind}")
        if (self.prompt is None) == (self.prompts_file is None):
            raise UserError("give one of --prompt and --prompts_file")
        if self.prompt is not None:
            check_suffix(self.out)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be 0 or more, and below 2^32")
        if self.scale is not None and self.scale < 1:
            raise UserError(f"scale={self.scale} must be 1 or more")
        if self.condition_image and self.condition_video:
            raise UserError("give one of --condition_image and --condition_video")
        self.video()

    def video(self) -> VideoRequest:
        """Return the description of the videos."""
        return VideoRequest(
            frames=self.frames,
            size=None if self.size is None else parse_size(self.size),
            fps=self.fps,
            segment_frames=self.segment_frames,
            overlap=self.overlap,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            sampler=self.sampler,
            spacing=self.spacing,
            steps_offset=self.steps_offset,
            set_alpha_to_one=self.set_alpha_to_one,
            negative_prompt=self.negative_prompt,
        )

    def file_scale(self, plan: VideoPlan) -> int:
        """Return the factor by which files are enlarged: by default that of a folder's videos."""
        file = pathlib.Path(self.out) / SETTINGS
        if self.scale is None and file.is_file() and not self.overwrite:
            return _read_settings(file, "choose another --out")[0].get("scale", 1)
        return self.scale or default_scale(plan.height, plan.width)

    def load(self) -> TextToVideo:
        """Load the model with the networks and settings of the request."""
        return load_text_to_video(
            self.model,
            self.embedder,
            step=self.restore,
            text_encoder=self.text_encoder,
            text_cache=self.text_cache,
            lora=self.lora,
            compute_dtype=self.compute_dtype,
            attention=self.attention,
            offload=self.offload,
            memory_budget_gb=self.memory_budget_gb,
        )


def default_scale(height: int, width: int) -> int:
    """Return the factor that brings the shorter side of a video to 256 pixels or next below."""
    return max(1, _SHOWN_SIDE // min(height, width))


def parse_size(size: str) -> tuple[int, int]:
    """Parse "HEIGHTxWIDTH" as (height, width)."""
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--size={size} must be HEIGHTxWIDTH in pixels, e.g. 32x32")
    return int(parts[0]), int(parts[1])


def check_suffix(out: str | os.PathLike) -> pathlib.Path:
    """Return the path of a video to write; UserError for a suffix that cannot be written."""
    path = pathlib.Path(out)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise UserError(f"--out={out} must end with one of {', '.join(sorted(WRITE_SUFFIXES))}")
    return path


def check_output_file(out: str | os.PathLike, overwrite: bool) -> pathlib.Path:
    """Return the path of a video to write; UserError for a suffix that cannot be written and for a
    file that exists, unless it may be overwritten."""
    path = check_suffix(out)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another --out, or replace it with --overwrite")
    return path


def read_prompts(path: str | os.PathLike) -> list[str]:
    """Read the lines of a UTF-8 text file.

    Raises:
      UserError: a file that cannot be read, or an empty line before the last prompt: videos are
        numbered by line.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"the prompts file {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompts file {path} is not UTF-8 (byte {error.start}); save it as UTF-8 text"
        ) from error
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if empty:
        raise UserError(f"{path} has no prompt in line {empty[0]}; give one prompt a line")
    return lines


def sample_files(request: SampleRequest) -> dict[str, Any]:
    """Generate a video for one prompt as a file, or for each line of a file in a folder.

    In a folder, the video of line n is "{n:05d}.mp4" and has the seed of the request + n - 1,
    whatever else is in its batch. Videos that exist are left as they are, so an interrupted run
    continues where it stopped, and ends with the same bytes on the same devices with the same batch
    size. Several processes (`jax.process_count()`) split the batches, and need a common folder.

    Args:
      request: see `SampleRequest`.

    Returns:
      With a prompt: video (the path), prompt, seed, shape (T, H, W, 3), wall_s. With a file of
      prompts: folder, prompts (lines), generated, kept, wall_s.

    Raises:
      UserError: a folder of videos with other settings; whatever loading and sampling refuse.
    """
    started = time.monotonic()
    check_hosts(dataclasses.asdict(request))
    with together():  # a mistake that one process finds ends all of them
        prompts, paths = _prompts_and_paths(request)
        if request.seed + len(prompts) > 2**32:
            raise UserError(
                f"seed={request.seed} must be below 2^32 with the {len(prompts)} lines added to it"
            )
        model = request.load()
        plan = model.plan(request.video())
        condition = _condition(request, plan, model)
        batch_size = request.batch_size
        batch_size = min(model.batch_size(plan) if batch_size is None else batch_size, len(prompts))
        generator = model.generator(plan, batch_size, conditioned=condition is not None)
        # Asked once: another process may have begun to write.
        todo = from_first(
            lambda: [n for n, path in enumerate(paths) if request.overwrite or not path.exists()]
        )
        # Refuses a bad prompt before anything is generated.
        negative = [] if request.negative_prompt is None else [request.negative_prompt]
        model.networks.text.prepare([prompts[line] for line in todo] + negative)
        scale = request.file_scale(plan)
        settings = sampling_settings(model, generator, request.seed)
        if scale != 1:
            settings["scale"] = scale
        if request.lora:
            settings["lora"] = request.lora
        if condition is not None:
            settings["condition"] = hashlib.sha256(condition.tobytes()).hexdigest()[:16]
        check_equal({"sampled": settings, "prompts": prompts})
    batches = make_batches(todo, batch_size)[jax.process_index() :: jax.process_count()]
    rows = [BatchRow(prompt, request.seed + line) for line, prompt in enumerate(prompts)]
    with contextlib.ExitStack() as stack:
        with together():
            if request.prompt is None and is_first():  # it stands for all processes
                stack.enter_context(locked(request.out, "samples into"))
                _create_or_resume(request, settings, prompts, paths)
                remove_temporaries(request.out, {paths[line].stem for line in todo})
        with together():
            write_videos(generator, batches, rows, paths, condition, scale)
    wall_s = round(time.monotonic() - started, 2)
    if request.prompt is not None:
        return {
            "video": str(paths[0]),
            "prompt": request.prompt,
            "seed": request.seed,
            "shape": [plan.frames, plan.height, plan.width, 3],
            "scale": scale,
            "wall_s": wall_s,
        }
    return {
        "folder": str(pathlib.Path(request.out)),
        "prompts": len(prompts),
        "generated": len(todo),
        "kept": len(prompts) - len(todo),
        "wall_s": wall_s,
    }


def make_batches(lines: Sequence[int], batch_size: int) -> list[list[int | None]]:
    """Arrange lines, counted from 0, in batches: line n is always row n % batch_size.

    The result of a row does not depend on the other rows, but its last bits may depend on which row
    it is. So a file gets the same bytes, whatever existed when its run began.

    Returns:
      Batches of `batch_size` lines; None is an empty row.
    """
    queues = [[line for line in lines if line % batch_size == row] for row in range(batch_size)]
    return [list(batch) for batch in itertools.zip_longest(*queues)]


def _prompts_and_paths(request: SampleRequest) -> tuple[list[str], list[pathlib.Path]]:
    if request.prompts_file is None:
        path = check_output_file(request.out, request.overwrite)
        return [request.prompt or ""], [path]
    prompts, folder = read_prompts(request.prompts_file), pathlib.Path(request.out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={request.out} is a file; with --prompts_file it must be a folder")
    return prompts, [folder / f"{number:05d}.mp4" for number in range(1, len(prompts) + 1)]


def _condition(request: SampleRequest, plan: VideoPlan, model: TextToVideo) -> Video | None:
    embedder = model.networks.embedder
    condition = read_condition(request.condition_image, request.condition_video, plan, embedder)
    if condition is not None:
        fit_condition(condition, plan, embedder)  # refuses it before anything is generated
    return condition


def write_videos(
    generator: VideoGenerator,
    batches: list[list[int | None]],
    rows: list[BatchRow],
    paths: list[pathlib.Path],
    condition: Video | None,
    scale: int,
) -> None:
    """Generate batches of lines; `rows` and `paths` are those of all lines."""
    done, videos = 0, 0
    total = len(batches) * generator.sampler.steps_per_batch
    if not total:
        return
    with contextlib.closing(
        ConsoleWriter(total, "sample", 0, ("videos",), unit="steps")
    ) as console:

        def progress():
            nonlocal done
            done += 1
            console.progress(done, {"videos": videos})

        for batch in batches:
            lines = {row: line for row, line in enumerate(batch) if line is not None}
            chunks = generator(
                [None if line is None else rows[line] for line in batch], condition, progress
            )
            with contextlib.ExitStack() as stack:
                writers = {
                    row: stack.enter_context(VideoWriter(paths[line], generator.plan.fps))
                    for row, line in lines.items()
                }
                for chunk in chunks:
                    for row, writer in writers.items():
                        writer.write(chunk[row].repeat(scale, axis=1).repeat(scale, axis=2))
            videos += len(lines)
            console.progress(done, {"videos": videos})


def sampling_settings(model: TextToVideo, generator: VideoGenerator, seed: int) -> dict[str, Any]:
    """Return what videos depend on besides their prompts, for the record next to them."""
    return {"seed": seed, "step": model.step, "model": model.fingerprint, **generator.settings}


def setting_differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return how recorded settings differ from `here`; a record of release 0.2 names no model."""
    return differences({"model": here["model"], **there}, here)


def _create_or_resume(
    request: SampleRequest,
    settings: dict[str, Any],
    prompts: list[str],
    paths: list[pathlib.Path],
) -> None:
    """Write the videos' settings into the folder; refuse a folder of videos with other settings."""
    file = pathlib.Path(request.out) / SETTINGS
    existing = [line for line, path in enumerate(paths) if path.exists()]
    fix = "choose another --out, or replace the videos with --overwrite"
    others: list[str] = []  # prompts of videos behind those of this call
    if request.overwrite:
        for line in existing:  # first: none must outlive its settings
            paths[line].unlink()
    elif file.exists():
        there, lines = _read_settings(file, fix)
        differing = setting_differences(there, settings)
        others = [] if differing else lines[len(prompts) :]
        lines += ["(not recorded)"] * (len(prompts) - len(lines))
        differing += [
            f"line {line + 1}: {lines[line]!r} -> {prompts[line]!r}"
            for line in existing
            if lines[line] != prompts[line]
        ]
        if existing:
            what = f"{request.out} holds videos with other settings"
            refuse_differences(differing[:10], what, fix)
    elif existing:
        raise UserError(
            f"{request.out} holds videos without {SETTINGS}, of no known settings; {fix}"
        )
    write_json(file, {"settings": settings, "prompts": prompts + others})


def _read_settings(file: pathlib.Path, fix: str) -> tuple[dict[str, Any], list[str]]:
    """Read (settings, prompts), also from a file with the old names of keys."""
    values = read_json(file, fix)
    settings, prompts = values.get("settings", values.get("drawn")), values.get("prompts")
    if not isinstance(settings, dict) or not isinstance(prompts, list):
        raise UserError(f"{file} has no settings and prompts; {fix}")
    return {_RENAMED.get(key, key): value for key, value in settings.items()}, prompts
