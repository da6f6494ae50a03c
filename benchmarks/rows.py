"""What every benchmark shares: the machine's name, and one JSON line a row on stdout, all else on stderr."""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a peer needs memory of the same device
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402  (the environment comes first)

ON_GPU = jax.default_backend() == "gpu"
THREADS = len(os.sched_getaffinity(0))


@functools.cache
def device_name() -> str:
    """The accelerator's name, or the processor's with its cores."""
    if ON_GPU:
        return jax.devices()[0].device_kind
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model n")]
        name = models[0] if models else name
    return f"{THREADS} cores {name}"


def print_rows(
    parser: argparse.ArgumentParser, groups: Mapping[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]]
) -> None:
    """Parses the arguments, with --rows for the groups wanted, and prints the rows of each as they come."""
    parser.add_argument("--rows", default=",".join(groups), help="groups of rows, of " + ", ".join(groups))
    options = parser.parse_args()
    wanted = options.rows.split(",")
    unknown = [name for name in wanted if name not in groups]
    if unknown:
        parser.error(f"--rows={options.rows}: {unknown[0]!r} is none of {', '.join(groups)}")
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print is no row
        for name in wanted:
            for row in groups[name](options):
                print(json.dumps(row), file=stdout, flush=True)
