"""Memory that a compiled program needs, and the longest chunk that fits a budget.

There is no formula: a chunk is compiled before it runs anyway, and XLA's report is the prediction.
A few compilations find the longest chunk that fits; running it compiles it once more, at no cost
with a compilation cache, which `launch/` sets up.

Budgets and messages are in GB (1e9 bytes).
"""

from collections.abc import Callable

import jax

from xgen_jax.typing import Params

GB = 1e9
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of a JaxRuntimeError


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes on one device that a compiled program needs, with arguments and results.

    On a TPU this is the peak that its compiler reports, elsewhere the sum of arguments, results
    and temporaries, where a donated argument and its result count once; without what is in the
    memory of the host.

    Args:
      compiled: a program compiled for the devices of this process or for a topology.

    Returns:
      The bytes; 0 where the backend does not report them.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    # On other platforms the "peak" leaves temporaries out; on a TPU their sum is more than what is
    # in use at once. With arrays in the host's memory (libtpu 0.0.52) it has these instead.
    on_tpu = _platform(compiled) == "tpu" and not memory.host_temp_size_in_bytes
    if on_tpu and memory.peak_memory_in_bytes:
        return memory.peak_memory_in_bytes
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def tree_bytes(tree: Params) -> int:
    """Return the bytes of the arrays, or shapes, of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def format_gb(size: float) -> str:
    """Format a number of bytes as "3.14 GB" (1e9 bytes)."""
    return f"{size / GB:.3g} GB"


def largest_chunk(measure: Callable[[int], float], most: int, budget: float) -> int:
    """Find the most latent frames whose chunk fits a budget.

    The length is doubled until a chunk does not fit, then bisected: about 2 log2(most)
    measurements.

    Args:
      measure: latent frames of a chunk -> bytes that XLA reports; more for longer chunks.
      most: latent frames of the clip.
      budget: bytes.

    Returns:
      Latent frames, up to `most`; 0 if not even one fits.
    """
    fits, too_long = 0, None
    while fits < most:
        n = min(max(1, 2 * fits), most) if too_long is None else (fits + too_long) // 2
        if n == fits:
            break
        if measure(n) <= budget:
            fits = n
        else:
            too_long = n
    return fits


def _platform(compiled: jax.stages.Compiled) -> str:
    shardings = jax.tree.leaves(compiled.output_shardings)
    return next(iter(shardings[0].device_set)).platform if shardings else ""
