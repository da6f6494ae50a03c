"""Signals that ask a process to stop, as an exception with the exit code that schedulers know.

A command stops at once when it is asked to: `stop_when_asked`. A loop that has something to save
is asked first and stops where it likes: `stop_later`.
"""

import _thread
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Generator

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOST = 128  # added to the number of a signal whose exception was lost
GRACE_S = 5.0  # for the main thread to end by itself, which may be deep in a compiler or a read


class Stopped(KeyboardInterrupt):
    """The process was asked to stop.

    Attributes:
      exit_code: 128 and the number of the signal, as shells write it: 130 for SIGINT (Ctrl-C), 143
        for SIGTERM, 129 for SIGHUP. Schedulers start a job again that ends with the latter two.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


_later = threading.Event()  # set while a loop decides itself when to stop


def stop_when_asked() -> None:
    """Raise `Stopped` in the main thread on SIGTERM and SIGHUP, as Python does on Ctrl-C.

    Python drops an exception that is raised in a callback of the garbage collector (JAX has one) or
    in a `__del__`: then it is raised again. If the main thread does not end within GRACE_S, because
    it does not run Python code, the process ends without it. To be called once, in the main thread,
    by a command. A SIGHUP that is ignored, as under nohup, stays so.
    """

    def stop(number, frame):
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    # Python runs a handler when its main thread comes back from C; the system writes the number of
    # the signal here at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    report = sys.unraisablehook

    def lost(unraisable):
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt):
            report(unraisable)
            return
        number = error.exit_code - 128 if isinstance(error, Stopped) else signal.SIGINT
        os.write(writer, bytes([_LOST + number]))

    sys.unraisablehook = lost
    threading.Thread(target=_end_in_time, args=(reader,), name="signals", daemon=True).start()


def _end_in_time(reader: int) -> None:
    asked: list[int] = []
    end_at: float | None = None
    while True:
        left_s = None if end_at is None else max(end_at - time.monotonic(), 0.0)
        if not select.select([reader], [], [], left_s)[0]:
            os.write(2, b"the main thread did not end in time; the process ends without it\n")
            os._exit(128 + asked[0])
        (number,) = os.read(reader, 1)
        if number > _LOST:
            time.sleep(0.01)  # for the main thread to leave the callback
            _thread.interrupt_main(signal.Signals(number - _LOST))
            continue
        if number not in STOPPING or (number == signal.SIGINT and not _later.is_set()):
            continue
        asked.append(number)
        if end_at is None and not (_later.is_set() and len(asked) == 1):
            end_at = time.monotonic() + GRACE_S


@contextlib.contextmanager
def stop_later() -> Generator[list[int]]:
    """Give a list that fills with the number of the signal when the process is asked to stop.

    Asked a second time it stops at once. Python allows handlers in the main thread alone: elsewhere
    nothing is caught, and the list stays empty.
    """
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        if len(received) > 1:
            raise Stopped(received[0])

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    caught = [number for number in STOPPING if number != signal.SIGHUP or not ignored]
    before = {number: signal.signal(number, note) for number in caught}
    _later.set()
    try:
        yield received
    finally:
        _later.clear()
        for number, handler in before.items():
            # None is a handler that a library has installed without Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
