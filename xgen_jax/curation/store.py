"""The tables of a curation on disk, and the division of its videos into shards.

    OUT/sources.json                          the shards of videos; a video never changes its shard
    OUT/measured/STAGE-KEY/SHARD.parquet      what a stage measured of a shard
    OUT/clips-KEY/SHARD.parquet               the clips of a shard with their scores
    OUT/duplicates-KEY.parquet                clips that show the same as another
    OUT/captions-KEY/SHARD.parquet            captions of kept clips
    OUT/shards/                               what training reads, see `pack`
    OUT/report.html                           the page

KEY is a digest of what decides a table, so a table that is there is right: it is written whole or
not at all. A run that was killed goes on with what is missing.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from xgen_jax.data.file_index import File, list_files
from xgen_jax.data.video import READ_SUFFIXES
from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write, check_free, read_json, write_json

SOURCES = "sources.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A video.

    Attributes:
      name: relative to the folder of videos, in Unicode: a byte that is none is \\xNN.
      path: of the file, as the system names it.
    """

    name: str
    path: str


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """Videos that are one unit of work.

    Attributes:
      number: of the shard.
      files: its videos, by name.
    """

    number: int
    files: tuple[SourceFile, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


def divide(videos: pathlib.Path, out: pathlib.Path, videos_per_shard: int) -> list[SourceShard]:
    """Return the shards of a folder of videos, and keep the division in OUT/sources.json.

    A video that is in a shard already, with the same size and time of change, stays there. New and
    changed ones make new shards, in the order of their names; one that is gone leaves its shard.

    Args:
      videos: the folder, searched recursively.
      out: of the curation.
      videos_per_shard: of new shards.

    Raises:
      UserError: no videos, or `out` holds something else, or the curation of another folder.
    """
    files = {_text(file.name): file for file in list_files(videos, READ_SUFFIXES)}
    before: list[list[list]] = []
    folder = str(videos.resolve())
    if check_free(out, SOURCES, "curation"):
        there = read_json(out / SOURCES)
        if there.get("version") != VERSION:
            raise UserError(f"{out} was made by another release; choose a new --out")
        if there["videos"] != folder:
            raise UserError(
                f"{out} holds the curation of {there['videos']}, not of {folder}; choose another "
                f"--out, or, if the folder was moved, change its name in {out / SOURCES}"
            )
        before = there["shards"]
    shards, placed = [], set()
    for rows in before:
        kept = [row for row in rows if row[0] in files and row == _row(files[row[0]])]
        placed |= {row[0] for row in kept}
        shards.append(kept)
    new = [_row(file) for name, file in sorted(files.items()) if name not in placed]
    shards += [new[i : i + videos_per_shard] for i in range(0, len(new), videos_per_shard)]
    if shards != before:
        value = {"version": VERSION, "videos": folder, "shards": shards}
        write_json(out / SOURCES, value, durable=True)
    return [
        SourceShard(
            number,
            tuple(SourceFile(row[0], str(videos / files[row[0]].name)) for row in rows),
        )
        for number, rows in enumerate(shards)
        if rows
    ]


def _row(file: File) -> list:
    return [_text(file.name), file.size, file.changed_ns]


def _text(name: str) -> str:
    """A name that any file can hold: bytes that are no UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Table:
    """A table in parts, one a shard.

    Args:
      folder: of the parts.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def path(self, shard: SourceShard) -> pathlib.Path:
        return self.folder / f"{shard.name}.parquet"

    def has(self, shard: SourceShard) -> bool:
        return self.path(shard).is_file()

    def missing(self, shards: Sequence[SourceShard]) -> list[SourceShard]:
        """Return the shards whose part is not there."""
        return [shard for shard in shards if not self.has(shard)]

    def write(self, shard: SourceShard, table: pa.Table) -> None:
        """Write a part, durably."""
        write_table(self.path(shard), table)

    def read(self, shard: SourceShard, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a part.

        Raises:
          UserError: it is damaged.
        """
        return read_table(self.path(shard), columns)


def write_table(path: pathlib.Path, table: pa.Table) -> None:
    """Write a Parquet file, whole or not at all; equal tables give equal bytes."""
    with atomic_write(path, durable=True) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: pathlib.Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and run again") from error


def digest(*values: object) -> str:
    """Return a short hex digest of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
