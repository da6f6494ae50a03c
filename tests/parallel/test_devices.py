"""Devices to compile for: their names, their memory, and what is not known."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from xgen_jax.errors import UserError
from xgen_jax.parallel.devices import GPUS, memory_limit, named_devices

WITH_CUDA = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="CUDA's wheels are not installed"
)
COMPILE = """
import json
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from xgen_jax.parallel.devices import memory_limit, named_devices
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.memory import program_bytes
devices = named_devices("gpu:4090:2")
mesh = make_mesh(MeshConfig(), devices)
rows = jax.sharding.NamedSharding(mesh, P("fsdp"))
x = jax.ShapeDtypeStruct((4096, 4096), np.float32, sharding=rows)
program = jax.jit(lambda x: x @ x).lower(x).compile()
print(json.dumps([len(devices), devices[0].device_kind, memory_limit(devices[0]),
                  program_bytes(program)]))
"""


def test_the_cpu_is_this_hosts_and_has_no_known_limit():
    assert named_devices("cpu") == jax.devices("cpu")[:1]
    assert memory_limit(named_devices("cpu")[0]) is None


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("gpu", "gpu='' is not known; choose one of 4070, 4090, a100, h100"),
        ("gpu:h1000", r"gpu='h1000' is not known .did you mean 'h100'"),
        ("gpu:h100:0", "'gpu:h100:0' names no GPUs; write gpu:4090 or gpu:h100:8"),
        ("gpu:h100:1:1", "names no GPUs"),
        ("v9:2x2", "cannot compile for the slice 'v9:2x2'"),
    ],
)
def test_devices_that_are_not_known_are_refused(topology, message):
    with pytest.raises(UserError, match=message):
        named_devices(topology)


def test_a_gpus_figures_are_what_the_compiler_takes():
    h100 = GPUS["h100"].target()
    for line in (
        "core_count: 132",
        "shared_memory_per_core: 233472",
        "shared_memory_per_block_optin: 232448",
        "l2_cache_size: 52428800",
        "memory_bandwidth: 3352000000000",
        "cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }",
    ):
        assert line in h100
    assert "major: 8 minor: 9 feature_extension: NONE" in GPUS["4090"].target()


@pytest.mark.slow
@WITH_CUDA
def test_a_program_is_compiled_for_gpus_without_one():
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    number, kind, limit, size = json.loads(done.stdout.splitlines()[-1])
    assert (number, kind) == (2, "NVIDIA GeForce RTX 4090")
    assert limit == 18 * 2**30
    # Half of the argument, half of the product, and all of the argument as one factor.
    assert 2 * 2**25 < size < 6 * 2**26
