"""Settings of the process that must be in place before jax is loaded."""

import importlib.metadata
import importlib.util
import os
import sys

TUNABLES = "GLIBC_TUNABLES"
CHANNELS_LAST = "xla_gpu_force_conv_nhwc"
# XLA ends the process at a flag that it does not know: these versions know it.
_KNOW_CHANNELS_LAST = ("0.10.",)
_CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def ask_for_huge_pages() -> None:
    """Restart this process, once, with memory in pages of 2 MiB.

    Each run of a compiled program allocates its scratch memory again, and with pages of 4 KiB the
    kernel takes so long to map it that a step of a small transformer on CPU takes half as long
    again. The C library (glibc, Linux) reads the setting only when a process starts.

    Does nothing if the variable is set, on other systems, after jax is loaded, under a debugger, or
    if no file is run, because a notebook or standard input would be lost.
    """
    if sys.platform != "linux" or TUNABLES in os.environ or "jax" in sys.modules:
        return
    script = getattr(sys.modules["__main__"], "__file__", None) or ""
    if sys.gettrace() is not None or not os.path.isfile(script):
        return
    os.environ[TUNABLES] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def knows_channels_last() -> bool:
    """Whether the jaxlib of this environment has the flag `CHANNELS_LAST`."""
    return importlib.metadata.version("jaxlib").startswith(_KNOW_CHANNELS_LAST)


def prefer_channels_last() -> None:
    """Ask XLA for 3D convolutions with channels last on NVIDIA GPUs.

    By itself it lays out only 2D ones so, and transposes what goes into each 3D convolution and
    comes out of it. Does nothing without JAX for NVIDIA GPUs, or where XLA_FLAGS has the flag
    already; with a jaxlib that may not know it, it says so.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if CHANNELS_LAST in flags or not any(map(importlib.util.find_spec, _CUDA)):
        return
    if knows_channels_last():
        os.environ["XLA_FLAGS"] = f"{flags} --{CHANNELS_LAST}=true".strip()
    else:
        print(
            f"jaxlib {importlib.metadata.version('jaxlib')} may not know --{CHANNELS_LAST}, so "
            "autoencoders may be slower on this GPU; if it does, add it to XLA_FLAGS",
            file=sys.stderr,
        )


def compile_only(topology: str) -> None:
    """Set the variables of a process that compiles for devices which are not there.

    Args:
      topology: see `parallel.devices.named_devices`; of "cpu:8" jax gets that many CPU devices.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    kind, _, number = topology.partition(":")
    if kind == "cpu" and number.isdecimal():
        os.environ["JAX_NUM_CPU_DEVICES"] = number
