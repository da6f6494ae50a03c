"""A batch is a function of (seed, step): on any number of threads and processes, from any step."""

import json

import numpy as np
import pytest

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.schedule import slot_counts
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError


class NoiseSource(Source):
    """Clips of noise from the given generator, so that equal pixels mean equal generators."""

    name = "noise"

    def __init__(self, clips=23):
        self._clips = clips

    def __len__(self):
        return self._clips

    def fingerprint(self):
        return f"noise{self._clips}"

    def read(self, index, rng, frames, height, width):
        return {
            "video": rng.integers(0, 256, (frames, height, width, 3), np.uint8),
            "caption": f"clip {index}",
        }


BUCKETS = (
    Bucket(frames=5, height=8, width=8, batch_size=4, weight=2),
    Bucket(frames=1, height=16, width=8, batch_size=8, weight=1),
    Bucket(frames=9, height=8, width=12, batch_size=2, weight=0.5),
)


def config(**changes):
    return DataConfig(**{"source": SyntheticConfig(), "seed": 7, "buckets": BUCKETS} | changes)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def test_a_batch_has_its_buckets_shape():
    pipeline = Pipeline(NoiseSource(), config())
    for step in range(14):
        bucket, batch = pipeline.bucket(step), pipeline.batch(step)
        assert batch["video"].shape == (
            bucket.batch_size,
            bucket.frames,
            bucket.height,
            bucket.width,
            3,
        )
        assert batch["video"].dtype == np.uint8
        assert batch["sample_id"].dtype == batch["index"].dtype == np.int64
        assert batch["caption"] == [f"clip {index}" for index in batch["index"]]


@pytest.mark.parametrize("num_threads,prefetch", [(0, 0), (1, 1), (2, 2), (4, 8)])
def test_iterating_gives_the_batches_of_the_steps(num_threads, prefetch):
    pipeline = Pipeline(NoiseSource(), config(num_threads=num_threads, prefetch=prefetch))
    for start in (0, 5, 1000):
        with pipeline.iterate(start) as batches:
            for step in range(start, start + 12):
                got, batch = next(batches)
                assert got == step
                assert_equal(batch, pipeline.batch(step))
    batches.close()


def test_a_new_pipeline_resumes_exactly():
    plain = Pipeline(NoiseSource(), config()).iterate()
    batches = [next(plain) for _ in range(20)]
    plain.close()
    again = Pipeline(NoiseSource(), config())
    with again.iterate(13) as resumed:
        for step, batch in batches[13:]:
            got, other = next(resumed)
            assert got == step
            assert_equal(batch, other)


@pytest.mark.parametrize("count", [2])
def test_processes_together_are_one_process(count):
    whole = Pipeline(NoiseSource(), config())
    parts = [
        Pipeline(NoiseSource(), config(), process_index=p, process_count=count)
        for p in range(count)
    ]
    for step in range(30):
        assert {part.bucket(step) for part in parts} == {whole.bucket(step)}
        batches = [part.batch(step) for part in parts]
        together = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        assert_equal(together, whole.batch(step))
    assert {part.fingerprint() for part in parts} == {whole.fingerprint()}


def test_each_epoch_has_each_clip_once():
    pipeline = Pipeline(NoiseSource(23), config(buckets=BUCKETS[:1]))
    # 12 epochs exactly.
    stream = np.concatenate([pipeline.batch(step)["index"] for step in range(69)])
    epochs = stream.reshape(12, 23)
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12, "each epoch has its own order"


def test_sample_ids_and_pixels_never_repeat():
    pipeline = Pipeline(NoiseSource(), config())
    batches = [pipeline.batch(step) for step in range(70)]
    ids = np.concatenate([batch["sample_id"] for batch in batches])
    assert len(set(ids.tolist())) == len(ids)
    clips = [clip.tobytes() for batch in batches for clip in batch["video"]]
    assert len(set(clips)) == len(clips)


def test_the_schedule_keeps_the_proportions():
    pipeline = Pipeline(NoiseSource(), config())
    assert slot_counts([2, 1, 0.5]) == [4, 2, 1]
    periods = [
        [pipeline.bucket(step) for step in range(start, start + 7)] for start in range(0, 140, 7)
    ]
    assert all([period.count(bucket) for bucket in BUCKETS] == [4, 2, 1] for period in periods)
    assert len({tuple(BUCKETS.index(bucket) for bucket in period) for period in periods}) > 5


def test_buckets_are_needed_in_the_order_of_the_schedule():
    pipeline = Pipeline(NoiseSource(), config())
    assert pipeline.needed(5, 6) == [pipeline.bucket(5)]
    for start in (0, 7, 10_001):
        needed = pipeline.needed(start, 10**9)
        assert set(needed) == set(pipeline.buckets)
        first = [next(s for s in range(start, 10**9) if pipeline.bucket(s) == b) for b in needed]
        assert first == sorted(first) and first[0] == start


def test_slot_counts():
    assert slot_counts([0.3]) == [1]
    assert slot_counts([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert slot_counts([5, 5]) == [1, 1]
    assert slot_counts([1e-9, 1])[0] == 1
    counts = slot_counts([np.pi, np.e, 1])
    assert np.allclose(
        np.array(counts) / sum(counts), np.array([np.pi, np.e, 1]) / (np.pi + np.e + 1), atol=2e-3
    )


def test_seeds_differ():
    one, other = (
        Pipeline(NoiseSource(), config(seed=seed, buckets=BUCKETS[:1])) for seed in (1, 2)
    )
    assert not np.array_equal(one.batch(0)["index"], other.batch(0)["index"])
    assert one.fingerprint() != other.fingerprint()


def test_a_million_clips_and_late_steps_cost_nothing():
    pipeline = Pipeline(NoiseSource(1_000_000), config())
    assert pipeline.batch(10**9)["index"].max() < 1_000_000


def test_state_is_refused_for_other_data_with_the_reason():
    pipeline = Pipeline(NoiseSource(), config())
    state = json.loads(json.dumps(pipeline.state(12)))
    assert state["step"] == 12
    Pipeline(
        NoiseSource(), config(num_threads=5, prefetch=9), process_index=1, process_count=2
    ).check_state(state)
    for other, reason in [
        (Pipeline(NoiseSource(24), config()), "the source"),
        (Pipeline(NoiseSource(), config(buckets=BUCKETS[:2])), "the buckets"),
        (Pipeline(NoiseSource(), config(seed=8)), "the seed"),
    ]:
        with pytest.raises(UserError, match=f"saved with other data: .*{reason}"):
            other.check_state(state)
    with pytest.raises(UserError, match="no fingerprint"):
        pipeline.check_state({"step": 3})


def test_a_fingerprint_is_what_earlier_releases_gave():
    """Runs resume from their checkpoints, so none of these may ever change."""
    assert Pipeline(NoiseSource(), config()).fingerprint() == (
        "a29062ef2bd5606b.c28a6cdce6e91aeb.37d753919ab3f33a"
    )


def test_wrong_configurations_are_refused():
    with pytest.raises(UserError, match="batch_size 4 cannot be split equally over 3 processes"):
        Pipeline(NoiseSource(), config(), process_count=3)
    with pytest.raises(UserError, match="has 7 clips, fewer than one batch of 8"):
        Pipeline(NoiseSource(7), config())
    with pytest.raises(UserError, match="process_index"):
        Pipeline(NoiseSource(), config(), process_index=2, process_count=2)
    with pytest.raises(UserError, match="at least one bucket"):
        config(buckets=())
    with pytest.raises(UserError, match="seed"):
        config(seed=-1)
    with pytest.raises(UserError, match="weight must be above 0"):
        Bucket(frames=1, height=8, width=8, batch_size=1, weight=0)
    with pytest.raises(UserError, match="frames must be a whole number"):
        Bucket(frames=0, height=8, width=8, batch_size=1)
    with pytest.raises(UserError, match="start_step"):
        Pipeline(NoiseSource(), config()).iterate(-1)


def test_a_failing_source_ends_the_iteration_with_its_error(tmp_path):
    class Failing(NoiseSource):
        def read(self, index, rng, frames, height, width):
            raise UserError("every video failed")

    with (
        Pipeline(Failing(), config()).iterate() as batches,
        pytest.raises(UserError, match="every video failed"),
    ):
        next(batches)


def test_a_folder_of_videos_end_to_end(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        write_video(tmp_path / f"{i}.mp4", rng.integers(0, 256, (12, 24, 32, 3), np.uint8))
    source = VideoFolderSource(tmp_path, require_captions=False)
    (tmp_path / "3.mp4").write_bytes(b"damaged after the start")
    buckets = (
        Bucket(frames=5, height=16, width=16, batch_size=4),
        Bucket(frames=1, height=24, width=24, batch_size=2),
    )
    whole = Pipeline(source, config(buckets=buckets))
    halves = [
        Pipeline(source, config(buckets=buckets), process_index=p, process_count=2)
        for p in range(2)
    ]
    with whole.iterate() as batches:
        for _ in range(6):
            step, batch = next(batches)
            parts = [half.batch(step) for half in halves]
            assert_equal(
                batch, {name: np.concatenate([part[name] for part in parts]) for name in batch}
            )
    assert "3.mp4" in source.report()


def test_batches_that_wait_are_limited_by_their_bytes():
    def prefetch(gb, **options):
        return Pipeline(NoiseSource(), config(prefetch=8, prefetch_gb=gb), **options).prefetch()

    largest = 2 * 9 * 8 * 12 * 3  # bytes of a batch of BUCKETS[2]
    assert prefetch(1.0) == 8
    assert prefetch(3.5 * largest / 1e9) == 3
    assert prefetch(3.5 * largest / 1e9, process_count=2) == 7
    assert prefetch(0.1 * largest / 1e9) == 1
    with Pipeline(NoiseSource(), config(prefetch=8, prefetch_gb=1e-9)).iterate() as batches:
        assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("gb", [0, -1.0, float("nan"), float("inf")])
def test_no_memory_for_batches_is_refused(gb):
    with pytest.raises(UserError, match=r"data.prefetch_gb.*must be above 0, not"):
        config(prefetch_gb=gb)
