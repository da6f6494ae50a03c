"""Clips that were encoded once, as a source."""

import collections
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Sequence

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from xgen_jax.data.buckets import Bucket, shape_name
from xgen_jax.data.latent_shards import _members, read_manifest, unpack
from xgen_jax.data.sources.base import Sample, Source
from xgen_jax.errors import UserError

_OPEN_SHARDS = 128


class LatentSource(Source):
    """What `launch/encode.py` wrote, as a source of clips: "latents" float32 (t, h, w, c),
    "caption", "fps", and, where captions were embedded, "text" (L, D) in its stored dtype, padded
    with zeros, and "text_mask" (L,).

    Clip i is what the source that was encoded gave for its clip i; one that could not be read then,
    or was not encoded in the bucket, is replaced by the next that was, as a folder of videos does
    it.

    Attributes:
      manifest: what manifest.json says.

    Raises:
      UserError: no such folder, one that is not finished, or a shard that is missing or of another
        size, by name, or a bucket's list of clips that is missing or not what was written.
    """

    name = "latents"

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.manifest = read_manifest(path)
        made_by = {name: self.manifest.get(name) for name in ("embedder", "text_encoder")}
        self.made_by = {name: mark for name, mark in made_by.items() if mark}
        self.bucket_names = tuple(self.manifest["shards"])
        self._readers: collections.OrderedDict[str, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._left_out = {
            bucket: {index for row in rows for index in row["left_out"]}
            for bucket, rows in self.manifest["shards"].items()
            if any(row["count"] for row in rows)
        }
        self._members = {
            name: _members(self.path, name, row)
            for name, row in self.manifest.get("members", {}).items()
        }
        for row in (row for rows in self.manifest["shards"].values() for row in rows):
            file = self.path / row["file"]
            if not file.is_file():
                raise UserError(
                    f"{file} is missing; encode again into {self.path}, which makes what is not there"
                )
            if file.stat().st_size != row["bytes"]:
                raise UserError(
                    f"{file} has {file.stat().st_size} bytes instead of {row['bytes']}: it was cut off or replaced; "
                    f"remove it and encode again into {self.path}"
                )

    def __len__(self) -> int:
        return self.manifest["clips"]

    def fit(self, buckets: Sequence[Bucket], seed: int) -> list[np.ndarray]:
        """For each bucket the clips that were encoded for it: the choice was made then, and `seed`
        is not used."""
        del seed
        none = np.zeros(0, np.int64)
        return [
            self._there(bucket.name) if bucket.name in self._left_out else none
            for bucket in buckets
        ]

    def clips_for(self, bucket: Bucket) -> np.ndarray | None:
        """Of a bucket that does not have all clips those that could be read, ascending; None for
        any other."""
        return self._there(bucket.name) if bucket.name in self._members else None

    def fingerprint(self) -> str:
        """Hex digest of the manifest, and so of every shard's bytes; the folder may move."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def read(
        self, index: int, rng: np.random.Generator | None, frames: int, height: int, width: int
    ) -> Sample:
        """The latents of clip `index` of the bucket of that size in pixels. `rng` is not used: the
        clip was cut before.

        Raises:
          UserError: no bucket of that size; a damaged record, naming its file.
        """
        del rng
        bucket = shape_name((frames, height, width))
        if bucket not in self._left_out:
            there = ", ".join(self._left_out)
            raise UserError(
                f"{self.path} has no latents of {bucket} (frames x height x width); it has {there}"
            )
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        left_out, members = self._left_out[bucket], self._members.get(bucket)
        place = index if members is None else int(np.searchsorted(members, index))
        count = len(self) if members is None else len(members)
        place %= count
        while (index := place if members is None else int(members[place])) in left_out:
            place = (place + 1) % count
        shard, place = divmod(place, self.manifest["shard_size"])
        row = self.manifest["shards"][bucket][shard]
        place -= sum(other < index for other in row["left_out"])
        file = self.path / row["file"]
        try:
            sample = unpack(self._reader(file).read([place])[0])
        except (RuntimeError, ValueError, IndexError, msgpack.UnpackException) as error:
            raise UserError(
                f"record {place} of {file} cannot be read ({error}); encode it again"
            ) from error
        if self.manifest.get("fps"):
            sample.setdefault("fps", self.manifest["fps"])  # older records have none
        if sample.pop("index") != index:
            raise UserError(
                f"record {place} of {file} is not clip {index}: the file was replaced; encode it again"
            )
        if "text" in sample and "text_mask" not in sample:
            tokens, length = len(sample["text"]), self.manifest["text_length"]
            sample["text"] = np.pad(sample["text"], ((0, length - tokens), (0, 0)))
            sample["text_mask"] = np.arange(length) < tokens
        return {**sample, "latents": sample["latents"].astype(np.float32)}

    def _there(self, bucket: str) -> np.ndarray:
        members = self._members.get(bucket, np.arange(len(self)))
        return np.setdiff1d(
            members, np.array(sorted(self._left_out[bucket]), np.int64), assume_unique=True
        )

    def _reader(self, file: pathlib.Path) -> ArrayRecordReader:
        """An open shard. Several threads may read from one at once; one that is dropped closes
        after its last read."""
        with self._lock:
            reader = self._readers.pop(str(file), None)
            if reader is None:
                # Single records at random: reading ahead would read all in vain.
                reader = ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0")
            self._readers[str(file)] = reader
            while len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return reader
