"""Captions of the files in a folder: from captions.jsonl, captions.csv, or text files.

    captions.jsonl   {"file": "a/b.mp4", "caption": "..."}, or a list of captions; a file may have
                     several lines
    captions.csv     a header line with the columns file and caption (or path and text)
    a/b.txt          the caption of a/b.mp4, for files that neither of the two names

Names are relative to the folder, or absolute paths in it. Names that differ only in how Unicode
composes a letter are the same, because systems store them differently.
"""

import csv
import io
import json
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence

from xgen_jax.data.problems import Problems
from xgen_jax.errors import UserError

JSONL, CSV = "captions.jsonl", "captions.csv"
TEXT_SUFFIX = ".txt"
_COLUMNS = {"file": ("file", "path"), "caption": ("caption", "text")}
_MAX_TEXT_BYTES = 1 << 20  # of a text file: a caption is no book

Captions = dict[str, tuple[str, ...]]  # of a file, by its relative path; one or several


def read_captions(
    folder: pathlib.Path, files: Sequence[str], problems: Problems, required: bool
) -> Captions:
    """Read the captions of files.

    Args:
      folder: of the files.
      files: relative posix paths of the videos and images.
      problems: notes broken lines, captions without a file and files without a caption.
      required: leave out files without a caption; if False their caption is "".

    Returns:
      The captions of the files to use, in the order of `files`.

    Raises:
      UserError: captions.jsonl and captions.csv are both there, one cannot be read, or captions are
        required and there are none at all.
    """
    there = [name for name in (JSONL, CSV) if (folder / name).exists()]
    if len(there) > 1:
        raise UserError(f"{folder} has both {JSONL} and {CSV}; keep one of them")
    known = {_normal(file): file for file in files}
    captions: dict[str, dict[str, None]] = {}
    for name in there:
        rows = _jsonl_rows if name == JSONL else _csv_rows
        for number, row in rows(folder / name):
            if isinstance(row, UserError):
                problems.note(f"broken line in {name}", f"line {number}: {row}")
                continue
            named, texts = row
            key = _key(named, folder)
            file = known.get(key, known.get(key.replace("\\", "/")))  # as Windows writes paths
            if file is None:
                problems.note("caption without its video", named)
                continue
            for text in filter(None, texts):
                captions.setdefault(file, {})[text] = None
    for file in files:
        text = _text_file(folder / file, problems) if file not in captions else None
        if text:
            captions[file] = {text: None}
    if required and not captions and not there:
        raise UserError(
            f"{folder} has {len(files)} videos but no {JSONL}; add one with lines "
            'like {"file": "a/b.mp4", "caption": "..."}, a .txt file next to each video, or give '
            "--config.data.source.require_captions=False"
        )
    if there or captions:
        for file in files:
            if file not in captions:
                problems.note("video without a caption", file)
    if required:
        return {file: tuple(captions[file]) for file in files if file in captions}
    return {file: tuple(captions.get(file, {"": None})) for file in files}


def _normal(file: str) -> str:
    return unicodedata.normalize("NFC", file)


def _key(named: str, folder: pathlib.Path) -> str:
    """The relative posix path that a line means."""
    path = pathlib.PurePosixPath(named)
    if path.is_absolute():
        for root in (folder.absolute(), folder.resolve()):
            if path.is_relative_to(root):
                path = path.relative_to(root)
                break
    return _normal(path.as_posix())


def _text_file(file: pathlib.Path, problems: Problems) -> str | None:
    path = file.with_suffix(TEXT_SUFFIX)
    try:
        with open(path, "rb") as stream:
            text = stream.read(_MAX_TEXT_BYTES + 1)
        if len(text) > _MAX_TEXT_BYTES:
            raise UserError(f"{path} is above the limit of {_MAX_TEXT_BYTES} bytes")
        return " ".join(_decode(text).split())
    except FileNotFoundError:
        return None
    except (OSError, UserError) as error:
        problems.note("broken text file", f"{path.name}: {error}")
        return None


def _decode(text: bytes) -> str:
    try:
        return text.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})") from error


Row = tuple[str, list[str]] | UserError  # (file, captions), or what is wrong with the line


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, _parse_json(line)
        except UserError as error:
            yield number, error


def _parse_json(line: bytes) -> tuple[str, list[str]]:
    try:
        row = json.loads(_decode(line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not JSON ({getattr(error, 'msg', 'too deeply nested')})") from error
    texts = row.get("caption") if isinstance(row, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if (
        not isinstance(row.get("file") if isinstance(row, dict) else None, str)
        or not isinstance(texts, list)
        or not all(isinstance(text, str) for text in texts)
    ):
        raise UserError('needs "file", a string, and "caption", a string or a list of them')
    return row["file"], [" ".join(text.split()) for text in texts]


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
    try:
        text = _decode(_read(path))
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}; save it as UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = {}
    try:
        names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        for wanted, accepted in _COLUMNS.items():
            columns[wanted] = next((names[name] for name in accepted if name in names), None)
        if None in columns.values():
            raise UserError(
                f"{path} needs a header line with the columns file and caption, and has "
                f"{', '.join(names) or 'none'}"
            )
        for row in reader:
            file, caption = (row.get(columns[name]) for name in ("file", "caption"))
            if file is None or caption is None:
                yield reader.line_num, UserError("has fewer columns than the header")
            else:
                yield reader.line_num, (file.strip(), [" ".join(caption.split())])
    except csv.Error as error:
        raise UserError(f"cannot read {path}: line {reader.line_num}: {error}") from error


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
