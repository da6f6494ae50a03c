"""Results of the demo on disk: NAME.mp4 and NAME.json, which is written last.

A result is there when its JSON is, so a server may be stopped at any time. Several servers may
share a folder: names are random.
"""

import dataclasses
import datetime
import functools
import os
import pathlib
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from xgen_jax.data.video import read_video, resize_cover
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.files import read_json, remove_temporaries, write_json
from xgen_jax.typing import Video

_NAME = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{8}")  # sorts by time, in UTC
# Flags of launch/sample.py by which a result is sampled again.
_SOURCE = ("model", "embedder", "text_encoder", "lora", "restore")
_FLAGS = ("steps", "guidance_scale", "sampler")
_THUMBNAIL = 192  # pixels of the shorter side
_ABANDONED_S = 3600.0  # age at which a file without the rest is what a killed server left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A video of the gallery.

    Attributes:
      name: of its files, without ending.
      video: path of the mp4.
      settings: what it was sampled with, ready for JSON; "prompt" is among them.
    """

    name: str
    video: pathlib.Path
    settings: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The command line that samples it again; empty if the settings do not say how."""
        settings = self.settings
        if not settings.keys() >= {"model", "seed", *_FLAGS, "size", "frames"}:
            return ""
        height, width = settings["size"]
        flags = {name: settings[name] for name in _SOURCE if name in settings}
        flags |= {name: settings[name] for name in ("prompt", "seed", *_FLAGS)}
        if settings.get("negative_prompt") is not None:
            flags["negative_prompt"] = settings["negative_prompt"]
        flags |= {"size": f"{height}x{width}", "frames": settings["frames"], "out": "video.mp4"}
        words = [f"--{name}={shlex.quote(str(value))}" for name, value in flags.items()]
        return " ".join(["python launch/sample.py", *words])


class Gallery:
    """A folder of results.

    Args:
      folder: made if it is not there.

    Raises:
      UserError: a file in its place, or a folder that cannot be written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder).resolve()
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--gallery={folder} is a file; give a folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--gallery={folder} cannot be made ({error.strerror})") from error
        if not os.access(self.folder, os.W_OK):
            raise UserError(f"--gallery={folder} cannot be written; give another folder")

    def add(self, video: Video, fps: float, settings: Mapping[str, Any]) -> Result:
        """Write a result.

        Args:
          video: uint8 (T, H, W, 3), as it is to be seen.
          fps: frames per second.
          settings: ready for JSON.

        Raises:
          UserError: the files cannot be written.
        """
        now = datetime.datetime.now().astimezone()
        utc = now.astimezone(datetime.UTC)
        name = f"{utc:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(4)}"
        path = self.folder / f"{name}.mp4"
        settings = {**settings, "created": now.isoformat(timespec="seconds")}
        write_video(path, video, fps)
        try:
            write_json(path.with_suffix(".json"), settings)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Result(name=name, video=path, settings=settings)

    def results(self, limit: int | None = None) -> list[Result]:
        """List results, the newest first; what cannot be read is left out with a note on stderr."""
        names = (path.stem for path in self.folder.glob("*.json"))
        found: list[Result] = []
        for name in sorted(filter(_NAME.fullmatch, names), reverse=True):
            if limit is not None and len(found) == limit:
                break
            try:
                found.append(self.result(name))
            except UserError as error:
                _note(str(error))
        return found

    def result(self, name: str) -> Result:
        """Read a result.

        Raises:
          UserError: another name than `add` gives, or files that are gone or damaged.
        """
        if not _NAME.fullmatch(name):  # it comes from a browser
            raise UserError(f"the gallery has no result {name!r}")
        path = self.folder / f"{name}.mp4"
        settings = read_json(path.with_suffix(".json"))
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        if not isinstance(settings.get("prompt"), str):
            raise UserError(f"{path.with_suffix('.json')} has no prompt; remove it")
        return Result(name=name, video=path, settings=settings)

    def remove_unfinished(self) -> None:
        """Remove what a server left behind that was killed while it wrote, after an hour."""
        before = time.time() - _ABANDONED_S

        def abandoned(path: pathlib.Path) -> bool:
            try:
                return path.stat().st_mtime < before
            except FileNotFoundError:  # another server has just finished it
                return False

        for video in self.folder.glob("*.mp4"):
            finished = video.with_suffix(".json").exists()
            if _NAME.fullmatch(video.stem) and not finished and abandoned(video):
                video.unlink(missing_ok=True)
        stale = filter(abandoned, self.folder.glob(".*.tmp*"))
        stems = (path.name[1:].partition(".")[0] for path in stale)
        remove_temporaries(self.folder, set(filter(_NAME.fullmatch, stems)))


def thumbnail(result: Result, folder: pathlib.Path) -> pathlib.Path:
    """Return a picture of the middle of a result, NAME.gif in a folder, where it is kept.

    It is grey if the video cannot be read.
    """
    path = folder / f"{result.name}.gif"
    if not path.exists():
        try:
            frames, _ = read_video(result.video)
            frame = frames[len(frames) // 2 :][:1]
        except UserError as error:
            _note(str(error))
            frame = np.full((1, _THUMBNAIL, _THUMBNAIL, 3), 128, np.uint8)
        if min(frame.shape[1:3]) > _THUMBNAIL:
            frame = resize_cover(frame, _THUMBNAIL, _THUMBNAIL)
        write_video(path, frame, 1)
    return path


@functools.cache  # said once
def _note(text: str) -> None:
    print(text, file=sys.stderr)
