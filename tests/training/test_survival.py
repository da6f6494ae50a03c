"""Runs of weeks: damaged checkpoints, losses out of range, full disks, stalls."""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_states import assert_same, contents, state_of
from run_states import rows_of as rows

from xgen_jax.commands.train import train
from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.runs import run_config
from xgen_jax.errors import UserError
from xgen_jax.runs.checkpoint import Checkpoints, FailedSave
from xgen_jax.runs.stored import DamagedCheckpoint
from xgen_jax.signals import Stopped
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_values
from xgen_jax.training import loss_guard
from xgen_jax.training.loss_guard import LEAST, MAX_ROLLBACKS, LossGuard, LossSpike, NonFiniteLoss
from xgen_jax.training.tasks.vidvae import VidVAETask

OPTIMIZER = {"name": "adamw", "learning_rate": 1e-3, "warmup_steps": 2, "schedule": "constant"}


def run(workdir, steps=4, restore="latest", **loop):
    loop = {"steps": steps, "checkpoint_every": 2, **loop}
    values = tiny_values(VIDVAE, model=POINTWISE, optimizer=OPTIMIZER, loop=loop)
    return train(run_config(values), workdir, restore=restore)


def events(workdir):
    return json.loads((workdir / "run.json").read_text())["events"]


def steps_of(workdir):
    return Checkpoints(workdir / "checkpoints").steps()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four steps, with checkpoints of the second and the fourth."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    run(workdir)
    return workdir


def test_a_damaged_checkpoint_and_a_garbage_record_stop_no_run(straight, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    newest = workdir / "checkpoints" / "4"
    largest = max(newest.glob("state/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(bytes(content))
    (workdir / "run.json").write_text('{"wall_s": 1')
    with pytest.raises(DamagedCheckpoint, match=r"4 cannot .*; --restore=latest_good .* step 2\)"):
        run(workdir)
    assert steps_of(workdir) == [2, 4]
    run(workdir, restore="latest_good")
    assert_same(state_of(workdir), state_of(straight))
    assert rows(workdir) == rows(straight)
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names == ["2", "4", "4.damaged"]
    assert (workdir / "run.json.unreadable").read_text() == '{"wall_s": 1'
    assert "run.json is not JSON" in capsys.readouterr().err


@pytest.fixture
def changed_loss(monkeypatch):
    """Multiply the loss of some steps: a dict of step -> factor."""
    own, factors = VidVAETask.loss, {}

    def loss(self, params, arrays, keys_B, step, frozen=None):
        value, metrics = own(self, params, arrays, keys_B, step, frozen)
        for at, factor in factors.items():
            value = value * jnp.where(step == at, factor, 1.0)
        return value, metrics

    monkeypatch.setattr(VidVAETask, "loss", loss)
    return factors


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_left_out_and_a_resumed_run_does_the_same(
    changed_loss, tmp_path
):
    changed_loss.update({2: np.nan, 3: np.nan})
    options = {"skip_non_finite": 2, "evaluate_every": 3, "keep_best": "held_out_l1"}
    run(tmp_path / "straight", 6, **options)
    found = events(tmp_path / "straight")
    assert [(row["event"], row["step"]) for row in found] == [("skipped", 2), ("skipped", 3)]
    assert "bucket 5x16x16, samples [" in found[0]["message"]
    run(tmp_path / "resumed", 3, **options)
    run(tmp_path / "resumed", 6, **options)
    assert_same(state_of(tmp_path / "resumed"), state_of(tmp_path / "straight"))
    state = state_of(tmp_path / "straight")
    assert int(state["step"]) == 6
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state["params"]))
    # One more in a row ends the run, from behind those steps; the resumed call knows of the first.
    run(tmp_path / "stopped", 3, skip_non_finite=1)
    with pytest.raises(
        NonFiniteLoss, match="number 2 in a row, and loop.skip_non_finite=1 leaves out"
    ):
        run(tmp_path / "stopped", 6, skip_non_finite=1)
    assert run(tmp_path / "stopped", 6, skip_non_finite=1)["step"] == 6


@pytest.mark.slow
def test_a_spike_takes_the_run_back_and_a_resumed_run_does_the_same(
    changed_loss, tmp_path, monkeypatch
):
    monkeypatch.setattr(loss_guard, "LEAST", 5)
    before, at, steps = 6, 8, 12
    changed_loss[at] = 1e4
    options = {"rollback_sigma": 20.0, "checkpoint_every": before}
    run(tmp_path / "straight", steps, **options)
    (event,) = events(tmp_path / "straight")
    assert (event["event"], event["step"]) == ("rollback", at)
    assert f"Back to step {before}" in event["message"] and "samples [" in event["message"]
    assert [row["step"] for row in rows(tmp_path / "straight")] == [
        step for step in range(1, steps + 1) if step != at + 1
    ]
    for reached in (at, at + 2, steps):  # before the spike, after it, and to the end
        run(tmp_path / "resumed", reached, **options)
    assert_same(state_of(tmp_path / "resumed"), state_of(tmp_path / "straight"))
    assert rows(tmp_path / "resumed") == rows(tmp_path / "straight")

    own_check, own_restore, live = LossGuard.check, Checkpoints.restore, []

    def check(self, step, *arguments):
        try:
            return own_check(self, step, *arguments)
        except LossSpike:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    def restore(self, *arguments, **options):
        live.append(live_bytes())
        return own_restore(self, *arguments, **options)

    # Asked to stop in that step it does, and goes back when it goes on.
    with monkeypatch.context() as patch:
        patch.setattr(LossGuard, "check", check)
        with pytest.raises(Stopped) as stopped:
            run(tmp_path / "asked", steps, **options)
    assert stopped.value.exit_code == 128 + signal.SIGTERM and steps_of(tmp_path / "asked") == [6]
    # Two states would not fit on the devices: when one is loaded, that of the spike has gone.
    monkeypatch.setattr(Checkpoints, "restore", restore)
    del stopped
    before_run = live_bytes()
    run(tmp_path / "asked", steps, **options)
    state = state_of(tmp_path / "asked")
    assert_same(state, state_of(tmp_path / "straight"))
    assert len(live) == 2 and live[1] - before_run < state_bytes(state) / 4


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def state_bytes(state):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_an_evaluation_after_a_step_that_is_left_out_counts(changed_loss, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_guard, "LEAST", 5)
    at = 8
    changed_loss[at] = 1e4
    options = {"rollback_sigma": 20.0, "evaluate_every": at + 1, "keep_best": "held_out_l1"}
    run(tmp_path / "run", 12, checkpoint_every=6, **options)
    (row,) = [row for row in rows(tmp_path / "run") if row["step"] == at + 1]
    assert "held_out_l1" in row and "loss" not in row
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.figures(at + 1)["held_out_l1"] == row["held_out_l1"]


def test_a_guard_bounds_what_it_does():
    guard = LossGuard(LoopConfig(steps=1, rollback_sigma=6.0))
    for step in range(LEAST):
        assert guard.check(step, {"loss": 1.0 + step % 2, "grad_norm": 1.0}, "a batch") is None
    resumed = LossGuard(
        LoopConfig(steps=1, rollback_sigma=6.0), json.loads(json.dumps(guard.state()))
    )
    for each in (guard, resumed):
        assert each.check(99, {"loss": 4.4, "grad_norm": 1.0}, "a batch") is None
        with pytest.raises(LossSpike, match="step 100: loss 5.5, a batch; it is above 5.2"):
            each.check(100, {"loss": 5.5, "grad_norm": 1.0}, "a batch")
    spike = LossSpike("step 100: loss 5", 100)
    LossGuard(LoopConfig(steps=1), None, range(50, 49 + MAX_ROLLBACKS)).check_rollbacks(spike, 50)
    with pytest.raises(UserError, match="8 batches since the checkpoint of step 50"):
        LossGuard(LoopConfig(steps=1), None, range(50, 50 + MAX_ROLLBACKS)).check_rollbacks(
            spike, 50
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")
# A save that fails leaves event loops of Orbax behind, which complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_reported_when_it_is_full_and_ends_the_run_only_at_the_end(
    straight, tmp_path, capsys
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))  # for rows, not arrays
    try:
        with pytest.raises(FailedSave, match="checkpoints/4 could not be written"):
            run(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_of(tmp_path / "run") == []
    assert [(row["event"], row["step"]) for row in events(tmp_path / "run")] == [("failed_save", 2)]
    assert "checkpoints/2 could not be written" in capsys.readouterr().err
    run(tmp_path / "run")
    assert_same(state_of(tmp_path / "run"), state_of(straight))
    gc.collect()


def test_a_run_folder_that_has_gone_ends_the_run(straight, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    save = Checkpoints.save

    def then_gone(self, *arguments):
        save(self, *arguments)
        self.wait()
        workdir.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(Checkpoints, "save", then_gone)
    with pytest.raises(UserError, match="has gone while step 8 was trained"):
        run(workdir, 10)
    assert steps_of(tmp_path / "elsewhere") == [4, 6] and not (workdir / "checkpoints").exists()


def test_a_figure_that_is_not_evaluated_is_refused(straight, tmp_path):
    before = contents(straight)
    with pytest.raises(
        UserError, match="loop.keep_best='held_out_loss' is not known .*held_out_psnr_db"
    ):
        run(straight, 6, evaluate_every=2, keep_best="held_out_loss")
    assert contents(straight / "checkpoints") == {
        path.relative_to("checkpoints"): data
        for path, data in before.items()
        if path.parts[0] == "checkpoints"
    }
    for loop, message in (
        ({"keep_best": "loss"}, "must be a figure of the evaluation, such as held_out_loss"),
        ({"keep_best": "held_out_loss"}, "needs an evaluation: give loop.evaluate_every"),
        ({"keep_every": 3}, "loop.keep_every=3 must be a multiple of loop.checkpoint_every=2"),
        ({"skip_non_finite": -1}, "loop.skip_non_finite must be 0 or more, not -1"),
        ({"stall_timeout_s": float("nan")}, "loop.stall_timeout_s must be 0 or more, not nan"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "run", **loop)


def stalled(script, folder):
    """Run a script on a folder, which the watchdog ends."""
    arguments = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 75
    return done


def test_a_stall_ends_the_process_with_the_stacks_of_its_threads(tmp_path):
    script = (
        "import pathlib, sys, threading\n"
        "from xgen_jax.training.watchdog import Watchdog\n"
        "def read_that_never_returns():\n    threading.Event().wait()\n"
        "with Watchdog(pathlib.Path(sys.argv[1]), 0.3) as watchdog:\n"
        "    for step in range(5):\n        watchdog.stepped(f'the batch of step {step}')\n"
        "    read_that_never_returns()\n"
    )
    done = stalled(script, tmp_path)
    for text in (done.stderr, (tmp_path / "stalled.txt").read_text()):
        assert "nothing came of the batch of step 4" in text
        assert "in read_that_never_returns" in text


def test_what_may_take_any_time_is_no_stall(tmp_path):
    script = (
        "import pathlib, sys, time\n"
        "from xgen_jax.training.watchdog import Watchdog\n"
        "with Watchdog(pathlib.Path(sys.argv[1]), 0.5) as watchdog:\n"
        "    with watchdog.paused('a program'):\n        time.sleep(1.5)\n"
        "    print('went on', flush=True)\n    time.sleep(60)\n"
    )
    done = stalled(script, tmp_path)
    assert done.stdout == "went on\n"
    assert "nothing came of a program for " in done.stderr


BLOCKED = """
import sys, threading

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_values

read, reads = SyntheticSource.read, 0


def read_that_stops(self, *arguments):
    global reads
    reads += 1
    if reads > 60:
        threading.Event().wait()
    return read(self, *arguments)


SyntheticSource.read = read_that_stops
loop = {"steps": 100_000, "checkpoint_every": 4, "stall_timeout_s": 8.0}
train(run_config(tiny_values(VIDVAE, model=POINTWISE, loop=loop)), sys.argv[1])
"""


@pytest.mark.slow
def test_a_loader_that_stops_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    arguments = [sys.executable, "-c", BLOCKED, str(workdir)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 75, done.stderr
    stacks = (workdir / "stalled.txt").read_text()
    assert "stalled: nothing came of the batch of step" in stacks
    assert "in read_that_stops" in stacks and "in take_steps" in stacks
    newest = Checkpoints(workdir / "checkpoints").steps()[-1]
    assert int(state_of(workdir)["step"]) == newest > 0
