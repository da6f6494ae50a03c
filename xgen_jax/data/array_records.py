"""ArrayRecord files: written whole, read one record at a time, a bounded number of them open.

Errors of ArrayRecord itself are empty or name no file, so they become UserErrors here.
"""

import collections
import contextlib
import os
import pathlib
import resource
import threading
from collections.abc import Generator

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from xgen_jax.errors import UserError

# Each record by itself, as it is: a video does not get smaller.
ONE_A_GROUP = "group_size:1,uncompressed"
# Single records at random: reading ahead would read all in vain.
ONE_AT_A_TIME = "readahead_buffer_size:0,max_parallelism:0"
# Files of one kind that a process keeps open, some 30 kB each. Clips of more files are shuffled
# within windows of files, so this number decides the order of batches: never make it depend on the
# machine.
OPEN_FILES = 1024
# Linux allows 1024 by default, which is for programs that wait with select().
_WANTED_FILES = 8 * OPEN_FILES


@contextlib.contextmanager
def disk_errors(file: pathlib.Path) -> Generator[None]:
    """Turn RuntimeError, as which ArrayRecord raises errors of the system, into UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"{file} cannot be written ({error}); is the disk full or read-only?"
        ) from error


class RecordWriter:
    """An ArrayRecord file that is written record by record; a context manager.

    Args:
      temporary: where to write; see `files.atomic_write`.
      file: its name in the end, for messages.
      options: of ArrayRecord's writer.

    Attributes:
      count: records so far.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, temporary: pathlib.Path, file: pathlib.Path, options: str = ONE_A_GROUP):
        self._temporary, self._file, self.count = temporary, file, 0
        with disk_errors(file):
            self._writer: ArrayRecordWriter | None = ArrayRecordWriter(str(temporary), options)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()

    def write(self, record: bytes) -> int:
        """Append a record and return its number."""
        assert self._writer is not None
        with disk_errors(self._file):
            self._writer.write(record)
        self.count += 1
        return self.count - 1

    def close(self) -> None:
        """Complete the file; a second call has no effect.

        Raises:
          UserError: it cannot be written, or does not hold all records.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        with disk_errors(self._file):
            writer.close()
        written = ArrayRecordReader(str(self._temporary)).num_records()
        if written != self.count:
            raise UserError(
                f"{self._file} cannot be written: {written} of {self.count} records arrived; is "
                "the disk full?"
            )


class OpenRecords:
    """Readers of ArrayRecord files, those used last kept open; safe to use from threads.

    Args:
      limit: files that are kept open at most; fewer where the system allows few.
    """

    def __init__(self, limit: int = OPEN_FILES):
        self._limit, self._lock = min(limit, _allowed_files() // 8), threading.Lock()
        self._open: collections.OrderedDict[str, ArrayRecordReader] = collections.OrderedDict()

    def __len__(self) -> int:
        """Return the number of files that are open now."""
        return len(self._open)

    def read(self, file: str | os.PathLike, place: int) -> bytes:
        """Return a record of a file by its number.

        Raises:
          UserError: the file is missing or damaged, or has no such record.
        """
        try:
            return self._reader(os.fspath(file)).read([place])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error) or "ArrayRecord gives no reason"
            raise UserError(f"record {place} of {file} cannot be read ({reason})") from error

    def _reader(self, file: str) -> ArrayRecordReader:
        # Several threads may read from one reader; one that is dropped closes after its last read.
        with self._lock:
            reader = self._open.pop(file, None)
            if reader is None:
                reader = ArrayRecordReader(file, ONE_AT_A_TIME)
            self._open[file] = reader
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
            return reader


def _allowed_files() -> int:
    """Return how many files this process may have open, after asking the system for enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return _WANTED_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
