"""Requests to stop, where Python would lose them."""

import signal
import subprocess
import sys

import pytest

# The handler runs inside a callback of the garbage collector, whose exceptions Python drops.
SCRIPT = """
import gc, os, signal, sys, time
from xgen_jax.signals import stop_when_asked

signal.signal(signal.SIGINT, signal.default_int_handler)
stop_when_asked()
asked = []

def collected(phase, info):
    if not asked:
        asked.append(phase)
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(1000):
            pass

gc.callbacks.append(collected)
gc.collect()
try:
    for _ in range(40):
        time.sleep(0.1)
except KeyboardInterrupt as error:
    print(getattr(error, "exit_code", 130), bool(asked))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_in_a_callback_is_not_lost(number):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(int(number))], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [str(128 + number), "True"], done.stderr
    assert done.stderr == ""
