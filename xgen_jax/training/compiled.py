"""The steps of a run, compiled before the first of them: one a bucket.

A step is lowered from shapes alone, so nothing is read and nothing computed. Lowering holds the
interpreter, so steps are lowered one after another; compiling releases it and runs in threads.
"""

import concurrent.futures
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from xgen_jax.config.loop import LoopConfig
from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError
from xgen_jax.parallel.memory import OUT_OF_MEMORY, format_gb, program_bytes
from xgen_jax.parallel.sharding import replicated
from xgen_jax.training.state import TrainState, make_update
from xgen_jax.training.tasks.base import Arrays, Task
from xgen_jax.typing import Params


def jit_update(
    task: Task,
    optimizer: optax.GradientTransformation,
    loop: LoopConfig,
    mesh: Mesh,
    shardings: TrainState,
) -> jax.stages.Wrapped:
    """Jit the update of a run; the state is donated, the metrics are replicated.

    A sixth argument, one number a device, gives the metric "stop", the largest of them: all
    processes learn in the same step that one of them was asked to stop.
    """
    skip = loop.skip_non_finite > 0
    update = make_update(task, optimizer, loop.seed, loop.ema_decay, loop.accumulate, skip)

    def step(state, arrays, sample_id_B, frozen=None, place=None, stop=None):
        state, metrics = update(state, arrays, sample_id_B, frozen, place)
        return state, metrics if stop is None else {**metrics, "stop": jnp.max(stop)}

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def abstract_arguments(
    task: Task, arrays: Arrays, bucket: Bucket, sharding: NamedSharding
) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Return the shapes of (prepared arrays, sample ids) of a bucket, given those of any other."""
    ids = jax.ShapeDtypeStruct((bucket.batch_size,), np.uint32)
    shapes = task.abstract_batch(arrays, bucket), ids
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def compile_ahead(
    update: jax.stages.Wrapped,
    state: Any,
    arguments: dict[Bucket, tuple],
    frozen: Params = None,
    stop: jax.ShapeDtypeStruct | None = None,
) -> dict[Bucket, Callable]:
    """Compile the step of each bucket, and print a line on stderr for each.

    Args:
      update: see `jit_update`.
      state, frozen: shapes of a `TrainState` and of the frozen parameters, with their shardings.
      arguments: of each bucket, see `abstract_arguments`.
      stop: shape of the last argument, where there are several processes.

    Returns:
      By bucket (state, arrays, sample ids, frozen, step, stop) -> (state, metrics); see
      `make_update` and `jit_update`.

    Raises:
      UserError: a bucket whose step does not fit on the devices.
    """

    def compiled(bucket, lowered, before):
        try:
            step = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if OUT_OF_MEMORY not in str(error):
                raise
            raise UserError(
                f"the step of bucket {bucket.name}, batch {bucket.batch_size}, does not fit: "
                f"{error}; make its batch smaller, use more devices, or raise loop.accumulate"
            ) from error
        return step, time.monotonic() - before

    cores = len(os.sched_getaffinity(0))
    with concurrent.futures.ThreadPoolExecutor(min(len(arguments), cores)) as pool:
        running = {}
        for bucket, shapes in arguments.items():
            before = time.monotonic()
            lowered = update.lower(state, *shapes, frozen, state.step, stop)
            running[pool.submit(compiled, bucket, lowered, before)] = bucket
        steps = {}
        for done in concurrent.futures.as_completed(running):
            bucket = running[done]
            steps[bucket], compile_s = done.result()
            size = f"{format_gb(program_bytes(steps[bucket]))} a device"
            print(
                f"compiled {bucket.name}, batch {bucket.batch_size}: {compile_s:.1f} s, {size}",
                file=sys.stderr,
            )
    return steps
