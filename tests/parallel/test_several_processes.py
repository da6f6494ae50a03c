"""Two processes of one device each do what one process with two devices does."""

import pathlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from cluster import Processes, run, write_config
from run_states import rows_of as rows

from xgen_jax.runs.folder import RunFolder
from xgen_jax.testing import POINTWISE, VDIT, VIDVAE, tiny_values

pytestmark = pytest.mark.slow
PLACES = ("wall_s", "latents", "folder", "file", "table")  # what differs in results
BUCKET = {"frames": 5, "height": 16, "width": 16, "batch_size": 4}
CHANGES = {"data": {"buckets": [BUCKET]}, "mesh": {"fsdp": -1}}
# One set of steps for all tests: the schedule of the learning rate is compiled in.
LOOP = {"steps": 12, "checkpoint_every": 3, "evaluate_every": 12, "evaluate_batches": 1}


def train(folder, config, *flags, processes=1, devices=2):
    """Train in processes that have `devices` in all; return the result."""
    flags = [f"--config={config}", f"--workdir={folder}", *flags]
    result, said = run("train", *flags, processes=processes, devices=devices // processes)
    for each in said[1:]:  # but the one line of Gloo, which is written in C++
        assert not [line for line in each.splitlines() if "[Gloo]" not in line], each
    return result


def ema(folder):
    """Return the EMA parameters of a run as bytes."""
    leaves = jax.tree.leaves(RunFolder(folder).ema_params())
    return [np.asarray(leaf).tobytes() for leaf in leaves]


def assert_same_files(a: pathlib.Path, b: pathlib.Path):
    names = [sorted(p.relative_to(x) for p in x.rglob("*") if p.is_file()) for x in (a, b)]
    assert names[0] == names[1] and names[0]
    for name in names[0]:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the run of a VidVAE in one process, vidvae1, and in two, vidvae2."""
    root = tmp_path_factory.mktemp("processes")
    values = tiny_values(VIDVAE, model=POINTWISE, loop=LOOP, **CHANGES)
    config = write_config(root / "vidvae.py", values)
    for processes in (1, 2):
        train(root / f"vidvae{processes}", config, processes=processes)
    return root


def test_a_run_of_two_processes_is_that_of_one(root):
    one, two = root / "vidvae1", root / "vidvae2"
    assert rows(one) == rows(two)  # bit for bit, and each row once
    assert [row["step"] for row in rows(two)] == list(range(1, 13))
    assert "held_out_psnr_db" in rows(two)[-1]
    assert ema(one) == ema(two)
    for name in ("latent_statistics.json", "previews/00000012.gif", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert RunFolder(two).checkpoints().steps() == RunFolder(one).checkpoints().steps() == [9, 12]


def copy_with_a_damaged_end(run, folder):
    """Copy a run of 12 steps whose newest whole checkpoint is that of step 9."""
    shutil.copytree(run, folder)
    files = [path for path in (folder / "checkpoints" / "12").rglob("*") if path.is_file()]
    values = max(files, key=lambda path: path.stat().st_size)
    content = values.read_bytes()
    half = len(content) // 2
    values.write_bytes(content[:half] + bytes(255 - byte for byte in content[half:]))
    (folder / "latent_statistics.json").unlink()


@pytest.mark.parametrize(("processes", "devices"), [(1, 2), (4, 4)])
def test_a_checkpoint_of_two_processes_is_restored_by_one_and_by_four(
    root, tmp_path, processes, devices
):
    folder = tmp_path / "run"
    copy_with_a_damaged_end(root / "vidvae2", folder)
    good = "--restore=latest_good"  # all processes step over the same checkpoint
    train(folder, root / "vidvae.py", good, processes=processes, devices=devices)
    assert (folder / "checkpoints" / "12.damaged").is_dir()
    ours, wanted = rows(folder), rows(root / "vidvae2")
    if devices == 2:
        assert ours == wanted
        assert ema(folder) == ema(root / "vidvae2")
        return
    # Four devices sum in another order; and the gradient of an absolute error jumps where an error
    # passes zero.
    for row, other in zip(ours, wanted, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.fixture(scope="module")
def vdit(root):
    """The config of a transformer on videos of a frozen embedder, trained in one process: vdit1."""
    changes = {"model": {"depth": 1}, **CHANGES}
    loop = {"evaluate_every": 2, "evaluate_batches": 1, "evaluate_prompts": 3}
    values = tiny_values(VDIT, embedder=str(root / "vidvae1"), loop=loop, **changes)
    config = write_config(root / "vdit.py", values)
    train(root / "vdit1", config)
    return config


def test_a_transformer_on_videos_of_a_frozen_embedder(root, vdit):
    train(root / "vdit2", vdit, processes=2)
    one, two = root / "vdit1", root / "vdit2"
    assert rows(one) == rows(two) and len(rows(one)) == 2
    assert ema(one) == ema(two)


def test_latents_samples_and_scores_of_two_processes_are_those_of_one(root, vdit):
    (root / "prompts.txt").write_text("a red circle\na blue square\na green bar\n")
    model, prompts = f"--model={root}/vdit1", f"--prompts_file={root}/prompts.txt"
    embedder = f"--embedder={root}/vidvae1"
    commands = {
        "encode": [embedder, "--data=synthetic", "--count=7", "--shard_size=2", "--batch_size=2"],
        "sample": [model, prompts, "--batch_size=1", "--steps=1"],
        "evaluate": ["--suite=reconstruction", embedder, "--count=3"],
    }
    for command, flags in commands.items():
        done = {}
        for processes in (1, 2):
            out = f"--out={root}/{command}{processes}"
            done[processes], _ = run(command, *flags, out, processes=processes)
        results = [
            {name: value for name, value in done[processes].items() if name not in PLACES}
            for processes in (1, 2)
        ]
        assert results[0] == results[1] and results[0]
        assert_same_files(root / f"{command}1", root / f"{command}2")


def test_a_host_with_another_config_is_named_on_every_host(root, tmp_path):
    flags = [f"--config={root}/vidvae.py", f"--workdir={tmp_path}/run"]
    other = [*flags, "--config.optimizer.learning_rate=0.5"]
    with Processes("train", [flags, other]) as started:
        done = started.results()
    for code, out, err in done:
        assert code == 1 and not out
        assert "config.optimizer.learning_rate is 0.5, and 0.001 in process 0" in err
        assert "error: the processes were not started alike:\n  process 1 (" in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()  # before anything is written


def test_two_processes_that_are_stopped_and_killed_end_with_the_same_bits(root, tmp_path):
    """SIGTERM to one of them: both save the same step, and end. SIGKILL of one, as a machine that
    fails: the other is ended as a scheduler would."""
    folder, rng = tmp_path / "run", random.Random(0)
    flags = [f"--config={root}/vidvae.py", f"--workdir={folder}"]
    for number, sent in ((rng.randint(1, 4), signal.SIGTERM), (rng.randint(6, 9), signal.SIGKILL)):
        with Processes("train", [flags, flags]) as started:
            wait_for_rows(folder, number, started)
            started.started[rng.randint(0, 1)].send_signal(sent)
            if sent == signal.SIGTERM:
                codes = [code for code, *_ in started.results()]
                assert codes == [143, 143]
        saved = RunFolder(folder).checkpoints().steps()
        if sent == signal.SIGTERM:
            assert number <= saved[-1] < 12
    train(folder, root / "vidvae.py", processes=2)
    assert rows(folder) == rows(root / "vidvae2")
    assert ema(folder) == ema(root / "vidvae2")


def wait_for_rows(folder, number, started):
    """Wait until a run has written so many rows of metrics."""
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < number:
        assert all(each.poll() is None for each in started.started), started.results()
        time.sleep(0.005)
