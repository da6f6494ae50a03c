"""A stopped run that goes on with changes, or from the step whose loss was not finite."""

import json

import jax.numpy as jnp
import pytest
from run_states import assert_same, contents, state_of

from xgen_jax.commands.train import train
from xgen_jax.config.changes import changes_network
from xgen_jax.config.runs import run_config
from xgen_jax.errors import UserError
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.runs.folder import RunFolder
from xgen_jax.testing import POINTWISE, VDIT, VIDVAE, tiny_run, tiny_values
from xgen_jax.training.loss_guard import NonFiniteLoss
from xgen_jax.training.metric_writers import read_jsonl
from xgen_jax.training.tasks.vidvae import VidVAETask

pytestmark = pytest.mark.slow

OPTIMIZER = {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 0, "schedule": "constant"}


def values(steps, rate=1e-3, **changes):
    base = tiny_values(VIDVAE, model=POINTWISE, optimizer={**OPTIMIZER, "learning_rate": rate})
    return tiny_values(base, loop={"steps": steps, "checkpoint_every": 100}, **changes)


def run(given, workdir, **kwargs):
    return train(run_config(given), workdir, **kwargs)


def notes(workdir):
    return json.loads((workdir / "run.json").read_text())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Two steps of a run."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    run(values(2), workdir)
    return workdir


@pytest.fixture
def copied(stopped, tmp_path):
    """A copy of it to change."""
    for name, data in contents(stopped).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_changed_run_goes_on_and_notes_what_has_changed(copied, capsys):
    other = values(
        4,
        rate=1e-4,
        loss={"l1": 0.5},
        data={"source": {"kind": "synthetic", "num_clips": 50}, "seed": 3},
    )
    other["loop"]["ema_decay"] = 0.9
    other["optimizer"]["weight_decay"] = 0.1
    before = contents(copied)
    with pytest.raises(UserError, match="with --accept_changes, choose another folder") as error:
        run(other, copied)
    assert "\n  optimizer.learning_rate: 0.001 -> 0.0001\n" in str(error.value)
    assert contents(copied) == before

    spent = notes(copied)["wall_s"]
    assert run(other, copied, accept_changes=True)["step"] == 4
    changes = notes(copied)["changes"]
    keys = ["data.seed", "data.source.num_clips", "loop.ema_decay", "loss.l1"]
    keys += ["optimizer.learning_rate", "optimizer.weight_decay", "data"]
    assert [each["key"] for each in changes] == keys
    assert {each["step"] for each in changes} == {2}
    rate = changes[4]
    assert (rate["old"], rate["new"]) == (0.001, 0.0001) and rate["date"].startswith("20")
    assert notes(copied)["wall_s"] > spent
    assert [row["step"] for row in read_jsonl(copied / "metrics.jsonl")] == [1, 2, 3, 4]
    said = capsys.readouterr().err
    assert "goes on with changes (there -> here):\n  data.seed: 0 -> 3\n" in said

    # The changed run is the run now, and what was noted stays.
    other["loop"]["steps"] = 5
    assert run(other, copied)["step"] == 5
    assert notes(copied)["changes"] == changes


def test_other_data_needs_the_flag_once(copied):
    other = values(3, data={"source": {"kind": "synthetic", "num_clips": 50}})
    folder = RunFolder(copied)
    # A call that accepted the configuration and ended before its first checkpoint.
    folder.create_or_resume(run_config(other), changed={"data.source.num_clips": (100, 50)})
    message = r"the run was saved with other data.*as it is now: --accept_changes$"
    with pytest.raises(UserError, match=message):
        run(other, copied)
    saved = folder.checkpoints().restore_data()["fingerprint"]
    assert [each["key"] for each in folder.changes()] == ["data.source.num_clips"]
    run(other, copied, accept_changes=True)
    (_, data) = folder.changes()
    assert (data["key"], data["step"], data["old"]) == ("data", 2, saved)
    assert data["new"] == folder.checkpoints().restore_data()["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"latent_channels": 3}},
            r"another network, whose weights cannot be used.*\n  model.latent_channels: 2 -> 3\n",
        ),
        (
            {"optimizer": {"name": "muon"}},
            r"cannot go on with the changed configuration: \d+ of \d+ arrays of its state differ",
        ),
        (
            {"loss": {"adversarial": {"weight": 0.5}}},
            r"arrays of its state differ \(there -> here\):\n  .*disc.*: not there -> \(",
        ),
    ],
    ids=["model", "optimizer", "discriminator"],
)
def test_what_the_weights_do_not_fit_is_refused_and_nothing_touched(copied, changes, message):
    before = contents(copied)
    with pytest.raises(UserError, match=message):
        run(tiny_values(values(4), **changes), copied, accept_changes=True)
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("key", "network"),
    [
        ("objective", True),
        ("model.width", True),
        ("model.encoder.channels", True),
        ("model.attention", False),
        ("model.remat", False),
        ("model.scan_layers", True),
        ("lora.alpha", True),
        ("text.kind", True),
        ("text.width", True),
        ("text.max_bytes", False),
        ("text.length", False),
        ("loss.process", True),
        ("loss.prediction", True),
        ("loss.windows", True),
        ("loss.kl", False),
        ("loss.time_shift", False),
        ("loss.adversarial.discriminator.width", True),
        ("loss.adversarial.weight", False),
        ("optimizer.name", False),
        ("data.source.fps", False),
        ("data.buckets", False),
        ("embedder", False),
        ("loop.compute_dtype", False),
    ],
)
def test_which_keys_are_the_networks(key, network):
    assert changes_network(key) is network


def test_going_on_and_starting_again_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="--overwrite starts again and --accept_changes goes on"):
        run(values(2), tmp_path / "run", overwrite=True, accept_changes=True)
    assert not (tmp_path / "run").exists()


def test_before_the_first_checkpoint_everything_may_change(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create_or_resume(tiny_run(VIDVAE))
    other = tiny_run(VIDVAE, model={"latent_channels": 2})
    with pytest.raises(UserError, match="--accept_changes"):
        folder.check(other)
    changed = folder.check(other, accept_changes=True)
    assert changed == {"model.latent_channels": (4, 2)}
    folder.create_or_resume(other, changed=changed)
    folder.create_or_resume(other, changed=changed)  # noted once
    assert folder.config() == other
    (change,) = folder.changes()
    assert (change["step"], change["key"]) == (0, "model.latent_channels")
    folder.create_or_resume(tiny_run(VDIT, embedder="x"), overwrite=True)
    assert folder.changes() == []


@pytest.fixture
def diverging(monkeypatch):
    """Make the loss of one step, and of no other, not a number; call it with None to undo that."""
    finite, at = VidVAETask.loss, []

    def loss(self, params, arrays, keys_B, step, frozen=None):
        value, metrics = finite(self, params, arrays, keys_B, step, frozen)
        return (jnp.where(step == at[-1], jnp.nan, value) if at else value), metrics

    monkeypatch.setattr(VidVAETask, "loss", loss)
    return lambda step: at.append(step) if step is not None else at.clear()


def test_a_run_that_diverges_is_saved_as_it_was_before_that_step(diverging, tmp_path, stopped):
    diverging(2)
    message = r"step 2: .*The step was not applied.*--config.optimizer.learning_rate=... --accept"
    with pytest.raises(NonFiniteLoss, match=message) as error:
        run(values(5), tmp_path)
    assert error.value.step == 2 and Checkpoints(tmp_path / "checkpoints").steps() == [2]
    # The step after it was dispatched already, and would have been finite.
    assert_same(state_of(tmp_path), state_of(stopped))
    data = [RunFolder(each).checkpoints().restore_data() for each in (tmp_path, stopped)]
    assert data[0] == data[1] and data[0]["step"] == 2


def test_a_run_that_diverges_at_once_has_nothing_to_save(diverging, tmp_path):
    diverging(0)
    with pytest.raises(NonFiniteLoss, match="step 0: "):
        run(values(5), tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_run_that_diverged_goes_on_as_one_that_was_slowed_down_in_time(
    diverging, tmp_path, copied
):
    diverging(2)
    with pytest.raises(NonFiniteLoss):
        run(values(5), tmp_path / "diverged")
    diverging(None)
    for workdir in (tmp_path / "diverged", copied):
        assert run(values(5, rate=1e-4), workdir, accept_changes=True)["step"] == 5
        assert notes(workdir)["changes"][0]["step"] == 2
    assert_same(state_of(tmp_path / "diverged"), state_of(copied))


def test_six_lines_say_what_is_trained(copied, capsys):
    run(values(3), copied)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.split("  ")[0] in NAMES]
    assert [line.split("  ")[0] for line in lines] == list(NAMES)
    assert lines[0] == "clips       100 of synthetic; by bucket 5x16x16: 100"
    assert lines[1] == "left out    nothing"
    assert lines[3] == "steps       from step 2 to 3: 6 samples in all, 0.06 epochs"
    assert lines[5].startswith("devices     1 x cpu, float32, ")
    summary = notes(copied)["summary"]
    assert summary["clips_by_bucket"] == {"5x16x16": 100} and summary["first_step"] == 2
    assert f"parameters  {summary['parameters']:,} trained" == lines[4]


NAMES = ("clips", "left out", "captions", "steps", "parameters", "devices")


def test_longer_captions_get_new_positions(tiny_runs, tmp_path):
    def given(steps, max_bytes):
        text = {"text": {**VDIT["text"], "max_bytes": max_bytes}}
        base = tiny_values(VDIT, optimizer=OPTIMIZER, loop={"steps": steps}, **text)
        return {**base, "embedder": str(tiny_runs / "vidvae")}

    run(given(2, 64), tmp_path / "run")
    before = state_of(tmp_path / "run")
    assert run(given(3, 128), tmp_path / "run", accept_changes=True)["step"] == 3
    after = state_of(tmp_path / "run")
    rows = {name: after[name]["text"]["params"]["positions"].shape[0] for name in ("params", "ema")}
    assert rows == {"params": 33, "ema": 33}
    old = before["params"]["text"]["params"]["positions"]
    moved = after["params"]["text"]["params"]["positions"][: len(old)] - old
    assert len(old) == 17 and 0 < jnp.abs(moved).max() < 0.01, "a step from where they were"
    with pytest.raises(UserError, match="arrays of its state differ"):
        run(given(4, 64), tmp_path / "run", accept_changes=True)
