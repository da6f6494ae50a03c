"""All clips of a curation: their table, the duplicates among them, and which are kept.

The two steps that need all clips at once. They read the tables of clips, never a video.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Container, Mapping, Sequence

import numpy as np
import pyarrow as pa

from xgen_jax.curation.clips import (
    clip_schema,
    clip_shard,
    clips_key,
    clips_table,
    is_clipped,
    shard_facts,
)
from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.duplicates import HashedClip, find_duplicates, find_similar
from xgen_jax.curation.selection import Decided, decide
from xgen_jax.curation.store import SourceShard, digest, read_table, write_table

# Columns that only finding duplicates reads.
HASHES = ("hashes", "hash_time_s", "hash_quality", "feature")


def read_clips(
    shards: Sequence[SourceShard], out: pathlib.Path, config: CurationConfig, unused: Container[str]
) -> dict[str, np.ndarray]:
    """Return the columns of all clips but `HASHES`, and "shard", the number of each one's shard.

    Args:
      shards: of the videos.
      out: of the curation.
      config: of the curation.
      unused: names of videos whose clips are left out.
    """
    table = clips_table(out, config)
    parts, numbers = [], []
    for shard in shards:
        part = table.read(shard, [n for n in clip_schema(config).names if n not in HASHES])
        parts.append(part)
        numbers += [shard.number] * part.num_rows
    whole = pa.concat_tables(parts)
    columns = {name: whole[name].to_numpy() for name in whole.column_names}
    columns["shard"] = np.array(numbers, np.int64)
    mine = np.array([source not in unused for source in columns["source"]], bool)
    return {name: values[mine] for name, values in columns.items()}


@dataclasses.dataclass
class Clips:
    """All clips of a curation.

    Attributes:
      table: columns, see `curation.selection`, and "shard".
      decided: what the rules say of them.
      videos: number of files.
      errors: why files have no clips, by name.
    """

    table: dict[str, np.ndarray]
    decided: Decided
    videos: int
    errors: dict[str, str]


def select(shards: Sequence[SourceShard], out: pathlib.Path, config: CurationConfig) -> Clips:
    """Cut the clips, compare them with each other, and apply the rules."""
    errors: dict[str, str] = {}
    first: dict[str, str] = {}
    for shard in shards:
        facts, reasons = shard_facts(shard, out, config)
        if not is_clipped(shard, out, config, facts):
            clip_shard(shard, out, config, facts)
        errors |= reasons
        for name in sorted(facts):
            same = first.setdefault(facts[name]["sha256"], name)
            if same != name:
                errors[name] = f"it has the same bytes as {same}"
    table = read_clips(shards, out, config, errors)
    duplicates = _duplicates(table, shards, out, config)
    table["duplicate_of"] = np.array(
        [duplicates.get(name, "") for name in table["clip_id"]], object
    )
    return Clips(
        table=table,
        decided=decide(table, config),
        videos=sum(len(shard.files) for shard in shards),
        errors=errors,
    )


def prune(out: pathlib.Path, config: CurationConfig) -> None:
    """Remove the tables of clips that other settings made: they are computed again in seconds.
    What was measured, and captions, are kept."""
    for folder in out.glob("clips-*"):
        if folder != clips_table(out, config).folder:
            shutil.rmtree(folder)


def _duplicates(
    table: Mapping[str, np.ndarray],
    shards: Sequence[SourceShard],
    out: pathlib.Path,
    config: CurationConfig,
) -> dict[str, str]:
    """Find duplicates among all clips, or read what was found; the kept clip by the dropped one."""
    ids = digest(sorted(table["clip_id"].tolist()))
    key = digest(clips_key(config), repr(config.duplicates), ids)
    path = out / f"duplicates-{key}.parquet"
    if not path.is_file():
        found = _find_duplicates(table, shards, out, config)
        names = {"clip_id": sorted(found), "duplicate_of": [found[name] for name in sorted(found)]}
        for stale in out.glob("duplicates-*.parquet"):
            stale.unlink(missing_ok=True)  # another job may be as far
        schema = pa.schema([(name, pa.string()) for name in names])
        write_table(path, pa.table(names, schema))
    pairs = read_table(path)
    return dict(zip(pairs["clip_id"].to_pylist(), pairs["duplicate_of"].to_pylist()))


def _find_duplicates(
    table: Mapping[str, np.ndarray],
    shards: Sequence[SourceShard],
    out: pathlib.Path,
    config: CurationConfig,
) -> dict[str, str]:
    mine = set(zip(table["clip_id"], table["source"]))
    similarity = config.duplicates.similarity if config.aesthetics.clip_dir else None
    clips, rows = [], []
    columns = ("clip_id", "source", "start_s", "end_s", "width", "height", "bitrate", *HASHES[:3])
    for shard in shards:
        names = [*columns, *([] if similarity is None else ["feature"])]
        for row in clips_table(out, config).read(shard, names).to_pylist():
            if (row["clip_id"], row["source"]) not in mine:
                continue
            clips.append(
                HashedClip(
                    id=row["clip_id"],
                    length_s=row["end_s"] - row["start_s"],
                    pixels=row["width"] * row["height"],
                    bitrate=row["bitrate"],
                    time_s=row["hash_time_s"],
                    hashes=row["hashes"],
                    quality=row["hash_quality"],
                )
            )
            rows.append(row.get("feature"))
    found = find_duplicates(clips, config.duplicates)
    # A short clip between two of the frames that CLIP sees has no feature.
    left = [n for n, clip in enumerate(clips) if clip.id not in found and rows[n] is not None]
    if similarity is not None and left:
        found |= find_similar(
            np.array([rows[place] for place in left], np.float32),
            [clips[place].length_s for place in left],
            [clips[place].id for place in left],
            similarity,
            [clips[place].pixels for place in left],
            [clips[place].bitrate for place in left],
        )
    return found
