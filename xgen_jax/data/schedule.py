"""Which bucket a step takes.

Steps are divided into periods. In each period a bucket has a whole number of steps in proportion to
its weight, in an order permuted by (seed, period).
"""

import functools
import math
import sys
from fractions import Fraction

import grain
import numpy as np

_MAX_PERIOD = 1000  # steps; weights in ratios finer than this are rounded
_STREAM = 0  # of randomness under the seed; `pipeline` has the next


class Schedule(grain.transforms.DatasetSelectionMap):
    """step -> (number of its bucket, earlier steps of that bucket), in O(1)."""

    def __init__(self, weights: list[float], seed: int):
        self.slots = slot_counts(weights)
        self._seed = seed
        self._order = functools.lru_cache(maxsize=64)(self._permuted)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        period, place = divmod(index, sum(self.slots))
        order, rank = self._order(period)
        bucket = int(order[place])
        return bucket, period * self.slots[bucket] + int(rank[place])

    def _permuted(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each step's bucket in a period, and its rank among the steps of that bucket."""
        order = np.repeat(np.arange(len(self.slots)), self.slots)
        order = np.random.default_rng((self._seed, _STREAM, period)).permutation(order)
        rank = np.empty_like(order)
        for bucket, count in enumerate(self.slots):
            rank[order == bucket] = np.arange(count)
        return order, rank


def slot_counts(weights: list[float]) -> list[int]:
    """Return each bucket's steps in a period: the exact ratio of the weights if 1000 steps can hold
    it, else rounded, at least 1."""
    fractions = [Fraction(weight).limit_denominator(_MAX_PERIOD) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    counts = [int(fraction * denominator) for fraction in fractions]
    if min(counts) > 0:
        counts = [count // math.gcd(*counts) for count in counts]
        if sum(counts) <= _MAX_PERIOD:
            return counts
    return [max(1, round(weight / sum(weights) * _MAX_PERIOD)) for weight in weights]
