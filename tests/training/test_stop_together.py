"""Two processes stop after the same step when one of them is asked to."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from run_states import state_of

from xgen_jax.runs.checkpoint import Checkpoints

SCRIPT = """
import sys

import jax

number, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address = f"127.0.0.1:{port}"
jax.distributed.initialize(address, 2, number, coordinator_bind_address=address)

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.signals import Stopped
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_values

loop = {"steps": 100_000, "checkpoint_every": 100_000}
values = tiny_values(VIDVAE, model=POINTWISE, loop=loop, mesh={"fsdp": 1, "data": 2})
try:
    train(run_config(values), workdir)
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


@pytest.mark.slow
def test_one_signal_stops_both_after_the_same_step(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = "--xla_backend_optimization_level=0"  # one device each, and compile fast
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    workdir, log = tmp_path / "run", tmp_path / "log"
    with open(log, "w") as stderr:
        both = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(number), str(port), str(workdir)],
                env=environment,
                stderr=stderr,
            )
            for number in range(2)
        ]
    try:
        metrics = workdir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and both[0].poll() is None:
            time.sleep(0.05)
        both[1].send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert codes == [143, 143], log.read_text()
    (step,) = Checkpoints(workdir / "checkpoints").steps()
    # Read by one process, and compared with the digests that two have computed.
    assert int(state_of(workdir)["step"]) == step > 0
