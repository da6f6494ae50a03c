"""Several clips of each video, by number; each follows from its video, the seed and the shape."""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.batches import batches
from xgen_jax.data.sources.base import Source
from xgen_jax.errors import UserError
from xgen_jax.typing import Shape

# A clip's number, and the clip or the reason why it cannot be read.
NumberedClip = tuple[int, dict[str, Any] | str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberedClips:
    """Clips of a source: clip k of video i has number i x clips_per_video + k.

    Attributes:
      source: of the videos.
      clips_per_video: at random places.
      seed: of the places and crops.
    """

    source: Source
    clips_per_video: int
    seed: int

    def __len__(self) -> int:
        return len(self.source) * self.clips_per_video

    def numbers(self, videos: np.ndarray) -> np.ndarray:
        """Return the numbers of the clips of some videos."""
        first = videos * self.clips_per_video
        return (first[:, None] + np.arange(self.clips_per_video)).reshape(-1)

    def read(self, numbers: Sequence[int], shape: Shape) -> list[NumberedClip]:
        """Return clips of one file, or the reasons why they cannot be read."""
        indices = [number // self.clips_per_video for number in numbers]
        rngs = [self._rng(number, shape) for number in numbers]
        samples = self.source.read_together(indices, rngs, *shape)
        return [
            (number, str(sample))
            if isinstance(sample, UserError)
            else (number, {**sample, "identity": self.identity(number)})
            for number, sample in zip(numbers, samples, strict=True)
        ]

    def _runs(self, numbers: Sequence[int] | np.ndarray, most: int) -> Iterator[Sequence[int]]:
        """Divide clips into runs of one file, of `most` clips at most."""
        files = itertools.groupby(
            numbers, lambda number: self.source.where(number // self.clips_per_video)
        )
        for file, clips in files:
            yield from batches(list(clips), most if file else 1)

    def _rng(self, number: int, shape: Shape) -> np.random.Generator:
        # By what the video is where that is known, so that one more does not change the others.
        video, clip = divmod(number, self.clips_per_video)
        mark = self.source.identity(video)
        return np.random.default_rng((self.seed, int(mark, 16) if mark else video, clip, *shape))

    def identity(self, number: int) -> str:
        """Return the identity of a clip; see `Source.identity`."""
        video, clip = divmod(number, self.clips_per_video)
        mark = self.source.identity(video)
        return f"{mark}-{clip}" if mark else ""

    def caption(self, number: int, shape: Shape) -> str | None:
        """Return the caption that `read` gives, without reading the video."""
        video, _ = divmod(number, self.clips_per_video)
        return self.source.caption(video, self._rng(number, shape))

    def batches(
        self, numbers: Sequence[int] | np.ndarray, shape: Shape, batch_size: int
    ) -> Iterator[list[NumberedClip]]:
        """Yield (number, clip) in order, `batch_size` at a time; the next batch is read while the
        caller has this one. Clips of one file are read together, in as few runs as keep all threads
        at work."""
        threads = len(os.sched_getaffinity(0))
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        ahead: list = []
        try:
            for first in range(0, len(numbers) + batch_size, batch_size):
                runs = self._runs(numbers[first:][:batch_size], -(-batch_size // threads))
                reading = [pool.submit(self.read, run, shape) for run in runs]
                if ahead:
                    yield [clip for run in ahead for clip in run.result()]
                ahead = reading
        finally:
            pool.shutdown(cancel_futures=True)
