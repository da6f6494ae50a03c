"""Files that are written whole or not at all, JSON and numbers in them, and settings compared.

A file is written under a temporary name in its own folder and renamed when it is complete, so a
process may be killed at any time. With `durable` the bytes are on the disk before the name is, so
the machine may fail as well.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import re
import secrets
import sys
from collections.abc import Collection, Generator, Mapping
from typing import Any

import numpy as np

from xgen_jax.errors import UserError

Path = str | os.PathLike
LOCK = ".lock"  # names the process that writes a folder; see `locked`


@contextlib.contextmanager
def atomic_write(path: Path, durable: bool = False) -> Generator[pathlib.Path]:
    """Give a temporary path to write; rename it to `path` at the end, or remove it after an error.

    Folders are made. The temporary name keeps the suffix, by which some writers choose a format.

    Args:
      path: of the file.
      durable: wait until file and name are on the disk.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace(temporary, path, durable)
    except OSError as error:
        reason, other = error.strerror or error, error.filename
        if isinstance(other, str) and pathlib.Path(other) not in (temporary, path, path.parent):
            # Of a file that is read for it, or made next to it.
            raise UserError(f"{other}: {reason}; {path} is not written") from error
        raise UserError(
            f"{path} cannot be written ({reason}); free space or permissions?"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the first error says more
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> pathlib.Path:
    """Return a free name in the folder of `path`, for a writer that outlives one `with` block."""
    path = pathlib.Path(path)
    # Random, since several processes may write the same file.
    return path.with_name(f".{path.stem[:64]}.{secrets.token_hex(4)}.tmp{path.suffix}")


def replace(temporary: Path, path: Path, durable: bool = False) -> None:
    """Rename a complete file to `path`; see `atomic_write`. An OSError goes to the caller."""
    if durable:
        to_disk(temporary)
    os.replace(temporary, path)
    if durable:
        to_disk(pathlib.Path(path).parent)


def remove_temporaries(folder: Path, stems: Collection[str]) -> None:
    """Remove what writers of files with these stems left behind that were killed."""
    shortened = {stem[:64] for stem in stems}
    for stale in pathlib.Path(folder).glob(".*.tmp*"):
        named = re.fullmatch(r"\.(.*)\.[0-9a-f]+\.tmp(.*)", stale.name)
        # Without an ending it is of a release that put it before: .NAME.ENDING.HEX.tmp
        stem = named and (named[1] if named[2] else pathlib.Path(named[1]).stem)
        if stem in shortened:
            stale.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a UTF-8 text file; see `atomic_write`."""
    with atomic_write(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any], durable: bool = False) -> None:
    """Write an object; see `atomic_write`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", durable)


def read_json(path: Path, fix: str = "remove it, or make it again") -> dict[str, Any]:
    """Read an object.

    Args:
      path: of the file.
      fix: for the message, what a person can do about a file that is not JSON.

    Raises:
      UserError: no such file, or not a JSON object.
    """
    path = pathlib.Path(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {fix}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not a JSON object; {fix}")
    return value


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, as "key: there -> here", in alphabetical order."""
    keys = sorted(there.keys() | here.keys())
    return [
        f"{key}: {there.get(key)!r} -> {here.get(key)!r}"
        for key in keys
        if there.get(key) != here.get(key)
    ]


def refuse_differences(differing: list[str], what: str, fix: str) -> None:
    """Raise UserError if there are any differences.

    Args:
      differing: see `differences`.
      what: for the message, what is there: "runs/a holds a run with another configuration".
      fix: for the message, what a person can do.
    """
    if differing:
        listed = "\n  ".join(differing)
        raise UserError(f"{what} (there -> here):\n  {listed}\n{fix}")


def check_free(folder: pathlib.Path, marker: str, what: str) -> bool:
    """Return True if a folder holds a `marker` file, False if it is empty or not there.

    Raises:
      UserError: a file in its place, or a folder with something else in it.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give a folder for {what}")
    if (folder / marker).exists():
        return True
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no {what}; choose a new folder")
    return False


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Generator[None]:
    """Hold a folder for this process; another that wants it meanwhile is refused.

    The system releases it when the process ends, whatever ends it, so what a dead process left is
    taken over. Where a network file system has no locks, the file's text stands for them: a process
    of this machine that lives holds it; of another machine nobody can say, and a note is printed.
    Within one process a folder may be held once.

    Args:
      folder: made if it is not there.
      doing: for the message, what the holder does: "encodes into".

    Raises:
      UserError: another process holds it, or the folder cannot be made.
    """
    path = pathlib.Path(folder) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
    try:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            taken = False  # held, or removed by its holder a moment ago
        except OSError:
            taken = not _lives(holder, path)
        if not taken:
            raise UserError(
                f"another process {doing} {path.parent} ({holder or 'it does not say which'}); "
                "wait for it, or give another folder"
            )
        try:
            try:
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, _this_process().encode(), 0)
            except OSError as error:
                raise UserError(f"{path} cannot be written ({error.strerror})") from error
            yield
        finally:
            path.unlink(missing_ok=True)  # before it is released, so that nobody can hold it
    finally:
        os.close(descriptor)


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _lives(holder: str, path: pathlib.Path) -> bool:
    """Whether the process that a lock's text names is known to live."""
    named = re.fullmatch(r"process (\d+) on (.*)", holder)
    if named is None or holder == _this_process():
        return False
    if named[2] != platform.node():
        print(f"{path} names {holder}, and locks do not work here: end it first", file=sys.stderr)
        return False
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def numbers_sha256(numbers: np.ndarray) -> str:
    """Hex digest of whole numbers, independent of their integer type."""
    return hashlib.sha256(np.ascontiguousarray(numbers, "<i8").tobytes()).hexdigest()


def write_numbers(path: Path, numbers: np.ndarray) -> None:
    """Write whole numbers (N,) as an npy file, durably."""
    with atomic_write(path, durable=True) as temporary, open(temporary, "wb") as out:
        np.save(out, numbers, allow_pickle=False)


def read_numbers(path: Path, count: int, sha256: str) -> np.ndarray:
    """Read what `write_numbers` wrote.

    Raises:
      UserError: it is missing, or not `count` numbers with that digest.
    """
    again = "the same launch/encode.py writes it again"
    try:
        numbers = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {again}") from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    if numbers.shape != (count,) or numbers_sha256(numbers) != sha256:
        raise UserError(f"{path} is not what was written: its SHA-256 differs; encode again")
    return numbers
