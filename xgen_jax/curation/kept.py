"""The kept clips of a shard: which they are, their captions, and their packing.

OUT/kept/SHARD.parquet          clips that all rules keep; written again when that changes
OUT/captions-KEY/SHARD.parquet  what the captioner gave, by clip; failed ones are tried again
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from xgen_jax.curation.captions import CaptionRequest, CaptionResult, make_captioner
from xgen_jax.curation.clips import SCORES
from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.encode import EncodedClip, encode_clip
from xgen_jax.curation.isolation import shared_worker
from xgen_jax.curation.measure import frames_at
from xgen_jax.curation.pack import Clip, is_packed, write_shard
from xgen_jax.curation.store import SourceShard, Table, digest
from xgen_jax.errors import UserError

_SENT = b"requests"
SHARDS = "shards"  # the folder that training reads
_COLUMNS = ("clip_id", "source", "sha256", "start_s", "end_s", "width", "height")


def kept_table(out: pathlib.Path) -> Table:
    """Return the table of kept clips."""
    return Table(out / "kept")


def captions_table(out: pathlib.Path, config: CurationConfig) -> Table:
    """Return the table of captions."""
    return Table(out / f"captions-{config.captions.key()}")


def write_kept(
    shard: SourceShard, out: pathlib.Path, clips: Mapping[str, np.ndarray], keep: np.ndarray
) -> None:
    """Write a shard's kept clips, unless they are there.

    Args:
      shard: of the clips.
      out: of the curation.
      clips: columns of all clips, see `clip_table.read_clips`.
      keep: bool (N,).
    """
    # Clips stand in the order of their shards.
    first, last = np.searchsorted(clips["shard"], (shard.number, shard.number + 1))
    mine = first + np.flatnonzero(keep[first:last])
    columns = {name: pa.array(clips[name][mine]) for name in _COLUMNS}
    columns |= {name: pa.array(clips[name][mine], pa.float64()) for name in SCORES}
    columns |= {name: columns[name].cast(pa.string()) for name in ("clip_id", "source", "sha256")}
    table, there = pa.table(columns), kept_table(out)
    if not there.has(shard) or not there.read(shard).equals(table):
        there.write(shard, table)


def caption_shard(
    shard: SourceShard,
    out: pathlib.Path,
    config: CurationConfig,
    captions: Mapping[str, Sequence[str]],
    budget: int | None,
) -> int:
    """Ask for the captions that a shard's kept clips lack, and write what came.

    Args:
      shard: of the clips.
      out: of the curation.
      config: of the curation.
      captions: of each video by name, for `FileCaptions`.
      budget: requests that are left; None for no bound.

    Returns:
      The number of requests that were sent.

    Raises:
      UserError: the endpoint, or the function, cannot be used at all; what came before is kept.
    """
    captioner = make_captioner(config.captions, captions=captions, budget=budget)
    kept = kept_table(out).read(shard).to_pylist()
    table = captions_table(out, config)
    rows = {row["clip_id"]: row for row in _read_captions(table, shard)}
    # Captions of files may be corrected; the others are paid for.
    again = config.captions.OF_FILES
    missing = [row for row in kept if again or rows.get(row["clip_id"], {}).get("caption") is None]
    if captioner is None or not missing:
        return 0
    paths = {file.name: file.path for file in shard.files}
    sent = 0
    worker = shared_worker(config.limits.memory_gb)
    pictures, side = config.captions.pictures()

    def requests() -> Iterator[CaptionRequest]:
        for row in missing:
            frames, times_s = np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1)
            if pictures:
                times_s = _spread(row["start_s"], row["end_s"], pictures)
                try:
                    frames = np.stack(
                        worker.run(
                            *(frames_at, paths[row["source"]], times_s.tolist()),
                            side,
                            silent_s=config.limits.seconds,
                        )
                    )
                except UserError as error:
                    reason = f"its frames cannot be read: {error}"
                    result = CaptionResult(clip_id=row["clip_id"], reason=reason)
                    rows[row["clip_id"]] = dataclasses.asdict(result)
                    continue
            yield CaptionRequest(row["clip_id"], frames, times_s - row["start_s"], row["source"])

    try:
        for result in captioner.caption(requests()):
            rows[result.clip_id] = dataclasses.asdict(result)
    finally:
        sent = captioner.requests
        ordered = [rows[name] for name in sorted(rows)]
        if sent or ordered != _read_captions(table, shard):
            about = {_SENT: str(sent + sent_requests(shard, out, config)).encode()}
            part = pa.Table.from_pylist(ordered, _CAPTIONS)
            table.write(shard, part.replace_schema_metadata(about))
    return sent


def sent_requests(shard: SourceShard, out: pathlib.Path, config: CurationConfig) -> int:
    """Return how many requests were sent for a shard so far, in all runs."""
    table = captions_table(out, config)
    about = table.read(shard, []).schema.metadata if table.has(shard) else None
    return int((about or {}).get(_SENT, b"0"))


def shard_captions(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig
) -> dict[str, dict[str, Any]]:
    """Return what the captioner gave for a shard's clips, by clip id; see `CaptionResult`."""
    return {row["clip_id"]: row for row in _read_captions(captions_table(out, config), shard)}


def _read_captions(table: Table, shard: SourceShard) -> list[dict[str, Any]]:
    return table.read(shard).to_pylist() if table.has(shard) else []


_WHOLE = ("prompt_tokens", "completion_tokens", "requests")  # of a result; the others are text
_CAPTIONS = pa.schema(
    [
        (field.name, pa.int64() if field.name in _WHOLE else pa.string())
        for field in dataclasses.fields(CaptionResult)
    ]
)


def _spread(start_s: float, end_s: float, count: int) -> np.ndarray:
    """Return the middles of `count` equal parts of a clip."""
    return start_s + (np.arange(count) + 0.5) / count * (end_s - start_s)


def pack_shard(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig, errors_count: bool = True
) -> dict[str, int]:
    """Pack the kept clips of a shard; where captions are asked for, those that have one.

    Args:
      shard: of the videos.
      out: of the curation.
      config: of the curation.
      errors_count: see `write_shard`.

    Returns:
      Counts: "packed", "without_caption", "failed" clips.

    Raises:
      UserError: the shard cannot be written.
    """
    clips, without = _to_pack(shard, out, config)
    limits = config.limits
    worker = shared_worker(limits.memory_gb)

    def encode(path, start_s, end_s, tiers, pack) -> EncodedClip:
        # From the key frame before, which may be far away.
        silent_s = limits.seconds + 10 * limits.seconds_per_second * (end_s - start_s)
        return worker.run(encode_clip, path, start_s, end_s, tiers, pack, silent_s=silent_s)

    asked = digest(repr(limits)), errors_count
    marker = write_shard(out / SHARDS, shard.number, clips, config.pack, encode, *asked)
    failed = len(marker["left_out"])
    return {"packed": len(clips) - failed, "without_caption": without, "failed": failed}


def is_shard_packed(shard: SourceShard, out: pathlib.Path, config: CurationConfig) -> bool:
    """Return whether `pack_shard` has nothing to do."""
    return is_packed(out / SHARDS, shard.number, _to_pack(shard, out, config)[0], config.pack)


def _to_pack(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig
) -> tuple[list[Clip], int]:
    """Return the clips to pack, and how many are left out because they have no caption."""
    paths = {file.name: file.path for file in shard.files}
    captions = shard_captions(shard, out, config)
    asked = config.captions.WANTED
    clips, without = [], 0
    for row in kept_table(out).read(shard).to_pylist():
        caption = captions.get(row["clip_id"], {}).get("caption") if asked else None
        if asked and caption is None:
            without += 1
            continue
        clips.append(
            Clip(
                id=row["clip_id"],
                path=paths[row["source"]],
                digest=row["sha256"],
                **{n: row[n] for n in ("source", "start_s", "end_s", "width", "height")},
                captions=() if caption is None else (caption,),
                scores={name: row[name] for name in SCORES if not math.isnan(row[name])},
            )
        )
    return clips, without
