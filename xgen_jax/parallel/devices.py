"""Devices that a program can be compiled for without having them: slices of TPUs, and GPUs.

The compilers come with the packages of `pip install xgen_jax[plan]` (TPU) and `xgen_jax[gpu]`.
"""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from xgen_jax.environment import CHANNELS_LAST, knows_channels_last
from xgen_jax.errors import UserError, choose
from xgen_jax.parallel.device_figures import GPU, GPUS, TPUS, Peak

# Triton's matrix products are tuned on the device; without it some shapes have no tiling.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
if knows_channels_last():  # as the commands ask for it
    COMPILER_OPTIONS["gpu"][CHANNELS_LAST] = True
# Fraction of a GPU's memory that JAX reserves, unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
RESERVED = 0.75
GPUS_PER_HOST = 8


def named_devices(topology: str, slices: int = 1) -> Sequence[Any]:
    """Return devices to compile for, without the hardware.

    Args:
      topology: of a slice of TPUs, generation and chips along each axis, "v5p:4x4x4"; of GPUs,
        "gpu:4090" or "gpu:h100:8", of which hosts have 8; or of this host's CPU, "cpu" or "cpu:8".
      slices: of TPUs, joined by the network of the data center.

    Raises:
      UserError: devices that are not known, or a compiler that is not installed.
    """
    kind, *rest = topology.split(":")
    if slices < 1 or (slices > 1 and kind not in TPUS):
        raise UserError(f"slices={slices} is for TPUs, 1 or more; {topology!r} has none")
    if kind == "cpu":
        return _cpus(topology, *rest)
    if kind == "gpu":
        return _gpus(topology, *rest)
    return _tpus(topology, slices)


def memory_limit(device: Any) -> int | None:
    """Return the bytes of a device that programs may use; None if that is not known.

    Of a GPU these are what JAX reserves by default.
    """
    if (gpu := _gpu(device)) is not None:
        return int(gpu.memory_gib * RESERVED * 2**30)
    for tpu in TPUS.values():
        if tpu.device_kind == device.device_kind:
            return int(tpu.limit_gib * 2**30)
    return None


def peak_of(device: Any) -> Peak | None:
    """Return the figures of a device; None if they are not known, as of a CPU."""
    named = {tpu.device_kind: tpu for tpu in TPUS.values()}
    figures = _gpu(device) or named.get(device.device_kind)
    return None if figures is None else figures.peak


def _gpu(device: Any) -> GPU | None:
    """Return the figures of a GPU; None of other devices. The driver calls some by the beginning of
    their name: "NVIDIA H200"."""
    known = (gpu for gpu in GPUS.values() if f"{gpu.name} ".startswith(f"{device.device_kind} "))
    return next(known, None)


def named_peak(topology: str) -> Peak:
    """Return the figures of one device of a topology, see `named_devices`; no compiler is needed.

    Raises:
      UserError: devices whose figures are not known, such as CPUs.
    """
    kind, _, rest = topology.partition(":")
    name = f"gpu:{rest.partition(':')[0]}" if kind == "gpu" else kind
    known = TPUS | {f"gpu:{gpu}": figures for gpu, figures in GPUS.items()}
    if name not in known:
        raise UserError(
            f"the peak of {topology!r} is not known; known are those of {', '.join(known)}"
        )
    return known[name].peak


def chips(device: Any, number: int) -> int:
    """Return how many chips a number of devices are, as they are rented."""
    of_a_chip = {tpu.device_kind: tpu.devices for tpu in TPUS.values()}
    return max(1, number // of_a_chip.get(device.device_kind, 1))


def domains(devices: Sequence[Any]) -> list[int]:
    """Return, for each device, the number of the slice or the host whose links it shares."""
    if devices[0].platform == "gpu":
        return [place // GPUS_PER_HOST for place in range(len(devices))]
    return [getattr(device, "slice_index", None) or 0 for device in devices]


def _number(topology: str, text: str, example: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"{topology!r} names no devices; write {example}")
    return int(text)


def _cpus(topology: str, number: str = "1", *more: str) -> Sequence[Any]:
    count = _number(topology, ":".join((number, *more)), "cpu or cpu:8")
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"{topology} needs JAX_NUM_CPU_DEVICES={count} in the environment before jax starts; "
            f"this process has {len(devices)}"
        )
    return devices[:count]


def _tpus(topology: str, slices: int) -> Sequence[Any]:
    name, colon, shape = topology.partition(":")
    if name not in TPUS:
        known = (*TPUS, *(f"gpu:{gpu}" for gpu in GPUS), "cpu")
        choose("topology", name, known)
    tpu = TPUS[name]
    if not re.fullmatch(r"\d+(x\d+)*", shape) or not tpu.has(shape):
        listed = ", ".join(f"{name}:{each}" for each in tpu.shapes())
        larger = f", and multiples of 4 up to {tpu.most_chips} chips" if tpu.dims == 3 else ""
        raise UserError(f"there is no slice {topology!r}; {name} has {listed}{larger}")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(map(int, shape.split("x"))) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # the default is a host of 2x2x1
    # Read when libtpu is loaded, for its compiler alone: several processes of a host may do that,
    # and the host need not be one of Google's.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot compile for the slice {topology!r} ({_reason(error)}); it needs the TPU's "
            "compiler: pip install xgen_jax[plan]"
        ) from error


def _gpus(topology: str, name: str = "", number: str = "1", *more: str) -> Sequence[Any]:
    """Return the GPUs of "gpu:NAME" or "gpu:NAME:NUMBER"."""
    gpu = GPUS[choose("gpu", name, GPUS)]
    count = _number(topology, ":".join((number, *more)), "gpu:4090 or gpu:h100:8")
    hosts, rest = divmod(count, GPUS_PER_HOST)
    if hosts and rest:
        raise UserError(
            f"{topology!r}: hosts have {GPUS_PER_HOST} GPUs; write gpu:{name}:"
            f"{hosts * GPUS_PER_HOST} or gpu:{name}:{(hosts + 1) * GPUS_PER_HOST}"
        )
    layout = f"1x{hosts}x{GPUS_PER_HOST}" if hosts and not rest else f"1x1x{count}"
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=gpu.target(), topology=layout
        ).devices
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot compile for {topology!r} ({_reason(error)}); it needs the GPU's compiler: "
            "pip install xgen_jax[gpu], on Linux"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
