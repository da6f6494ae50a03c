"""The steps of a run, compiled: a program a bucket, those that are needed first before the others.

A step is lowered from shapes alone, so nothing is read and nothing computed. Lowering holds the
interpreter, so steps are lowered one after another; compiling releases it and runs in threads.
"""

import collections
import concurrent.futures
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from xgen_jax.config.loop import LoopConfig
from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError
from xgen_jax.parallel.memory import OUT_OF_MEMORY, format_gb, program_bytes
from xgen_jax.parallel.sharding import on_mesh, replicated
from xgen_jax.training.state import TrainState, make_update
from xgen_jax.training.tasks.base import Arrays, Metrics, Task
from xgen_jax.typing import Array, Params

THREADS = "compile"  # how the names of threads that compile begin
WAIT_S = 0.2
SAY_EVERY_S = 30.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """The metrics of a step in one array on the devices, which the host fetches in one transfer.

    Attributes:
      names: of the values.
      values_M: float32.
    """

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    values_M: Array

    @classmethod
    def pack(cls, metrics: Metrics) -> "StepMetrics":
        """Stack scalars, in a program."""
        return cls(tuple(metrics), jnp.stack([x.astype(jnp.float32) for x in metrics.values()]))

    def wait(self) -> None:
        """Wait until the step is done."""
        self.values_M.block_until_ready()

    def fetch(self) -> dict[str, float]:
        """Return the value of each name."""
        return dict(zip(self.names, jax.device_get(self.values_M).tolist(), strict=True))


def jit_update(
    task: Task,
    optimizer: optax.GradientTransformation,
    loop: LoopConfig,
    mesh: Mesh,
    shardings: TrainState,
) -> jax.stages.Wrapped:
    """Jit the update of a run: (state, arrays, sample ids, frozen, turn, stop) -> (state,
    `StepMetrics`, the next turn). The state is donated; the others are replicated.

    The turn is the step that the batch is of (see `make_update`): each step makes the next one's on
    the devices, because sending a number costs the host a tenth of a millisecond and more. `stop`,
    one number a device, gives the metric "stop", the largest of them: all processes learn in the
    same step that one of them was asked to stop.
    """
    skip = loop.skip_non_finite > 0
    update = make_update(task, optimizer, loop.seed, loop.ema_decay, loop.accumulate, skip)

    def step(state, arrays, sample_id_B, frozen, turn, stop=None):
        state, metrics = update(state, arrays, sample_id_B, frozen, turn)
        if stop is not None:
            metrics["stop"] = jnp.max(stop)
        return state, StepMetrics.pack(metrics), turn + 1

    everywhere = replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere, everywhere))


def abstract_arguments(
    task: Task, arrays: Arrays, bucket: Bucket, sharding: NamedSharding
) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Return the shapes of (prepared arrays, sample ids) of a bucket, given those of any other."""
    ids = jax.ShapeDtypeStruct((bucket.batch_size,), np.uint32)
    shapes = task.abstract_batch(arrays, bucket), ids
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


class Program(NamedTuple):
    """A compiled step, and the seconds that it took.

    Attributes:
      step: see `jit_update`.
      seconds: of lowering and compiling.
    """

    step: Callable
    seconds: float


class StepPrograms:
    """The compiled step of each bucket: the first ones before training, others behind it.

    A compiler cannot be interrupted. Its threads are no daemons, because an interpreter that ends
    while one compiles crashes: it waits for those at work. A command that is stopped ends without
    (`compiling`).

    Steps are lowered in threads, where settings of JAX that the caller has made in a context
    manager do not count; the mesh does.

    Args:
      update: see `jit_update`.
      state, frozen: shapes of a `TrainState` and of the frozen parameters, with their shardings.
      arguments: of each bucket, see `abstract_arguments`.
      mesh: of the devices.
      stop: shape of the last argument, where there are several processes.

    Raises:
      UserError: on `compile_first`, `get` and `check`, a bucket whose step does not fit on the
        devices.
    """

    def __init__(
        self,
        update: jax.stages.Wrapped,
        state: Any,
        arguments: dict[Bucket, tuple],
        mesh: Mesh,
        frozen: Params = None,
        stop: jax.ShapeDtypeStruct | None = None,
    ):
        self._lower = lambda bucket: update.lower(
            state, *arguments[bucket], frozen, state.step, stop
        )
        self._mesh = mesh
        self._programs: dict[Bucket, Future[Program]] = {}
        self._waiting: collections.deque[Bucket] = collections.deque()
        self._failed: Future[Program] | None = None
        self._changing = threading.Lock()  # of the three above
        # Two threads that lower would share the interpreter, and delay what is needed first.
        self._lowering = threading.Lock()
        self._ended = threading.Event()
        self._wanted, self._said_s = 0, 0.0

    def compile_first(self, buckets: Iterable[Bucket]) -> int:
        """Compile the steps of some buckets, and print a line on stderr for each.

        Returns:
          Bytes on a device that the largest of them needs.
        """
        begun = {self._begin(bucket): bucket for bucket in dict.fromkeys(buckets)}
        largest = 0
        for done in concurrent.futures.as_completed(begun):
            bucket, (step, seconds) = begun[done], done.result()
            needed = program_bytes(cast(Any, step))
            largest = max(largest, needed)
            print(
                f"compiled {bucket.name}, batch {bucket.batch_size}: {seconds:.1f} s, "
                f"{format_gb(needed)} a device",
                file=sys.stderr,
            )
        return largest

    def compile_behind(self, buckets: Iterable[Bucket]) -> None:
        """Begin to compile the other steps in threads, in the order given, and say so."""
        with self._changing:
            self._waiting.extend(b for b in dict.fromkeys(buckets) if b not in self._programs)
            left = len(self._waiting)
            self._wanted = left + len(self._programs)
        if not left:
            return
        each_s = max(program.result().seconds for program in self._programs.values())
        print(
            f"{left} of {self._wanted} programs, one a bucket, are compiled while training, each "
            f"in about {each_s:.0f} s",
            file=sys.stderr,
        )
        self._said_s = time.monotonic()
        cores = len(os.sched_getaffinity(0))  # the loader needs some
        for _ in range(min(left, max(1, cores // 4))):
            threading.Thread(target=self._compile_waiting, name=f"{THREADS} behind").start()

    def get(self, bucket: Bucket, ask: Callable[[], Any] = lambda: None) -> Callable | None:
        """Return the step of a bucket; one that has not begun is compiled at once.

        Args:
          bucket: of the step.
          ask: called a few times a second while it is waited for.

        Returns:
          See `Program.step`; None as soon as `ask` returns what is true.
        """
        program = self._programs.get(bucket) or self._begin(bucket)
        while not program.done():
            if ask():
                return None
            concurrent.futures.wait([program], WAIT_S)
        return program.result().step

    def check(self) -> None:
        """Raise the error of a step that could not be compiled, before it is needed."""
        if self._failed is not None:
            self._failed.result()

    def close(self) -> None:
        """Begin to compile no others; return at once."""
        self._ended.set()

    def _begin(self, bucket: Bucket) -> "Future[Program]":
        """Compile in a thread of its own, unless it has begun."""
        with self._changing:
            if bucket in self._programs:
                return self._programs[bucket]
            program = self._programs[bucket] = Future()
        name = f"{THREADS} {bucket.name}"
        threading.Thread(target=self._compile, args=(bucket, program), name=name).start()
        return program

    def _compile_waiting(self) -> None:
        while True:
            with self._changing:
                while self._waiting and self._waiting[0] in self._programs:
                    self._waiting.popleft()
                if not self._waiting or self._ended.is_set():
                    return
                bucket = self._waiting.popleft()
                program = self._programs[bucket] = Future()
            self._compile(bucket, program)

    def _compile(self, bucket: Bucket, program: "Future[Program]") -> None:
        began_s = time.monotonic()
        try:
            with on_mesh(self._mesh):
                with self._lowering:
                    lowered = self._lower(bucket)
                step = _compiled(bucket, lowered)
        except BaseException as error:
            program.set_exception(error)
            with self._changing:
                self._failed = self._failed or program
        else:
            program.set_result(Program(step, time.monotonic() - began_s))
            self._say()

    def _say(self) -> None:
        """Print how far it is, not more often than every `SAY_EVERY_S`, and when all is done."""
        with self._changing:
            done = [program for program in self._programs.values() if program.done()]
            now_s = time.monotonic()
            if not self._said_s or self._ended.is_set():
                return
            if len(done) < self._wanted and now_s - self._said_s < SAY_EVERY_S:
                return
            self._said_s = now_s if len(done) < self._wanted else 0.0
        line = f"compiled {len(done)} of {self._wanted} programs"
        if len(done) >= self._wanted and self._failed is None:
            largest = max(program_bytes(cast(Any, each.result().step)) for each in done)
            line += f"; the largest step needs {format_gb(largest)} a device"
        # On a terminal it takes the place of the bar, which comes again below.
        print(f"\r{line}\x1b[K" if sys.stderr.isatty() else line, file=sys.stderr)


def compiling() -> bool:
    """Return whether a thread of `StepPrograms` is at work."""
    return any(thread.name.startswith(THREADS) for thread in threading.enumerate())


def _compiled(bucket: Bucket, lowered: jax.stages.Lowered) -> Callable:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        raise UserError(
            f"the step of bucket {bucket.name}, batch {bucket.batch_size}, does not fit: "
            f"{error}; make its batch smaller, use more devices, or raise loop.accumulate"
        ) from error
