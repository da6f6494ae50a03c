"""How much memory a program takes, and the longest chunk that fits a budget.

No formula stands between the two: a chunk is compiled before it is run anyway, and what XLA then
reports is the prediction. A few compilations find the longest chunk that fits; running it compiles
it once more, at no cost where a compilation cache is set up, as `launch/` does.
"""

from collections.abc import Callable

import jax

GB = 1e9


def program_bytes(compiled) -> int:
    """Bytes on one device of a compiled program: arguments, results and temporaries, as XLA reports
    them."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def largest_chunk(measure: Callable[[int], int], most: int, budget: float) -> int:
    """The most latent frames, up to `most`, whose chunk takes no more bytes than the budget; 0 if
    not even one does.

    Twice as long until it does not fit, then by halves: about 2 log2(most) measurements.

    Args:
      measure: latent frames of a chunk -> bytes that XLA reports; more for longer chunks.
      most: latent frames of the clip.
      budget: bytes.
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


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def peak_bytes(step: jax.stages.Compiled) -> int:
    """Bytes of a device's memory that a compiled program needs at its peak, arguments and results
    included; 0 where the backend does not say.
    """
    memory = step.memory_analysis()
    if memory is None:
        return 0
    return memory.peak_memory_in_bytes or (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
    )
