"""How much memory a program takes, and the longest chunk that fits a budget.

What XLA reports for a few short chunks is extended in a straight line: what does not depend on the length (parameters,
histories) is the intercept, what does (activations, frames in and out) the slope. The chunk that is chosen is compiled
before it is run, so the line is never trusted further than XLA's own figure.
"""

from collections.abc import Callable

import numpy as np

GB = 1e9
PROBES = (1, 4, 8)  # latent frames; XLA fuses one frame otherwise than several, so two points would not do


def program_bytes(compiled) -> int:
    """Bytes on one device of a compiled program: arguments, results and temporaries, as XLA reports them."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def predictor(measure: Callable[[int], int]) -> Callable[[int], float]:
    """Latent frames of a chunk -> its bytes, from measurements of short chunks."""
    bytes_at = [measure(n) for n in PROBES]
    slope = (bytes_at[-1] - bytes_at[-2]) / (PROBES[-1] - PROBES[-2])
    return lambda n: float(np.interp(n, PROBES, bytes_at)) + slope * max(0, n - PROBES[-1])


def largest_chunk(measure: Callable[[int], int], most: int, budget: float) -> int:
    """The most latent frames, up to `most`, whose chunk takes no more bytes than the budget; 0 if not even one does.

    Args:
      measure: latent frames of a chunk -> bytes that XLA reports.
      most: latent frames of the clip.
      budget: bytes.
    """
    if measure(1) > budget:
        return 0
    predict = predictor(measure)
    n = max(n for n in range(1, most + 1) if n == 1 or predict(n) <= budget)
    while n > 1 and measure(n) > budget:
        n -= 1
    return n
