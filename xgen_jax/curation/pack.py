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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.encode import EncodedClip, encode_clip
from xgen_jax.data.array_records import OpenRecords, RecordWriter
from xgen_jax.data.shard_layout import (
    GROUPS,
    MANIFEST,
    VERSION,
    pack,
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
    return before is not None and before["digest"] == digest and is_complete(marker.parent, before)


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
    limits: str = "",
    errors_count: bool = True,
) -> dict[str, Any]:
    """Write one shard, unless it is there.

    Args:
      folder: of the shards.
      number: of the shard, 0 or more.
      clips: the kept clips of some videos, in any order; all clips of a video are in one shard.
      config: of what is written.
      encode: see `encode_clip`; a UserError of it leaves the clip out.
      limits: what `encode` may take, in a few characters.
      errors_count: whether a shard is there from which clips were left out under the same limits;
        else, and under other limits, these clips are tried again.

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
    if (
        before
        and before["digest"] == digest
        and (not before["left_out"] or (errors_count and before.get("limits") == limits))
        and is_complete(folder, before)
    ):
        return before
    remove_manifest(folder)
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
        "limits": limits if left_out else "",
    }
    write_json(marker, entry, durable=True)
    named = {file["file"] for file in files.values()}
    for stale in folder.glob(f"{stem}*.arrayrecord"):
        if stale.name not in named:
            stale.unlink()
    return entry


def _group(clip: Clip, config: PackConfig) -> int:
    return int(is_held_out(clip.digest, config.held_out_fraction))


def is_complete(folder: pathlib.Path, marker: Mapping[str, Any]) -> bool:
    """Return whether the files that a marker names are there, by their sizes."""
    files = [(folder / entry["file"], entry["bytes"]) for entry in marker["files"].values()]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def remove_manifest(folder: pathlib.Path) -> None:
    """Remove the manifest before the files that it names change."""
    if (folder / MANIFEST).exists():
        (folder / MANIFEST).unlink(missing_ok=True)  # by another job of an array
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
