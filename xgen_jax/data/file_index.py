"""The files of a folder and their headers, which are read once and remembered.

The headers are kept in a SQLite file in the user's cache, by path, size and time of change, so that
a start costs one listing of the folder, however many files it has. A file that could not be read is
tried again at every start, since the reason may have been a network or a permission. Deleting the
cache loses nothing but time.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from xgen_jax.data.video import VideoInfo
from xgen_jax.errors import UserError

VERSION = 2  # of the table, and of what a probe finds: another one is made again
_COLUMNS = "path, size, changed_ns, width, height, fps, frames, duration_s"
_THREADS = 8  # more than cores may be: they wait for disks and networks
_SAVED = 500  # files that are probed between two writes
_SHOW_EVERY_S = 2.0


@dataclasses.dataclass(frozen=True)
class File:
    """A file in a folder.

    Attributes:
      name: relative posix path.
      size: in bytes.
      changed_ns: time of its last change.
    """

    name: str
    size: int
    changed_ns: int


def list_files(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[File]:
    """List the files with these suffixes in a folder and all folders in it, by name.

    Links to folders are followed, each real folder once, so that a loop of links ends. Hidden names
    are left out, and links to nothing.

    Raises:
      UserError: a folder that is missing, is a file, cannot be listed, or holds no such file.
    """
    if not folder.exists():
        raise UserError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of videos")
    files: list[File] = []
    seen = set()
    pending = [("", str(folder))]
    while pending:
        prefix, path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                # By name, so that of two links to one folder it is always the same that counts.
                folders = []
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append((f"{prefix}{entry.name}/", entry.path))
                    elif entry.name.lower().endswith(suffixes) and entry.is_file():
                        about = entry.stat()
                        files.append(File(prefix + entry.name, about.st_size, about.st_mtime_ns))
                pending += reversed(folders)
        except OSError as error:
            raise UserError(f"cannot list {path}: {error.strerror}") from error
    if not files:
        raise UserError(
            f"{folder} holds no video; looked for {' '.join(suffixes)} in it and its folders"
        )
    return sorted(files, key=lambda file: file.name)


def probe_files(
    folder: pathlib.Path, files: Sequence[File], probe: Callable[[pathlib.Path], VideoInfo]
) -> list[VideoInfo | str]:
    """Return each file's header, or what is wrong with the file; remembered ones are not read.

    Args:
      folder: of the files.
      files: see `list_files`.
      probe: reads the header of one file; raises UserError.
    """
    root = str(folder.resolve())
    with _Remembered(_cache_file()) as remembered:
        known = remembered.of_folder(root)
        found: list[VideoInfo | str | None] = []
        for file in files:
            row = known.get(_key(root, file))
            current = row is not None and row[1:3] == (file.size, file.changed_ns)
            found.append(_from_row(row) if row is not None and current else None)
        missing = [place for place, info in enumerate(found) if info is None]

        def try_probe(place: int) -> VideoInfo | str:
            try:
                return probe(folder / files[place].name)
            except UserError as error:
                return str(error)

        with (
            concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
            _progress(len(missing), folder) as progress,
        ):
            done = 0
            for start in range(0, len(missing), _SAVED):
                part = missing[start : start + _SAVED]
                rows = []
                for place, info in zip(part, pool.map(try_probe, part)):
                    found[place] = info
                    if not isinstance(info, str):
                        rows.append(_to_row(root, files[place], info))
                    done += 1
                    progress(done)
                remembered.store(rows)
    return [info for info in found if info is not None]


def _key(root: str, file: File) -> bytes:
    return os.fsencode(f"{root}/{file.name}")  # not every name is Unicode


def _to_row(root: str, file: File, info: VideoInfo) -> tuple:
    about = (_key(root, file), file.size, file.changed_ns)
    return (*about, info.width, info.height, info.fps, info.frames, info.duration_s)


def _from_row(row: tuple) -> VideoInfo:
    *_, width, height, fps, frames, duration_s = row
    return VideoInfo(width=width, height=height, fps=fps, frames=frames, duration_s=duration_s)


def _cache_file() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "xgen_jax" / "files.sqlite"


class _Remembered:
    """The table of headers; one that cannot be used is made again, or done without."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._table: sqlite3.Connection | None = None

    def __enter__(self) -> "_Remembered":
        for attempt in range(2):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._table = self._open()
                break
            except sqlite3.OperationalError as error:  # locked for long, or no permission
                self._do_without(error)
                break
            except sqlite3.DatabaseError as error:  # cut off, or no database at all
                if attempt:
                    self._do_without(error)
                else:
                    self._path.unlink(missing_ok=True)
            except OSError as error:
                self._do_without(error)
                break
        return self

    def _open(self) -> sqlite3.Connection:
        table = sqlite3.connect(self._path, timeout=30)
        try:
            if table.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                table.execute("DROP TABLE IF EXISTS files")
                table.execute(f"PRAGMA user_version = {VERSION}")
            table.execute(
                f"CREATE TABLE IF NOT EXISTS files ({_COLUMNS}, PRIMARY KEY (path)) WITHOUT ROWID"
            )
            table.execute(f"SELECT {_COLUMNS} FROM files LIMIT 1").fetchone()
            table.commit()
        except BaseException:
            table.close()
            raise
        return table

    def _do_without(self, error: Exception) -> None:
        print(
            f"the headers of video files cannot be kept in {self._path} ({error}); they are read "
            "again at every start",
            file=sys.stderr,
        )
        if self._table is not None:
            self._table.close()
        self._table = None

    def of_folder(self, root: str) -> dict[bytes, tuple]:
        """Return the rows of a folder's files, by absolute path."""
        if self._table is None:
            return {}
        try:
            rows = self._table.execute(
                f"SELECT {_COLUMNS} FROM files WHERE path > ? AND path < ?",
                (os.fsencode(root + "/"), os.fsencode(root + "0")),  # 0 follows / in ASCII
            )
            return {row[0]: row for row in rows}
        except sqlite3.DatabaseError as error:
            self._do_without(error)
            return {}

    def store(self, rows: Sequence[tuple]) -> None:
        """Write rows, also over those of the same path."""
        marks = ", ".join("?" * len(_COLUMNS.split(",")))
        if self._table is None:
            return
        try:
            with self._table:
                self._table.executemany(f"INSERT OR REPLACE INTO files VALUES ({marks})", rows)
        except sqlite3.DatabaseError as error:
            self._do_without(error)

    def __exit__(self, *_) -> None:
        if self._table is not None:
            self._table.close()


@contextlib.contextmanager
def _progress(total: int, folder: pathlib.Path) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many files are read, once it takes long."""
    shown, terminal = time.monotonic(), sys.stderr.isatty()
    printed = False

    def show(done: int) -> None:
        nonlocal shown, printed
        if time.monotonic() - shown < _SHOW_EVERY_S:
            return
        shown, printed = time.monotonic(), True
        line = f"reading the headers of {folder}: {done}/{total} files"
        print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr)

    yield show
    if printed and terminal:
        print(file=sys.stderr)
