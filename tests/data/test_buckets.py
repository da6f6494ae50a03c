"""Bucket tables, and the assignment of clips to buckets."""

import numpy as np
import pytest

from xgen_jax.data.buckets import (
    ASPECTS,
    LENGTHS,
    SIDES,
    STAGES,
    Bucket,
    fit,
    frame_size,
    make_buckets,
)
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Pipeline, micro_conditions
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.models.vidvae_config import PRESETS

# Open-Sora 1.1's sizes at 720p, in the order of `ASPECTS`: even numbers, where ours are multiples
# of 8.
SIZES_720P = [
    (588, 1568),
    (628, 1466),
    (666, 1388),
    (678, 1356),
    (698, 1318),
    (706, 1306),
    (720, 1280),
    (758, 1212),
]
SIZES_720P += [
    (784, 1176),
    (832, 1110),
    (960, 960),
    (1108, 832),
    (1176, 784),
    (1280, 720),
    (1320, 698),
    (1358, 680),
]
SIZES_720P += [(1386, 666)]


def test_sizes_are_the_templates_rounded_to_what_the_embedder_takes():
    ours = np.array([frame_size("720p", aspect) for aspect in ASPECTS])
    assert np.abs(ours - SIZES_720P).max() <= 10
    assert not np.any(ours % 8)
    assert frame_size("240p", "9:16") == (240, 424)
    assert frame_size("480p", "9:16") == (480, 848)
    assert frame_size("720p", "9:16") == (720, 1280)
    for resolution, side in SIDES.items():
        assert frame_size(resolution, "1:1") == (side, side)
        areas = [np.prod(frame_size(resolution, aspect)) for aspect in ASPECTS]
        assert max(areas) / min(areas) < 1.03, resolution
        assert frame_size(resolution, "16:9") == frame_size(resolution, "9:16")[::-1]


@pytest.mark.parametrize("stage", STAGES)
def test_the_papers_embedder_takes_every_bucket_of_every_stage(stage):
    buckets = make_buckets(STAGES[stage], ASPECTS, devices=8)
    assert len({bucket.shape for bucket in buckets}) == len(buckets)
    for bucket in buckets:
        frames, height, width = PRESETS["paper"].latent_shape(bucket.shape)
        assert (frames, height * 8, width * 8) == (
            (bucket.frames + 3) // 4,
            bucket.height,
            bucket.width,
        )
        assert bucket.frames in LENGTHS.values()
        assert bucket.batch_size % 8 == 0


BUCKETS = (
    Bucket(frames=1, height=32, width=32, batch_size=4),
    Bucket(frames=5, height=32, width=32, batch_size=4),
    Bucket(frames=9, height=32, width=32, batch_size=2, keep_prob=0.5),
    Bucket(frames=5, height=64, width=64, batch_size=2),
    Bucket(frames=9, height=64, width=64, batch_size=2, keep_prob=0.0),
    Bucket(frames=5, height=48, width=88, batch_size=2, keep_prob=0.25),
)


def test_a_clip_goes_to_the_largest_it_fills_and_the_longest_it_has_frames_for():
    extents = [
        (1, 64, 64),  # an image goes to images, at whatever size there are some
        (5, 64, 64),
        (8, 100, 100),  # short of 9 frames
        (5, 58, 57),  # 0.807 of the area
        (5, 57, 57),  # 0.793 of it: one lower
        (4, 64, 64),  # too short for any
        (5, 28, 28),  # too small for any
    ]
    assert fit(np.array(extents), BUCKETS[:5], 0).tolist() == [0, 3, 3, 3, 1, -1, -1]


def test_a_dropped_clip_falls_to_the_next_resolution_and_not_to_a_shorter_level():
    chosen = fit(np.tile([9, 64, 64], (4000, 1)), BUCKETS, 0)
    # keep_prob of 9 frames is 0 at 64x64 and 0.5 at 32x32; the five-frame buckets get no clip of
    # nine.
    fraction = {number: float(np.mean(chosen == number)) for number in (-1, *range(len(BUCKETS)))}
    assert fraction[1] == fraction[3] == fraction[4] == fraction[5] == fraction[0] == 0
    assert abs(fraction[2] - 0.5) < 0.03
    assert abs(fraction[-1] - 0.5) < 0.03


def test_a_wide_clip_goes_to_the_wide_bucket_of_its_resolution():
    chosen = fit(np.tile([5, 90, 160], (4000, 1)), BUCKETS, 0)
    assert set(chosen.tolist()) == {5, 1}
    assert abs(np.mean(chosen == 5) - 0.25) < 0.03


def test_random_numbers_follow_from_the_seed_and_not_from_later_clips():
    extents = np.tile([9, 64, 64], (100, 1))
    assert np.array_equal(fit(extents, BUCKETS, 3), fit(extents, BUCKETS, 3))
    assert np.array_equal(fit(extents, BUCKETS, 3)[:50], fit(extents[:50], BUCKETS, 3))
    assert not np.array_equal(fit(extents, BUCKETS, 3), fit(extents, BUCKETS, 4))


class SizedSource(Source):
    """Clips of several sizes; a clip's pixels are its index."""

    name = "sized"

    def __init__(self):
        self.extents = np.array(
            [(5, 32, 32)] * 7 + [(5, 64, 64)] * 5 + [(1, 32, 32)] * 3 + [(2, 8, 8)]
        )

    def __len__(self):
        return len(self.extents)

    def fingerprint(self):
        return "sized"

    def fit(self, buckets, seed):
        chosen = fit(self.extents, buckets, seed)
        return [np.flatnonzero(chosen == number) for number in range(len(buckets))]

    def read(self, index, rng, frames, height, width):
        return {
            "video": np.full((frames, height, width, 3), index, np.uint8),
            "caption": "",
            "fps": 12.0,
        }


def fitted(seed=0):
    return DataConfig(source=SyntheticConfig(), buckets=BUCKETS[:5], fit=True, seed=seed)


def test_a_fitted_pipeline_gives_each_clip_to_its_bucket_alone():
    pipeline = Pipeline(SizedSource(), fitted())
    # Images are one short of their batch.
    assert pipeline.buckets == (BUCKETS[1], BUCKETS[3])
    assert any(
        "1x32x32 is left out: 3 clips for a batch of 4" in line for line in pipeline.problems
    )
    assert any(line.startswith("1 of 16 clips fit no bucket") for line in pipeline.problems)
    halves = [Pipeline(SizedSource(), fitted(), process_index=p, process_count=2) for p in range(2)]
    seen, ids = {}, []
    for step in range(51):  # three periods of 7 + 10
        bucket, batch = pipeline.bucket(step), pipeline.batch(step)
        assert batch["video"].shape == (bucket.batch_size, *bucket.shape, 3)
        seen.setdefault(bucket, []).extend(batch["index"].tolist())
        ids += batch["sample_id"].tolist()
        together = np.concatenate([half.batch(step)["sample_id"] for half in halves])
        np.testing.assert_array_equal(together, batch["sample_id"])
        np.testing.assert_array_equal(
            batch["micro_cond"],
            np.tile([bucket.height, bucket.width, 1.0, 5, 12], (bucket.batch_size, 1)),
        )
    assert set(seen[BUCKETS[1]]) == set(range(7))
    assert set(seen[BUCKETS[3]]) == set(range(7, 12))
    assert len(set(ids)) == len(ids)
    # As many batches of each as there are clips for: 7/4 to 5/2.
    assert [len(seen[bucket]) / bucket.batch_size for bucket in pipeline.buckets] == [21, 30]
    for bucket in pipeline.buckets:
        assert pipeline.bucket(pipeline.first_step(bucket)) == bucket


def test_a_fitted_pipeline_knows_its_order_by_fingerprint():
    one, other = Pipeline(SizedSource(), fitted()), Pipeline(SizedSource(), fitted(seed=1))
    assert one.fingerprint() == Pipeline(SizedSource(), fitted()).fingerprint()
    assert one.fingerprint() != other.fingerprint()


def test_a_fitted_fingerprint_is_what_earlier_releases_gave():
    """Runs resume from their checkpoints, so none of these may ever change."""
    assert Pipeline(SizedSource(), fitted()).fingerprint() == (
        "fb4c9486d2a3de29.348bfed5e58abdae.5804de344eac76ac"
    )


def test_conditions_of_a_clip():
    np.testing.assert_array_equal(
        micro_conditions(17, 240, 424, 8.0), np.float32([240, 424, 240 / 424, 17, 8])
    )
    assert micro_conditions(1, 240, 424, 8.0)[-1] == 120


def test_wrong_tables_are_refused():
    with pytest.raises(UserError, match="resolution='500p' is not known"):
        frame_size("500p", "1:1")
    with pytest.raises(UserError, match="aspect '1.5' must be height:width"):
        frame_size("480p", "1.5")
    with pytest.raises(UserError, match="keep_prob must be in"):
        Bucket(frames=1, height=8, width=8, batch_size=1, keep_prob=1.5)

    with pytest.raises(UserError, match="'synthetic' have no sizes of their own .*data.fit"):
        Pipeline(SyntheticSource(num_clips=4), fitted())
