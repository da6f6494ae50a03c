"""The index and the manifest of packed shards, written once every shard is there."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.pack import is_complete, remove_manifest
from xgen_jax.data.buckets import Bucket, fit, parse_shapes
from xgen_jax.data.shard_layout import (
    COLUMNS,
    GROUPS,
    INDEX,
    KIND,
    MANIFEST,
    MARKERS,
    VERSION,
    record_column,
)
from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write, file_sha256, read_json, remove_temporaries, write_json

_NUMBERS = {"start_s", "end_s", "seconds", "fps"}
_WHOLE = {"frames", "height", "width"}


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
            if marker is None or not is_complete(folder, marker):
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
    remove_manifest(folder)
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
