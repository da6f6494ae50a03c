"""A thread that ends a process which makes no progress, after it has written where it stands."""

import collections
import contextlib
import faulthandler
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Generator
from typing import Any

from xgen_jax.errors import TemporaryError

STALLED = "stalled.txt"
_USUAL = 10  # times the median of the last steps is still no stall
_STEPS = 64


class Watchdog:
    """Ends the process if the time between two calls of `beat` is too long; a context.

    A read that never returns, or a collective whose peer hangs, blocks the main thread for good:
    no exception can be raised in it. The stacks of all threads are written to stderr and to
    stalled.txt, and the process ends with code 75, as if killed: the last checkpoint is intact.

    Args:
      folder: of the run.
      timeout_s: seconds without a beat, or 10 times the median of the last steps where that is
        longer; 0 switches it off.
    """

    def __init__(self, folder: pathlib.Path, timeout_s: float):
        self._folder, self._timeout_s = folder, timeout_s
        self._steps_s: collections.deque[float] = collections.deque(maxlen=_STEPS)
        self._step_began_s: float | None = None
        self._doing, self._beat_s = "the first step", time.monotonic()
        self._ended, self._paused = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str) -> None:
        """Say that there was progress, and what comes next, for the message."""
        self._doing, self._beat_s = doing, time.monotonic()

    def stepped(self, doing: str) -> None:
        """The same at the end of a step."""
        now = time.monotonic()
        if self._step_began_s is not None:
            self._steps_s.append(now - self._step_began_s)
        self._step_began_s = now
        self.beat(doing)

    @contextlib.contextmanager
    def paused(self, doing: str) -> Generator[None]:
        """Watch nothing inside: what is waited for may take any time."""
        self._paused = True
        try:
            yield
        finally:
            self.beat(doing)
            self._paused = False

    @property
    def limit_s(self) -> float:
        """Seconds without a beat that are a stall."""
        usual = _USUAL * statistics.median(self._steps_s) if self._steps_s else 0.0
        return max(self._timeout_s, usual)

    def _watch(self) -> None:
        while not self._ended.wait(min(self.limit_s / 4, 10.0)):
            waited_s, limit_s = time.monotonic() - self._beat_s, self.limit_s
            if waited_s > limit_s and not self._paused:
                self._end(
                    f"stalled: nothing came of {self._doing} for {waited_s:.0f} s (the limit is "
                    f"{limit_s:.0f} s, loop.stall_timeout_s={self._timeout_s:g}). The process ends "
                    f"with code {TemporaryError.exit_code}; the same command goes on from the "
                    "newest checkpoint. Where its threads stood:"
                )

    def _end(self, message: str) -> None:
        try:
            # Not sys.stderr: what other processes than the first print there is dropped.
            print(f"\n{message}", file=sys.__stderr__, flush=True)
            faulthandler.dump_traceback(file=2, all_threads=True)
            with open(self._folder / STALLED, "w") as file:
                print(message, file=file, flush=True)
                faulthandler.dump_traceback(file=file, all_threads=True)
            print(f"the same is in {self._folder / STALLED}", file=sys.__stderr__, flush=True)
        except (OSError, ValueError) as error:  # no folder, or no stderr
            os.write(2, f"{STALLED} could not be written ({error})\n".encode())
        finally:
            os._exit(TemporaryError.exit_code)

    def __enter__(self) -> "Watchdog":
        if self._timeout_s:
            self.beat("the first step")
            self._thread.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._ended.set()
