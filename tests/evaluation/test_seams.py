"""The seam metric on videos whose seams are known."""

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.evaluation.seams import frame_differences, measure_seams, seam_figures


def ramp(levels):
    """A video whose frames are flat, of these levels."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), 4, 6, 3))


def test_differences_are_those_of_neighbours():
    np.testing.assert_array_equal(frame_differences(ramp([10, 12, 9, 255, 0])), [2, 3, 246, 255])


def test_the_original_itself_has_none():
    video = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), np.uint8)
    seams = measure_seams([(video, video)], 3)
    assert seams.ratios == (1.0, 1.0, 1.0)


def test_a_jump_counts_at_the_border_alone():
    original = ramp(np.arange(12) * 2)
    jumps = ramp(np.arange(12) * 2 + 3 * (np.arange(12) // 4))  # three levels more at each border
    seams = measure_seams([(original, jumps)], 4)
    assert seams.ratios == (2.5, 1.0, 1.0, 1.0)
    assert (seams.border, seams.others, seams.worst_other) == (2.5, 1.0, 1.0)


def test_a_jump_moved_into_the_chunk_is_detected():
    original = ramp(np.arange(12) * 2)
    moved = ramp(np.arange(12) * 2 + 4 * ((np.arange(12) + 2) // 4))
    seams = measure_seams([(original, moved)], 4)
    assert (seams.border, seams.others, seams.worst_other) == (1.0, 1.0, 3.0)


def test_still_chunks_of_a_moving_clip_are_below_one():
    held = ramp(np.repeat(np.arange(3) * 8, 4))
    seams = measure_seams([(ramp(np.arange(12) * 2), held)], 4)
    assert seams.ratios == (4.0, 0.0, 0.0, 0.0)


def test_clips_count_by_how_much_they_move():
    """Differences are summed before the ratio is taken: a clip that hardly moves cannot make it
    explode."""
    fast, slow = ramp([0, 100, 200, 100]), ramp([0, 1, 2, 1])
    seams = measure_seams([(fast, fast), (slow, ramp([0, 1, 12, 11]))], 2)
    assert seams.border == pytest.approx((100 + 11) / (100 + 1))
    assert seams.others == 1.0


@pytest.mark.parametrize(
    "pair, chunk, message",
    [
        ((ramp([1, 2, 3]), ramp([1, 2])), 2, "differ in shape"),
        ((ramp([1, 2, 3]).astype(np.float32),) * 2, 2, "must be a uint8 array"),
        ((ramp([1, 2, 3]),) * 2, 3, "place 0 .* longer than a chunk"),
        ((ramp([1, 2, 2, 3, 4]),) * 2, 4, "place 2 of its chunks of 4"),
        ((ramp([1, 2, 3]),) * 2, 1, "chunk of 1 frames"),
    ],
)
def test_what_cannot_be_measured_is_refused(pair, chunk, message):
    with pytest.raises(UserError, match=message):
        measure_seams([pair], chunk)


def test_the_seam_ratio_is_that_of_borders_over_that_elsewhere():
    original = ramp(np.arange(13))
    jumps = ramp([0, 2, 4, 6, 16, 18, 20, 22, 32, 34, 36, 38, 48])  # 2 a frame, 10 at borders
    changes = [(*map(frame_differences, (original, jumps)), (4, 8, 12))]
    figures = seam_figures(changes)
    assert figures == {"seam_ratio": 5.0, "border": 10.0, "elsewhere": 2.0, "borders": 3}
    # As much flicker everywhere is no seam.
    assert seam_figures([(changes[0][0], 3 * changes[0][0], (4,))])["seam_ratio"] == 1.0


def test_the_seam_ratio_takes_all_clips_together():
    still, moving = np.zeros(4), np.array([1.0, 1.0, 4.0, 1.0])
    figures = seam_figures([(still, still + 1, (3,)), (moving, moving, (3,)), ([], [], ())])
    assert figures["border"] == 5 / 4 and figures["elsewhere"] == 2.0 and figures["borders"] == 2


@pytest.mark.parametrize(
    ("original", "starts", "reason"),
    [
        ([1.0, 1.0], (), "no clip is longer than a chunk"),
        ([1.0, 1.0], (1, 2), "every frame is a chunk of its own"),
        ([0.0, 0.0], (1,), "do not move"),
        ([], (), "no clip is longer"),
    ],
)
def test_where_there_is_no_seam_ratio_it_says_why(original, starts, reason):
    figures = seam_figures([(original, original, starts)])
    assert list(figures) == ["missing"] and reason in figures["missing"]
