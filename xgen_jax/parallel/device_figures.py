"""Public figures of TPUs and GPUs: memory, arithmetic, bandwidths, and what a compiler needs.

They are those of the makers' pages: TPUs docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x),
GPUs the data sheets of NVIDIA (dense, not sparse), and for the compiler the specifications in
openxla/xla, xla/backends/gpu/target_config/specs.
"""

import dataclasses
import math
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    """What one device, as JAX counts them, can do at most.

    Attributes:
      bf16_tflops, f32_tflops: 1e12 operations a second of matrix products, in the precision that
        JAX multiplies in by default: float32 as TF32 on GPUs, as bfloat16 on TPUs.
      memory_gb_s: of its own memory, in 1e9 bytes a second.
      link_gb_s: sent to the devices of its slice or host, at most, all links together.
      network_gb_s: its part of its host's network, to other slices or hosts.
    """

    bf16_tflops: float
    f32_tflops: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float

    def flops(self, dtype: str) -> float:
        """Return the operations a second in a dtype of computation."""
        return 1e12 * (self.f32_tflops if dtype == "float32" else self.bf16_tflops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TPU:
    """A generation of TPUs.

    Attributes:
      device_kind: as JAX has it.
      dims: of its torus, 2 or 3.
      most_chips: of a slice.
      devices: of a chip.
      limit_gib: memory of a device that programs may use, as the compiler's messages have it.
      chip: the figures of a chip.
    """

    device_kind: str
    dims: int
    most_chips: int
    devices: int = 1
    limit_gib: float
    chip: Peak

    @property
    def peak(self) -> Peak:
        """The figures of a device: its part of the chip."""
        values = dataclasses.asdict(self.chip)
        return Peak(**{name: value / self.devices for name, value in values.items()})

    def shapes(self) -> Iterator[str]:
        """Yield the slices that can be had, from one chip on; of three dims those up to a cube of
        8x8x8, larger ones being all of multiples of 4."""
        if self.dims == 2:
            yield from ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
            return
        yield from ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
        yield from ("4x4x4", "4x4x8", "4x8x8", "8x8x8")

    def has(self, shape: str) -> bool:
        """Whether there are slices of a shape."""
        sides = [int(side) for side in shape.split("x")]
        cubes = self.dims == 3 and sides == sorted(sides) and not any(side % 4 for side in sides)
        return shape in self.shapes() or (
            cubes and len(sides) == 3 and math.prod(sides) <= self.most_chips
        )


def _chip(tflops: float, memory_gb_s: float, link_gb_s: float, network_gb_s: float) -> Peak:
    return Peak(
        bf16_tflops=tflops,
        f32_tflops=tflops,
        memory_gb_s=memory_gb_s,
        link_gb_s=link_gb_s,
        network_gb_s=network_gb_s,
    )


# Links: half of the "bidirectional inter-chip interconnect bandwidth" of a chip. Network: "data
# center network bandwidth"; none is published for v4, which has v5p's here.
TPUS = {
    "v4": TPU(
        device_kind="TPU v4",
        dims=3,
        most_chips=4096,
        devices=2,
        limit_gib=15.25,
        chip=_chip(275, 1228, 300, 6.25),
    ),
    "v5e": TPU(
        device_kind="TPU v5 lite",
        dims=2,
        most_chips=256,
        limit_gib=15.75,
        chip=_chip(197, 819, 200, 3.125),
    ),
    "v5p": TPU(
        device_kind="TPU v5",
        dims=3,
        most_chips=6144,
        limit_gib=95.74,
        chip=_chip(459, 2765, 600, 6.25),
    ),
    "v6e": TPU(
        device_kind="TPU v6 lite",
        dims=2,
        most_chips=256,
        limit_gib=31.25,
        chip=_chip(918, 1638, 400, 12.5),
    ),
    "tpu7x": TPU(
        device_kind="TPU7x",
        dims=3,
        most_chips=9216,
        devices=2,
        limit_gib=94.75,
        chip=_chip(2307, 7380, 600, 12.5),
    ),
}


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
      bf16_tflops, tf32_tflops: dense matrix products with sums in float32, in 1e12 a second.
      link_gb_s: NVLink, or 16 lanes of PCIe 4, in one direction.
      network_gb_s: the adapter of a GPU in the maker's servers; of cards that are sold for
        workstations an eighth of 100 Gb/s, an assumption.
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
    bf16_tflops: float
    tf32_tflops: float
    link_gb_s: float = 32
    network_gb_s: float = 1.5625

    @property
    def peak(self) -> Peak:
        """The figures of a device."""
        return Peak(
            bf16_tflops=self.bf16_tflops,
            f32_tflops=self.tf32_tflops,
            memory_gb_s=self.bandwidth_gb_s,
            link_gb_s=self.link_gb_s,
            network_gb_s=self.network_gb_s,
        )

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
        bf16_tflops=58.3,
        tf32_tflops=29.1,
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
        bf16_tflops=165.2,
        tf32_tflops=82.6,
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
        bf16_tflops=312,
        tf32_tflops=156,
        link_gb_s=300,
        network_gb_s=25,
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
        bf16_tflops=989,
        tf32_tflops=494.5,
        link_gb_s=450,
        network_gb_s=50,
    ),
    "h200": GPU(
        name="NVIDIA H200 141GB HBM3e",
        capability=(9, 0),
        cores=132,
        memory_gib=141.0,
        bandwidth_gb_s=4800,
        l2_mib=50,
        clock_ghz=1.98,
        shared_kib=228,
        threads=2048,
        bf16_tflops=989,
        tf32_tflops=494.5,
        link_gb_s=450,
        network_gb_s=50,
    ),
    "b200": GPU(
        name="NVIDIA B200",
        capability=(10, 0),
        cores=148,
        memory_gib=178.36,
        bandwidth_gb_s=7672,
        l2_mib=126,
        clock_ghz=1.965,
        shared_kib=228,
        threads=2048,
        bf16_tflops=2250,
        tf32_tflops=1125,
        link_gb_s=900,
        network_gb_s=50,
    ),
    "l40s": GPU(
        name="NVIDIA L40S",
        capability=(8, 9),
        cores=142,
        memory_gib=44.99,
        bandwidth_gb_s=864,
        l2_mib=96,
        clock_ghz=2.52,
        shared_kib=100,
        threads=1536,
        bf16_tflops=362,
        tf32_tflops=183,
    ),
}
