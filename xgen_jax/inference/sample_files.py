"""Text in, video files out: what `launch/sample.py` does."""

import os
import pathlib
import sys
import time
from typing import Any

from xgen_jax.data.video_writer import WRITE_SUFFIXES, write_video
from xgen_jax.errors import UserError
from xgen_jax.inference.text_to_video import load_text_to_video


def parse_size(size: str | None) -> tuple[int, int] | None:
    """ "HEIGHTxWIDTH" -> (height, width)."""
    if size is None:
        return None
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--size={size} must be HEIGHTxWIDTH in pixels, e.g. 32x32")
    return int(parts[0]), int(parts[1])


def check_output_file(out: str | os.PathLike, overwrite: bool) -> pathlib.Path:
    """The path of a video to write; refuses a suffix that cannot be written and a file that is there."""
    path = pathlib.Path(out)
    if path.suffix.lower() not in WRITE_SUFFIXES:
        raise UserError(f"--out={out} must end with one of {', '.join(sorted(WRITE_SUFFIXES))}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another --out, or replace it with --overwrite")
    return path


def read_prompts(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 text file. An empty line in its midst is an error, for videos are numbered by line."""
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"the prompts file {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompts file {path} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from error
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
    size: str | None = None,
    fps: float | None = None,
    overwrite: bool = False,
    embedder: str | None = None,
    text_encoder: str | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Draws one prompt into a file, or a file of prompts into a folder. Options go to `TextToVideo.__call__`.

    In a folder, the video of line n is "{n:05d}.mp4" and is drawn from seed + n - 1, whatever is drawn with it; those
    that are there are kept, so an interrupted run goes on where it stopped.

    Raises:
      UserError: missing or contradicting arguments; whatever loading and drawing refuse.
    """
    started = time.monotonic()
    if not model or not out:
        raise UserError("give --model=DIR and --out=" + ("FILE" if prompt is not None else "FILE|DIR"))
    if (prompt is None) == (prompts_file is None):
        raise UserError("give one of --prompt and --prompts_file")
    if prompt is not None:
        path = check_output_file(out, overwrite)
        loaded = load_text_to_video(model, embedder, text_encoder=text_encoder)
        video = loaded(prompt, seed, size=parse_size(size), **options)
        write_video(path, video, fps or loaded.fps)
        return {"video": str(path), "prompt": prompt, "seed": seed, "shape": list(video.shape), **_timing(started)}

    prompts = read_prompts(prompts_file)
    folder = pathlib.Path(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={out} is a file; with --prompts_file it must be a folder")
    paths = [folder / f"{number:05d}.mp4" for number in range(1, len(prompts) + 1)]
    todo = [place for place, path in enumerate(paths) if overwrite or not path.exists()]
    loaded = load_text_to_video(model, embedder, text_encoder=text_encoder)
    loaded.text.prepare([prompts[place] for place in todo])  # refuses a bad prompt before anything is drawn
    for done, place in enumerate(todo):
        video = loaded(prompts[place], seed + place, size=parse_size(size), **options)
        write_video(paths[place], video, fps or loaded.fps)
        print(f"{done + 1}/{len(todo)}  {paths[place]}  {prompts[place]}", file=sys.stderr)
    return {
        "folder": str(folder),
        "prompts": len(prompts),
        "drawn": len(todo),
        "kept": len(prompts) - len(todo),
        **_timing(started),
    }


def _timing(started: float) -> dict[str, float]:
    return {"wall_s": round(time.monotonic() - started, 2)}
