"""Batches as a pure function of (seed, step): buckets, their schedule, and the Grain graph.

A bucket is one clip shape (see `data.buckets`). Every process knows the bucket of any step (see
`data.schedule`), and the place in that bucket's shuffled, endless stream of clips, without
communication and without memory: the state of a run is its step.
Random choices of a clip follow from (seed, bucket, place), before the stream is divided among
processes, so that the processes' batches, concatenated, are the batch of one process.
"""

import dataclasses
import functools
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import grain
import numpy as np

from xgen_jax.data.array_records import OPEN_FILES
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig
from xgen_jax.data.images import IMAGE_FPS
from xgen_jax.data.schedule import Schedule
from xgen_jax.data.sources.base import Sample, Source
from xgen_jax.data.window_shuffle import WindowShuffle
from xgen_jax.errors import UserError

T = TypeVar("T")

_OLD_NAMES = {"keep_prob": "keep"}  # of a bucket's keys, in fingerprints of any release
_LEAST_BATCHES = 64  # of clips that are shuffled together
_RAGGED = ("caption", "text")  # columns of a batch that stay lists
# Streams of randomness under the seed; `schedule` has the first, `buckets.fit` the next.
_SHUFFLE, _CLIP = 1, 2


# One process's part of a step's batch, B clips of one bucket:
#   the source's arrays, stacked: "video" uint8 (B, T, H, W, 3), or "latents" float32
#                (B, t, h, w, c), ...
#   "caption"    list of B strings
#   "text"       list of B arrays (n, D), each of its own n: padding would be most of the batch
#   "sample_id"  int64 (B,), unique over buckets and epochs: fold it into PRNG keys
#   "index"      int64 (B,), number of the clip in the source
#   "micro_cond" float32 (B, 5), conditions of a transformer: see `micro_conditions`
Batch = dict[str, Any]


def _element(dataset: grain.MapDataset[T], index: int) -> T:
    element = dataset[index]
    assert element is not None  # nothing is filtered out
    return element


def window_files(files: int, batches: float, buckets: int = 1) -> int:
    """Return how many files the clips that are shuffled together come from, where not all files
    stay open.

    Half of those that do, so that a window can begin while another ends; or more, for at least
    `_LEAST_BATCHES`, of small files or large batches.

    Args:
      files: of a bucket's clips.
      batches: in all of them.
      buckets: that are open together.
    """
    least = math.ceil(_LEAST_BATCHES * files / max(1, batches))
    return max(OPEN_FILES // (2 * buckets), least, 1)


def micro_conditions(frames: int, height: int, width: int, fps: float) -> np.ndarray:
    """Return height, width, height / width, frames and fps of a clip, float32 (5,).

    An image has IMAGE_FPS. The order is that of the transformer's conditions
    (`models.vdit_config`). Open-Sora 1.1 trained on width / height and sampled with height / width;
    here both have the latter.
    """
    return np.array(
        [height, width, height / width, frames, fps if frames > 1 else IMAGE_FPS], np.float32
    )


class Pipeline:
    """Batches of a source for one of `process_count` processes.

    Attributes:
      buckets: those that have batches, in the configuration's order.
      problems: buckets that are left out for lack of clips, in words; only where clips are fitted.

    Raises:
      UserError: a batch that cannot be split equally over the processes, fewer clips than one
        batch, or clips that cannot be fitted.
    """

    def __init__(
        self, source: Source, config: DataConfig, *, process_index: int = 0, process_count: int = 1
    ):
        if not 0 <= process_index < process_count:
            raise UserError(f"process_index must be in [0, {process_count}), not {process_index}")
        for bucket in config.buckets:
            if bucket.batch_size % process_count:
                raise UserError(
                    f"batch_size {bucket.batch_size} cannot be split equally over {process_count} "
                    f"processes; make it a multiple of {process_count}"
                )
        self._source, self._config, self._process_count = source, config, process_count
        self.problems: list[str] = []
        self._members = (
            self._fitting()
            if config.fit
            else [source.clips_for(bucket) for bucket in config.buckets]
        )
        self._numbers = [
            number for number in range(len(config.buckets)) if self._takes_part(number)
        ]
        if not self._numbers:
            listed = "\n  ".join(self.problems)
            raise UserError(
                f"no bucket has a batch of clips of source {source.name!r} that fit it:\n  {listed}"
            )
        self.buckets = tuple(config.buckets[number] for number in self._numbers)
        batches = [
            bucket.weight * self._clips(n) / bucket.batch_size for n, bucket in self._numbered()
        ]
        weights = batches if config.fit else [bucket.weight for bucket in self.buckets]
        self._schedule = Schedule(weights, config.seed)
        starts = source.file_starts(self.buckets)
        self._windows = None if starts is None else list(map(self._window, self._numbers, starts))
        orders = [self._order(number) for number in self._numbers]
        # Batched first and divided after: each process takes whole runs of the global batch, and
        # only what it reads is prepared.
        self._dataset = grain.MapDataset.select_from_datasets(
            [
                order.map(functools.partial(self._read, number))
                .batch(bucket.batch_size // process_count, drop_remainder=True, batch_fn=_stack)
                .slice(slice(process_index, None, process_count))
                for (number, bucket), order in zip(self._numbered(), orders, strict=True)
            ],
            self._schedule,
        )
        self._fingerprint = self._digest(orders)

    def report(self) -> str:
        """Return what could not be used so far, in lines of words; empty if all could."""
        return "\n".join(filter(None, (self._source.report(), *self.problems)))

    def bucket(self, step: int) -> Bucket:
        """Return the bucket of a step, the same in all processes."""
        return self.buckets[self._schedule[step][0]]

    def needed(self, start: int, stop: int) -> list[Bucket]:
        """Return the buckets of the steps from `start` to before `stop`, in the order in which they
        come first."""
        stop = min(stop, start + 2 * sum(self._schedule.slots))  # by then each has come
        return list(dict.fromkeys(self.bucket(step) for step in range(start, stop)))

    def first_step(self, bucket: Bucket) -> int:
        """Return the first step of a bucket."""
        number = self.buckets.index(bucket)
        return next(
            step for step in range(sum(self._schedule.slots)) if self._schedule[step][0] == number
        )

    def batch(self, step: int) -> Batch:
        """Return this process's batch of a step, prepared in the caller's thread."""
        return _element(self._dataset, step)

    def iterate(self, start_step: int = 0) -> "BatchIterator":
        """Iterate over (step, batch) from `start_step` on, without end; close it when done.

        Background threads prepare the batches.
        """
        return BatchIterator(self._dataset, start_step, self._config.num_threads, self.prefetch())

    def prefetch(self) -> int:
        """Return how many batches are prepared in advance, which `data.prefetch_gb` limits by the
        bytes of the largest bucket's."""
        largest = max(
            self._source.clip_bytes(bucket) * (bucket.batch_size // self._process_count)
            for bucket in self.buckets
        )
        return min(self._config.prefetch, max(1, int(self._config.prefetch_gb * 1e9 / largest)))

    def fingerprint(self) -> str:
        """Return digests of the source, of the buckets and of the order, joined by dots.

        Equal fingerprints mean equal batches at equal steps, on any number of processes and
        threads.
        """
        return self._fingerprint

    def state(self, step: int) -> dict:
        """Return the state for a checkpoint from which training continues at `step`, as JSON."""
        return {"step": step, "fingerprint": self._fingerprint}

    def check_state(self, state: dict) -> None:
        """Raise UserError, with the reason, if `state` is of a pipeline with other batches."""
        saved = str(state.get("fingerprint", "")).split(".")
        names = (
            "the source (files, captions, frame rate)",
            "the buckets",
            "the seed or shuffled order",
        )
        current = self._fingerprint.split(".")
        if len(saved) != len(current):
            raise UserError(f"the saved data state has no fingerprint of this kind: {state!r}")
        changed = [name for name, old, new in zip(names, saved, current, strict=True) if old != new]
        if changed:
            raise UserError(
                f"the run was saved with other data: {' and '.join(changed)} differ (saved "
                f"{state['fingerprint']}, now {self._fingerprint}); restore the data and settings, "
                "or start a new run"
            )

    def _fitting(self) -> list[np.ndarray]:
        """Return the clips of each bucket, ascending."""
        config, source = self._config, self._source
        members = source.fit(config.buckets, config.seed)
        left = len(source) - len(np.unique(np.concatenate(members)))
        if left:
            self.problems.append(f"{left} of {len(source)} clips fit no bucket, or none kept them")
        return members

    def _takes_part(self, number: int) -> bool:
        bucket, clips = self._config.buckets[number], self._clips(number)
        if clips >= bucket.batch_size:
            return True
        if not self._config.fit:
            raise UserError(
                f"source {self._source.name!r} has {clips} clips, fewer than one batch of "
                f"{bucket.batch_size} in bucket {bucket.name}; add clips or make the batch smaller"
            )
        if clips:
            self.problems.append(
                f"bucket {bucket.name} is left out: {clips} clips for a batch of "
                f"{bucket.batch_size}"
            )
        return False

    def _clips(self, number: int) -> int:
        members = self._members[number]
        return len(self._source) if members is None else len(members)

    def _numbered(self) -> list[tuple[int, Bucket]]:
        return list(zip(self._numbers, self.buckets, strict=True))

    def _order(self, number: int) -> grain.MapDataset:
        """Endless (place in the stream, one of the bucket's clips), shuffled again in each epoch,
        without replacement."""
        if self._windows is not None:
            shuffle = self._windows[self._numbers.index(number)]
            return grain.MapDataset.range(sys.maxsize).map(shuffle)
        seed = np.random.SeedSequence((self._config.seed, _SHUFFLE, number)).generate_state(1)[0]
        # Grain gives the shuffled index modulo the epoch; the place includes the epoch, and costs
        # nothing.
        return (
            grain.MapDataset.range(self._clips(number))
            .seed(int(seed))
            .shuffle()
            .repeat()
            .map_with_index(_pair)
        )

    def _window(self, number: int, starts: np.ndarray) -> WindowShuffle:
        """Return the order of a bucket's clips, given the first clip of each file."""
        members, clips = self._members[number], self._clips(number)
        if members is not None:
            starts = np.searchsorted(members, starts)
        starts = np.unique(np.concatenate([[0], starts[starts < clips]]))
        batches = clips / self._config.buckets[number].batch_size
        files = window_files(len(starts), batches, len(self.buckets))
        return WindowShuffle(starts, clips, files, (self._config.seed, _SHUFFLE, number))

    def _read(self, number: int, pair: tuple[int, int]) -> Sample:
        place, index = pair
        bucket, clips, members = (
            self._config.buckets[number],
            self._clips(number),
            self._members[number],
        )
        extended = place // clips * clips + index  # unique over epochs
        index = index if members is None else int(members[index])
        rng = np.random.default_rng((self._config.seed, _CLIP, number, extended))
        sample = self._source.read(index, rng, *bucket.shape)
        shape, video = (*bucket.shape, 3), sample.get("video")
        if video is not None and (video.shape != shape or video.dtype != np.uint8):
            raise TypeError(
                f"source {self._source.name!r} gave {video.dtype} {video.shape} instead of uint8 "
                f"{shape}"
            )
        sample_id = extended * len(self._config.buckets) + number
        conditions = micro_conditions(*bucket.shape, sample.pop("fps", 0.0))
        return {
            **sample,
            "micro_cond": conditions,
            "sample_id": np.int64(sample_id),
            "index": np.int64(index),
        }

    def _digest(self, orders: list[grain.MapDataset]) -> str:
        # A sample of the order itself, since another version of Grain may shuffle differently.
        sample = [
            [_element(order, place)[1] for place in range(min(8, self._clips(number)))]
            for number, order in zip(self._numbers, orders, strict=True)
        ]
        buckets = [
            {
                _OLD_NAMES.get(name, name): value
                for name, value in dataclasses.asdict(bucket).items()
            }
            for bucket in self._config.buckets
        ]
        order: list[Any] = [self._config.seed, len(self._source), self._schedule.slots, sample]
        if self._windows is not None:
            order.append({"windows": [shuffle.windows for shuffle in self._windows]})
        if self._config.fit:
            order += [
                hashlib.sha256(np.asarray(members, np.int64).tobytes()).hexdigest()
                for members in self._members
            ]
        else:
            for bucket in buckets:  # has no effect here, and fingerprints outlive releases
                del bucket["keep"]
        parts = (self._source.fingerprint(), buckets, order)
        return ".".join(
            hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for part in parts
        )


class BatchIterator(Iterator[tuple[int, Batch]]):
    """Endless (step, batch), prepared ahead by threads; a context manager that closes it."""

    def __init__(self, dataset: grain.MapDataset, start_step: int, num_threads: int, prefetch: int):
        if start_step < 0:
            raise UserError(f"start_step must be 0 or more, not {start_step}")
        # Grain's default of 500 batches ready would be tens of gigabytes.
        options = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
        )
        self._iterator = iter(dataset.to_iter_dataset(options))
        grain.experimental.set_next_index(self._iterator, start_step)
        self._step = start_step

    def __next__(self) -> tuple[int, Batch]:
        batch = next(self._iterator)
        self._step += 1
        return self._step - 1, batch

    def close(self) -> None:
        """Stop the threads; a second call has no effect."""
        self._iterator.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _pair(place: int, index: int) -> tuple[int, int]:
    return place, index


def _stack(samples) -> Batch:
    columns = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {
        name: column if name in _RAGGED else np.stack(column) for name, column in columns.items()
    }
