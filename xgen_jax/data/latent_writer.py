"""Writes the folder of encoded clips that `latent_shards` describes, shard by shard.

A folder of a data set that has changed is written again: its shards are set aside in DIR/previous,
what is the same is taken from there, and the rest is encoded.
"""

import collections
import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.array_records import OpenRecords, RecordWriter
from xgen_jax.data.latent_shards import (
    HELD_OUT,
    TEXT,
    TEXT_APART,
    VERSION,
    members_file,
    pack,
    text_file,
    unpack,
)
from xgen_jax.errors import UserError
from xgen_jax.files import (
    atomic_write,
    check_free,
    differences,
    file_sha256,
    numbers_sha256,
    read_json,
    refuse_differences,
    remove_temporaries,
    write_json,
    write_numbers,
)

# Settings that follow from the files and captions: where only these differ, clips that stayed the
# same are taken over.
CHANGEABLE = ("source_fingerprint", "clips", "members", "held_out")
PREVIOUS = "previous"


class _File:
    """A file of records that is renamed when it is complete; a context manager.

    Attributes:
      writer: of its records.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._stack = path, contextlib.ExitStack()

    def __enter__(self) -> "_File":
        self._temporary = self._stack.enter_context(atomic_write(self._path, durable=True))
        self.writer = self._stack.enter_context(
            RecordWriter(self._temporary, self._path, "group_size:1")
        )
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    def close(self) -> dict[str, Any]:
        """Complete the file and return its {"bytes", "sha256"}."""
        self.writer.close()
        return {"bytes": self._temporary.stat().st_size, "sha256": file_sha256(self._temporary)}


def _is_whole(file: pathlib.Path, entry: Mapping[str, Any]) -> bool:
    """Return whether a shard, and its text if it has any, are as long as its marker says."""
    files = [(file, entry)] + ([(text_file(file), entry["text"])] if "text" in entry else [])
    return all(path.is_file() and path.stat().st_size == row["bytes"] for path, row in files)


class LatentWriter:
    """Write the folder of an encoded data set, or continue it.

    Args:
      path: of the folder.
      settings: what decides the bytes, as JSON; `buckets` (names), `clips` and `shard_size` are
        used here.
      members: by name the clips of a bucket, ascending numbers in [0, clips); a bucket that is not
        named has all.
      held_out: numbers of the clips that training does not see, ascending.
      identity: gives what a clip is cut from, by its number (see `Source.identity`).

    A folder that was written from the same data set before files or captions changed is written
    again: what is `reusable` is taken from the records that it holds. One of version 2 stays so
    until then, since its fingerprint is in the checkpoints of runs.

    Raises:
      UserError: the folder holds something else, what other settings made (which are listed), or
        another data set, of which not even half of the clips are there now; nothing is touched.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        settings: dict[str, Any],
        members: Mapping[str, np.ndarray] | None = None,
        held_out: np.ndarray | None = None,
        identity: Callable[[int], str] | None = None,
    ):
        self.path = pathlib.Path(path)
        self.settings: dict[str, Any] = {"version": VERSION, **settings}
        self._members = {name: np.asarray(clips, "<i8") for name, clips in (members or {}).items()}
        if self._members:
            # A release that divides the clips otherwise must not continue the shards of this one.
            self.settings["members"] = {
                name: {"clips": len(clips), "sha256": numbers_sha256(clips)}
                for name, clips in self._members.items()
            }
        held_out = np.zeros(0, "<i8") if held_out is None else np.asarray(held_out, "<i8")
        if len(held_out):
            mark = {"clips": len(held_out), "sha256": numbers_sha256(held_out)}
            self.settings["held_out"] = mark
        if check_free(self.path, "settings.json", "latents"):
            before = read_json(self.path / "settings.json")
            if before.get("version") == 2:
                self.settings["version"] = 2
            differing = differences(before, self.settings)
            of_data = all(line.split(":")[0] in CHANGEABLE for line in differing)
            if differing and of_data and identity:
                gone, kept = self._compare(identity)
                if kept >= gone:
                    differing = []
                    self._set_aside()
                    self.settings["version"] = VERSION
                else:
                    differing.append(f"clips that are the same: {kept} of {kept + gone}")
            refuse_differences(
                differing,
                f"{self.path} holds latents that were encoded otherwise",
                "choose another --out, or remove that folder",
            )
        write_json(self.path / "settings.json", self.settings, durable=True)
        for name, clips in self._members.items():
            write_numbers(members_file(self.path, name), clips)
        if len(held_out):
            write_numbers(self.path / HELD_OUT, held_out)
        self._reusable = self._find_reusable()
        self._previous = OpenRecords(2)  # neighbours come from one shard and its text

    def _compare(self, identity: Callable[[int], str]) -> tuple[int, int]:
        """Count the clips in the folder that the data set has no longer, and those it still has."""
        gone = kept = 0
        for bucket in self.settings["buckets"]:
            shards = range(self.shards(bucket))
            now = {identity(clip) for shard in shards for clip in self.clips(bucket, shard)}
            for marker in (self.path / bucket).glob("shard-*.json"):
                entry = read_json(marker)
                there = entry.get("identities", [""] * entry["count"])
                same = sum(each in now for each in there if each)
                gone, kept = gone + len(there) - same, kept + same
        return gone, kept

    def _set_aside(self) -> None:
        """Move the shards to a folder of `previous`. If this is interrupted, the next call moves
        the rest to another."""
        (self.path / "manifest.json").unlink(missing_ok=True)
        (self.path / HELD_OUT).unlink(missing_ok=True)
        previous = self.path / PREVIOUS
        previous.mkdir(exist_ok=True)
        numbers = [int(path.name) for path in previous.iterdir() if path.name.isdigit()]
        generation = previous / str(max(numbers, default=-1) + 1)
        generation.mkdir()
        for bucket in self.settings["buckets"]:
            if (self.path / bucket).is_dir():
                os.rename(self.path / bucket, generation / bucket)

    def _find_reusable(self) -> dict[tuple[str, str], tuple[pathlib.Path, int]]:
        """Return (bucket, identity) -> (shard, place) of the records that were set aside."""
        found = {}
        for marker in sorted((self.path / PREVIOUS).glob("*/*/shard-*.json")):
            entry, file = read_json(marker), marker.with_suffix(".arrayrecord")
            if not _is_whole(file, entry):
                continue
            for place, identity in enumerate(entry.get("identities", ())):
                if identity:
                    found[marker.parent.name, identity] = file, place
        return found

    def reusable(self, bucket: str, identity: str) -> bool:
        """Return whether a clip of this identity was encoded for the bucket before."""
        return (bucket, identity) in self._reusable

    def reuse(self, bucket: str, identity: str) -> dict[str, Any]:
        """Return the record of a clip that is `reusable`, without its number; see `unpack`."""
        file, place = self._reusable[bucket, identity]
        sample = unpack(self._previous.read(file, place))
        if text_file(file).is_file():
            sample |= unpack(self._previous.read(text_file(file), place))
        del sample["index"]
        return sample

    def count(self, bucket: str) -> int:
        """Return the number of clips of a bucket, those that cannot be read included."""
        members = self._members.get(bucket)
        return self.settings["clips"] if members is None else len(members)

    def shards(self, bucket: str) -> int:
        """Return the number of shards of a bucket."""
        return max(1, -(-self.count(bucket) // self.settings["shard_size"]))

    def clips(self, bucket: str, shard: int) -> Sequence[int]:
        """Return the numbers of a shard's clips, ascending."""
        size, members = self.settings["shard_size"], self._members.get(bucket)
        places = range(shard * size, min((shard + 1) * size, self.count(bucket)))
        return places if members is None else members[places.start : places.stop].tolist()

    def file(self, bucket: str, shard: int) -> pathlib.Path:
        """Return the path of a shard, which may not be there yet."""
        return self.path / bucket / f"shard-{shard:05d}-of-{self.shards(bucket):05d}.arrayrecord"

    def finished(self, bucket: str, shard: int) -> dict[str, Any] | None:
        """Return a shard's commit marker, with "left_out": {clip: reason}; None if it must be
        written."""
        file = self.file(bucket, shard)
        marker = file.with_suffix(".json")
        if not marker.is_file():
            return None
        entry = read_json(marker)
        return entry if _is_whole(file, entry) else None

    def write(
        self, bucket: str, shard: int, samples: Iterable[tuple[int, dict[str, Any] | str]]
    ) -> None:
        """Write one shard and its commit marker.

        Args:
          bucket: its name.
          shard: its number.
          samples: (clip, sample) in ascending order; in place of a sample that cannot be read, the
            reason. A sample may have an "identity": what it was made of, in a word.
        """
        file, left_out = self.file(bucket, shard), {}
        identities: list[str] = []
        rates: collections.Counter[str] = collections.Counter()
        longest: dict[str, int] = {}
        remove_temporaries(file.parent, {file.stem, text_file(file).stem})
        with contextlib.ExitStack() as files:
            records, texts = files.enter_context(_File(file)), None
            for index, sample in samples:
                if isinstance(sample, str):
                    left_out[str(index)] = sample
                    continue
                text = {name: sample[name] for name in TEXT if name in sample}
                if text and self.settings["version"] >= TEXT_APART:
                    texts = texts or files.enter_context(_File(text_file(file)))
                    texts.writer.write(pack(index, text))
                    sample = {name: sample[name] for name in sample if name not in TEXT}
                records.writer.write(pack(index, sample))
                identities.append(sample.get("identity", ""))
                rates[f"{sample.get('fps', 0.0):.6g}"] += 1
                size = len(sample["caption"].encode())
                if size > longest.get("bytes", -1):
                    longest = {"bytes": size, "clip": index}
            entry: dict[str, Any] = {"count": records.writer.count, **records.close()}
            if texts:
                if texts.writer.count != records.writer.count:
                    raise ValueError(f"some clips of {file} have text, and some have none")
                entry["text"] = texts.close()
        if longest:
            entry["longest_caption"] = longest
        entry["rates"] = dict(sorted(rates.items()))  # clips by their frames a second
        if any(identities):
            entry["identities"] = identities
        write_json(file.with_suffix(".json"), {**entry, "left_out": left_out}, durable=True)

    def finish(self) -> dict[str, Any]:
        """Write the manifest, once every shard is there, and return it.

        Raises:
          UserError: no clip of a bucket could be read. A bucket that has only some of the clips may
            be left empty, if another has some.
        """
        buckets, longest, problem = {}, [], None
        of_clips: list[dict[str, int] | None] = []
        for bucket in self.settings["buckets"]:
            rows: list[dict[str, Any]] = []
            reasons: dict[str, str] = {}
            for shard in range(self.shards(bucket)):
                entry = self.finished(bucket, shard)
                if entry is None:
                    raise RuntimeError(f"{self.file(bucket, shard)} is not finished")
                of_shard, known = entry.pop("rates", None), entry.pop("longest_caption", None)
                entry.pop("identities", None)
                if entry["count"]:
                    longest.append((bucket, known))
                    of_clips.append({} if bucket.startswith("1x") else of_shard)  # no images
                reasons = entry["left_out"]
                left_out = [int(index) for index in reasons]
                file = self.file(bucket, shard)
                if "text" in entry:
                    entry["text"] = {"file": f"{bucket}/{text_file(file).name}", **entry["text"]}
                rows.append({"file": f"{bucket}/{file.name}", **entry, "left_out": left_out})
            if not sum(row["count"] for row in rows):
                reason = next(iter(reasons.values()))
                problem = f"not one clip of {bucket} could be read: {reason}"
                if bucket not in self._members:
                    raise UserError(problem)
            buckets[bucket] = rows
        if problem and not any(row["count"] for rows in buckets.values() for row in rows):
            raise UserError(problem)
        manifest = dict(self.settings)
        # Shards of older releases do not say. Where some do not, the manifest stays what it was,
        # for its digest is in the checkpoints of runs.
        if longest and all(of_shard for _, of_shard in longest):
            bucket, of_shard = max(longest, key=lambda each: each[1]["bytes"])
            manifest["longest_caption"] = {**of_shard, "bucket": bucket}
        rates: collections.Counter[str] = collections.Counter()
        for of_shard in of_clips:
            rates.update(of_shard or {})
        if rates and None not in of_clips:
            manifest["rates"] = dict(sorted(rates.items()))
        manifest["shards"] = buckets
        write_json(self.path / "manifest.json", manifest, durable=True)
        shutil.rmtree(self.path / PREVIOUS, ignore_errors=True)
        return manifest
