"""A scheduler stops a training command: it saves, and ends with the code by which it is started
again; before the first step there is nothing to save."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from run_states import state_of

from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_values

ROOT = pathlib.Path(__file__).parents[2]


def lines(path):
    """Return the number of whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_stopped_command_saves_and_exits_with_the_code_of_the_signal(tmp_path):
    workdir, config = tmp_path / "run", tmp_path / "config.py"
    loop = {"steps": 100_000, "checkpoint_every": 100_000}
    values = tiny_values(VIDVAE, model=POINTWISE, loop=loop)
    config.write_text(
        "from ml_collections import config_dict\n\n\ndef get_config():\n"
        f"    return config_dict.ConfigDict({values!r}, convert_dict=True)\n"
    )
    command = [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={config}"]
    command += [f"--workdir={workdir}"]

    def stopped(number, ready):
        """Send a signal when the run is `ready`; return (exit code, seconds to the end)."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # Under nohup the tests ignore this signal, and what they start would do so too.
        ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        started = subprocess.Popen(command, cwd=ROOT, **pipes)
        signal.signal(signal.SIGHUP, ignored)
        with started as process:
            while not ready() and process.poll() is None:
                time.sleep(0.02)
            sent = time.monotonic()
            process.send_signal(number)
            out, err = process.communicate(timeout=120)
        assert out == "" and "Traceback" not in err, err
        assert "run the same command again to go on" in err or "without it" in err, err
        return process.returncode, time.monotonic() - sent

    code, _ = stopped(signal.SIGTERM, (workdir / "config.json").exists)  # while it compiles
    assert code == 143
    steps = Checkpoints(workdir / "checkpoints").steps
    assert steps() == []
    metrics = workdir / "metrics.jsonl"
    for number, code in ((signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = lines(metrics)
        assert stopped(number, lambda: lines(metrics) > before + 2)[0] == code  # noqa: B023
        rows = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        assert rows == list(range(1, steps()[-1] + 1)), "no row is lost or doubled"
        assert int(state_of(workdir)["step"]) == steps()[-1] > before
