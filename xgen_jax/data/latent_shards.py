"""Clips that were encoded once: shards of latents and captions on disk, and the source that reads
them.

    DIR/settings.json                               what is being encoded, written first: a rerun must mean the same
    DIR/9x32x32/clips.npy                           the numbers of a bucket's clips, int64, ascending; not there: all
    DIR/9x32x32/shard-00000-of-00012.arrayrecord    a bucket's clips in their order, one record a clip
    DIR/9x32x32/shard-00000-of-00012.json           count and SHA-256; a shard without it does not count
    DIR/manifest.json                               settings and shards, written last: without it nothing is read

Shard s of a bucket holds its clips [s n, (s + 1) n) but those that could not be read, so that
whoever finds it knows what is in it. A shard is written under another name, brought to the disk,
renamed and then vouched for: a run may be killed at any time, and a rerun ends with the same bytes.
Records are msgpack; the container is ArrayRecord, imported nowhere else.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from xgen_jax.errors import UserError
from xgen_jax.files import (
    atomic_write,
    check_free,
    differences,
    file_sha256,
    numbers_sha256,
    read_json,
    read_numbers,
    refuse_differences,
    remove_temporaries,
    write_json,
    write_numbers,
)

VERSION = 2  # of the layout and the records; 1 stored all clips in all buckets, and text padded, with its mask
READABLE = (1, VERSION)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ARRAYS = (
    "latents",
    "text",
    "text_mask",
)  # of a record; text (n, D) where captions were embedded, without padding


def pack(index: int, sample: dict[str, Any]) -> bytes:
    """A clip as msgpack: {index, caption, fps, latents: {dtype, shape, bytes}}, text alike if
    there."""
    record = {"index": index, "caption": sample["caption"]}
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
    return msgpack.packb(record)


def unpack(record: bytes) -> dict[str, Any]:
    """The inverse of `pack`, with arrays as they were stored."""
    sample = msgpack.unpackb(record)
    for name in ARRAYS:
        if name in sample:
            stored = sample[name]
            dtype = np.dtype(DTYPES.get(stored["dtype"], stored["dtype"]))
            sample[name] = np.frombuffer(stored["bytes"], dtype).reshape(stored["shape"])
    return sample


class LatentWriter:
    """Writes the folder of an encoded data set, or goes on writing it.

    Args:
      path: the folder.
      settings: what decides the bytes, as JSON; `buckets` (names), `clips` and `shard_size` are
        used here, and `text_length`, what rows of text are padded to, in reading.
      members: by name the clips of a bucket, ascending numbers in [0, clips); a bucket that is not
      named has all.

    Raises:
      UserError: the folder holds something else, or what other settings made (which are listed);
      nothing is touched.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: dict[str, Any],
        members: Mapping[str, np.ndarray] | None = None,
    ):
        self.path = pathlib.Path(path)
        self.settings = {"version": VERSION, **settings}
        self._members = {name: np.asarray(clips, "<i8") for name, clips in (members or {}).items()}
        if self._members:
            # A release that divides the clips otherwise must not go on with the shards of this one.
            digests = {
                name: (len(clips), numbers_sha256(clips)) for name, clips in self._members.items()
            }
            self.settings["members"] = {
                name: {"clips": n, "sha256": sha256} for name, (n, sha256) in digests.items()
            }
        if check_free(self.path, "settings.json", "latents"):
            refuse_differences(
                differences(read_json(self.path / "settings.json"), self.settings),
                f"{self.path} holds latents that were encoded otherwise",
                "choose another --out, or remove that folder",
            )
        write_json(self.path / "settings.json", self.settings, durable=True)
        for name, clips in self._members.items():
            write_numbers(_members_file(self.path, name), clips)

    def count(self, bucket: str) -> int:
        """How many clips a bucket has, with those that cannot be read."""
        members = self._members.get(bucket)
        return self.settings["clips"] if members is None else len(members)

    def shards(self, bucket: str) -> int:
        """How many shards a bucket has."""
        return max(1, -(-self.count(bucket) // self.settings["shard_size"]))

    def clips(self, bucket: str, shard: int) -> Sequence[int]:
        """The numbers of a shard's clips, ascending."""
        size, members = self.settings["shard_size"], self._members.get(bucket)
        places = range(shard * size, min((shard + 1) * size, self.count(bucket)))
        return places if members is None else members[places.start : places.stop].tolist()

    def file(self, bucket: str, shard: int) -> pathlib.Path:
        """Where a shard is, or will be."""
        return self.path / bucket / f"shard-{shard:05d}-of-{self.shards(bucket):05d}.arrayrecord"

    def finished(self, bucket: str, shard: int) -> dict[str, Any] | None:
        """A shard's {"count", "bytes", "sha256", "left_out": {clip: reason}}; None if it must be
        made."""
        file = self.file(bucket, shard)
        voucher = file.with_suffix(".json")
        if not (voucher.is_file() and file.is_file()):
            return None
        entry = read_json(voucher)
        return entry if file.stat().st_size == entry["bytes"] else None

    def write(
        self, bucket: str, shard: int, samples: Iterable[tuple[int, dict[str, Any] | str]]
    ) -> None:
        """Writes one shard of (clip, sample) in ascending order; in place of a sample, why there is
        none."""
        file, count, left_out = self.file(bucket, shard), 0, {}
        remove_temporaries(file)
        with atomic_write(file, durable=True) as temporary:
            with _telling(file):
                writer = ArrayRecordWriter(str(temporary), "group_size:1")
            try:
                for index, sample in samples:
                    if isinstance(sample, str):
                        left_out[str(index)] = sample
                    else:
                        with _telling(file):
                            writer.write(pack(index, sample))
                        count += 1
            finally:
                with _telling(file):
                    writer.close()
            entry = {
                "count": count,
                "bytes": temporary.stat().st_size,
                "sha256": file_sha256(temporary),
            }
            written = ArrayRecordReader(str(temporary)).num_records()
            if written != count:
                raise UserError(
                    f"{file} cannot be written: {written} of {count} records arrived; is the disk full?"
                )
        write_json(file.with_suffix(".json"), {**entry, "left_out": left_out}, durable=True)

    def finish(self) -> dict[str, Any]:
        """Writes the manifest, once every shard is there; returns it.

        Raises:
          UserError: not a single clip of a bucket could be read; of a bucket that has but some of
            the clips, and so perhaps one alone, only where none of any could.
        """
        buckets, problem = {}, None
        for bucket in self.settings["buckets"]:
            rows = []
            for shard in range(self.shards(bucket)):
                entry = self.finished(bucket, shard)
                if entry is None:
                    raise RuntimeError(f"{self.file(bucket, shard)} is not finished")
                left_out = [int(index) for index in entry["left_out"]]
                rows.append(
                    {
                        "file": f"{bucket}/{self.file(bucket, shard).name}",
                        **entry,
                        "left_out": left_out,
                    }
                )
            if not sum(row["count"] for row in rows):
                problem = f"not one clip of {bucket} could be read: {next(iter(entry['left_out'].values()))}"
                if bucket not in self._members:
                    raise UserError(problem)
            buckets[bucket] = rows
        if problem and not any(row["count"] for rows in buckets.values() for row in rows):
            raise UserError(problem)
        manifest = {**self.settings, "shards": buckets}
        write_json(self.path / "manifest.json", manifest, durable=True)
        return manifest


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a finished folder of latents.

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
        found, known = manifest.get("version"), " and ".join(map(str, READABLE))
        raise UserError(
            f"{path} is of version {found}, and this release reads versions {known}; encode again"
        )
    return manifest


def verify(path: str | os.PathLike) -> Iterator[str]:
    """Reads every byte of a folder of latents and yields what is wrong, naming the file; nothing if
    all is well."""
    path, manifest = pathlib.Path(path), read_manifest(path)
    for name, row in manifest.get("members", {}).items():
        try:
            _members(path, name, row)
        except UserError as error:
            yield str(error)
    for row in (row for rows in manifest["shards"].values() for row in rows):
        file = path / row["file"]
        if not file.is_file():
            yield f"{file} is missing"
        elif file_sha256(file) != row["sha256"]:
            yield f"{file} is not what was written: its SHA-256 differs"


@contextlib.contextmanager
def _telling(file: pathlib.Path) -> Iterator[None]:
    """ArrayRecord tells of the system's errors by RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"{file} cannot be written ({error}); is the disk full or read-only?"
        ) from error


def _members(path: pathlib.Path, bucket: str, row: dict[str, Any]) -> np.ndarray:
    return read_numbers(_members_file(path, bucket), row["clips"], row["sha256"])


def _members_file(path: pathlib.Path, bucket: str) -> pathlib.Path:
    return path / bucket / "clips.npy"
