"""Divide-and-merge: duplicates and their merge; a function without memory is not changed."""

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.inference.divide_and_merge import divide_and_merge


@pytest.mark.parametrize("merge", ["drop", "mean"])
@pytest.mark.parametrize("frames,segment", [(1, 5), (5, 5), (13, 5), (4, 2), (9, 3)])
def test_division_does_not_change_a_function_of_single_frames(frames, segment, merge):
    x = np.random.default_rng(0).standard_normal((2, frames, 3)).astype(np.float32)
    np.testing.assert_allclose(
        divide_and_merge(lambda x: 2 * x, x, segment, merge), 2 * x, atol=1e-6
    )


def test_drop_takes_the_earlier_duplicate_and_mean_the_mean():
    seen = []

    def number(x):
        seen.append(x[0].ravel().tolist())
        return np.full_like(x, len(seen))

    x = np.arange(5.0).reshape(1, 5, 1)
    assert divide_and_merge(number, x, 3, "drop").ravel().tolist() == [1, 1, 1, 2, 2]
    assert seen == [[0, 1, 2], [2, 3, 4]]
    seen.clear()
    assert divide_and_merge(number, x, 3, "mean").ravel().tolist() == [1, 1, 1.5, 2, 2]


@pytest.mark.parametrize(
    "segment,merge,message",
    [(5, "blend", "merge='blend' is not known"), (1, "drop", "cannot overlap")],
)
def test_bad_segments_and_merges_are_refused(segment, merge, message):
    with pytest.raises(UserError, match=message):
        divide_and_merge(lambda x: x, np.zeros((1, 5, 1)), segment, merge)
