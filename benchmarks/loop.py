"""What the training loop costs besides its computation; one JSON line per row on stdout.

python benchmarks/loop.py [--rows=step,save] [--steps=400]

`step`: processor time of the main thread for a step of a tiny VidVAE and VDiT, whose program has
been replaced by one that takes and returns the same arrays and computes nothing: on a CPU the main
thread computes a part of the real one. The VDiT's clips are encoded in its step. `save`: how long a
save keeps the loop, and the processor time of the main thread in it, next to the time until the
checkpoint is on disk.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from rows import at_least_one, device_name, print_rows  # isort: skip  (it sets the environment)

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.commands.train import train
from xgen_jax.parallel.memory import tree_bytes
from xgen_jax.parallel.sharding import replicated
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.testing import VDIT, VIDVAE, tiny_run
from xgen_jax.training import fit
from xgen_jax.training.compiled import StepMetrics

WARM = 50  # steps that do not count
SAVES = 7
BUCKETS = {"data": {"buckets": "9x32x32x4"}}


class Clock:
    """A writer that notes the time and the main thread's processor time at two steps."""

    def __init__(self, first: int, last: int):
        self.steps, self.notes = (first, last), []

    def write(self, step: int, metrics: Any) -> None:
        self.progress(step, metrics)

    def progress(self, step: int, metrics: Any) -> None:
        if step in self.steps:
            self.notes.append((time.perf_counter(), time.thread_time()))

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        pass

    def close(self) -> None:
        pass

    def per_step(self) -> dict[str, float]:
        (start_s, start_cpu_s), (end_s, end_cpu_s) = self.notes
        steps = self.steps[1] - self.steps[0]
        return {
            "time_s": (end_s - start_s) / steps,
            "main_thread_cpu_s": (end_cpu_s - start_cpu_s) / steps,
        }


def computes_nothing(task, optimizer, loop, mesh, shardings):
    """Stand in for `jit_update`: a step with the same arguments and results."""

    def step(state, arrays, sample_id_B, frozen, turn, stop=None):
        metrics = {name: jnp.zeros(()) for name in ("loss", "psnr_db", "kl", "l1", "grad_norm")}
        return state.replace(step=state.step + 1), StepMetrics.pack(metrics), turn + 1

    everywhere = replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere, everywhere))


def step(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    jit_update = fit.jit_update
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train(tiny_run(VIDVAE, **BUCKETS), folder / "embedder")
        for values in (VIDVAE, VDIT):
            loop = {"steps": WARM + options.steps + 1, "log_every": 10, "checkpoint_every": 10**6}
            changes = {"embedder": str(folder / "embedder")} if values is VDIT else {}
            run = tiny_run(values, loop=loop, **BUCKETS, **changes)
            clock = Clock(WARM, WARM + options.steps)
            fit.jit_update = computes_nothing
            try:
                result = train(run, folder / run.objective, writers=[clock])
            finally:
                fit.jit_update = jit_update
            yield {
                "what": f"a step of {run.objective} that computes nothing",
                "shape": [4, 9, 32, 32],
                "device": device_name(),
                "parameters": result["parameters"],
                **clock.per_step(),
            }


def save(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """States of 8 MB and of 80 MB, in 227 arrays as the quickstart's VidVAE has."""
    for megabytes in (8, 80):
        state = [np.ones(megabytes * 10**6 // 4 // 227, np.float32) for _ in range(227)]
        state = jax.block_until_ready(jax.device_put({str(i): x for i, x in enumerate(state)}))
        walls, cpus, whole = [], [], []
        with tempfile.TemporaryDirectory() as name:
            checkpoints = Checkpoints(pathlib.Path(name))
            for number in range(SAVES + 1):
                began_s, cpu_s = time.perf_counter(), time.thread_time()
                checkpoints.save(number, state, {})
                cpus.append(time.thread_time() - cpu_s)
                walls.append(time.perf_counter() - began_s)
                checkpoints.wait()
                whole.append(time.perf_counter() - began_s)
        yield {
            "what": "a save",
            "shape": [tree_bytes(state)],
            "device": device_name(),
            "time_s": min(walls[1:]),  # the first compiles the copy
            "median_s": statistics.median(walls[1:]),
            "first_s": walls[0],
            "main_thread_cpu_s": min(cpus[1:]),
            "on_disk_s": statistics.median(whole[1:]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=at_least_one, default=400, help="timed")
    print_rows(parser, {"step": step, "save": save})


if __name__ == "__main__":
    main()
