"""Packs kept clips in the shards that `data.shard_layout` describes.

The shard of a shard of videos depends on its clips and the configuration alone. Its files are named
after both, and appear whole; its marker, which names them, comes after, and the manifest last. So a
run may be killed at any time, and a rerun ends with the same bytes. Clips that were packed before
with the same settings are copied.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.encode import EncodedClip, encode_clip
from xgen_jax.data.array_records import OpenRecords, RecordWriter
from xgen_jax.data.buckets import Bucket, fit, parse_shapes
from xgen_jax.data.shard_layout import (
    COLUMNS,
    GROUPS,
    INDEX,
    KIND,
    MANIFEST,
    MARKERS,
    VERSION,
    pack,
    record_column,
    stored_size,
    tiers_for,
    unpack,
)
from xgen_jax.errors import UserError
from xgen_jax.files import (
    atomic_write,
    file_sha256,
    read_json,
    remove_temporaries,
    to_disk,
    write_json,
)

# As `encode_clip`, which a caller may run in a process of its own.
Encode = Callable[[Any, float, float, Sequence[int], PackConfig], EncodedClip]

_NUMBERS = {"start_s", "end_s", "seconds", "fps"}
_WHOLE = {"frames", "height", "width"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip to pack.

    Attributes:
      id: equal for equal pixels only: it follows from the video's contents and the seconds.
      path: of the video.
      source: the video's name in the data set.
      digest: of the video's contents; it decides whether its clips are held out.
      start_s, end_s: seconds since the video's start.
      height, width: of the video as shown, in pixels.
      captions: several, one or none.
      scores: by name, one column of the index each; NaN where there is none.
    """

    id: str
    path: str
    source: str
    digest: str
    start_s: float
    end_s: float
    height: int
    width: int
    captions: tuple[str, ...] = ()
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)


def is_held_out(digest: str, fraction: float) -> bool:
    """Return whether training never sees the clips of a video with that digest."""
    hashed = hashlib.sha256(digest.encode()).digest()
    return int.from_bytes(hashed[:8]) / 2**64 < fraction


def is_packed(
    folder: str | os.PathLike, number: int, clips: Sequence[Clip], config: PackConfig
) -> bool:
    """Return whether a shard is there, with these clips and settings; see `write_shard`."""
    marker = pathlib.Path(folder) / f"shard-{number:05d}.json"
    before = read_json(marker, "remove it, and pack again") if marker.is_file() else None
    digest = _describe(clips, config)[2]
    return before is not None and before["digest"] == digest and _complete(marker.parent, before)


def _describe(clips: Sequence[Clip], config: PackConfig) -> tuple[list[Clip], dict[str, Any], str]:
    """Return a shard's clips in their order, its settings, and the digest of both."""
    ordered = sorted(clips, key=lambda clip: (_group(clip, config), clip.id))
    settings: dict[str, Any] = {
        "version": VERSION,
        "key": config.key(),
        "tiers": sorted(config.tiers),
        "held_out_fraction": config.held_out_fraction,
    }
    facts = [{**dataclasses.asdict(clip), "path": "", "scores": _scores(clip)} for clip in ordered]
    return ordered, settings, hashlib.sha256(json.dumps([settings, facts]).encode()).hexdigest()


def write_shard(
    folder: str | os.PathLike,
    number: int,
    clips: Sequence[Clip],
    config: PackConfig,
    encode: Encode = encode_clip,
) -> dict[str, Any]:
    """Write one shard, unless it is there.

    Args:
      folder: of the shards.
      number: of the shard, 0 or more.
      clips: the kept clips of some videos, in any order; all clips of a video are in one shard.
      config: of what is written.
      encode: see `encode_clip`; a UserError of it leaves the clip out.

    Returns:
      The shard's marker: "counts" by group, "files" by tier, "rows" of the clips, "left_out"
      with the reason by id.

    Raises:
      UserError: two clips with one id, or a file that cannot be written.
    """
    folder = pathlib.Path(folder)
    ordered, settings, digest = _describe(clips, config)
    ids = [clip.id for clip in ordered]
    if repeated := [one for one, count in collections.Counter(ids).items() if count > 1]:
        raise UserError(f"shard {number} has two clips with the id {repeated[0]}")
    marker = folder / f"shard-{number:05d}.json"
    before = read_json(marker, "remove it, and pack again") if marker.is_file() else None
    if before and before["digest"] == digest and _complete(folder, before):
        return before
    _remove_manifest(folder)
    earlier = _Earlier(folder, before, settings["key"])
    stem = f"shard-{number:05d}-"
    remove_temporaries(folder, [marker.stem, *(f"{stem}{t}p-{digest[:8]}" for t in config.tiers)])
    writer = _ShardWriter(folder, stem, digest[:8])
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with writer:
        for clip in ordered:
            tiers = tiers_for(clip.height, clip.width, config.tiers)
            try:
                encoded = _encoded(clip, tiers, config, earlier, encode)
            except UserError as error:
                left_out[clip.id] = str(error)
                continue
            row = _row(clip, _group(clip, config), encoded, max(tiers))
            row["records"] = {
                str(tier): writer.write(tier, _record(clip, encoded, tier)) for tier in tiers
            }
            rows.append(row)
        files = writer.close()
    entry = {
        "digest": digest,
        **settings,
        "counts": _counts(rows, lambda row: row["split"]),
        "files": files,
        "rows": rows,
        "left_out": left_out,
    }
    write_json(marker, entry, durable=True)
    named = {file["file"] for file in files.values()}
    for stale in folder.glob(f"{stem}*.arrayrecord"):
        if stale.name not in named:
            stale.unlink()
    return entry


def _group(clip: Clip, config: PackConfig) -> int:
    return int(is_held_out(clip.digest, config.held_out_fraction))


def _complete(folder: pathlib.Path, marker: Mapping[str, Any]) -> bool:
    files = [(folder / entry["file"], entry["bytes"]) for entry in marker["files"].values()]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _remove_manifest(folder: pathlib.Path) -> None:
    """Remove the manifest before the files that it names change."""
    if (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink()
        to_disk(folder)


class _Earlier:
    """The files of clips in the shard that was there before, where the same settings made them."""

    def __init__(self, folder: pathlib.Path, marker: Mapping[str, Any] | None, key: str):
        same = marker is not None and marker["key"] == key
        self._folder, self._files = folder, marker["files"] if marker and same else {}
        self.rows = {row["id"]: row for row in marker["rows"]} if marker and same else {}
        self._records = OpenRecords(16)

    def media(self, clip: Clip, tier: int) -> bytes | None:
        """Return the bytes of a clip at a tier; None if it has to be encoded."""
        row = self.rows.get(clip.id)
        if row is None or (row["start_s"], row["end_s"]) != (clip.start_s, clip.end_s):
            return None
        place, entry = row["records"].get(str(tier)), self._files.get(str(tier))
        if place is None or entry is None:
            return None
        try:
            file = self._folder / entry["file"]
            record = unpack(self._records.read(file, place), str(file))
        except UserError:  # it is damaged, and will be replaced
            return None
        return record["media"] if record["id"] == clip.id else None


def _encoded(
    clip: Clip, tiers: list[int], config: PackConfig, earlier: _Earlier, encode: Encode
) -> EncodedClip:
    """Return a clip at all tiers, those that were there before as they were."""
    media = {tier: data for tier in tiers if (data := earlier.media(clip, tier)) is not None}
    missing = [tier for tier in tiers if tier not in media]
    if not missing:
        row = earlier.rows[clip.id]
        return EncodedClip(media=media, frames=row["frames"], fps=row["fps"])
    encoded = encode(clip.path, clip.start_s, clip.end_s, missing, config)
    return dataclasses.replace(encoded, media=media | encoded.media)


def _row(clip: Clip, group: int, encoded: EncodedClip, tier: int) -> dict[str, Any]:
    height, width = stored_size(clip.height, clip.width, tier)
    return {
        "id": clip.id,
        "source": clip.source,
        "split": GROUPS[group],
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "seconds": encoded.frames / encoded.fps,
        "frames": encoded.frames,
        "height": height,
        "width": width,
        "fps": encoded.fps,
        "captions": list(clip.captions),
        "scores": _scores(clip),
    }


def _scores(clip: Clip) -> dict[str, float | None]:
    """Return the scores with None, which JSON has, for NaN."""
    return {
        name: None if math.isnan(value) else float(value)
        for name, value in sorted(clip.scores.items())
    }


def _record(clip: Clip, encoded: EncodedClip, tier: int) -> bytes:
    height, width = stored_size(clip.height, clip.width, tier)
    return pack(
        {
            "id": clip.id,
            "media": encoded.media[tier],
            "captions": list(clip.captions),
            "frames": encoded.frames,
            "height": height,
            "width": width,
            "fps": encoded.fps,
            "start_s": clip.start_s,
            "end_s": clip.end_s,
            "source": clip.source,
            "scores": _scores(clip),
        }
    )


class _ShardWriter:
    """The files of a shard, one a tier, which appear together when the context is left."""

    def __init__(self, folder: pathlib.Path, stem: str, mark: str):
        self._folder, self._stem, self._mark = folder, stem, mark
        self._stack = contextlib.ExitStack()
        self._open: dict[int, tuple[pathlib.Path, pathlib.Path, RecordWriter]] = {}

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._stack.__exit__(kind, error, traceback)

    def write(self, tier: int, record: bytes) -> int:
        """Append a record to the file of a tier and return its number there."""
        if tier not in self._open:
            file = self._folder / f"{self._stem}{tier}p-{self._mark}.arrayrecord"
            temporary = self._stack.enter_context(atomic_write(file, durable=True))
            writer = self._stack.enter_context(RecordWriter(temporary, file))
            self._open[tier] = file, temporary, writer
        return self._open[tier][2].write(record)

    def close(self) -> dict[str, dict[str, Any]]:
        """Complete the files and return what is to be known of them, by tier."""
        files = {}
        for tier, (file, temporary, writer) in sorted(self._open.items()):
            writer.close()
            files[str(tier)] = {
                "file": file.name,
                "count": writer.count,
                "bytes": temporary.stat().st_size,
                "sha256": file_sha256(temporary),
            }
        return files


def _counts(
    rows: Sequence[Mapping[str, Any]], by: Callable[[Mapping[str, Any]], str]
) -> dict[str, int]:
    return dict(sorted(collections.Counter(map(by, rows)).items()))


def finish(
    folder: str | os.PathLike,
    shards: int,
    config: PackConfig,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the index and the manifest, once every shard is there, and return the manifest.

    The index, a Parquet file, has `data.shard_layout.COLUMNS`, all scores, and for each tier the
    number of a clip's record, -1 where it is not stored. Files of earlier packings that no shard
    names are removed.

    Args:
      folder: of the shards.
      shards: their number.
      config: with which they were written.
      about: what else the manifest is to say, e.g. the digest of the whole configuration.

    Raises:
      UserError: a shard that is missing, incomplete or of another configuration; two shards with
        one clip; not one clip.
    """
    folder = pathlib.Path(folder)

    def markers() -> Iterator[dict[str, Any]]:
        for number in range(shards):
            file = folder / f"shard-{number:05d}.json"
            marker = read_json(file) if file.is_file() else None
            if marker is None or not _complete(folder, marker):
                raise UserError(f"{file} is missing or its files are; pack shard {number} first")
            made_by = (marker["key"], marker["tiers"], marker["held_out_fraction"])
            if made_by != (config.key(), sorted(config.tiers), config.held_out_fraction):
                raise UserError(f"{file} was written with other settings; pack it again")
            yield marker

    names: set[str] = set()
    for marker in markers():
        names.update(*(row["scores"] for row in marker["rows"]))
    tiers = sorted(config.tiers)
    if taken := names & {*COLUMNS, *map(record_column, tiers)}:
        raise UserError(f"a score cannot be called {min(taken)!r}: the index has such a column")
    summary = _Summary()
    schema = _schema(sorted(names), tiers)
    buckets = [
        Bucket(frames=t, height=h, width=w, batch_size=1)
        for t, h, w in parse_shapes(config.buckets.split(","))
    ]
    _remove_manifest(folder)
    remove_temporaries(folder, ["index", "manifest"])
    with atomic_write(folder / INDEX, durable=True) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for marker in markers():
                summary.left_out += len(marker["left_out"])
                if not marker["rows"]:
                    continue
                placed = _buckets(marker["rows"], buckets)
                rows = [_flat(row, place, tiers) for row, place in zip(marker["rows"], placed)]
                writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))
                summary.add(marker, placed)
        index = {"bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
    if not summary.shards:
        raise UserError(f"{folder}: not one clip was kept; look at why the others were not")
    _remove_stale(folder, shards, summary)
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "key": config.key(),
        "config": hashlib.sha256(repr(config).encode()).hexdigest()[:16],
        "about": dict(about or {}),
        "tiers": tiers,
        "clips": summary.clips,
        "captioned": summary.captioned,
        "seconds": {group: round(value, 3) for group, value in summary.seconds.items()},
        "rates": {group: dict(sorted(rates.items())) for group, rates in summary.rates.items()},
        "buckets": dict(sorted(summary.buckets.items())),
        "longest_caption": summary.longest,
        "left_out": summary.left_out,
        "index": index,
        "shards": summary.shards,
    }
    write_json(folder / MANIFEST, manifest, durable=True)
    return manifest


def _schema(scores: Sequence[str], tiers: Sequence[int]) -> pa.Schema:
    types = {name: pa.float64() for name in _NUMBERS} | {name: pa.int32() for name in _WHOLE}
    types["captions"] = pa.list_(pa.string())
    fields = [pa.field(name, types.get(name, pa.string())) for name in COLUMNS]
    fields += [pa.field(name, pa.float64()) for name in scores]
    return pa.schema(fields + [pa.field(record_column(tier), pa.int32()) for tier in tiers])


def _buckets(rows: Sequence[Mapping[str, Any]], buckets: Sequence[Bucket]) -> list[str | None]:
    """Return the name of the largest bucket that each clip fills, None for those that fill none."""
    extents = np.array([(row["frames"], row["height"], row["width"]) for row in rows])
    chosen = fit(extents, buckets, seed=0)
    return [None if number < 0 else buckets[number].name for number in chosen.tolist()]


def _flat(row: Mapping[str, Any], bucket: str | None, tiers: Sequence[int]) -> dict[str, Any]:
    """Return a row of the index."""
    places = {record_column(tier): row["records"].get(str(tier), -1) for tier in tiers}
    return {**row, **row["scores"], **places, "bucket": bucket}


class _Summary:
    """What the manifest says of all shards."""

    def __init__(self):
        self.clips, self.captioned = (dict.fromkeys(GROUPS, 0) for _ in range(2))
        self.seconds = dict.fromkeys(GROUPS, 0.0)
        self.rates: dict[str, collections.Counter[str]] = {
            group: collections.Counter() for group in GROUPS
        }
        self.buckets: collections.Counter[str] = collections.Counter()
        # By group the clip with the longest caption: its shard here, its row there, the bytes.
        self.longest: dict[str, dict[str, int]] = {}
        self.left_out = 0
        self.shards: list[dict[str, Any]] = []

    def add(self, marker: Mapping[str, Any], buckets: Sequence[str | None]) -> None:
        """Add a shard that has clips."""
        for place, (row, bucket) in enumerate(zip(marker["rows"], buckets, strict=True)):
            group = row["split"]
            self.clips[group] += 1
            self.captioned[group] += bool(row["captions"])
            self.seconds[group] += row["seconds"]
            self.rates[group][f"{row['fps']:.6g}"] += 1
            self.buckets[bucket or "none"] += 1
            size = max((len(caption.encode()) for caption in row["captions"]), default=-1)
            if size > self.longest.get(group, {"bytes": -1})["bytes"]:
                self.longest[group] = {"shard": len(self.shards), "row": place, "bytes": size}
        counts = {group: marker["counts"].get(group, 0) for group in GROUPS}
        self.shards.append({**counts, "files": marker["files"]})


def _remove_stale(folder: pathlib.Path, shards: int, summary: _Summary) -> None:
    """Remove what no shard names: files of a packing in more shards, or that was interrupted."""
    named = {entry["file"] for shard in summary.shards for entry in shard["files"].values()}
    named |= {f"shard-{number:05d}.json" for number in range(shards)}
    for pattern in (MARKERS, "shard-*.arrayrecord", ".shard-*.tmp*"):
        for file in folder.glob(pattern):
            if file.name not in named:
                file.unlink()
