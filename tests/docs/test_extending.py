"""The code in docs/extending.md runs, and its additions work without another change."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xgen_jax
from xgen_jax.commands.train import train
from xgen_jax.config.runs import Run
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import chain
from xgen_jax.diffusion.process import Denoised
from xgen_jax.diffusion.samplers import SOLVERS, make_steps, sample
from xgen_jax.testing import VDIT, VIDVAE, tiny_run
from xgen_jax.training.tasks import TASKS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def names():
    """Run the page's code and return the names that it defines."""
    names: dict = {"__name__": "extending"}
    tables = [(table, dict(table)) for table in (TASKS, Run.known, SOLVERS)]
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    yield names
    for table, before in tables:
        table.clear()
        table.update(before)


def test_a_new_sampler_converges_to_its_order(names):
    def constant_velocity_field(x, level):  # x0 = sin(tau), eps = 0: a flow that bends
        tau = level.sigma / (level.alpha + level.sigma)
        return Denoised(jnp.sin(tau) * jnp.ones_like(x), jnp.zeros_like(x))

    errors = []
    with jax.enable_x64(True):
        for count in (32, 64, 128):
            levels = RectifiedFlow().levels(np.linspace(1.0, 0.0, count + 1))
            steps = make_steps("ab2", chain(levels))
            x = sample(
                lambda x, at, mask: constant_velocity_field(x, at), jnp.ones(1), steps, "ab2"
            )
            errors.append(abs(float(x[0]) - (1 + 1 - np.cos(1))))  # 1 + integral of sin from 0 to 1
    order = -np.polyfit(np.log([32, 64, 128]), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.15)


def test_a_new_source_feeds_a_pipeline(names):
    data = DataConfig(
        source=SyntheticConfig(),
        buckets=(Bucket(frames=5, height=8, width=8, batch_size=2),),
    )
    batch = Pipeline(names["Gradients"](10), data).batch(0)
    assert batch["video"].shape == (2, 5, 8, 8, 3)
    rates = [int(caption.split()[-1]) for caption in batch["caption"]]
    assert batch["video"][:, -1, 0, 0, 0].tolist() == [int(25.5 * rate) for rate in rates]


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


@pytest.mark.slow
def test_a_transformer_trains_on_a_new_embedder_and_samples(embedder, tmp_path):
    folder = tmp_path / "vdit"
    assert train(tiny_run(VDIT, embedder=str(embedder)), folder)["step"] == 2
    assert xgen_jax.load(folder)("a red circle moving left").shape == (5, 16, 16, 3)
