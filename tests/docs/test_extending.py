"""The code in docs/extending.md runs, and its additions work without another change."""

import pathlib
import re

import numpy as np
import pytest

import xgen_jax
from xgen_jax.commands.train import train
from xgen_jax.config.runs import Run
from xgen_jax.testing import VDIT, VIDVAE, tiny_run
from xgen_jax.training.tasks import TASKS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def names():
    """Run the page's code and return the names that it defines."""
    names: dict = {"__name__": "extending"}
    tasks, runs = dict(TASKS), dict(Run.known)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    TASKS.clear()
    TASKS.update(tasks)
    Run.known.clear()
    Run.known.update(runs)


@pytest.fixture(scope="module")
def embedder(names, tmp_path_factory):
    """A run of the page's embedder, of two steps."""
    folder = tmp_path_factory.mktemp("patches") / "run"
    config = tiny_run({**VIDVAE, "objective": "patches", "model": {}, "loss": {}})
    assert type(config).__name__ == "PatchRun"
    assert train(config, folder)["step"] == 2
    return folder


def test_a_new_embedder_trains_resumes_and_reconstructs(embedder):
    longer = {**VIDVAE, "objective": "patches", "model": {}, "loss": {}}
    assert train(tiny_run(longer, loop={"steps": 3}), embedder)["step"] == 3
    video = np.random.default_rng(0).integers(0, 256, (5, 18, 16, 3), np.uint8)
    assert xgen_jax.load(embedder)(video).shape == video.shape


def test_a_transformer_trains_on_a_new_embedder_and_samples(embedder, tmp_path):
    folder = tmp_path / "vdit"
    assert train(tiny_run(VDIT, embedder=str(embedder)), folder)["step"] == 2
    assert xgen_jax.load(folder)("a red circle moving left").shape == (5, 16, 16, 3)
