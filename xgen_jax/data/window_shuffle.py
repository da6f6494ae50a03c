"""Shuffles clips of more files than stay open: files at random, their clips within a window.

A global shuffle opens a file for nearly every clip once there are many. Here an epoch takes the
files in a permuted order, a window of them at a time, and permutes the clips of a window: a file is
opened once an epoch. Nothing is remembered: clip number `place` of the endless stream follows from
the seed, in time that does not depend on the number of clips.
"""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

_CACHED_EPOCHS = 4  # threads may be in two at once


@dataclasses.dataclass(frozen=True)
class _Epoch:
    """The files of an epoch in their order, and the windows that they are divided into.

    Attributes:
      files: their numbers, (F,).
      places: of the first clip of each in the epoch, (F,).
      edges: places at which windows begin, and the number of clips, (W + 1,).
      seeds: of the permutations within windows, (W,).
    """

    files: np.ndarray
    places: np.ndarray
    edges: np.ndarray
    seeds: np.ndarray


class WindowShuffle:
    """place -> (place, clip), each clip once an epoch; epoch e has places [e clips, (e + 1) clips).

    Args:
      starts: first clip of each file, ascending, the first is 0.
      clips: number of clips.
      window: files of a window at most. Windows have equal numbers of files, to one.
      seed: one or several whole numbers.

    Attributes:
      windows: of an epoch.
    """

    def __init__(self, starts: np.ndarray, clips: int, window: int, seed: Sequence[int]):
        self._starts, self._clips, self._seed = np.asarray(starts, np.int64), clips, tuple(seed)
        self._counts = np.diff(self._starts, append=clips)
        self.windows = -(-len(starts) // window)
        self._epoch = functools.lru_cache(maxsize=_CACHED_EPOCHS)(self._permuted)

    def __call__(self, place: int) -> tuple[int, int]:
        number, within = divmod(place, self._clips)
        epoch = self._epoch(number)
        window = int(np.searchsorted(epoch.edges, within, side="right")) - 1
        begin, end = int(epoch.edges[window]), int(epoch.edges[window + 1])
        within = begin + grain.experimental.index_shuffle(
            within - begin, max_index=end - begin - 1, seed=int(epoch.seeds[window]), rounds=4
        )
        turn = int(np.searchsorted(epoch.places, within, side="right")) - 1
        clip = self._starts[epoch.files[turn]] + within - epoch.places[turn]
        return place, int(clip)

    def _permuted(self, number: int) -> _Epoch:
        rng = np.random.default_rng((*self._seed, number))
        files = rng.permutation(len(self._starts))
        seeds = rng.integers(2**32, size=self.windows, dtype=np.uint32)
        places = np.concatenate([[0], np.cumsum(self._counts[files])])
        edges = places[np.arange(self.windows + 1) * len(files) // self.windows]
        return _Epoch(files, places[:-1], edges, seeds)
