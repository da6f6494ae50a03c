"""A folder of captioned videos and images as a source of clips."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from xgen_jax.data.buckets import Bucket, fit
from xgen_jax.data.images import IMAGE_FPS, IMAGE_SUFFIXES, probe_image, read_image
from xgen_jax.data.pixels import random_crop
from xgen_jax.data.sources.base import Sample, Source
from xgen_jax.data.video import (
    READ_SUFFIXES,
    VideoInfo,
    probe,
    read_video,
    resize_cover,
)
from xgen_jax.errors import UserError

CAPTIONS = "captions.jsonl"
_SHOWN = 10  # items of each kind of problem in a report


class VideoFolderSource(Source):
    """Videos in a folder, with captions from an optional `captions.jsonl`.

    Its lines are {"file": "a/b.mp4", "caption": "..."}. Images are clips of one frame, upright and
    over white (see `data.images`), for buckets of one frame only. Clips are numbered in the order
    of the relative paths.

    Args:
      path: of the folder; searched recursively for .mp4 .m4v .mov .webm .mkv .avi .gif, except
        hidden names.
      images: take .jpg .jpeg .png .webp too, for a run that has buckets of one frame.
      fps: frames a second at which clips are sampled, by presentation time; None keeps each file's
        own.
      stride: take every stride-th frame of that rate.
      require_captions: leave out videos without a caption; if False their caption is "".
      flip: mirror half of the clips. Off by default, because captions name left and right.
      substitute: replace a file that cannot be decoded by the next that can; if False, `read`
        raises UserError for it.

    Attributes:
      problems: by kind, files and lines that were left out: unreadable videos and images, captions
        without a video, videos without a caption, broken lines; also clips that were too short and
        files that failed only when decoded. `report` lists them in words.

    Raises:
      UserError: a folder that is missing, is a file, or holds no usable video.
    """

    name = "video_folder"

    def __init__(
        self,
        path,
        *,
        fps: float | None = None,
        stride: int = 1,
        require_captions=True,
        flip=False,
        images=False,
        substitute=True,
    ):
        self.path = pathlib.Path(path)
        if fps is not None and not 0 < fps <= 1000:
            raise UserError(
                f"fps must be above 0 and at most 1000, or None for each file's own, not {fps}"
            )
        if stride < 1:
            raise UserError(f"stride must be 1 or more, not {stride}")
        self._fps, self._stride, self._flip, self._substitute = fps, stride, flip, substitute
        self.problems: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        files = _list_files(self.path, READ_SUFFIXES + IMAGE_SUFFIXES if images else READ_SUFFIXES)
        captions = self._read_captions(files, require_captions)
        infos = self._probe([file for file in files if file in captions])
        self._files = [(file, captions[file], info) for file, info in infos.items()]
        if not self._files:
            raise UserError(f"no usable video in {self.path}\n{self.report()}")

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> list[str]:
        """The files of all clips, as paths relative to the folder."""
        return [file for file, _, _ in self._files]

    def extents(self) -> np.ndarray:
        """Return (frames, height, width) of each video or image at the rate at which clips are
        sampled, int64 (N, 3)."""
        rows = []
        for file, _, info in self._files:
            frames = 1 + (info.duration_s - 1 / info.fps) * self._rate(file, info) + 1e-3
            rows.append((max(1, int(frames)), info.height, info.width))
        return np.array(rows, np.int64)

    def fit(self, buckets: Sequence[Bucket], seed: int) -> list[np.ndarray]:
        """Return for each bucket the clips that go to it; see `data.buckets.fit`."""
        chosen = fit(self.extents(), buckets, seed)
        return [np.flatnonzero(chosen == number) for number in range(len(buckets))]

    def clips_for(self, bucket: Bucket) -> np.ndarray | None:
        """Return the videos, for a bucket of more than one frame, if there are images as well."""
        moving = np.flatnonzero([not _is_image(file) for file in self.files])
        return None if bucket.frames == 1 or len(moving) == len(self) else moving

    def where(self, index: int) -> str:
        """Return the path of clip `index`, relative to the folder."""
        return self._files[index][0]

    def captions(self) -> Iterator[tuple[str, str]]:
        """Yield (file, caption) of every clip."""
        for file, caption, _ in self._files:
            yield str(self.path / file), caption

    def fingerprint(self) -> str:
        """Return a hex digest of relative paths, sizes in bytes, captions and settings; the folder
        may move."""
        digest = hashlib.sha256(
            json.dumps([self.name, self._fps, self._stride, self._flip]).encode()
        )
        for file, caption, _ in self._files:
            row = [os.fsencode(file).hex(), (self.path / file).stat().st_size, caption]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def report(self) -> str:
        """Return the problems so far in words, the first ten of each kind."""
        with self._lock:
            kinds = {kind: list(items) for kind, items in self.problems.items()}
        lines = []
        for kind, items in kinds.items():
            more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
            lines.append(f"{len(items)} x {kind}: {'; '.join(items[:_SHOWN])}{more}")
        return "\n".join(lines)

    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> Sample:
        """Return a clip with a random start and crop: "video", uint8 (frames, height, width, 3),
        "caption", "fps".

        A clip that is too short repeats its last frame. A file that cannot be decoded is replaced
        by the next that can, always the same one: a video by a video, an image by an image.

        Raises:
          UserError: no file can be decoded.
        """
        image = _is_image(self._files[index][0])
        # Before anything can fail, so that a substitute has the same numbers.
        uniforms = rng.random(4)
        for step in range(len(self)):
            file, caption, info = self._files[(index + step) % len(self)]
            if _is_image(file) != image:
                continue
            try:
                video = self._read_clip(file, info, frames, height, width, uniforms)
            except UserError as error:
                self._note("unreadable when decoded", str(error))
                if not self._substitute:
                    raise
                continue
            return {"video": video, "caption": caption, "fps": self._rate(file, info)}
        what = "image" if image else "video"
        raise UserError(f"every {what} in {self.path} failed to decode\n{self.report()}")

    def _read_clip(
        self, file: str, info: VideoInfo, frames: int, height: int, width: int, uniforms
    ) -> np.ndarray:
        fps = self._rate(file, info)
        # The last output frame must start before the file ends: choose among the source frames that
        # allow it.
        spare = info.duration_s - (frames - 1) / fps - 1 / info.fps
        starts = 1 + max(0, int(spare * info.fps + 1e-3))
        start_s = int(uniforms[0] * starts) / info.fps
        if _is_image(file):
            image = read_image(self.path / file)
            video = resize_cover(image[None], height, width)
        else:
            video, _ = read_video(
                self.path / file, fps=fps, start_s=start_s, frames=frames, cover=(height, width)
            )
        if len(video) < frames:
            self._note("shorter than a clip, last frame held", file)
            video = np.concatenate([video, np.repeat(video[-1:], frames - len(video), axis=0)])
        video = random_crop(video, height, width, (uniforms[1], uniforms[2]))
        if self._flip and uniforms[3] < 0.5:
            video = video[:, :, ::-1]
        return np.ascontiguousarray(video)

    def _rate(self, file: str, info: VideoInfo) -> float:
        """Frames a second at which clips of a file are sampled."""
        return IMAGE_FPS if _is_image(file) else (self._fps or info.fps) / self._stride

    def _note(self, kind: str, item: str) -> None:
        with self._lock:
            items = self.problems.setdefault(kind, [])
            if item not in items:
                items.append(item)

    def _probe(self, files: list[str]) -> dict[str, VideoInfo]:
        def try_probe(file):
            try:
                return (probe_image if _is_image(file) else probe)(self.path / file)
            except UserError as error:
                return error

        infos = {}
        # More threads than cores may be: they wait for disks and networks.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for file, info in zip(files, pool.map(try_probe, files), strict=True):
                if isinstance(info, UserError):
                    self._note(
                        "unreadable image" if _is_image(file) else "unreadable video", str(info)
                    )
                else:
                    infos[file] = info
        return infos

    def _read_captions(self, files: list[str], require_captions: bool) -> dict[str, str]:
        """The captions of the files to use, by relative path."""
        path = self.path / CAPTIONS
        if not path.exists():
            if require_captions:
                raise UserError(
                    f"{self.path} has {len(files)} videos but no {CAPTIONS}; add one with lines "
                    'like {"file": "a/b.mp4", "caption": "..."}, or set require_captions=False'
                )
            return dict.fromkeys(files, "")
        try:
            lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        known, captions = set(files), {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                file, caption = _parse_caption(line)
            except UserError as error:
                self._note(f"broken line in {CAPTIONS}", f"line {number}: {error}")
                continue
            if file not in known:
                self._note("caption without its video", file)
            elif file in captions:
                self._note("second caption of a video, first kept", f"{file} (line {number})")
            elif caption:
                captions[file] = caption
        for file in files:
            if file not in captions:
                self._note("video without a caption", file)
        return captions if require_captions else dict.fromkeys(files, "") | captions


def _parse_caption(line: bytes) -> tuple[str, str]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not JSON ({getattr(error, 'msg', 'too deeply nested')})") from error
    if not isinstance(row, dict) or not all(
        isinstance(row.get(key), str) for key in ("file", "caption")
    ):
        raise UserError('needs the strings "file" and "caption"')
    return pathlib.PurePosixPath(row["file"]).as_posix(), " ".join(row["caption"].split())


def _is_image(file: str) -> bool:
    return file.lower().endswith(IMAGE_SUFFIXES)


def _list_files(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
    """The relative posix paths of the files in a folder with these suffixes, sorted."""
    if not folder.exists():
        raise UserError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of videos")

    def refuse(error: OSError):
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from error

    files = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = (
            name for name in names if not name.startswith(".") and name.lower().endswith(suffixes)
        )
        files += [pathlib.Path(root, name).relative_to(folder).as_posix() for name in found]
    if not files:
        raise UserError(
            f"{folder} holds no video; looked for {' '.join(suffixes)} in it and its folders"
        )
    return sorted(files)
