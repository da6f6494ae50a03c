"""Curated clips as a source."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.array_records import OPEN_FILES
from xgen_jax.data.buckets import Bucket, fit
from xgen_jax.data.pixels import UNIFORMS, hold_last, random_start, random_view
from xgen_jax.data.shard_layout import GROUPS, record_column, stored_size
from xgen_jax.data.shards import ShardReader
from xgen_jax.data.sources.base import SPLITS, Sample, Source, choose_caption
from xgen_jax.data.video import read_video
from xgen_jax.data.video_file import VideoBytes
from xgen_jax.errors import UserError, choose

# Part of a bucket's sides that a tier must have: a clip is rather enlarged by 2% than read at
# several times the cost.
_COVERS = 0.98


class ShardSource(Source):
    """The shards that launch/curate.py wrote, as a source of clips.

    Clips are numbered shard by shard. Starting costs O(shards), however many clips there are; what
    the index says of the clips of a shard is read with its first clip. A clip is decoded from the
    smallest tier that covers the bucket, or else the largest that it has.

    Args:
      path: of the folder that launch/curate.py wrote, or of its `shards`.
      split: "train" or "held_out" clips, or "all".
      fps: frames a second at which clips are sampled, by presentation time; None keeps each clip's
        own.
      stride: take every stride-th frame of that rate.
      require_captions: refuse shards in which no clip has a caption.
      flip: mirror half of the clips. Off by default, because captions name left and right.

    Raises:
      UserError: see `data.shards.ShardReader`; a split without a clip; no captions.
    """

    name = "shards"

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = "all",
        *,
        fps: float | None = None,
        stride: int = 1,
        require_captions: bool = True,
        flip: bool = False,
    ):
        if fps is not None and not 0 < fps <= 1000:
            raise UserError(
                f"fps must be above 0 and at most 1000, or None for each clip's own, not {fps}"
            )
        if stride < 1:
            raise UserError(f"stride must be 1 or more, not {stride}")
        self._reader = ShardReader(path)
        self.path, self.manifest = self._reader.path, self._reader.manifest
        self._split = choose("split", split, SPLITS)
        self._groups = GROUPS if split == "all" else (split,)
        self._fps, self._stride, self._flip = fps, stride, flip
        shards = self.manifest["shards"]
        counts = [sum(shard[group] for group in self._groups) for shard in shards]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not len(self):
            raise UserError(
                f"none of the {sum(self.manifest['clips'].values())} clips in {self.path} is in "
                f"the split {split!r}; pack again with another pack.held_out_fraction, or, to "
                "train without evaluation, give --config.loop.evaluate_every=0"
            )
        self._captioned = sum(self.manifest["captioned"][group] for group in self._groups)
        if require_captions and not self._captioned:
            raise UserError(
                f"no clip in {self.path} has a caption: curate with captions, or give "
                "--config.data.source.require_captions=False"
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard and row of clip `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        row = int(index - self._first[shard])
        # Held-out clips are the last of a shard.
        before = self.manifest["shards"][shard]["train"] if self._split == "held_out" else 0
        return shard, row + before

    def _row(self, index: int) -> dict[str, Any]:
        shard, row = self._locate(index)
        return {name: column[row] for name, column in self._reader.rows(shard).items()}

    def extents(self) -> np.ndarray:
        """Return (frames, height, width) of each clip at the rate at which clips are sampled, at
        the largest tier that it has, int64 (N, 3); reads those columns of the index."""
        frames, height, width, fps = (
            self._reader.column(name) for name in ("frames", "height", "width", "fps")
        )
        rate = (fps if self._fps is None else self._fps) / self._stride
        sampled = np.maximum(1, (1 + (frames - 1) / fps * rate + 1e-3).astype(np.int64))
        extents = np.stack([sampled, height, width], axis=1).astype(np.int64)
        if self._split == "all":
            return extents
        groups = [[shard[group] for group in GROUPS] for shard in self.manifest["shards"]]
        of_group = np.repeat(np.tile(GROUPS, len(groups)), np.ravel(groups))
        return extents[of_group == self._split]

    def fit(self, buckets: Sequence[Bucket], seed: int) -> list[np.ndarray]:
        """Return for each bucket the clips that go to it; see `data.buckets.fit`."""
        chosen = fit(self.extents(), buckets, seed)
        return [np.flatnonzero(chosen == number) for number in range(len(buckets))]

    def file_starts(self, buckets: Sequence[Bucket]) -> list[np.ndarray] | None:
        """See `Source.file_starts`: shards, each of a file a tier."""
        if len(self.manifest["shards"]) * len(self._reader.tiers) <= OPEN_FILES:
            return None
        return [self._first[:-1]] * len(buckets)

    def rates(self) -> dict[float, int]:
        """See `Source.rates`; rates are rounded, so that 29.97 and 30000 / 1001 are one."""
        rates: dict[float, int] = {}
        for group in self._groups:
            for own, clips in self.manifest["rates"][group].items():
                rate = round((self._fps or float(own)) / self._stride, 2)
                rates[rate] = rates.get(rate, 0) + clips
        return rates

    def held_out_clips(self) -> np.ndarray:
        """Return the clips that training does not see, ascending; see `Source.held_out_clips`."""
        if self._split != "all":
            return np.arange(len(self) if self._split == "held_out" else 0)
        ends = self._first[1:]
        counts = [shard["held_out"] for shard in self.manifest["shards"]]
        spans = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return np.concatenate(spans)

    def report(self) -> str:
        """Return how many clips have no caption; empty if all have one."""
        missing = len(self) - self._captioned
        return f"{missing} of {len(self)} clips have no caption" if missing else ""

    def where(self, index: int) -> str:
        """Return the video that clip `index` was cut from, with its seconds."""
        row = self._row(index)
        return f"{row['source']} from {row['start_s']:.2f} s to {row['end_s']:.2f} s"

    def identity(self, index: int) -> str:
        """Return a word for the clip and how it is stored; see `Source.identity`."""
        settings = [self._fps, self._stride, self._flip, self.manifest["tiers"]]
        facts = [self._row(index)["id"], self.manifest["key"], *settings]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """See `Source.caption`."""
        rng.random(UNIFORMS)
        return choose_caption(self._row(index)["captions"] or [""], rng)

    def captions(self) -> Iterator[tuple[str, str]]:
        """Yield the captions of the clip with the longest, which the manifest names."""
        for group in self._groups:
            if place := self.manifest["longest_caption"].get(group):
                rows = self._reader.rows(place["shard"])
                for caption in rows["captions"][place["row"]]:
                    yield f"clip {rows['id'][place['row']]} of {self.path}", caption

    def fingerprint(self) -> str:
        """Return a hex digest of every file of clips and the settings; the folder may move."""
        settings = [self.name, self._fps, self._stride, self._flip, self._split]
        facts = [settings, self.manifest["tiers"], self.manifest["shards"]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> Sample:
        """Return a clip with a random start and crop: "video", uint8 (frames, height, width, 3),
        "caption", "fps".

        One that is too short repeats its last frame. Of several captions a random one is taken.

        Raises:
          UserError: a damaged record, naming its file.
        """
        uniforms = rng.random(UNIFORMS)
        shard, number = self._locate(index)
        row = self._row(index)
        tier = self._tier(row, height, width)
        record, where = self._reader.record(shard, number, tier)
        own = record["fps"]
        fps = (self._fps or own) / self._stride
        start_s = random_start(
            *(0.0, record["frames"] / own),
            frames=frames,
            fps=fps,
            file_fps=own,
            uniform=uniforms[0],
        )
        video, _ = read_video(
            VideoBytes(where, record["media"]),
            fps=fps,
            start_s=start_s,
            frames=frames,
            cover=(height, width),
        )
        video = random_view(hold_last(video, frames), height, width, uniforms, self._flip)
        return {"video": video, "caption": choose_caption(row["captions"] or [""], rng), "fps": fps}

    def _tier(self, row: dict[str, Any], height: int, width: int) -> int:
        """Return the tier at which a clip is read for a bucket."""
        stored = [tier for tier in self._reader.tiers if row[record_column(tier)] >= 0]
        for tier in stored:
            rows, columns = stored_size(row["height"], row["width"], tier)
            if rows >= _COVERS * height and columns >= _COVERS * width:
                return tier
        return stored[-1]
