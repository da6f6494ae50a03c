"""A worker that crashes, hangs, eats memory or fails is one error, and the next call works."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from xgen_jax.curation.isolation import Worker, alive
from xgen_jax.errors import UserError

SILENT_S = 20.0


@pytest.fixture(scope="module")
def worker():
    with Worker(memory_gb=1.0) as worker:
        yield worker


def test_it_returns_what_the_function_does(worker):
    assert worker.run(np.arange, 5, silent_s=SILENT_S).tolist() == [0, 1, 2, 3, 4]
    assert worker.run(os.getpid, silent_s=SILENT_S) != os.getpid()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_an_error_and_the_next_call_works(worker, number):
    with pytest.raises(UserError, match=signal.Signals(number).name):
        worker.run(signal.raise_signal, number, silent_s=SILENT_S)
    assert worker.run(abs, -3, silent_s=SILENT_S) == 3


def test_a_call_whose_worker_is_killed_is_made_again(tmp_path, monkeypatch):
    (tmp_path / "once.py").write_text(
        "import os, pathlib, signal\n"
        "def die_once(mark):\n"
        "    if not pathlib.Path(mark).exists():\n"
        "        pathlib.Path(mark).touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return 'done'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from once import die_once

    with Worker(memory_gb=1.0) as worker:
        assert worker.run(die_once, str(tmp_path / "mark"), silent_s=SILENT_S) == "done"


def test_outside_a_worker_no_limit_is_set():
    before = resource.getrlimit(resource.RLIMIT_CPU)
    alive(1.0)
    assert resource.getrlimit(resource.RLIMIT_CPU) == before


def test_a_busy_loop_ends(worker):
    worker.run(abs, -3, silent_s=SILENT_S)  # it is running
    with pytest.raises(UserError, match="processor time"):
        worker.run(pow, 3, 10**9, silent_s=1.0)
    assert worker.run(abs, -3, silent_s=SILENT_S) == 3


def test_a_call_that_sleeps_ends(worker):
    worker.run(abs, -3, silent_s=SILENT_S)
    began = time.monotonic()
    with pytest.raises(UserError, match="did not answer"):
        worker.run(time.sleep, 60, silent_s=0.1)
    assert time.monotonic() - began < 30


def test_a_long_call_that_says_it_goes_on_is_not_ended(tmp_path, monkeypatch):
    """As a film of hours: no frame takes long, all of them do."""
    (tmp_path / "pulses.py").write_text(
        "import time\n"
        "from xgen_jax.curation.isolation import alive\n"
        "def pulses(count):\n"
        "    for _ in range(count):\n"
        "        time.sleep(0.6)\n"
        "        alive(5.0)\n"
        "    return count\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    from pulses import pulses

    with Worker(memory_gb=1.0) as worker:
        worker.run(abs, -3, silent_s=SILENT_S)
        assert worker.run(pulses, 5, silent_s=0.2) == 5  # 3 s, of which 2 s may be silent


def test_memory_is_limited(worker):
    with pytest.raises(UserError, match="more than 1 GB of memory"):
        worker.run(np.ones, 10**9, silent_s=SILENT_S)
    limits = worker.run(resource.getrlimit, resource.RLIMIT_DATA, silent_s=SILENT_S)
    assert limits == (10**9, 10**9)


def test_memory_is_limited_for_libraries_too(worker):
    """A picture that OpenCV cannot make room for, which raises an error of its own."""
    pytest.importorskip("cv2")
    made = (
        "__import__('cv2').resize(__import__('numpy').zeros((2, 2, 3), 'uint8'), ({0}, {0})).shape"
    )
    with pytest.raises(UserError, match="more than 1 GB of memory"):
        worker.run(eval, made.format(30_000), silent_s=SILENT_S)
    assert worker.run(eval, made.format(4), silent_s=SILENT_S) == (4, 4, 3)


def test_a_mistake_of_the_user_stays_one_and_a_defect_too(worker):
    from xgen_jax.data.video import probe

    with pytest.raises(UserError, match="no such file"):
        worker.run(probe, "/nothing.mp4", silent_s=SILENT_S)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        worker.run(divmod, 1, 0, silent_s=SILENT_S)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError: .*test_isolation"):
        worker.run(_lives, 1, silent_s=SILENT_S)  # of a module that the worker cannot import


def test_it_prints_to_stderr_alone(worker):
    """What a library prints must not come between the answers."""
    assert worker.run(print, "noise", silent_s=SILENT_S) is None
    assert worker.run(os.write, 1, b"noise\n", silent_s=SILENT_S) == 6


def test_it_ends_with_its_parent(tmp_path):
    code = (
        "import os, sys, time\n"
        "from xgen_jax.curation.isolation import Worker\n"
        "worker = Worker(1.0)\n"
        "print(worker.run(os.getpid, silent_s=20.0), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not _lives(child):
            return
        time.sleep(0.05)
    raise AssertionError("the child outlives its parent")


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
