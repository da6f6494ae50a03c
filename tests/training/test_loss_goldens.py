"""The first losses of the tiny runs are those of release 0.1: a change of layout changes none."""

import json
import pathlib

import pytest

from xgen_jax.training.metric_writers import read_jsonl

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tiny_losses.json"


@pytest.mark.parametrize("run", ["vidvae", "vdit"])
def test_losses_and_gradients_are_the_golden_ones(run, tiny_runs):
    wanted = json.loads(GOLDENS.read_text())[run]
    rows = read_jsonl(tiny_runs / run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, golden in zip(rows, wanted):
        # Bit for bit on the machine they come from; another CPU's vector width changes sums.
        assert row["loss"] == pytest.approx(golden["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(golden["grad_norm"], rel=1e-4)
