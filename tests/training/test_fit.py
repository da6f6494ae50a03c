"""The loop: an interrupted run ends as an uninterrupted one, and mistakes are found in time."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from run_states import CLOCK, assert_same, contents, state_of
from run_states import rows_of as rows

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.errors import UserError
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.testing import POINTWISE, VDIT, VIDVAE, tiny_values
from xgen_jax.training.loss_guard import NonFiniteLoss
from xgen_jax.training.metric_writers import read_jsonl

# The schedule of the rate must not depend on the number of steps, which may change between two
# calls.
OPTIMIZER = {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 2, "schedule": "constant"}


def vidvae(steps=6, **changes):
    loop = {"steps": steps, "checkpoint_every": 3}
    values = tiny_values(VIDVAE, model=POINTWISE, optimizer=OPTIMIZER, loop=loop)
    return tiny_values(values, **changes)


def vdit(embedder, **changes):
    model = {"width": 8, "text_width": 8}
    values = tiny_values(VDIT, model=model, text={"width": 8}, optimizer=OPTIMIZER)
    return tiny_values(values, embedder=str(embedder), **changes)


def run(values, workdir, **kwargs):
    return train(run_config(values), workdir, **kwargs)


def assert_same_state(one, other):
    assert len(jax.tree.leaves(one)) > 20
    assert_same(one, other)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Six steps without a stop; also the embedder of the tests below."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    summary = run(vidvae(), workdir)
    assert summary["step"] == 6
    return workdir


def test_a_finished_run_describes_itself(straight):
    names = {path.name for path in straight.iterdir()}
    assert names >= {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "latent_statistics.json",
        "checkpoints",
        "tensorboard",
    }
    assert run_config(json.loads((straight / "config.json").read_text())) == run_config(vidvae())
    assert Checkpoints(straight / "checkpoints").steps() == [3, 6]
    assert [row["step"] for row in rows(straight)] == [1, 2, 3, 4, 5, 6]
    clock = [
        {name: value for name, value in row.items() if name in CLOCK}
        for row in read_jsonl(straight / "metrics.jsonl")
    ]
    for row in clock:
        assert row.keys() == {"steps_per_s", "frames_per_s", "input_wait", "time_s"}  # no CPU's mfu
        assert row["frames_per_s"] == pytest.approx(2 * 5 * row["steps_per_s"])
        assert 0 <= row["input_wait"] <= 1
    # No step is dispatched after the last one: nothing was measured since the row before.
    assert clock[5]["steps_per_s"] == clock[4]["steps_per_s"]
    statistics = json.loads((straight / "latent_statistics.json").read_text())
    assert len(statistics["mean"]) == len(statistics["std"]) == 2
    assert min(statistics["std"]) > 0


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Three steps, then three more in a second call."""
    workdir = tmp_path_factory.mktemp("resumed") / "run"
    assert run(vidvae(steps=3), workdir)["step"] == 3
    assert run(vidvae(steps=6), workdir)["step"] == 6
    return workdir


def test_a_resumed_run_is_the_run_that_never_stopped(straight, resumed):
    for step in (3, 6):
        assert_same_state(state_of(resumed, step), state_of(straight, step))
    # A third call finds it finished and changes nothing of the result.
    before = contents(resumed / "checkpoints")
    assert run(vidvae(steps=6), resumed)["step"] == 6
    assert contents(resumed / "checkpoints") == before


def test_the_metrics_of_a_resumed_run_are_those_of_the_run_that_never_stopped(straight, resumed):
    assert rows(resumed) == rows(straight)


def test_another_run_in_the_folder_is_refused_and_untouched(straight):
    before = contents(straight)
    with pytest.raises(
        UserError, match=r"another configuration.*\n  optimizer.learning_rate: 0.001 -> 0.5\n"
    ):
        run(vidvae(optimizer={"learning_rate": 0.5}), straight)
    assert contents(straight) == before


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no run"):
            run(vidvae(), tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_overwriting_starts_again(straight, tmp_path):
    absurd = vidvae(optimizer={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(
        NonFiniteLoss, match=r"step \d+: loss .*bucket 5x16x16, samples \[\d+, \d+\]"
    ) as error:
        run(absurd, tmp_path)
    step = int(str(error.value).split(":")[0].removeprefix("step "))
    assert 1 <= step < 6

    (tmp_path / "notes.txt").write_text("mine")
    run(vidvae(), tmp_path, overwrite=True)
    assert_same_state(state_of(tmp_path), state_of(straight))
    assert rows(tmp_path) == rows(straight)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_stopped_run_leaves_its_last_checkpoint_whole(tmp_path):
    with pytest.raises(NonFiniteLoss, match="step 1: "):
        run(
            vidvae(
                optimizer={"learning_rate": 1e30, "warmup_steps": 0}, loop={"checkpoint_every": 1}
            ),
            tmp_path,
        )
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state_of(tmp_path)["params"]))


@pytest.mark.slow
def test_a_transformer_trains_on_a_fresh_autoencoder(straight, tmp_path):
    before = contents(straight)
    summary = run(vdit(straight), tmp_path)
    assert summary["step"] == 2
    assert np.isfinite(summary["loss"])
    params = state_of(tmp_path)["params"]
    assert params.keys() == {"vdit", "text"}
    assert np.any(params["vdit"]["params"]["final"]["kernel"]), (
        "the zero-initialised output has not moved"
    )
    assert contents(straight) == before
    with pytest.raises(
        UserError, match="holds a vdit run; give an embedder: a vidvae or regen run"
    ):
        run(vdit(tmp_path), tmp_path.parent / "second")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_an_embedder_that_is_not_there_is_refused_before_anything_is_made(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no folder|holds no config.json"):
        run(vdit(tmp_path / name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "bucket,message",
    [
        ({"frames": 6}, r"6 frames cannot be encoded.*5, 9"),
        ({"height": 18}, "height 18 is not a multiple"),
    ],
)
def test_a_bucket_the_autoencoder_cannot_take_is_refused_before_anything_is_made(
    straight, tmp_path, bucket, message
):
    buckets = ({**vidvae()["data"]["buckets"][0], **bucket},)
    for values in (vidvae(data={"buckets": buckets}), vdit(straight, data={"buckets": buckets})):
        with pytest.raises(UserError, match=message):
            run(values, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_the_transformer_cannot_take_is_refused(straight, tmp_path):
    with pytest.raises(UserError, match="model.text_width 8 is not text.width 16"):
        run(vdit(straight, text={"width": 16}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    def command(workdir):
        values = vidvae(steps=200, loop={"checkpoint_every": 5})
        code = (
            "import json, sys; from xgen_jax.config.runs import run_config; from "
            "xgen_jax.commands.train import train; train(run_config(json.loads(sys.argv[1])), "
            "sys.argv[2])"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(values), str(workdir)],
            env=os.environ,
            stderr=subprocess.DEVNULL,
        )

    def reached(workdir):
        """Return the step of the last whole line of metrics."""
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    assert command(tmp_path / "straight").wait() == 0
    rng = random.Random(0)
    for target in sorted(rng.sample(range(3, 190), 5)):
        process = command(tmp_path / "killed")
        while reached(tmp_path / "killed") < target and process.poll() is None:
            time.sleep(rng.uniform(0.001, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert command(tmp_path / "killed").wait() == 0
    assert_same_state(state_of(tmp_path / "killed"), state_of(tmp_path / "straight"))


def test_a_config_dict_is_named(tmp_path):
    with pytest.raises(UserError, match=r"not a ConfigDict.*give config.to_dict\(\)"):
        train(config_dict.ConfigDict(vidvae()), tmp_path)
