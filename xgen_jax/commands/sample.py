"""Text in, video files out: what `launch/sample.py` does."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from xgen_jax.data.video_writer import WRITE_SUFFIXES, VideoWriter
from xgen_jax.errors import UserError
from xgen_jax.inference.conditioning import fit_condition, read_condition
from xgen_jax.inference.sampling import Drawer
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Video

SETTINGS = "samples.json"


def parse_size(size: str | None) -> tuple[int, int] | None:
    """ "HEIGHTxWIDTH" -> (height, width)."""
    if size is None:
        return None
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--size={size} must be HEIGHTxWIDTH in pixels, e.g. 32x32")
    return int(parts[0]), int(parts[1])


def check_output_file(out: str | os.PathLike, overwrite: bool) -> pathlib.Path:
    """The path of a video to write; refuses a suffix that cannot be written and a file that is
    there."""
    path = pathlib.Path(out)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise UserError(f"--out={out} must end with one of {', '.join(sorted(WRITE_SUFFIXES))}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another --out, or replace it with --overwrite")
    return path


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 text file. An empty line in its midst is an error, for videos are
    numbered by line."""
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


def sample_files(
    *,
    model: str | None,
    prompt: str | None,
    prompts_file: str | None,
    out: str | None,
    seed: int = 0,
    size: str | None = None,
    frames: int | None = None,
    fps: float | None = None,
    piece_frames: int | None = None,
    overlap: int | None = None,
    condition_image: str | None = None,
    condition_video: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    **where: Any,
) -> dict[str, Any]:
    """Draws one prompt into a file, or a file of prompts into a folder.

    In a folder, the video of line n is "{n:05d}.mp4" and is drawn from seed + n - 1, whatever is
    drawn with it: as with --prompt and that seed, but for the rounding of sums. Those that are
    there are kept, so an interrupted run goes on where it stopped, and ends with the same bytes on
    the same devices and with the same batch size. Several processes (`jax.process_count()`) share
    the batches, and must share the folder.

    Args:
      model: run folder of a VDiT.
      prompt, prompts_file: one of them.
      out: the file, or the folder.
      size: "HEIGHTxWIDTH".
      condition_image, condition_video: what each video begins with, see
      `conditions.read_condition`.
      overwrite: replace what is there.
      where: to `load_text_to_video`; all else is as of `TextToVideo.__call__`.

    Raises:
      UserError: missing or contradicting arguments; a folder of videos that were drawn otherwise;
        whatever loading and drawing refuse.
    """
    started = time.monotonic()
    if not model or not out:
        raise UserError(
            "give --model=DIR and --out=" + ("FILE" if prompt is not None else "FILE|DIR")
        )
    if (prompt is None) == (prompts_file is None):
        raise UserError("give one of --prompt and --prompts_file")
    if prompt is not None:
        paths, prompts = [check_output_file(out, overwrite)], [prompt]
    else:
        prompts, folder = read_prompts(prompts_file), pathlib.Path(out)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out={out} is a file; with --prompts_file it must be a folder")
        paths = [folder / f"{number:05d}.mp4" for number in range(1, len(prompts) + 1)]
    if seed < 0 or seed + len(prompts) > 2**32:
        raise UserError(
            f"seed={seed} must be 0 or more, and with the lines that are added to it below 2^32"
        )
    loaded = load_text_to_video(model, **where)
    plan = loaded.plan(
        frames=frames, size=parse_size(size), fps=fps, piece_frames=piece_frames, overlap=overlap
    )
    condition = read_condition(condition_image, condition_video, plan, loaded.embedder)
    if condition is not None:
        fit_condition(condition, plan, loaded.embedder)  # refuses it before anything is drawn
    batch_size = min(loaded.batch_size(plan) if batch_size is None else batch_size, len(prompts))
    options = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler}
    drawer = loaded.drawer(plan, batch_size, condition=condition, **options)
    todo = [place for place, path in enumerate(paths) if overwrite or not path.exists()]
    loaded.text.prepare(
        [prompts[place] for place in todo]
    )  # refuses a bad prompt before anything is drawn
    if prompt is None:
        drawn = {"seed": seed, "step": loaded.step, **drawer.settings}
        if where.get("lora"):
            drawn["lora"] = where["lora"]
        if condition is not None:
            drawn["condition"] = hashlib.sha256(condition.tobytes()).hexdigest()[:16]
        _claim(folder, drawn, prompts, paths, overwrite)
    batches = make_batches(todo, batch_size)[jax.process_index() :: jax.process_count()]
    if prompt is None:
        _remove_leftovers(
            folder, {paths[place].stem for batch in batches for place in batch if place is not None}
        )
    _draw(drawer, batches, prompts, paths, seed, condition)
    wall_s = round(time.monotonic() - started, 2)
    if prompt is not None:
        shape = [plan.frames, plan.height, plan.width, 3]
        return {
            "video": str(paths[0]),
            "prompt": prompt,
            "seed": seed,
            "shape": shape,
            "wall_s": wall_s,
        }
    done = sum(place is not None for batch in batches for place in batch)
    kept = len(prompts) - len(todo)
    return {
        "folder": str(folder),
        "prompts": len(prompts),
        "drawn": done,
        "kept": kept,
        "wall_s": wall_s,
    }


def make_batches(places: Sequence[int], batch_size: int) -> list[list[int | None]]:
    """Lines, counted from 0, in batches: line p is always row p % batch_size, and rows may be empty
    (None).

    What a row gives does not depend on what is in the other rows, but its last bits may on which
    row it is. So a file gets the same bytes whatever was there when its run began.
    """
    queues = [[place for place in places if place % batch_size == row] for row in range(batch_size)]
    return [list(batch) for batch in itertools.zip_longest(*queues)]


def _draw(
    drawer: Drawer,
    batches: list[list[int | None]],
    prompts: list[str],
    paths: list[pathlib.Path],
    seed: int,
    condition: Video | None,
) -> None:
    done, videos = 0, 0
    total = len(batches) * drawer.steps
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
            places = [place for place in batch if place is not None]
            rows = [
                places[0] if place is None else place for place in batch
            ]  # an empty row is drawn for nothing
            chunks = drawer(
                [prompts[row] for row in rows],
                [seed + row for row in rows],
                None,
                condition,
                progress,
            )
            with contextlib.ExitStack() as stack:
                writers = {
                    row: stack.enter_context(VideoWriter(paths[place], drawer.plan.fps))
                    for row, place in enumerate(batch)
                    if place is not None
                }
                for chunk in chunks:
                    for row, writer in writers.items():
                        writer.write(chunk[row])
            videos += len(places)
            console.progress(done, {"videos": videos})


def _remove_leftovers(folder: pathlib.Path, stems: set[str]) -> None:
    """Of a run that was killed, what it was writing of these videos."""
    for left in folder.glob(".*.tmp.mp4"):
        if left.name.split(".")[1] in stems:
            left.unlink(missing_ok=True)


def _claim(
    folder: pathlib.Path, drawn: dict[str, Any], prompts: list[str], paths, overwrite: bool
) -> None:
    """Notes in the folder what its videos are drawn from; refuses one whose videos were drawn from
    something else."""
    file = folder / SETTINGS
    there = [place for place, path in enumerate(paths) if path.exists()]
    if file.exists() and there and not overwrite:
        try:
            before = json.loads(file.read_text())
            old, lines = before["drawn"], before["prompts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); choose another --out, or draw anew with --overwrite"
            ) from error
        keys = [key for key in sorted(old.keys() | drawn.keys()) if old.get(key) != drawn.get(key)]
        differing = [f"{key}: {old.get(key)!r} -> {drawn.get(key)!r}" for key in keys]
        changed = [
            place for place in there if lines[place : place + 1] not in ([], [prompts[place]])
        ]
        differing += [
            f"line {place + 1}: {lines[place]!r} -> {prompts[place]!r}" for place in changed
        ]
        if differing:
            listed = "\n  ".join(differing[:10])
            raise UserError(
                f"{folder} holds videos that were drawn otherwise (there -> here):\n  {listed}\n"
                "choose another --out, or draw them anew with --overwrite"
            )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{jax.process_index()}.tmp")
    temporary.write_text(
        json.dumps({"drawn": drawn, "prompts": prompts}, indent=1, ensure_ascii=False) + "\n"
    )
    os.replace(temporary, file)
