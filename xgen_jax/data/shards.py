"""Reads the shards of clips that `shard_layout` describes."""

import collections
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from xgen_jax.data.array_records import OPEN_FILES, OpenRecords
from xgen_jax.data.shard_layout import INDEX, read_manifest, record_column, unpack
from xgen_jax.errors import UserError
from xgen_jax.files import file_sha256

Rows = dict[str, list[Any]]  # columns of the index, of one shard

_AGAIN = "pack again with launch/curate.py"
# What reading a clip takes; scores are for a person's queries.
_READ = ("id", "source", "start_s", "end_s", "frames", "height", "width", "fps", "captions")


class ShardReader:
    """Reads records by shard and row; safe to use from several threads.

    Opening it reads the manifest and the footer of the index, and looks at the size of each file,
    however many clips there are.

    Attributes:
      path: of the folder.
      manifest: the contents of manifest.json.
      tiers: shorter sides at which clips are stored, ascending.

    Args:
      path: of the folder, or of one whose `shards` it is.
      open_files: files of records that are kept open at most.
      kept_rows: shards whose rows of the index are kept in memory at most.

    Raises:
      UserError: no such folder, one that is not finished, or a file that is missing or of another
        size, by name.
    """

    def __init__(
        self, path: str | os.PathLike, open_files: int = OPEN_FILES, kept_rows: int = 1024
    ):
        self.path, self.manifest = read_manifest(path)
        self.tiers = sorted(self.manifest["tiers"])
        for name, size in self._sizes():
            _check_size(self.path / name, size)
        self._records, self._lock = OpenRecords(open_files), threading.Lock()
        try:
            self._index = pq.ParquetFile(self.path / INDEX)
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
            raise UserError(f"{self.path / INDEX} cannot be read ({error}); {_AGAIN}") from error
        self._kept_rows = kept_rows
        self._rows: collections.OrderedDict[int, Rows] = collections.OrderedDict()

    def _sizes(self) -> Iterator[tuple[str, int]]:
        yield INDEX, self.manifest["index"]["bytes"]
        for shard in self.manifest["shards"]:
            for entry in shard["files"].values():
                yield entry["file"], entry["bytes"]

    @property
    def open_files(self) -> int:
        """The number of files of records that are open now."""
        return len(self._records)

    def rows(self, shard: int) -> Rows:
        """Return what the index says of the clips of a shard, in their order."""
        with self._lock:
            rows = self._rows.pop(shard, None)
            if rows is None:
                columns = [*_READ, *map(record_column, self.tiers)]
                try:
                    group = self._index.read_row_group(shard, columns, use_threads=False)
                except (OSError, ValueError, IndexError) as error:
                    raise UserError(
                        f"row group {shard} of {self.path / INDEX} cannot be read ({error}); "
                        f"{_AGAIN}"
                    ) from error
                rows = group.to_pydict()
            self._rows[shard] = rows
            while len(self._rows) > self._kept_rows:
                self._rows.popitem(last=False)
            return rows

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers of the index, for all clips."""
        with self._lock:
            return self._index.read([name], use_threads=False)[name].to_numpy()

    def record(self, shard: int, row: int, tier: int) -> tuple[dict[str, Any], str]:
        """Return the record of a clip at a tier at which it is stored, and where it is, in words.

        Raises:
          UserError: a damaged record, or one of another clip, naming the file.
        """
        rows = self.rows(shard)
        file = self.path / self.manifest["shards"][shard]["files"][str(tier)]["file"]
        place = rows[record_column(tier)][row]
        where = f"record {place} of {file}"
        try:
            record = unpack(self._records.read(file, place), where)
        except UserError as error:
            raise UserError(f"{error}; {_AGAIN}") from error
        if record["id"] != rows["id"][row]:
            raise UserError(f"{where} is not of clip {rows['id'][row]}; {_AGAIN}")
        return record, where


def _check_size(file: pathlib.Path, size: int) -> None:
    if not file.is_file():
        raise UserError(f"{file} is missing; {_AGAIN}, which makes what is absent")
    if file.stat().st_size != size:
        raise UserError(
            f"{file} has {file.stat().st_size} bytes instead of {size}: it was cut off or "
            f"replaced; remove it and {_AGAIN}"
        )


def verify(path: str | os.PathLike) -> Iterator[str]:
    """Read every byte of a folder of shards and yield what is wrong, naming the file."""
    folder, manifest = read_manifest(path)
    files = [(INDEX, manifest["index"]["sha256"])]
    for shard in manifest["shards"]:
        files += [(entry["file"], entry["sha256"]) for entry in shard["files"].values()]
    for name, digest in files:
        if not (folder / name).is_file():
            yield f"{folder / name} is missing"
        elif file_sha256(folder / name) != digest:
            yield f"{folder / name} is not what was written: its SHA-256 differs"
