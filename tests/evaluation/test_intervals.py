"""Wilson's interval by hand."""

import pytest

from xgen_jax.evaluation import intervals


@pytest.mark.parametrize(
    ("fraction", "low", "high"), [(0.9, 0.825, 0.945), (1.0, 0.963, 1.0), (0.0, 0.0, 0.037)]
)
def test_wilson_interval(fraction, low, high):
    # Three digits, as tabulated.
    assert intervals.wilson_interval(fraction, 100) == pytest.approx((low, high), abs=1e-3)
