"""The least time of a step, and what it costs."""

import pytest

from xgen_jax.parallel.device_figures import Peak
from xgen_jax.parallel.step_time import StepTime, dollars, step_time

PEAK = Peak(bf16_tflops=100, f32_tflops=50, memory_gb_s=1000, link_gb_s=100, network_gb_s=10)
NOTHING = {
    "flops": 0.0,
    "rewritten": 0,
    "read": 0,
    "temporaries": 0,
    "link_bytes": 0,
    "network_bytes": 0,
}


@pytest.mark.parametrize(
    ("work", "part", "seconds"),
    [
        ({"flops": 1e14}, "compute_s", 1.0),
        ({"rewritten": 1e12}, "memory_s", 2.0),
        ({"read": 1e12}, "memory_s", 1.0),
        ({"temporaries": 1e12}, "memory_s", 2.0),
        ({"link_bytes": 1e11}, "network_s", 1.0),
        ({"network_bytes": 1e11}, "network_s", 10.0),
        ({"link_bytes": 1e11, "network_bytes": 1e11}, "network_s", 10.0),
    ],
)
def test_each_part_is_work_over_what_the_device_can_do(work, part, seconds):
    least = step_time(PEAK, "bfloat16", **{**NOTHING, **work})
    parts = {name: getattr(least, name) for name in ("compute_s", "memory_s", "network_s")}
    assert parts.pop(part) == pytest.approx(seconds)
    assert set(parts.values()) == {0.0}
    assert least.floor_s == pytest.approx(seconds)
    assert least.bound == part.removesuffix("_s")


def test_float32_is_slower_and_parts_overlap():
    least = step_time(PEAK, "float32", **{**NOTHING, "flops": 1e14, "rewritten": 5e11})
    assert (least.compute_s, least.memory_s, least.floor_s) == pytest.approx((2.0, 1.0, 2.0))


def test_an_assumed_fraction_of_the_peak_never_beats_memory_or_network():
    assert StepTime(compute_s=1, memory_s=2, network_s=0).at_mfu(0.4) == 2.5
    assert StepTime(compute_s=1, memory_s=2, network_s=4).at_mfu(0.4) == 4


def test_cost_is_hours_times_chips_times_price():
    assert dollars(7200, 8, 2.5) == 40
