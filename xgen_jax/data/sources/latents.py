"""Clips that were encoded once, as a source."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from xgen_jax.data.array_records import OPEN_FILES
from xgen_jax.data.buckets import Bucket, shape_name
from xgen_jax.data.latent_shards import LatentReader
from xgen_jax.data.sources.base import SPLITS, Sample, Source
from xgen_jax.errors import UserError, choose


class LatentSource(Source):
    """A folder that `launch/encode.py` wrote, as a source of clips.

    Samples are "latents" float32 (t, h, w, c), "caption", "fps", and, where captions were embedded,
    "text" (n, D) in its stored dtype: the caption's own n tokens, without padding.

    Clip i is what the source that was encoded gave for its clip i. One that could not be read then,
    or was not encoded in the bucket, is replaced by the next that was, as in a folder of videos.

    Args:
      path: of the folder.
      split: "train" or "held_out" clips, or "all".
      text: give the embeddings of captions, where they are stored; a model that is conditioned on
        the captions themselves does without.

    Raises:
      UserError: a folder that is missing, not finished or damaged, see `LatentReader`; a split
        without a clip.
    """

    name = "latents"

    def __init__(self, path: str | os.PathLike, split: str = "all", text: bool = True):
        self.path = pathlib.Path(path)
        self._reader = LatentReader(path, text)
        self._split = choose("split", split, SPLITS)
        if split == "held_out" and not len(self._reader.held_out):
            raise UserError(
                f"{path} holds no held-out clips; encode the videos again with a larger "
                "--held_out_fraction, or give --config.loop.evaluate_every=0"
            )
        self.manifest = self._reader.manifest
        made_by = {name: self.manifest.get(name) for name in ("embedder", "text_encoder")}
        self.made_by = {name: mark for name, mark in made_by.items() if mark}
        self.bucket_names = tuple(self._reader.left_out)

    def __len__(self) -> int:
        return self.manifest["clips"]

    def fit(self, buckets: Sequence[Bucket], seed: int) -> list[np.ndarray]:
        """Return for each bucket the clips that were encoded for it; `seed` is not used, since the
        choice was made then."""
        del seed
        return [self._of_split(self._reader.clips(bucket.name)) for bucket in buckets]

    def clips_for(self, bucket: Bucket) -> np.ndarray | None:
        """Return the clips that could be read, ascending, of a bucket that does not have all."""
        if bucket.name not in self._reader.members and (
            self._split == "all" or not len(self._reader.held_out)
        ):
            return None
        return self._of_split(self._reader.clips(bucket.name))

    def clip_bytes(self, bucket: Bucket) -> int:
        """See `Source.clip_bytes`: latents of the first clip as float32, and the mean text."""
        sample = self.read(0, None, *bucket.shape)
        return sample["latents"].nbytes + self._reader.text_bytes(bucket.name)

    def file_starts(self, buckets: Sequence[Bucket]) -> list[np.ndarray] | None:
        """See `Source.file_starts`: the shards of these buckets."""
        starts = [self._reader.starts(bucket.name) for bucket in buckets]
        return starts if sum(map(len, starts)) > OPEN_FILES else None

    def _of_split(self, clips: np.ndarray) -> np.ndarray:
        if self._split == "all":
            return clips
        return clips[np.isin(clips, self._reader.held_out, invert=self._split == "train")]

    def rates(self) -> dict[float, int]:
        """See `Source.rates`: those of all splits, rounded; folders of older releases may not
        know."""
        rates: dict[float, int] = {}
        for rate, clips in self.manifest.get("rates", {}).items():
            rates[round(float(rate), 2)] = rates.get(round(float(rate), 2), 0) + clips
        if not rates and self.manifest.get("fps"):
            rates = {self.manifest["fps"] / self.manifest.get("stride", 1): len(self)}
        return {rate: clips for rate, clips in rates.items() if rate > 0}

    def held_out_clips(self) -> np.ndarray:
        """Return the clips that were held out of the folder that was encoded, ascending."""
        return self._reader.held_out

    def captions(self) -> Iterator[tuple[str, str]]:
        """Yield the longest caption, which the manifest names; none in folders that older releases
        wrote."""
        if longest := self.manifest.get("longest_caption"):
            bucket, clip = longest["bucket"], longest["clip"]
            record = self._reader.read(bucket, self._reader.place(bucket, clip))
            yield f"clip {clip} of {self.path}", record["caption"]

    def fingerprint(self) -> str:
        """Return a hex digest of the manifest, and so of every shard's bytes; the folder may
        move."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def read(
        self, index: int, rng: np.random.Generator | None, frames: int, height: int, width: int
    ) -> Sample:
        """Return the latents of clip `index` in the bucket of that size in pixels.

        `rng` is not used: the clip was cut when it was encoded.

        Raises:
          UserError: no bucket of that size; a damaged record, naming its file.
        """
        del rng
        reader, bucket = self._reader, shape_name((frames, height, width))
        if bucket not in reader.left_out:
            there = ", ".join(reader.left_out)
            raise UserError(
                f"{self.path} has no latents of {bucket} (frames x height x width); it has {there}"
            )
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        place = reader.place(bucket, index) % reader.count(bucket)
        while reader.clip(bucket, place) in reader.left_out[bucket]:
            place = (place + 1) % reader.count(bucket)
        sample = reader.read(bucket, place)
        if self.manifest.get("fps"):
            sample.setdefault("fps", self.manifest["fps"])  # older records have none
        if "text_mask" in sample:  # the first release stored padding
            sample["text"] = sample["text"][sample.pop("text_mask")]
        return {**sample, "latents": sample["latents"].astype(np.float32)}
