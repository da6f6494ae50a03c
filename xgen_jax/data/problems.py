"""What could not be used of a data set, by kind, for a report in words."""

import threading

_SHOWN = 10  # items of each kind in a report


class Problems:
    """Files and lines that were left out, or used otherwise than given; safe to use from threads.

    An item that is noted twice counts once, at a cost that does not grow with the items.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._items: dict[str, dict[str, None]] = {}

    def note(self, kind: str, item: str) -> None:
        """Add an item to a kind of problem."""
        with self._lock:
            self._items.setdefault(kind, {})[item] = None

    def by_kind(self) -> dict[str, list[str]]:
        """Return the items of each kind, in the order they were noted."""
        with self._lock:
            return {kind: list(items) for kind, items in self._items.items()}

    def report(self) -> str:
        """Return a line for each kind: how many items, and the first ten."""
        lines = []
        for kind, items in self.by_kind().items():
            more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
            lines.append(f"{len(items)} x {kind}: {'; '.join(items[:_SHOWN])}{more}")
        return "\n".join(lines)
