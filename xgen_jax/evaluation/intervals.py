"""Intervals of measured fractions."""

import math

WILSON = (
    "95% interval of a fraction by Wilson's formula, each video for itself; it holds neither the "
    "spread between training runs nor that of captions that are sampled several times"
)


def wilson_interval(fraction: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Compute Wilson's interval of a proportion in `count` trials.

    Args:
      fraction: measured, in [0, 1].
      count: trials, 1 or more.
      z: standard deviations on either side; 1.96 is an interval of 95%.

    Returns:
      (low, high) in [0, 1], never empty.
    """
    centre = (fraction + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(fraction * (1 - fraction) / count + (z / (2 * count)) ** 2)
    )
    return max(0.0, centre - half), min(1.0, centre + half)
