"""The container of encoded clips, shards of latents and captions on disk, and its reader.

    DIR/settings.json         what is being encoded, written first: a rerun must mean the same
    DIR/9x32x32/clips.npy     the numbers of a bucket's clips, int64, ascending; absent: all
    DIR/9x32x32/shard-00000-of-00012.arrayrecord    a bucket's clips in order, a record a clip
    DIR/9x32x32/text-00000-of-00012.arrayrecord     their captions' embeddings, if there are any
    DIR/9x32x32/shard-00000-of-00012.json           its commit marker: count and SHA-256s
    DIR/held_out.npy          the numbers of the clips that training does not see; absent: none
    DIR/manifest.json         settings and shards, written last: without it nothing is read
    DIR/previous/             while a changed data set is encoded again: what it is taken from

Shard s of a bucket holds its clips [s n, (s + 1) n) except those that could not be read. Embeddings
of captions are several times as large as most latents: they have files of their own, which a model
that is conditioned on the captions themselves neither reads nor needs. A shard without its commit
marker does not count: a run may be killed at any time, and a rerun ends with the same bytes.
Records are msgpack; the container is ArrayRecord. `latent_writer` writes it.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from xgen_jax.data.array_records import OPEN_FILES, OpenRecords
from xgen_jax.errors import UserError
from xgen_jax.files import (
    file_sha256,
    read_json,
    read_numbers,
)

# Of layout and records. Version 1 stored all clips in all buckets, and padded text with a mask;
# versions 1 and 2 have text in the records of latents.
VERSION = 3
TEXT_APART = 3  # from this version on
READABLE = (1, 2, VERSION)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Arrays of a record; text (n, D), without padding, if captions were embedded.
TEXT = ("text", "text_mask")
ARRAYS = ("latents", *TEXT)
HELD_OUT = "held_out.npy"


def pack(index: int, sample: dict[str, Any]) -> bytes:
    """Pack what there is of a clip in msgpack {index, caption, fps, latents: {dtype, shape, bytes},
    text}."""
    record: dict[str, Any] = {"index": index}
    if "caption" in sample:
        record["caption"] = sample["caption"]
    if "fps" in sample:
        record["fps"] = float(sample["fps"])
    for name in ARRAYS:
        if name in sample:
            array = np.ascontiguousarray(sample[name])
            record[name] = {
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "bytes": array.tobytes(),
            }
    packed = msgpack.packb(record)
    assert packed is not None
    return packed


def unpack(record: bytes) -> dict[str, Any]:
    """Invert `pack`; arrays have the dtype they were stored in."""
    sample = msgpack.unpackb(record)
    for name in ARRAYS:
        if name in sample:
            stored = sample[name]
            dtype = np.dtype(DTYPES.get(stored["dtype"], stored["dtype"]))
            sample[name] = np.frombuffer(stored["bytes"], dtype).reshape(stored["shape"])
    return sample


def text_file(shard: pathlib.Path) -> pathlib.Path:
    """Return the file with the embeddings of the captions of a shard."""
    return shard.with_name("text" + shard.name.removeprefix("shard"))


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """Read the manifest of a finished folder of latents.

    Raises:
      UserError: no such folder, one that is not finished, or one of another version of the layout.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    if not (path / "manifest.json").is_file():
        started = (path / "settings.json").is_file()
        reason = (
            "encoding has not ended; run the same launch/encode.py again"
            if started
            else "it holds no latents"
        )
        raise UserError(f"{path} holds no manifest.json: {reason}")
    manifest = read_json(path / "manifest.json")
    if manifest.get("version") not in READABLE:
        found, known = manifest.get("version"), ", ".join(map(str, READABLE))
        raise UserError(
            f"{path} is of version {found}, and this release reads versions {known}; encode again"
        )
    return manifest


class LatentReader:
    """Reads the records of a finished folder by bucket and clip; safe to use from several threads.

    Attributes:
      manifest: the contents of manifest.json.
      members: by name the clips of a bucket, ascending; a bucket that is not named has all.
      held_out: the clips that training does not see, ascending.
      left_out: by name the clips of a bucket that could not be read when it was encoded; a bucket
        without a single clip is not named.

    Args:
      path: of the folder.
      text: embeddings of captions are read, where they are stored; else their files need not be
        there.
      open_shards: shards that are kept open at most, and as many files of text.

    Raises:
      UserError: no such folder, one that is not finished, or a file that is missing or of another
        size, by name, or a bucket's list of clips that is missing or not what was written.
    """

    def __init__(self, path: str | os.PathLike, text: bool = True, open_shards: int = OPEN_FILES):
        self.path, self._text = pathlib.Path(path), text
        self.manifest = read_manifest(path)
        self.members = {
            name: read_members(self.path, name, row)
            for name, row in self.manifest.get("members", {}).items()
        }
        held_out = self.manifest.get("held_out")
        self.held_out = (
            read_numbers(self.path / HELD_OUT, held_out["clips"], held_out["sha256"])
            if held_out
            else np.zeros(0, np.int64)
        )
        self.left_out = {
            bucket: {index for row in rows for index in row["left_out"]}
            for bucket, rows in self.manifest["shards"].items()
            if any(row["count"] for row in rows)
        }
        for file, row in _files(self.path, self.manifest, text):
            if not file.is_file():
                raise UserError(
                    f"{file} is missing; encode again into {self.path}, which makes what is absent"
                )
            if file.stat().st_size != row["bytes"]:
                raise UserError(
                    f"{file} has {file.stat().st_size} bytes instead of {row['bytes']}: it was cut "
                    f"off or replaced; remove it and encode again into {self.path}"
                )
        self._records, self._texts = OpenRecords(open_shards), OpenRecords(open_shards)

    @property
    def open_shards(self) -> int:
        """The number of shards that are open now."""
        return len(self._records)

    def count(self, bucket: str) -> int:
        """Return the number of clips of a bucket, those that were left out included."""
        return len(self.members[bucket]) if bucket in self.members else self.manifest["clips"]

    def clip(self, bucket: str, place: int) -> int:
        """Return the number of a bucket's clip number `place`."""
        return int(self.members[bucket][place]) if bucket in self.members else place

    def place(self, bucket: str, clip: int) -> int:
        """Return the place in a bucket of its first clip from `clip` on; `count` if none is."""
        return int(np.searchsorted(self.members[bucket], clip)) if bucket in self.members else clip

    def text_bytes(self, bucket: str) -> int:
        """Return the mean bytes of the text of a clip as it is stored, 0 without text; in older
        versions also of all else in its record."""
        rows = self.manifest["shards"][bucket] if self._text else ()
        apart = self.manifest["version"] >= TEXT_APART
        total = sum((row.get("text", {}) if apart else row).get("bytes", 0) for row in rows)
        return total // max(1, sum(row["count"] for row in rows))

    def starts(self, bucket: str) -> np.ndarray:
        """Return the first clip of each shard of a bucket, ascending."""
        shards = len(self.manifest["shards"].get(bucket, ()))
        places = np.arange(shards) * self.manifest["shard_size"]
        return self.members[bucket][places] if bucket in self.members and shards else places

    def clips(self, bucket: str) -> np.ndarray:
        """Return the clips of a bucket that could be read, ascending."""
        if bucket not in self.left_out:
            return np.zeros(0, np.int64)
        members = self.members.get(bucket, np.arange(self.manifest["clips"]))
        left_out = np.array(sorted(self.left_out[bucket]), np.int64)
        return np.setdiff1d(members, left_out, assume_unique=True)

    def read(self, bucket: str, place: int) -> dict[str, Any]:
        """Return the record of a bucket's clip number `place`, which was not left out; see
        `unpack`.

        Raises:
          UserError: a damaged record, or one of another clip, naming the file.
        """
        clip = self.clip(bucket, place)
        shard, place = divmod(place, self.manifest["shard_size"])
        row = self.manifest["shards"][bucket][shard]
        place -= sum(other < clip for other in row["left_out"])
        sample = self._record(self._records, self.path / row["file"], place, clip)
        if not self._text:
            return {name: value for name, value in sample.items() if name not in TEXT}
        if "text" in row:
            sample |= self._record(self._texts, self.path / row["text"]["file"], place, clip)
        return sample

    def _record(
        self, records: OpenRecords, file: pathlib.Path, place: int, clip: int
    ) -> dict[str, Any]:
        """Return record `place` of a file, which must be of a clip."""
        try:
            sample = unpack(records.read(file, place))
        except UserError as error:
            raise UserError(f"{error}; encode it again") from error
        except (ValueError, msgpack.UnpackException) as error:
            raise UserError(
                f"record {place} of {file} cannot be read ({error}); encode it again"
            ) from error
        if sample.pop("index") != clip:
            raise UserError(
                f"record {place} of {file} is not clip {clip}: the file was replaced; "
                "encode it again"
            )
        return sample


def read_members(path: pathlib.Path, bucket: str, row: Mapping[str, Any]) -> np.ndarray:
    """Read the numbers of a bucket's clips.

    Args:
      path: of the folder.
      bucket: its name.
      row: {"clips", "sha256"} as the manifest has it.

    Raises:
      UserError: the list is missing, or not what was written.
    """
    return read_numbers(members_file(path, bucket), row["clips"], row["sha256"])


def verify(path: str | os.PathLike) -> Iterator[str]:
    """Read every byte of a folder of latents and yield what is wrong, naming the file."""
    path, manifest = pathlib.Path(path), read_manifest(path)
    for name, row in manifest.get("members", {}).items():
        try:
            read_members(path, name, row)
        except UserError as error:
            yield str(error)
    for file, row in _files(path, manifest, text=True):
        if not file.is_file():
            yield f"{file} is missing"
        elif file_sha256(file) != row["sha256"]:
            yield f"{file} is not what was written: its SHA-256 differs"


def _files(
    path: pathlib.Path, manifest: Mapping[str, Any], text: bool
) -> Iterator[tuple[pathlib.Path, Mapping[str, Any]]]:
    """Yield the files of a folder, with or without those of text, and what is known of each."""
    for row in (row for rows in manifest["shards"].values() for row in rows):
        yield path / row["file"], row
        if text and "text" in row:
            yield path / row["text"]["file"], row["text"]


def members_file(path: pathlib.Path, bucket: str) -> pathlib.Path:
    """Return the file of the numbers of a bucket's clips."""
    return path / bucket / "clips.npy"
