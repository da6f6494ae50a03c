"""The container of curated clips: shards of small mp4 files, and an index of them.

    DIR/shard-00000-256p-1a2b3c4d.arrayrecord   a shard's clips whose shorter side is 256 pixels
    DIR/shard-00000.json    its commit marker: files with their SHA-256, clips with their numbers
    DIR/index.parquet       a row a clip and a row group a shard, see `curation.shard_index`
    DIR/manifest.json       all shards, counts and SHA-256s, written last: else nothing is read

A clip is stored at every tier that it nearly fills, never enlarged; the smallest tier has all
clips, in the order of the shard: clips for training, then those held out, each by their ids.
Records are msgpack; `data.shards` reads them and `curation.pack` writes them.
"""

import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from xgen_jax.data.buckets import COVERED
from xgen_jax.errors import UserError
from xgen_jax.files import read_json

KIND, VERSION = "shards", 1
MANIFEST, INDEX = "manifest.json", "index.parquet"
MARKERS = "shard-*.json"
GROUPS = ("train", "held_out")  # in this order in a shard

# Columns of the index; then come all scores by their names, and a column for each tier.
COLUMNS = (
    *("id", "source", "split", "start_s", "end_s", "seconds", "frames", "height", "width", "fps"),
    *("captions", "bucket"),
)


def record_column(tier: int) -> str:
    """Return the column with the number of a clip's record in the file of a tier, or -1."""
    return f"record_{tier}p"


def tiers_for(height: int, width: int, tiers: Iterable[int]) -> list[int]:
    """Return the tiers at which a video of that size is stored, ascending: those of which it has
    `buckets.COVERED` of the area, and always the smallest."""
    tiers, side = sorted(tiers), min(height, width) / math.sqrt(COVERED)
    return [tier for tier in tiers if tier <= side or tier == tiers[0]]


def stored_size(height: int, width: int, tier: int) -> tuple[int, int]:
    """Return the even (height, width) of a video at a tier: the tier's shorter side, or the video's
    where that is smaller."""
    scale = min(1.0, tier / min(height, width))
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def pack(record: Mapping[str, Any]) -> bytes:
    """Pack {id, media (bytes of an mp4 file), captions, frames, height, width, fps, start_s, end_s,
    source, scores} in msgpack."""
    packed = msgpack.packb(record)
    assert packed is not None
    return packed


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """Invert `pack`.

    Raises:
      UserError: it is damaged, naming `where` it was.
    """
    try:
        record = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise UserError(f"{where} is damaged ({type(error).__name__})") from error
    if not isinstance(record, dict) or not isinstance(record.get("media"), bytes):
        raise UserError(f"{where} is not the record of a clip")
    return record


def find_shards(path: str | os.PathLike) -> pathlib.Path | None:
    """Return the folder of shards at a path: it, or `shards` in it, where launch/curate.py writes
    them; None if there is none, finished or begun."""
    for folder in (pathlib.Path(path), pathlib.Path(path, "shards")):
        try:
            if (folder / MANIFEST).is_file():
                if read_json(folder / MANIFEST).get("kind") == KIND:
                    return folder
            elif next(folder.glob(MARKERS), None):
                return folder
        except UserError:  # not JSON, so not written by this library
            continue
    return None


def read_manifest(path: str | os.PathLike) -> tuple[pathlib.Path, dict[str, Any]]:
    """Return the folder of shards at a path, and its manifest.

    Raises:
      UserError: there is none, it is not finished, or it is of another version of the layout.
    """
    if not pathlib.Path(path).is_dir():
        raise UserError(f"there is no folder {path}")
    folder = find_shards(path)
    if folder is None:
        raise UserError(
            f"{path} holds no shards of clips: give the --out of launch/curate.py, or its shards/"
        )
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no {MANIFEST}: curation has not ended; run the same launch/curate.py "
            "again"
        )
    manifest = read_json(folder / MANIFEST)
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder} is of version {manifest.get('version')}, and this release reads version "
            f"{VERSION}; pack again with launch/curate.py"
        )
    return folder, manifest
