"""The source of clips that the pipeline asks: an interface, with a default for what most lack."""

import abc
import math
import pathlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError

SPLITS = ("train", "held_out", "all")  # of the clips of a source
# "caption": str, "fps": float, and arrays: "video", or "latents" with, where they were stored,
# "text" (n, D), the embeddings of the caption's n tokens.
Sample = dict[str, Any]


class Source(abc.ABC):
    """Clips by index, with nothing remembered between calls.

    Attributes:
      name: of the kind of source, for messages.
      made_by: fingerprints of the networks that made the samples: {} for pixels, "embedder" and
        perhaps "text_encoder" for latents.
      bucket_names: the only buckets that `read` takes, as `Bucket.name`; None for any size.
      path: the folder that it reads; None where it reads none.
    """

    name: ClassVar[str]
    made_by: Mapping[str, str] = types.MappingProxyType({})
    bucket_names: tuple[str, ...] | None = None
    path: pathlib.Path | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of clips."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a hex digest of everything that decides what `read` returns."""

    @abc.abstractmethod
    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> Sample:
        """Return clip `index` at frames x height x width pixels.

        A pure function of its arguments, safe to call from several threads; every random choice
        comes from `rng`.

        Returns:
          "caption"; "fps", frames a second, 0 where it is not known; and "video", uint8
          (frames, height, width, 3), or "latents", float32 (t, h, w, c), of a clip of that size.
          All samples of a source have the same keys.
        """

    def read_together(
        self,
        indices: Sequence[int],
        rngs: Sequence[np.random.Generator],
        frames: int,
        height: int,
        width: int,
    ) -> list[Sample | UserError]:
        """Return what `read` gives for each of several clips of one file (see `where`), or the
        error that it raises. By default they are read one after another."""
        samples: list[Sample | UserError] = []
        for index, rng in zip(indices, rngs, strict=True):
            try:
                samples.append(self.read(index, rng, frames, height, width))
            except UserError as error:
                samples.append(error)
        return samples

    def fit(self, buckets: Sequence[Bucket], seed: int) -> list[np.ndarray]:
        """Return for each bucket the clips that go to it, ascending; see `data.buckets.fit`.

        Raises:
          UserError: the clips have no sizes of their own.
        """
        raise UserError(
            f"clips of source {self.name!r} have no sizes of their own that would fit a bucket; "
            "leave out data.fit (--stage, when encoding)"
        )

    def extents(self) -> np.ndarray | None:
        """Return (frames, height, width) of each clip as it is stored, at the rate at which clips
        are sampled, int64 (N, 3); None where clips have any size, or it is not known."""
        return None

    def clips_for(self, bucket: Bucket) -> np.ndarray | None:
        """Return the clips that a bucket can have without `fit`, ascending; None for all."""
        del bucket

    def clip_bytes(self, bucket: Bucket) -> int:
        """Return about how many bytes of memory a clip of a bucket takes; by default, its
        pixels."""
        return math.prod((*bucket.shape, 3))

    def file_starts(self, buckets: Sequence[Bucket]) -> list[np.ndarray] | None:
        """Return for each bucket the first clip of each file that its clips are read from,
        ascending; None where all files stay open, or a clip is a file, so that clips may be read in
        any order."""
        del buckets

    def rates(self) -> dict[float, int]:
        """Return the number of clips by their frames a second; {} where they are not known. Images
        do not count."""
        return {}

    def held_out_clips(self) -> np.ndarray:
        """Return those of these clips that training does not see, ascending; none by default."""
        return np.zeros(0, np.int64)

    def report(self) -> str:
        """Return what could not be used so far, in lines of words; empty if all could."""
        return ""

    def where(self, index: int) -> str:
        """Return the file that clip `index` comes from; empty where there is none."""
        del index
        return ""

    def identity(self, index: int) -> str:
        """Return a word for what clip `index` is cut from, captions apart: equal words mean equal
        clips in data sets that differ elsewhere. Empty where the number alone says it."""
        del index
        return ""

    def caption(self, index: int, rng: np.random.Generator) -> str | None:
        """Return the caption that `read` gives with the same `rng`; None where only reading the
        clip tells."""
        del index, rng
        return None

    def captions(self) -> Iterator[tuple[str, str]]:
        """Yield (where it stands, caption) for a check of all captions before training.

        Only what is known without reading clips: a source may yield none, or only its longest.
        """
        return iter(())


def choose_caption(captions: Sequence[str], rng: np.random.Generator) -> str:
    """Return one of the captions of a clip, by chance where there are several."""
    return captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]
