"""The page of plans is what the results hold, and the smallest plans can be made again."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from xgen_jax.commands.arguments import find_config
from xgen_jax.commands.config_file import load_config

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import plans  # noqa: E402  (the path comes first)

COMPILERS = ("libtpu",)


def test_every_case_names_a_configuration():
    for case in plans.CASES:
        load_config(find_config(case.config), [])
    assert len({case.name for case in plans.CASES}) == len(plans.CASES)


def test_the_page_shows_the_results(tmp_path):
    copy = tmp_path / "plans.md"
    copy.write_text(plans.PAGE.read_text())
    plans.write(copy)
    assert copy.read_text() == plans.PAGE.read_text()


def test_every_result_is_of_a_case_and_its_memory_adds_up():
    names = {case.name for case in plans.CASES}
    for name, row in plans.saved().items():
        assert name in names
        assert row["fits"] == (row["why"] is None)
        if row["fits"]:
            assert row["limit_bytes"] is None or row["peak_bytes"] <= row["limit_bytes"]
            assert row["device_kind"] == "cpu" or row["floor"]["step_s"] > 0


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in COMPILERS),
    reason="the TPU's compiler is not installed",
)
@pytest.mark.parametrize("case", plans.SMALLEST, ids=lambda case: case.config)
def test_the_smallest_plan_of_each_family_is_made_again(case):
    done = subprocess.run(
        plans.command(case),
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
    )
    assert done.returncode == 0
    here, saved = json.loads(done.stdout), plans.saved()[case.name]
    for key in ("parameters", "flops", "bucket", "batch_size", "runs", "limit_bytes", "fits"):
        assert here[key] == saved[key]
    assert here["peak_bytes"] == pytest.approx(saved["peak_bytes"], rel=0.05)
