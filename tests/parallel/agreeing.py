"""What `test_processes` runs in each of two processes; prints what it found as JSON."""

import json
import os
import signal
import sys

import jax
import numpy as np

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.parallel import agreement, arrays
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.processes import started
from xgen_jax.parallel.sharding import batch_sharding, replicated
from xgen_jax.training.fit import stop_votes


def make_pipeline(**part):
    """Make a pipeline of two buckets."""
    buckets = tuple(Bucket(frames=frames, height=16, width=16, batch_size=4) for frames in (5, 1))
    config = DataConfig(source=SyntheticConfig(num_clips=100), buckets=buckets, num_threads=0)
    return Pipeline(make_source(config), config, **part)


def message(call):
    """Return the message of the mistake that a call raises."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def fail_together(number, which):
    """Fail in some processes at the end of a block."""
    with agreement.together():
        if number in which:
            raise UserError("it is empty")


def take_one_device():
    """Ask for a part of a mesh that has the first process's device only."""
    with agreement.together():
        arrays.batch_part(make_mesh(MeshConfig(fsdp=1)))


def fail_before_a_gather(number):
    """Fail in the last process, while the first one asks for a value."""
    with agreement.together():
        if number == 1:
            raise UserError("it is empty")
        agreement.gather("asked")


def main(coordinator, number):
    found = {}
    with started(coordinator, 2, number, timeout_s=60) as first:
        print("what the first process says", file=sys.stderr)
        found["gather"] = agreement.gather({"process": number, "text": "ü" * (1 + 90 * number)})
        found["arrays"] = agreement.gather_arrays(np.full(2, number)).tolist()
        found["from_first"] = agreement.from_first(lambda: f"made by {number}")
        found["one fails"] = message(lambda: fail_together(number, [1]))
        found["all fail"] = message(lambda: fail_together(number, [0, 1]))
        found["before a gather"] = message(lambda: fail_before_a_gather(number))
        found["equal"] = message(lambda: agreement.check_equal({"a": {"b": 1}}))
        found["unequal"] = message(
            lambda: agreement.check_equal({"config": {"steps": 3 + number, "seed": 0}, "x": [1]})
        )

        mesh = make_mesh(MeshConfig())
        rows = np.arange(8.0).reshape(4, 2)
        spread = arrays.put({"rows": rows}, batch_sharding(mesh))["rows"]
        found["addressable"] = spread.is_fully_addressable
        found["fetched"] = arrays.fetch({"rows": spread, "sum": jax.jit(lambda x: x.sum())(spread)})
        found["fetched"] = {name: value.tolist() for name, value in found["fetched"].items()}
        key = arrays.put(jax.random.key(3), replicated(mesh))
        found["key"] = jax.random.key_data(key).addressable_data(0).tolist()

        found["part"] = arrays.batch_part(mesh)
        found["shared part"] = arrays.batch_part(make_mesh(MeshConfig(fsdp=1, tensor=2)))
        found["no device"] = message(take_one_device)

        index, count = found["part"]
        pipeline = make_pipeline(process_index=index, process_count=count)
        found["buckets"] = [pipeline.bucket(step).name for step in range(8)]
        found["sample ids"] = [pipeline.batch(step)["sample_id"].tolist() for step in range(4)]

        asked = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        largest = jax.jit(lambda votes: votes.max(), out_shardings=replicated(mesh))
        with jax.transfer_guard("disallow"):
            found["stop"] = int(jax.device_get(largest(stop_votes(mesh, asked))))
        found["first"] = first
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
