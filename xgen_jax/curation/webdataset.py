"""Packed shards as tar files of WebDataset, and tar files of others as a folder to curate.

A sample is the members of one key: KEY.mp4 with KEY.txt, its caption, and KEY.json, the rest. What
is imported comes from others: only plain files with plain names and of sensible sizes are taken,
and nothing is written outside the folder.
"""

import contextlib
import io
import json
import lzma
import os
import pathlib
import re
import shutil
import tarfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import IO, Any

from xgen_jax.data.captions import JSONL, TEXT_SUFFIX
from xgen_jax.data.shard_layout import record_column
from xgen_jax.data.shards import ShardReader
from xgen_jax.data.video import READ_SUFFIXES
from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write, read_json, remove_temporaries, write_json, write_text

MAX_VIDEO_BYTES, MAX_TEXT_BYTES = 16 << 30, 1 << 20
_CHUNK = 1 << 20
_TEXTS = (TEXT_SUFFIX, ".json")
TARS = "tars.json"  # which tar files of a folder `export_tars` has written
# One part of a path, which is neither "." nor "..": no separators, no control characters.
_PART = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+")


def export_tars(shards: str | os.PathLike, out: str | os.PathLike) -> list[pathlib.Path]:
    """Write a tar file for each shard, with each clip at the largest tier that it has.

    The bytes depend on the shards alone. Tar files of an earlier export are written again, or
    removed where there are fewer now, so that no clip is in two of them.

    Args:
      shards: folder of packed shards; see `data.shard_layout`.
      out: folder for SPLIT-00000.tar, ..., `train` and `held_out` apart.

    Returns:
      The files.

    Raises:
      UserError: no such shards, damage, a folder with tar files of others, or a file that cannot be
        written.
    """
    reader, out = ShardReader(shards), pathlib.Path(out)
    parts: dict[str, tuple[int, range]] = {}
    for shard, counts in enumerate(reader.manifest["shards"]):
        first = 0
        for group in ("train", "held_out"):
            rows = range(first, first + counts[group])
            first = rows.stop
            if rows:
                parts[f"{group}-{shard:05d}.tar"] = shard, rows
    earlier = set(read_json(out / TARS)["files"]) if (out / TARS).exists() else set()
    there = {path.name for path in out.glob("*.tar")}
    if others := sorted(there - earlier):
        raise UserError(
            f"{out} holds tar files that this command has not written, {others[0]} among them; "
            "choose another folder"
        )
    write_json(out / TARS, {"files": sorted(earlier | parts.keys())}, durable=True)
    for name, (shard, rows) in parts.items():
        file = out / name
        remove_temporaries(out, {file.stem})
        with (
            atomic_write(file, durable=True) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for row in rows:
                _add_clip(tar, _largest(reader, shard, row))
    for name in there - parts.keys():
        (out / name).unlink(missing_ok=True)
    write_json(out / TARS, {"files": sorted(parts)}, durable=True)
    return [out / name for name in parts]


def _largest(reader: ShardReader, shard: int, row: int) -> dict[str, Any]:
    rows = reader.rows(shard)
    tier = max(tier for tier in reader.tiers if rows[record_column(tier)][row] >= 0)
    return reader.record(shard, row, tier)[0]


def _add_clip(tar: tarfile.TarFile, record: Mapping[str, Any]) -> None:
    # A dot begins the suffix of a member, for readers of WebDataset.
    key = re.sub(r"[^A-Za-z0-9_-]", "_", record["id"])
    about = {name: value for name, value in record.items() if name != "media"}
    caption = record["captions"][0] if record["captions"] else ""
    members = {
        "mp4": record["media"],
        "txt": caption.encode(),
        "json": json.dumps(about, ensure_ascii=False, sort_keys=True).encode(),
    }
    for suffix, data in members.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size, member.mode = len(data), 0o644  # no time, no owner
        tar.addfile(member, io.BytesIO(data))


def import_tars(tars: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict[str, int]:
    """Unpack tar files of WebDataset to a folder of videos with captions.jsonl.

    Each tar becomes a folder of its name. The caption of KEY.mp4 is KEY.txt, or `caption`,
    `captions` or `text` of KEY.json. Other members are left out. A call again, after an
    interruption, keeps the videos that are there, by their sizes.

    Args:
      tars: files; compressed ones too.
      out: folder for the videos.

    Returns:
      {"videos", "captions", "left_out"}: their numbers.

    Raises:
      UserError: a tar that cannot be read; a member whose name leads out of the folder, that is a
        link or a device, or that is too large, by its name; two members of one name; a file
        in the folder that is another one.
    """
    out = pathlib.Path(out)
    stems = [_stem(pathlib.Path(path)) for path in tars]
    if len(set(stems)) < len(stems):
        raise UserError(f"two tar files have one name: {', '.join(sorted(stems))}")
    counts = {"videos": 0, "captions": 0, "left_out": 0}
    lines = []
    for path, stem in zip(tars, stems, strict=True):
        texts: dict[str, list[str]] = {}
        videos: dict[str, str] = {}
        for name, suffix, size, data in _members(pathlib.Path(path)):
            key, relative = name.removesuffix(suffix), f"{stem}/{name}"
            if suffix.lower() in READ_SUFFIXES:
                if key in videos:
                    raise UserError(f"{path} has two videos of the key {key!r}")
                videos[key] = relative
                if _is_there(out / relative, size):
                    continue
                _check_free_space(out, size)
                with (
                    atomic_write(out / relative) as temporary,
                    open(temporary, "wb") as file,
                    _tar_errors(path),
                ):
                    shutil.copyfileobj(data, file, _CHUNK)
            elif captions := _captions(path, name, suffix, data):
                # A text file says more than what is listed with other facts.
                if suffix == TEXT_SUFFIX or key not in texts:
                    texts[key] = captions
            else:
                counts["left_out"] += 1
        for key, relative in sorted(videos.items()):
            counts["videos"] += 1
            if captions := texts.get(key):
                counts["captions"] += 1
                line = {"file": relative, "caption": captions}
                lines.append(json.dumps(line, ensure_ascii=False))
    if not counts["videos"]:
        raise UserError(f"{', '.join(map(str, tars))} hold no video; looked for KEY.mp4 and others")
    text = "".join(f"{line}\n" for line in lines)
    if not (out / JSONL).exists():
        write_text(out / JSONL, text, durable=True)
    elif (out / JSONL).read_bytes() != text.encode():
        raise UserError(
            f"{out / JSONL} has other captions than the tar files: remove it, to take theirs, or "
            "unpack to a folder of its own"
        )
    return counts


def _is_there(path: pathlib.Path, size: int) -> bool:
    """Return whether a file is there with that size. Raises UserError where it has another."""
    if not path.exists():
        return False
    if path.stat().st_size != size:
        raise UserError(f"{path} is there, and is another file; unpack to a folder of its own")
    return True


def _stem(path: pathlib.Path) -> str:
    return path.name.split(".tar")[0]


@contextlib.contextmanager
def _tar_errors(path: Any) -> Generator[None]:
    """Turn errors of reading a tar file into UserErrors that name it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path}: it is damaged or cut off ({error})") from error


def _members(path: pathlib.Path) -> Iterator[tuple[str, str, int, IO[bytes]]]:
    """Yield name, suffix, size and contents of each plain file, in order. Of hidden files, which
    some systems add, the suffix is empty."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with _tar_errors(path), tarfile.open(path, "r|*") as tar:  # as a stream: nothing is sought
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise UserError(
                    f"{path} has a member {member.name!r} that is no plain file but a link, a "
                    "device or the like"
                )
            parts = member.name.removeprefix("./").split("/")
            if not all(_PART.fullmatch(part) for part in parts) or len(member.name) > 512:
                raise UserError(
                    f"{path} has a member {member.name!r}, whose name leads out of the folder or "
                    "cannot be a file's"
                )
            name = "/".join(parts)
            hidden = any(part.startswith(".") for part in parts)
            suffix = "" if hidden else pathlib.PurePosixPath(name).suffix
            video = suffix.lower() in READ_SUFFIXES
            limit = MAX_VIDEO_BYTES if video else MAX_TEXT_BYTES
            if member.size > limit and (video or suffix in _TEXTS):
                raise UserError(
                    f"{path} has a member {name!r} of {member.size} bytes, above the limit of "
                    f"{limit}"
                )
            data = tar.extractfile(member)
            assert data is not None
            yield name, suffix, member.size, data


def _check_free_space(out: pathlib.Path, size: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(out).free):
        raise UserError(f"{out} has {free} bytes free, and a video has {size}")


def _captions(path: Any, name: str, suffix: str, data: IO[bytes]) -> list[str]:
    """Return the captions in a text or JSON file; none in others."""
    if suffix not in _TEXTS:
        return []
    try:
        with _tar_errors(path):
            text = data.read().decode()
        value = json.loads(text) if suffix == ".json" else text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a member {name!r} that cannot be read ({error})") from error
    if isinstance(value, dict):
        named = (value.get(key) for key in ("captions", "caption", "text"))
        value = next((each for each in named if each), [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        return []
    return [" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()]
