"""A process of its own for files that cannot be trusted.

A damaged or hostile file can crash a decoder, or keep it busy without end. So each is decoded in a
child process with limits of time and memory; whatever happens there is one error of one file. The
child only computes: it is sent a function and its arguments, and sends back what the function
returns. It ends when its parent does. It is no sandbox: a file that takes over a decoder has the
rights of the user.

`python -m xgen_jax.curation.isolation MEMORY_BYTES` is the child.
"""

import atexit
import functools
import os
import pathlib
import pickle
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from xgen_jax.errors import UserError

T = TypeVar("T")

_LENGTH = struct.Struct("<Q")
_ROOT = pathlib.Path(__file__).resolve().parents[2]
# One thread a child: an engine decides how many children there are.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# How OpenCV and ONNX Runtime say that the limit of memory was met: as errors of their own.
_NO_MEMORY = ("Insufficient memory", "Failed to allocate memory", "bad_alloc")
_ALIVE = "alive"
_SAY_EVERY_S = 0.5
_answers: Any = None  # of a worker: where it writes to its parent
_said_s = 0.0
_WALL_FACTOR = 10.0  # seconds by the clock for each of processor time, on a busy machine


class Worker:
    """A child process that calls functions, one at a time; a context manager.

    A child that dies, or takes too long, is replaced. A call during which it dies is made once
    more, since something else may have killed it; only what dies twice is an error.

    Args:
      memory_gb: of the child at most, in 1e9 bytes.
    """

    def __init__(self, memory_gb: float):
        self._memory = int(memory_gb * 1e9)
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, function: Callable[..., T], *arguments: Any, silent_s: float) -> T:
        """Return `function(*arguments)`, called in the child.

        Args:
          function: of a module; it and its arguments are pickled.
          silent_s: seconds of processor time that it may take without a call of `alive`.

        Raises:
          UserError: as the function, or the child died twice, or took too long.
        """
        request = function, arguments, silent_s
        try:
            try:
                kind, value = self._ask(request)
            except TimeoutError:  # an OSError, too
                raise
            except (EOFError, OSError):
                if self._status() == -signal.SIGXCPU:  # it would take as long again
                    text = f"it took more than {silent_s:.0f} s of processor time without a frame"
                    raise UserError(text) from None
                kind, value = self._ask(request)
        except TimeoutError as error:
            self.close()
            text = f"it did not answer for {silent_s * _WALL_FACTOR:.0f} s, and was stopped"
            raise UserError(text) from error
        except (EOFError, OSError) as error:
            code = self._status()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise UserError(f"its decoder crashed ({name})") from error
        if kind == "user":
            raise UserError(value)
        if kind == "memory":
            raise UserError(f"it needs more than {self._memory / 1e9:g} GB of memory")
        if kind == "defect":
            raise RuntimeError(f"in the worker: {value}")
        return value

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    _close(pipe)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _ask(self, request: Any) -> tuple[str, Any]:
        """Return the child's answer.

        Raises:
          TimeoutError: it says nothing for too long.
          EOFError, OSError: it is dead.
        """
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        _send(child.stdin, request)
        kind: str = _ALIVE
        value: Any = None
        while kind == _ALIVE:
            # A child that waits for a disk, or is stopped, uses no processor time.
            kind, value = pickle.loads(_receive(child.stdout, request[-1] * _WALL_FACTOR))
        return kind, value

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._child = subprocess.Popen(
                [sys.executable, "-m", "xgen_jax.curation.isolation", str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # what is read ahead could not be waited for
                env={
                    **os.environ,
                    **dict.fromkeys(_THREADS, "1"),
                    "PYTHONPATH": os.pathsep.join(paths),
                },
                start_new_session=True,  # Ctrl-C reaches the parent, which ends it
            )
        return self._child

    def _status(self) -> int:
        """Return the exit status of a child that is dead, and forget it."""
        child = self._child
        assert child is not None
        code = child.wait()
        self.close()
        return code


@functools.cache
def shared_worker(memory_gb: float) -> Worker:
    """Return this process's worker: what it has imported and loaded serves all shards."""
    worker = Worker(memory_gb)
    atexit.register(worker.close)
    return worker


def alive(seconds: float) -> None:
    """Allow a worker so many seconds of processor time from now on, and let its parent know that it
    goes on. Elsewhere it does nothing."""
    global _said_s
    if _answers is None:
        return
    if time.monotonic() - _said_s > _SAY_EVERY_S:
        _said_s = time.monotonic()
        _send(_answers, (_ALIVE, None))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(time.process_time() + seconds) + 1
    resource.setrlimit(
        resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


def _close(pipe: BinaryIO | Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was not sent yet goes nowhere
        return


def _send(pipe: Any, value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[pipe.write(left) :]
    pipe.flush()


def _receive(pipe: Any, timeout_s: float | None = None) -> bytes:
    """Read one pickled value.

    Raises:
      TimeoutError: nothing came for that long.
      EOFError: the other end is closed.
    """
    if timeout_s is not None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise TimeoutError
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    return _exactly(pipe, length)


def _exactly(pipe: Any, count: int) -> bytes:
    parts = []
    while count:
        part = pipe.read(count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(memory: int) -> None:
    """Call what is sent, until the parent closes its end."""
    global _answers
    # The functions' own output to stdout must not come between the answers.
    answers = _answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = os.fdopen(0, "rb", buffering=0, closefd=False)
    # Memory that is written to, without what libraries only reserve.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            request = _receive(requests)
        except EOFError:
            return
        try:
            function, arguments, silent_s = pickle.loads(request)
            alive(silent_s)
            answer = "value", function(*arguments)
        except UserError as error:
            answer = "user", str(error)
        except MemoryError:
            answer = "memory", ""
        except Exception as error:
            if any(words in str(error) for words in _NO_MEMORY):
                answer = "memory", ""
            else:  # a defect, which the parent raises
                answer = "defect", f"{type(error).__name__}: {error}"
        _send(answers, answer)


if __name__ == "__main__":
    # In the module that the functions import, not in this copy of it under another name.
    from xgen_jax.curation import isolation

    isolation.serve(int(sys.argv[1]))
