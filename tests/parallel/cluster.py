"""Commands started as several local processes, which meet on a port of the loopback interface."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
ONE_HOST_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]
CONFIG = """import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads({values!r}))
"""


def write_config(path: pathlib.Path, values: dict[str, Any]) -> pathlib.Path:
    """Write a config file that holds some values."""
    path.write_text(CONFIG.format(values=json.dumps(values)))
    return path


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Return the environment of a process with that many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return env | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": ONE_HOST_CACHE}


class Processes:
    """One command in several processes; a context that kills what is left of them at its end."""

    def __init__(self, command: str, arguments: list[list[str]], devices: int | list[int] = 1):
        """Start the processes.

        Args:
          command: of launch/.
          arguments: of each process, without those that number it.
          devices: of a process, or of each.
        """
        count, port = len(arguments), free_port()
        if isinstance(devices, int):
            devices = [devices] * count
        self.started: list[subprocess.Popen] = []
        for number, own in enumerate(arguments):
            numbered = []
            if count > 1:
                numbered = [
                    f"--coordinator=127.0.0.1:{port}",
                    f"--num_processes={count}",
                    f"--process_id={number}",
                ]
            self.started.append(
                subprocess.Popen(
                    [sys.executable, f"launch/{command}.py", *own, *numbered],
                    cwd=ROOT,
                    env=environment(devices[number]),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def results(self, timeout_s: float = 600.0) -> list[tuple[int, str, str]]:
        """Wait for all; return (exit code, stdout, stderr) of each."""
        deadline, found = time.monotonic() + timeout_s, []
        for process in self.started:
            out, err = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            found.append((process.returncode, out, err))
        return found

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for process in self.started:  # SIGTERM would wait for a step that may never end
            process.kill()
        for process in self.started:
            with contextlib.suppress(ValueError):  # its pipes are read already
                process.communicate()


def run(
    command: str, *arguments: str, processes: int = 1, devices: int = 1
) -> tuple[dict[str, Any], list[str]]:
    """Run a command to its end in all processes, which must succeed.

    Returns:
      The first process's result, and what each has printed on stderr. Only the first prints a
      result.
    """
    with Processes(command, [list(arguments)] * processes, devices) as started:
        done = started.results()
    for code, _, err in done:
        assert code == 0, "\n---\n".join(each[2][-3000:] for each in done) or err
    assert all(not out for _, out, _ in done[1:])
    return json.loads(done[0][1]), [err for *_, err in done]
