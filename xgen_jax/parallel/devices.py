"""Devices that a program can be compiled for without having them: slices of TPUs, and GPUs.

The compilers come with the packages of `pip install xgen_jax[plan]` (TPU) and `xgen_jax[gpu]`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from xgen_jax.errors import UserError, choose

# Memory of a TPU that programs may use, in GiB (2^30 bytes) as in the TPU compiler's messages.
TPU_LIMITS_GIB = {
    "TPU v4": 15.25,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.75,
}
# Triton's matrix products are tuned on the device; without it some shapes have no tiling.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
# Fraction of a GPU's memory that JAX reserves, unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
RESERVED = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPU:
    """An NVIDIA GPU's public figures, from which its compiler chooses kernels and layouts.

    Attributes:
      name: as the driver has it.
      capability: (major, minor) of CUDA.
      cores: streaming multiprocessors.
      memory_gib: in 2^30 bytes.
      bandwidth_gb_s: of the memory, in 1e9 bytes a second.
      l2_mib: cache, in 2^20 bytes.
      clock_ghz: at boost.
      shared_kib: shared memory of a core, in 2^10 bytes.
      threads: of a core.
      fpus: 32-bit units of a core.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    memory_gib: float
    bandwidth_gb_s: float
    l2_mib: int
    clock_ghz: float
    shared_kib: int
    threads: int
    fpus: int = 128

    def target(self) -> str:
        """Return the figures in the form that the compiler takes (XLA's GpuTargetConfigProto)."""
        major, minor = self.capability
        extension = "ACCELERATED_FEATURES" if major >= 9 and minor == 0 else "NONE"
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_kib * 1024}
  shared_memory_per_block_optin: {(self.shared_kib - 1) * 1024}
  threads_per_core_limit: {self.threads}
  core_count: {self.cores}
  fpus_per_core: {self.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(self.bandwidth_gb_s * 1e9)}
  l2_cache_size: {self.l2_mib * 2**20}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {int(self.memory_gib * 2**30)}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.name}"
"""


GPUS = {
    "4070": GPU(
        name="NVIDIA GeForce RTX 4070",
        capability=(8, 9),
        cores=46,
        memory_gib=12,
        bandwidth_gb_s=504,
        l2_mib=36,
        clock_ghz=2.48,
        shared_kib=100,
        threads=1536,
    ),
    "4090": GPU(
        name="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        cores=128,
        memory_gib=24,
        bandwidth_gb_s=1008,
        l2_mib=72,
        clock_ghz=2.52,
        shared_kib=100,
        threads=1536,
    ),
    "a100": GPU(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        memory_gib=79.25,
        bandwidth_gb_s=2039,
        l2_mib=40,
        clock_ghz=1.41,
        shared_kib=164,
        threads=2048,
        fpus=64,
    ),
    "h100": GPU(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        memory_gib=79.11,
        bandwidth_gb_s=3352,
        l2_mib=50,
        clock_ghz=1.98,
        shared_kib=228,
        threads=2048,
    ),
}


def named_devices(topology: str) -> Sequence[Any]:
    """Return devices to compile for, without the hardware.

    Args:
      topology: of a slice of TPUs, generation and chips along each axis, "v5p:4x4x4"; of GPUs of
        one host, "gpu:4090" or "gpu:h100:8"; or "cpu", this host's.

    Raises:
      UserError: devices that are not known, or a compiler that is not installed.
    """
    kind, *rest = topology.split(":")
    if topology == "cpu":
        return jax.devices("cpu")[:1]
    if kind == "gpu":
        return _gpus(topology, *rest)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot compile for the slice {topology!r} ({_reason(error)}); slices are written "
            "v5p:2x2x1, v5e:4x4, v6e:4x4, and need libtpu: pip install xgen_jax[plan]"
        ) from error


def memory_limit(device: Any) -> int | None:
    """Return the bytes of a device that programs may use; None if that is not known.

    Of a GPU these are what JAX reserves by default.
    """
    for gpu in GPUS.values():
        if gpu.name == device.device_kind:
            return int(gpu.memory_gib * RESERVED * 2**30)
    limit = TPU_LIMITS_GIB.get(device.device_kind)
    return None if limit is None else int(limit * 2**30)


def _gpus(topology: str, *parts: str) -> Sequence[Any]:
    """Return the GPUs of "gpu:NAME" or "gpu:NAME:NUMBER"."""
    name, number = (*parts, "1")[:2] if parts else ("", "1")
    if len(parts) > 2 or not number.isdecimal() or not int(number):
        raise UserError(f"{topology!r} names no GPUs; write gpu:4090 or gpu:h100:8")
    gpu = GPUS[choose("gpu", name, GPUS)]
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=gpu.target(), topology=f"1x1x{number}"
        ).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot compile for {topology!r} ({_reason(error)}); it needs the GPU's compiler: "
            "pip install xgen_jax[gpu], on Linux"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
