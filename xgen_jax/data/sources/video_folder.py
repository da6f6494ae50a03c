"""A folder of captioned videos and images as a source of clips."""

import hashlib
import json
import math
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from xgen_jax.data.buckets import Bucket, fit
from xgen_jax.data.captions import read_captions
from xgen_jax.data.config import HOLD_OUT
from xgen_jax.data.file_index import list_files, probe_files
from xgen_jax.data.images import IMAGE_FPS, IMAGE_SUFFIXES, probe_image, read_image
from xgen_jax.data.pixels import UNIFORMS, hold_last, random_start, random_view
from xgen_jax.data.problems import Problems
from xgen_jax.data.sources.base import SPLITS, Sample, Source, choose_caption
from xgen_jax.data.video import (
    READ_SUFFIXES,
    VideoInfo,
    probe,
    read_video,
    resize_cover,
)
from xgen_jax.data.video_cache import VideoCache
from xgen_jax.data.video_clips import read_clips
from xgen_jax.data.video_parts import Division
from xgen_jax.errors import UserError, choose

# Fraction of the clips that may be replaced because their files cannot be decoded, and the number
# of clips read from which on it is checked.
MAX_REPLACED, COUNTED_FROM = 0.25, 100
_REPLACED = "unreadable when decoded, replaced by the next"


class VideoFolderSource(Source):
    """Videos in a folder, with captions from captions.jsonl, captions.csv or text files (see
    `data.captions`).

    Images are clips of one frame, upright and over white (see `data.images`), for buckets of one
    frame only. Clips are numbered in the order of the relative paths. A long video is several
    clips, each somewhere in its own part of the video.

    Args:
      path: of the folder; searched recursively for `READ_SUFFIXES`, except hidden names.
      images: take `IMAGE_SUFFIXES` too, for a run that has buckets of one frame.
      fps: frames a second at which clips are sampled, by presentation time; None keeps each file's
        own.
      stride: take every stride-th frame of that rate.
      seconds_per_clip: see `video_parts.Division`.
      split: "train" or "held_out" clips, or "all".
      held_out_fraction, hold_out: which clips training never sees, see `video_parts.Division`.
      require_captions: leave out videos without a caption; if False their caption is "".
      flip: mirror half of the clips. Off by default, because captions name left and right.
      substitute: replace a file that cannot be decoded by the next that can; if False, `read`
        raises UserError for it.
      memory_gb: frames of videos to keep in memory, in 1e9 bytes; where all of the folder's fit at
        the size at which they are read, each file is decoded once. Clips are the same.

    Attributes:
      problems: by kind, files and lines that were left out: unreadable videos and images, captions
        without a video, videos without a caption, broken lines; also clips that were too short and
        files that failed only when decoded. `report` lists them in words.

    Raises:
      UserError: a folder that is missing, is a file, or holds no usable video; a split without a
        clip.
    """

    name = "video_folder"

    def __init__(
        self,
        path,
        *,
        fps: float | None = None,
        stride: int = 1,
        seconds_per_clip: float | None = None,
        split: str = "all",
        held_out_fraction: float = 0.0,
        hold_out: str = HOLD_OUT[0],
        require_captions=True,
        flip=False,
        images=False,
        substitute=True,
        memory_gb: float = 0.0,
    ):
        self.path = pathlib.Path(path)
        if fps is not None and not 0 < fps <= 1000:
            raise UserError(
                f"fps must be above 0 and at most 1000, or None for each file's own, not {fps}"
            )
        if stride < 1:
            raise UserError(f"stride must be 1 or more, not {stride}")
        choose("split", split, SPLITS)
        if not 0 <= memory_gb < math.inf:
            raise UserError(f"memory_gb must be 0 or more, not {memory_gb}")
        self._fps, self._stride, self._flip, self._substitute = fps, stride, flip, substitute
        self._split, self._division = split, Division(held_out_fraction, hold_out, seconds_per_clip)
        self._problems = Problems()
        self._counts = {"read": 0, "replaced": 0}
        self._lock = threading.Lock()
        listed = list_files(self.path, READ_SUFFIXES + IMAGE_SUFFIXES if images else READ_SUFFIXES)
        captions = read_captions(
            self.path, [file.name for file in listed], self._problems, require_captions
        )
        usable = [file for file in listed if file.name in captions]
        headers = probe_files(self.path, usable, _probe)
        self._files, self._captions, self._infos, self._sizes = [], [], [], []
        for file, info in zip(usable, headers, strict=True):
            if isinstance(info, str):
                kind = "unreadable image" if _is_image(file.name) else "unreadable video"
                self._problems.note(kind, info)
                continue
            self._files.append(file.name)
            self._captions.append(captions[file.name])
            self._infos.append(info)
            self._sizes.append(file.size)
        if not self._files:
            raise UserError(f"no usable video in {self.path}\n{self.report()}")
        self._divide()
        mine = set(self._part_file.tolist())
        videos = [info for number, info in enumerate(self._infos) if number in mine]
        self._cache = VideoCache(videos, int(memory_gb * 1e9))

    def _divide(self) -> None:
        """Choose the parts of the files that belong to the split, and number their clips."""
        parts = [
            (number, *part)
            for number, (file, info) in enumerate(zip(self._files, self._infos))
            for part in self._division.parts(file, info.duration_s, info.fps, _is_image(file))
        ]
        held_out = np.array([part[-1] for part in parts], bool)
        mine = {"train": ~held_out, "held_out": held_out, "all": np.ones(len(parts), bool)}
        chosen = [part for part, taken in zip(parts, mine[self._split]) if taken]
        if not chosen:
            count, fraction = len(self._files), self._division.held_out_fraction
            raise UserError(
                f"none of the {count} files in {self.path} is in the split {self._split!r} at "
                f"held_out_fraction={fraction:g}; give --config.data.source.hold_out=ends (the end "
                "of each video), another --config.data.source.held_out_fraction, more files, or, "
                "to train without evaluation, --config.loop.evaluate_every=0"
            )
        files, begins, ends, counts, flags = (np.array(column) for column in zip(*chosen))
        self._part_file, self._part_begin_s, self._part_end_s = files, begins, ends
        self._part_held_out = flags.astype(bool)
        self._part_first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._part_first[-1])

    def _part(self, index: int) -> tuple[int, int]:
        """Return the part of clip `index`, and the clip's number in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        part = int(np.searchsorted(self._part_first, index, side="right")) - 1
        return part, int(index - self._part_first[part])

    @property
    def files(self) -> list[str]:
        """The files that have clips here, once each, as paths relative to the folder."""
        return [self._files[number] for number in dict.fromkeys(self._part_file.tolist())]

    @property
    def problems(self) -> dict[str, list[str]]:
        """See the class."""
        return self._problems.by_kind()

    def extents(self) -> np.ndarray:
        """Return (frames, height, width) of each clip's part of its file, at the rate at which
        clips are sampled, int64 (N, 3)."""
        rows = []
        for number, begin_s, end_s in zip(self._part_file, self._part_begin_s, self._part_end_s):
            file, info = self._files[number], self._infos[number]
            frames = 1 + (end_s - begin_s - 1 / info.fps) * self._rate(file, info) + 1e-3
            rows.append((max(1, int(frames)), info.height, info.width))
        return np.repeat(np.array(rows, np.int64), np.diff(self._part_first), axis=0)

    def fit(self, buckets: Sequence[Bucket], seed: int) -> list[np.ndarray]:
        """Return for each bucket the clips that go to it; see `data.buckets.fit`."""
        chosen = fit(self.extents(), buckets, seed)
        return [np.flatnonzero(chosen == number) for number in range(len(buckets))]

    def clips_for(self, bucket: Bucket) -> np.ndarray | None:
        """Return the clips of videos, for a bucket of more than one frame, if there are images as
        well."""
        if bucket.frames == 1:
            return None
        is_video = np.array([not _is_image(file) for file in self._files])[self._part_file]
        moving = np.flatnonzero(np.repeat(is_video, np.diff(self._part_first)))
        return None if len(moving) == len(self) else moving

    def rates(self) -> dict[float, int]:
        """See `Source.rates`; rates are rounded, so that 29.97 and 30000 / 1001 are one."""
        rates: dict[float, int] = {}
        for number, clips in zip(self._part_file.tolist(), np.diff(self._part_first).tolist()):
            file = self._files[number]
            if not _is_image(file):
                rate = round(self._rate(file, self._infos[number]), 2)
                rates[rate] = rates.get(rate, 0) + clips
        return rates

    def _frames_inside(self, part: int, frames: int) -> int:
        """Return how many of a clip's frames are read: all, but where its part is shorter and
        another part follows, of which it must show nothing."""
        number = self._part_file[part]
        length_s = float(self._part_end_s[part] - self._part_begin_s[part])
        if self._part_end_s[part] >= self._infos[number].duration_s:
            return frames
        fps = self._rate(self._files[number], self._infos[number])
        return min(frames, max(1, math.ceil(length_s * fps - 1e-3)))

    def held_out_clips(self) -> np.ndarray:
        """Return the clips that training does not see, ascending; see `Source.held_out_clips`."""
        return np.flatnonzero(np.repeat(self._part_held_out, np.diff(self._part_first)))

    def where(self, index: int) -> str:
        """Return the path of clip `index`, relative to the folder."""
        return self._files[self._part_file[self._part(index)[0]]]

    def identity(self, index: int) -> str:
        """Return a word for the file, size and part of clip `index`; see `Source.identity`."""
        part, place = self._part(index)
        number = self._part_file[part]
        span = float(self._part_begin_s[part]), float(self._part_end_s[part]), place
        of_file = [os.fsencode(self._files[number]).hex(), self._sizes[number], *span]
        settings = [self._fps, self._stride, self._flip, self._division.seconds_per_clip]
        if self._division.hold_out != HOLD_OUT[0]:
            settings.append("inside")  # as in the fingerprint
        return hashlib.sha256(json.dumps([of_file, settings]).encode()).hexdigest()[:16]

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """See `Source.caption`."""
        rng.random(UNIFORMS)
        return choose_caption(self._captions[self._part_file[self._part(index)[0]]], rng)

    def captions(self) -> Iterator[tuple[str, str]]:
        """Yield (file, caption) of every caption of every file that has clips here."""
        for number in dict.fromkeys(self._part_file.tolist()):
            for caption in self._captions[number]:
                yield str(self.path / self._files[number]), caption

    def fingerprint(self) -> str:
        """Return a hex digest of relative paths, sizes in bytes, captions and settings; the folder
        may move."""
        # What the releases before wrote, where nothing of what came after them is used.
        settings: list = [self.name, self._fps, self._stride, self._flip]
        seconds, fraction = self._division.seconds_per_clip, self._division.held_out_fraction
        if seconds is not None or fraction:
            settings += [seconds, fraction, self._split]
        if self._division.hold_out != HOLD_OUT[0]:
            # The second since clips end with their part.
            settings += [self._division.hold_out, "inside"]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for file, captions, size in zip(self._files, self._captions, self._sizes):
            row = [os.fsencode(file).hex(), size, captions[0] if len(captions) == 1 else captions]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def report(self) -> str:
        """Return the problems so far in words, the first ten of each kind."""
        return self._problems.report()

    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> Sample:
        """Return a clip with a random start and crop: "video", uint8 (frames, height, width, 3),
        "caption", "fps".

        A clip that is too short repeats its last frame. A file that cannot be decoded is replaced
        by the next that can, always the same one: a video by a video, an image by an image. Of
        several captions a random one is taken.

        Raises:
          UserError: no file can be decoded, or too many were replaced (`MAX_REPLACED`).
        """
        part, place = self._part(index)
        image = _is_image(self._files[self._part_file[part]])
        # Before anything can fail, so that a substitute has the same numbers.
        uniforms = rng.random(UNIFORMS)
        for step in range(len(self._part_file)):
            number = (part + step) % len(self._part_file)
            if _is_image(self._files[self._part_file[number]]) != image:
                continue
            try:
                video = self._read_clip(number, place, frames, height, width, uniforms)
            except UserError as error:
                self._problems.note(_REPLACED, str(error))
                if not self._substitute:
                    raise
                continue
            self._count(replaced=step > 0)
            return self._sample(number, video, rng)
        what = "image" if image else "video"
        raise UserError(f"every {what} in {self.path} failed to decode\n{self.report()}")

    def read_together(
        self,
        indices: Sequence[int],
        rngs: Sequence[np.random.Generator],
        frames: int,
        height: int,
        width: int,
    ) -> list[Sample | UserError]:
        """See `Source.read_together`. Without substitutes, a video is decoded in one pass."""
        number = self._part_file[self._part(indices[0])[0]]
        file, info = self._files[number], self._infos[number]
        if self._substitute or _is_image(file) or len(indices) == 1:
            return super().read_together(indices, rngs, frames, height, width)
        uniforms = [rng.random(UNIFORMS) for rng in rngs]
        starts_s = [
            self._start_s(*self._part(index), frames, each)
            for index, each in zip(indices, uniforms, strict=True)
        ]
        options = {"fps": self._rate(file, info), "frames": frames, "cover": (height, width)}
        inside = [self._frames_inside(self._part(index)[0], frames) for index in indices]
        samples: list[Sample | UserError] = []
        clips = read_clips(self.path / file, starts_s, **options)
        for index, rng, each, video, count in zip(
            indices, rngs, uniforms, clips, inside, strict=True
        ):
            part, _ = self._part(index)
            if isinstance(video, UserError):
                self._problems.note(_REPLACED, str(video))
                samples.append(video)
            else:
                video = self._viewed(file, video[:count], frames, height, width, each)
                samples.append(self._sample(part, video, rng))
        return samples

    def _sample(self, part: int, video: np.ndarray, rng: np.random.Generator) -> Sample:
        number = self._part_file[part]
        rate = self._rate(self._files[number], self._infos[number])
        return {"video": video, "caption": choose_caption(self._captions[number], rng), "fps": rate}

    def _count(self, replaced: bool) -> None:
        """Count a clip, and raise UserError once too many were replaced."""
        with self._lock:
            self._counts["read"] += 1
            self._counts["replaced"] += replaced
            read, lost = self._counts["read"], self._counts["replaced"]
        if read >= COUNTED_FROM and lost > MAX_REPLACED * read:
            raise UserError(
                f"{lost} of {read} clips of {self.path} were replaced by others, because their "
                f"files cannot be decoded; remove or repair these files\n{self.report()}"
            )

    def _read_clip(
        self, part: int, place: int, frames: int, height: int, width: int, uniforms
    ) -> np.ndarray:
        number = self._part_file[part]
        file, info = self._files[number], self._infos[number]
        fps, start_s = self._rate(file, info), self._start_s(part, place, frames, uniforms)
        if _is_image(file):
            image = read_image(self.path / file)
            video = resize_cover(image[None], height, width)
        else:
            path, cover = self.path / file, (height, width)
            inside = self._frames_inside(part, frames)
            options = {"fps": fps, "start_s": start_s, "frames": inside, "cover": cover}
            video = self._cache.read(path, **options)
            if video is None:
                video, _ = read_video(path, **options)
        return self._viewed(file, video, frames, height, width, uniforms)

    def _start_s(self, part: int, place: int, frames: int, uniforms: np.ndarray) -> float:
        """Return the second of its file at which clip `place` of a part begins."""
        number = self._part_file[part]
        file, info = self._files[number], self._infos[number]
        return random_start(
            float(self._part_begin_s[part]),
            float(self._part_end_s[part]),
            frames=frames,
            fps=self._rate(file, info),
            file_fps=info.fps,
            uniform=uniforms[0],
            place=place,
            count=int(self._part_first[part + 1] - self._part_first[part]),
        )

    def _viewed(
        self, file: str, video: np.ndarray, frames: int, height: int, width: int, uniforms
    ) -> np.ndarray:
        """Return a clip of the whole length, cropped, from the frames that its file gave."""
        if len(video) < frames:
            self._problems.note("shorter than a clip, last frame held", file)
            video = hold_last(video, frames)
        return random_view(video, height, width, uniforms, self._flip)

    def _rate(self, file: str, info: VideoInfo) -> float:
        """Frames a second at which clips of a file are sampled."""
        return IMAGE_FPS if _is_image(file) else (self._fps or info.fps) / self._stride


def _probe(path: pathlib.Path) -> VideoInfo:
    return (probe_image if _is_image(path.name) else probe)(path)


def _is_image(file: str) -> bool:
    return file.lower().endswith(IMAGE_SUFFIXES)
