"""Devices to compile for: their names, their memory, and what is not known."""

import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from xgen_jax.errors import UserError
from xgen_jax.parallel.device_figures import GPUS, TPUS
from xgen_jax.parallel.devices import chips, domains, memory_limit, named_devices, peak_of

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
    assert named_devices("cpu:8") == jax.devices("cpu")[:8]
    assert memory_limit(named_devices("cpu")[0]) is None
    assert peak_of(named_devices("cpu")[0]) is None


@pytest.mark.parametrize(
    ("topology", "slices", "message"),
    [
        ("gpu", 1, "gpu='' is not known; choose one of 4070, 4090, a100, h100"),
        ("gpu:h1000", 1, r"gpu='h1000' is not known .did you mean 'h100'"),
        ("gpu:h100:0", 1, "'gpu:h100:0' names no devices; write gpu:4090 or gpu:h100:8"),
        ("gpu:h100:1:1", 1, "names no devices"),
        ("gpu:h100:12", 1, "hosts have 8 GPUs; write gpu:h100:8 or gpu:h100:16"),
        ("gpu:h100:8", 2, "slices=2 is for TPUs"),
        ("v5p:2x2x1", 0, "slices=0 is for TPUs, 1 or more"),
        ("cpu:9", 1, "JAX_NUM_CPU_DEVICES=9 in the environment .*; this process has 8"),
        ("cpu:x", 1, "'cpu:x' names no devices; write cpu or cpu:8"),
        (
            "v9:2x2",
            1,
            "topology='v9' is not known.*choose one of v4, v5e, v5p, v6e, tpu7x, gpu:4070",
        ),
        ("v5p:3x3x3", 1, "no slice 'v5p:3x3x3'; v5p has v5p:1x1x1, .*multiples of 4 up to 6144"),
        ("v5p:4x4", 1, "no slice 'v5p:4x4'"),
        ("v5p:16x16x32", 1, "no slice"),
        ("v5e:4x2", 1, "no slice 'v5e:4x2'; v5e has v5e:1x1, v5e:2x2, .*, v5e:16x16"),
        ("v5e", 1, "no slice 'v5e'"),
    ],
)
def test_devices_that_are_not_known_are_refused(topology, slices, message):
    with pytest.raises(UserError, match=message):
        named_devices(topology, slices)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="the TPU's compiler is installed"
)
def test_a_missing_compiler_is_named():
    with pytest.raises(UserError, match=r"pip install xgen_jax\[plan\]"):
        named_devices("v5p:2x2x1")


def test_the_figures_of_a_device_are_its_part_of_the_chip():
    for name, devices in {"v5p": 1, "tpu7x": 2, "v4": 2}.items():
        tpu = TPUS[name]
        assert tpu.peak.bf16_tflops * devices == tpu.chip.bf16_tflops
        assert tpu.peak.network_gb_s * devices == tpu.chip.network_gb_s
        assert chips(_device(tpu.device_kind), 16) == 16 // devices
    h100 = GPUS["h100"].peak
    assert h100.flops("bfloat16") == 989e12
    assert h100.flops("float32") == h100.flops("bfloat16") / 2
    assert peak_of(_device(GPUS["h100"].name)) == h100
    # The compiler's name is longer than the driver's.
    assert GPUS["h200"].name != "NVIDIA H200"
    assert peak_of(_device("NVIDIA H200")) == GPUS["h200"].peak
    assert peak_of(_device("NVIDIA H100 PCIe")) is None
    assert memory_limit(_device("TPU v5 lite")) == int(15.75 * 2**30)


def test_slices_and_hosts_are_domains():
    gpus = [_device("NVIDIA H100 80GB HBM3", "gpu")] * 16
    assert domains(gpus) == [0] * 8 + [1] * 8
    tpus = [_device("TPU v5", "tpu", number) for number in (0, 0, 1, 1)]
    assert domains(tpus) == [0, 0, 1, 1]
    assert domains(jax.devices("cpu")[:2]) == [0, 0]


def _device(kind, platform="tpu", slice_index=None):
    return types.SimpleNamespace(device_kind=kind, platform=platform, slice_index=slice_index)


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
