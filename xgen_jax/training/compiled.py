"""Compiling train steps before the first of them: one a bucket, for the devices at hand or for a
slice far away.

A step is lowered from shapes alone, so nothing is read and nothing computed. Lowering is Python and
one after another; compiling releases the interpreter and runs in threads.
"""

import concurrent.futures
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError
from xgen_jax.parallel.memory import OUT_OF_MEMORY, format_gb, program_bytes
from xgen_jax.typing import Params


def abstract_arrays(
    objective, arrays, bucket: Bucket, sharding: NamedSharding
) -> tuple[Any, jax.ShapeDtypeStruct]:
    """Shapes of (prepared arrays, sample ids) of a bucket, out of the prepared arrays of any
    other."""
    shapes = (
        objective.resized(arrays, bucket),
        jax.ShapeDtypeStruct((bucket.batch_size,), np.uint32),
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def compile_ahead(
    update: Callable, state: Params, arrays: dict[Bucket, tuple], frozen: Params = None
) -> dict[Bucket, Callable]:
    """The compiled step of each bucket, (state, arrays, sample ids, frozen) -> (state, metrics); a
    line on stderr each.

    Args:
      update: a jitted `training.state.make_update`.
      state, frozen: shapes with their shardings.
      arrays: of each bucket, see `abstract_arrays`.

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
                f"the step of bucket {bucket.name}, batch {bucket.batch_size}, does not fit: {error}; make its batch "
                "smaller, use more devices, or raise loop.accumulate"
            ) from error
        return step, time.monotonic() - before

    with concurrent.futures.ThreadPoolExecutor(
        min(len(arrays), len(os.sched_getaffinity(0)))
    ) as pool:
        running = {}
        for bucket, shapes in arrays.items():
            before = time.monotonic()
            lowered = update.lower(state, *shapes, frozen)
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
