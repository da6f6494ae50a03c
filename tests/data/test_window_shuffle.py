"""Clips of more files than stay open: shuffled without replacement, few files open at a time."""

import collections

import numpy as np
import pytest

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Pipeline, window_files
from xgen_jax.data.sources.base import Source
from xgen_jax.data.window_shuffle import WindowShuffle


def shuffle(sizes, window, seed=3):
    starts = np.cumsum([0, *sizes[:-1]])
    return starts, WindowShuffle(starts, sum(sizes), window, (seed,))


@pytest.mark.parametrize(
    ("sizes", "window"),
    [([5], 1), ([1, 1, 1], 2), ([3, 7, 1, 4, 4, 9, 2], 3), ([10] * 12, 5), ([4, 4], 8)],
)
def test_every_clip_comes_once_an_epoch_in_an_order_of_its_own(sizes, window):
    _, order = shuffle(sizes, window)
    clips = sum(sizes)
    epochs = [[order(e * clips + place)[1] for place in range(clips)] for e in range(3)]
    assert all(sorted(epoch) == list(range(clips)) for epoch in epochs)
    if clips > 5:
        assert epochs[0] != epochs[1] != epochs[2]
    assert order(2 * clips + 1) == (2 * clips + 1, epochs[2][1])


def test_a_place_alone_says_its_clip():
    sizes = [7, 3, 8, 5, 6, 2, 9, 4]
    _, straight = shuffle(sizes, 3)
    wanted = [straight(place) for place in range(120)]
    _, other = shuffle(sizes, 3)
    for place in np.random.default_rng(0).permutation(120).tolist():
        assert other(place) == wanted[place]
    assert [shuffle(sizes, 3, seed=4)[1](place) for place in range(120)] != wanted


def test_a_window_has_the_clips_of_its_files_and_each_batch_many_files():
    files, size, window = 60, 50, 20
    starts, order = shuffle([size] * files, window)
    assert order.windows == 3
    seen = [order(place)[1] // size for place in range(files * size)]
    windows = [set(seen[i : i + window * size]) for i in range(0, len(seen), window * size)]
    assert [len(each) for each in windows] == [20, 20, 20] and len(set().union(*windows)) == files
    # A batch of 32 from 20 files has 16.1 of them by chance, with a deviation of 1.3.
    batches = [len(set(seen[i : i + 32])) for i in range(0, window * size - 31, 32)]
    assert 15 < np.mean(batches) < 17.2 and min(batches) > 9
    # Within a window a file's clips are spread over all of it.
    places = collections.defaultdict(list)
    for place, file in enumerate(seen[: window * size]):
        places[file].append(place)
    assert all(np.ptp(each) > 0.8 * window * size for each in places.values())
    # Another epoch has other files in its windows.
    later = {order(files * size + place)[1] // size for place in range(window * size)}
    assert later not in windows and starts[0] == 0


class Files(Source):
    """Numbered clips in files of three."""

    name = "files"

    def __init__(self, clips, open_files):
        self._clips, self._open = clips, open_files

    def __len__(self):
        return self._clips

    def fingerprint(self):
        return "files"

    def fit(self, buckets, seed):
        return [np.arange(bucket.frames % 2, self._clips, 2) for bucket in buckets]

    def file_starts(self, buckets):
        starts = np.arange(0, self._clips, 3)
        return [starts] * len(buckets) if len(starts) > self._open else None

    def read(self, index, rng, frames, height, width):
        video = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
        return {"video": video, "caption": f"clip {index}"}


BUCKETS = (
    Bucket(frames=2, height=1, width=1, batch_size=8),
    Bucket(frames=1, height=1, width=1, batch_size=4),
)


def config(**changes):
    return DataConfig(source=SyntheticConfig(), buckets=BUCKETS, seed=5, **changes)


@pytest.mark.parametrize("fit", [False, True])
def test_batches_of_many_files_do_not_depend_on_processes_nor_on_where_they_start(fit):
    source, settings = Files(3000, 600), config(fit=fit)
    whole = Pipeline(source, settings)
    parts = [Pipeline(source, settings, process_index=i, process_count=2) for i in range(2)]
    for step in (0, 1, 2, 500, 7777):
        batch, halves = whole.batch(step), [part.batch(step) for part in parts]
        for name in ("index", "sample_id", "video"):
            np.testing.assert_array_equal(
                batch[name], np.concatenate([half[name] for half in halves])
            )
    with Pipeline(source, settings).iterate(3) as batches:
        for _ in range(4):
            step, batch = next(batches)
            np.testing.assert_array_equal(batch["video"], whole.batch(step)["video"])
    # All steps of an epoch of the first bucket: each of its clips once.
    clips, taken, step = 1500 if fit else 3000, [], 0
    while len(taken) < clips - clips % 8:
        if whole.bucket(step) == BUCKETS[0]:
            taken += whole.batch(step)["index"].tolist()
        step += 1
    assert len(set(taken)) == len(taken)


def test_few_files_keep_the_order_and_the_fingerprint_says_so():
    few, none = Pipeline(Files(300, 100), config()), Pipeline(Files(300, 1000), config())
    many = Pipeline(Files(300, 99), config())
    assert few.fingerprint() == none.fingerprint()
    for step in range(4):
        np.testing.assert_array_equal(few.batch(step)["index"], none.batch(step)["index"])
    source, buckets, order = many.fingerprint().split(".")
    assert few.fingerprint().startswith(f"{source}.{buckets}.")
    assert not few.fingerprint().endswith(order)


def test_a_window_has_half_of_the_files_that_stay_open_or_64_batches():
    assert window_files(files=12_696, batches=203_125) == 512
    assert window_files(files=12_696, batches=203_125, buckets=2) == 256
    assert window_files(files=12_696, batches=203_125, buckets=100) == 5
    assert window_files(files=10_000, batches=1_000, buckets=10) == 640  # a batch is of ten files
    assert window_files(files=2_000, batches=1) == 128_000  # all in one window
