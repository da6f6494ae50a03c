"""Batches of a fixed size, so that every batch runs the same compiled program."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in order, `size` at a time; the last batch may be shorter."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def padded_rows(rows: Sequence[T | None], size: int) -> list[T]:
    """Fill a batch: each empty row repeats the last one that is not.

    Args:
      rows: up to `size` rows, at least one of them not None; None and missing rows are empty.
      size: rows of the result.
    """
    filler = next(row for row in reversed(rows) if row is not None)
    rows = [*rows, *[None] * (size - len(rows))]
    return [filler if row is None else row for row in rows]
