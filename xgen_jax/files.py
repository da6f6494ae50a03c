"""Files that are on the disk as a whole or not there, whenever the machine fails, and that are told
by their digest."""

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from xgen_jax.errors import UserError


def file_sha256(path: pathlib.Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def numbers_sha256(numbers: np.ndarray) -> str:
    """Hex digest of whole numbers, whatever type they are held in."""
    return hashlib.sha256(np.ascontiguousarray(numbers, "<i8")).hexdigest()


def write_numbers(file: pathlib.Path, numbers: np.ndarray) -> None:
    """Writes whole numbers (N,) as an npy file; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    with open(temporary, "wb") as out:
        np.save(out, numbers, allow_pickle=False)
    to_disk(temporary)
    os.replace(temporary, file)
    to_disk(file.parent)


def read_numbers(file: pathlib.Path, count: int, sha256: str) -> np.ndarray:
    """Reads what `write_numbers` wrote.

    Raises:
      UserError: it is missing, or not so many numbers with that digest.
    """
    try:
        numbers = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; the same launch/encode.py writes it again") from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); the same launch/encode.py writes it again"
        ) from error
    if numbers.shape != (count,) or numbers_sha256(numbers) != sha256:
        raise UserError(f"{file} is not what was written: its SHA-256 differs; encode again")
    return numbers


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads an object; UserError for what is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); remove it and encode again") from error


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes an object; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    to_disk(temporary)
    os.replace(temporary, path)
    to_disk(path.parent)


def to_disk(path: pathlib.Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
