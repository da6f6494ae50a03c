"""Shared by all benchmarks: the name of the machine, timing against a peer, and one JSON line per
row on stdout.

All other output goes to stderr. Our code and the peer run in one process, alternating, so that
other load on the machine slows both. The peer is the fastest of several in a trial: memory layouts,
and on a GPU `torch.compile`. `time_s` is the shortest run and `median_s` the median; `cpu_s` is the
minimum CPU time of a run, the more stable figure on a shared machine; `ratio` is the peer's time
divided by ours: above 1 we are faster. Without torch and diffusers (extra `bench`) the rows have no
peer.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # a peer needs memory of the same device
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from xgen_jax.environment import (  # noqa: E402  (the path comes first)
    ask_for_huge_pages,
    prefer_channels_last,
)

ask_for_huge_pages()  # as the commands do; the peer has them too
prefer_channels_last()

import jax  # noqa: E402  (the environment comes first)
import jax.numpy as jnp  # noqa: E402

from xgen_jax.parallel.devices import peak_of  # noqa: E402
from xgen_jax.parallel.memory import program_bytes  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

ON_GPU = jax.default_backend() == "gpu"
THREADS = len(os.sched_getaffinity(0))


@functools.cache
def peak_flops(dtype: str) -> float | None:
    """Return the operations per second that this device can do at most; None if not known."""
    figures = peak_of(jax.devices()[0])
    return figures.flops(dtype) if figures else None


def device_name() -> str:
    """Name the accelerator, or the processor with its number of cores."""
    if ON_GPU:
        return jax.devices()[0].device_kind
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model n")
        ]
        name = models[0] if models else name
    return f"{THREADS} cores {name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A function without arguments that does the same with torch, and waits for the result."""

    name: str
    run: Callable[[], Any]
    parameters: int | None = None


def time_alternating(functions: list[Callable[[], Any]], repeats: int) -> list[dict[str, float]]:
    """Time functions, alternating, `repeats` times after one warm-up run."""
    walls, cpus = [[] for _ in functions], [[] for _ in functions]
    for repeat in range(-1, repeats):
        for function, wall, cpu in zip(functions, walls, cpus):
            start, cpu_start = time.perf_counter(), time.process_time()
            function()
            if repeat >= 0:
                wall.append(time.perf_counter() - start)
                cpu.append(time.process_time() - cpu_start)
    return [
        {"time_s": min(wall), "median_s": statistics.median(wall), "cpu_s": min(cpu)}
        for wall, cpu in zip(walls, cpus)
    ]


def measure(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Time a function that waits for its result: a first run, `first_s`, and then `repeats`."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    first, *rest = times
    return {
        "time_s": min(rest),
        "median_s": statistics.median(rest),
        "first_s": first,
    }


def fastest(peers: list[Peer]) -> Peer | None:
    """Select the fastest of several equivalent peers in a trial."""
    if len(peers) < 2:
        return peers[0] if peers else None
    times = [time["time_s"] for time in time_alternating([peer.run for peer in peers], repeats=1)]
    return peers[times.index(min(times))]


def row(what, shape, dtype, function, arguments, peers, repeats, parameters=None) -> dict[str, Any]:
    """Compile and time function(*arguments) on (clips, frames, ...), and the fastest peer."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    best = fastest(peers)
    runs = [lambda: jax.block_until_ready(compiled(*arguments)), *([best.run] if best else [])]
    ours, *theirs = time_alternating(runs, repeats)
    their = theirs[0] if theirs else dict.fromkeys(ours)
    return {
        "what": what,
        "shape": list(shape),
        "dtype": jnp.dtype(dtype).name,
        "device": device_name(),
        "threads": THREADS,
        **ours,
        "compile_s": compile_s,
        "peak_bytes": program_bytes(compiled),
        "frames_per_s": shape[0] * shape[1] / ours["time_s"],
        "parameters": parameters,
        "peer": best.name if best else None,
        "peer_parameters": best.parameters if best else None,
        **{f"peer_{name}": value for name, value in their.items()},
        "ratio": their["time_s"] / ours["time_s"] if best else None,
    }


def dtypes() -> list[Any]:
    """List the dtypes to time: float32, and bfloat16 where the hardware has it."""
    return [jnp.float32, jnp.bfloat16] if ON_GPU else [jnp.float32]


def torch_device() -> str:
    return "cuda" if ON_GPU and torch.cuda.is_available() else "cpu"


def torch_dtype(dtype):
    return torch.bfloat16 if dtype == jnp.bfloat16 else torch.float32


def wait() -> None:
    if torch_device() == "cuda":
        torch.cuda.synchronize()


def variants(module) -> list[tuple[str, Any]]:
    """List the module as it is and, on a GPU, compiled."""
    return [
        ("", module),
        *([(", torch.compile", torch.compile(module))] if torch_device() == "cuda" else []),
    ]


def has_diffusers() -> bool:
    if torch is None:
        return False
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return False
    return True


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def print_rows(
    parser: argparse.ArgumentParser,
    groups: Mapping[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]],
) -> None:
    """Parse the arguments, with --rows for the groups to run, and print each row when ready."""
    parser.add_argument(
        "--rows", default=",".join(groups), help="groups of rows, of " + ", ".join(groups)
    )
    options = parser.parse_args()
    wanted = options.rows.split(",")
    unknown = [name for name in wanted if name not in groups]
    if unknown:
        parser.error(f"--rows={options.rows}: {unknown[0]!r} is none of {', '.join(groups)}")
    if torch:
        torch.set_num_threads(THREADS)
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # output of libraries is not a row
        for name in wanted:
            for row in groups[name](options):
                print(json.dumps(row), file=stdout, flush=True)
