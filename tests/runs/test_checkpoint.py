"""Checkpoints: restored bit for bit, on any layout, and never half written."""

import gc
import json
import pathlib
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from xgen_jax.errors import UserError
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.runs import checkpoint
from xgen_jax.runs.checkpoint import Checkpoints, FailedSave
from xgen_jax.runs.stored import DamagedCheckpoint, array_shapes
from xgen_jax.training.state import TrainState

# A read that fails leaves event loops of Orbax behind, which complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DATA = {"step": 7, "fingerprint": "a.b.c"}


@pytest.fixture(autouse=True)
def collect_here():
    """Collect garbage, so that its warnings come in this test, under the filter above."""
    yield
    gc.collect()


def state(step=7):
    rng = np.random.default_rng(step)

    def tree():
        return {
            "a": {"kernel": jnp.asarray(rng.standard_normal((8, 4), np.float32))},
            "b": jnp.float32(rng.random()),
        }

    moments = (tree(), (), {"count": jnp.int32(step)})
    return TrainState(step=jnp.int32(step), params=tree(), ema=tree(), opt_state=moments)


def abstract(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding(x) if sharding else x.sharding
        ),
        tree,
    )


def saved(folder, *steps, keep=5):
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, state(step), {**DATA, "step": step})
    checkpoints.wait()
    return checkpoints


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_what_is_restored_is_what_was_saved(tmp_path):
    checkpoints = saved(tmp_path / "c", 3, 7)
    assert checkpoints.steps() == [3, 7]
    restored, data = Checkpoints(tmp_path / "c").restore(abstract(state()))
    assert_equal(restored, state(7))
    assert data == DATA
    earlier, data = checkpoints.restore(abstract(state()), step=3)
    assert_equal(earlier, state(3))
    assert data["step"] == 3


def test_saving_does_not_wait_for_the_caller_to_leave_the_arrays_alone(tmp_path):
    """The loop donates the state to the next update as soon as `save` returns."""
    checkpoints, donate = (
        Checkpoints(tmp_path),
        jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0),
    )
    live = state(7)
    checkpoints.save(7, live, DATA)
    for _ in range(3):
        live = donate(live)
    jax.block_until_ready(live)
    checkpoints.wait()
    assert_equal(checkpoints.restore(abstract(state()))[0], state(7))


def test_a_save_keeps_its_caller_for_a_copy_only(tmp_path, monkeypatch):
    """All that Orbax does, and what is left of older ones, is the thread's."""
    begin, write = threading.Event(), checkpoint.write

    def when_begun(*arguments):
        assert begin.wait(30)
        return write(*arguments)

    checkpoints = saved(tmp_path, 1, 2, keep=2)
    monkeypatch.setattr(checkpoint, "write", when_begun)
    checkpoints.save(3, state(3), DATA)
    checkpoints.poll()
    assert checkpoints.steps() == [1, 2]
    begin.set()
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert_equal(checkpoints.restore(abstract(state()))[0], state(3))


def test_no_thread_of_a_save_outlives_the_wait_for_it(tmp_path, monkeypatch):
    """An interpreter that ends while one frees arrays crashes."""

    finish = Checkpoints._finish

    def finish_slowly(*arguments):
        finish(*arguments)
        time.sleep(0.2)

    monkeypatch.setattr(Checkpoints, "_finish", finish_slowly)
    checkpoints, before = Checkpoints(tmp_path), threading.enumerate()
    checkpoints.save(1, state(), DATA)
    new = [thread for thread in threading.enumerate() if thread not in before]
    checkpoints.wait()
    ours = [thread for thread in new if "finish_slowly" in thread.name]
    assert ours and not any(thread.is_alive() for thread in ours)


def test_all_but_the_newest_are_removed(tmp_path):
    assert saved(tmp_path, 1, 2, 3, 10, keep=2).steps() == [3, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "3"]


def test_one_sub_tree_is_restored_alone(tmp_path):
    checkpoints = saved(tmp_path, 7)
    assert_equal(checkpoints.restore_part(("ema",)), state().ema)
    assert_equal(checkpoints.restore_part(("params", "a")), state().params["a"])


def test_a_checkpoint_is_resharded_on_other_devices(tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def spread(x):
        return NamedSharding(
            mesh, PartitionSpec("fsdp", "data") if x.ndim == 2 else PartitionSpec()
        )

    checkpoints = saved(tmp_path / "one", 7)
    eight, _ = checkpoints.restore(abstract(state(), spread))
    assert eight.params["a"]["kernel"].addressable_shards[0].data.shape == (2, 2)
    assert_equal(eight, state())
    back = Checkpoints(tmp_path / "eight")
    back.save(7, eight, DATA)
    back.wait()
    assert_equal(back.restore(abstract(state()))[0], state())
    assert_equal(back.restore_part(("ema",)), state().ema)


def test_half_written_checkpoints_do_not_count_and_are_in_nobodys_way(tmp_path):
    checkpoints = saved(tmp_path, 3)
    killed = tmp_path / "5.orbax-checkpoint-tmp-123"  # a save that never came to its rename
    (killed / "state").mkdir(parents=True)
    (tmp_path / "7").mkdir()  # a folder whose copy from elsewhere broke off
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoints.steps() == [3]
    assert_equal(checkpoints.restore(abstract(state()))[0], state(3))
    checkpoints.save(7, state(7), DATA)
    checkpoints.wait()
    assert checkpoints.steps() == [3, 7]
    assert_equal(checkpoints.restore(abstract(state()))[0], state(7))
    assert not killed.exists()
    assert (tmp_path / "notes.txt").exists()


def test_saving_a_step_that_is_saved_already_is_no_error(tmp_path):
    """An interrupt right after a checkpoint asks for the same one again."""
    checkpoints = saved(tmp_path, 7)
    checkpoints.save(7, state(7), DATA)
    checkpoints.wait()
    assert_equal(checkpoints.restore(abstract(state()))[0], state(7))


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path, damage, capsys):
    checkpoints = saved(tmp_path, 3, 7)
    files = [
        p for p in (tmp_path / "7").rglob("*") if p.is_file() and p.name != "_CHECKPOINT_METADATA"
    ]
    largest = max(files, key=lambda path: path.stat().st_size)
    for path in files if damage == "truncate" else [largest]:
        if damage == "truncate":
            with open(path, "r+b") as file:
                file.truncate(path.stat().st_size // 2)
        else:
            path.unlink()
    message = (
        r"^the checkpoint [^ ]*/7 cannot be read: [^;]*; --restore=latest_good .* step 3\)[^;]*$"
    )
    with pytest.raises(DamagedCheckpoint, match=message):
        checkpoints.restore(abstract(state()))
    with pytest.raises(DamagedCheckpoint, match="7 cannot be read"):
        checkpoints.restore_part(("ema",))
    restored, data = checkpoints.restore(abstract(state()), "latest_good")
    assert_equal(restored, state(3))
    assert data["step"] == checkpoints.resolve("latest_good") == 3
    assert "7 cannot be read" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, 7)
    other = state()
    other = other.replace(params={**other.params, "a": {"kernel": jnp.zeros((8, 5))}})
    message = "7 cannot be read as the state of this run: params/a/kernel is float32 8x4 there and "
    for choice in ("latest", "latest_good"):  # it is no damage, to step over it would be wrong
        with pytest.raises(UserError, match=f"{message}float32 8x5 here"):
            checkpoints.restore(abstract(other), choice)


def test_no_checkpoint_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        assert Checkpoints(folder).steps() == []
        with pytest.raises(UserError, match="there is no finished checkpoint in .*; train first"):
            Checkpoints(folder).restore(abstract(state()))
    with pytest.raises(UserError, match=r"no checkpoint of step 4 in .*; there are \[7\]"):
        saved(tmp_path, 7).restore_part(("ema",), step=4)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="could not be written"):
        saved(pathlib.Path(tmp_path / "c"), 7)


def flip(folder, rng):
    """Flip a bit of the largest file of a checkpoint, which holds the values of its arrays."""
    path = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "flips", [pytest.param(6, id="6"), pytest.param(60, id="60", marks=pytest.mark.slow)]
)
def test_every_flipped_bit_is_noticed_named_and_stepped_over(tmp_path, flips):
    rng, noticed, harmless = np.random.default_rng(flips), 0, 0
    values = {"a": {"kernel": rng.standard_normal((64, 64), np.float32)}}
    checkpoints = Checkpoints(tmp_path / "good")
    for step in (3, 7):
        checkpoints.save(step, {"params": values, "ema": values}, DATA)
    checkpoints.wait()
    while noticed < flips:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        flip(tmp_path / "bad" / "7", rng)
        wrong = []
        for part in ("params", "ema"):
            try:
                assert_equal(Checkpoints(tmp_path / "bad").restore_part((part,)), values)
            except DamagedCheckpoint as error:
                wrong.append(part)
                assert f"{part}/a/kernel" in str(error).replace(".", "/")
                good = Checkpoints(tmp_path / "bad")
                assert_equal(good.restore_part((part,), "latest_good"), values)
                assert good.resolve("latest_good") == 3
        noticed += bool(wrong)
        harmless += not wrong  # of a byte that nothing reads: both parts are as they were
    assert harmless <= flips / 10


def test_a_checkpoint_of_an_older_release_is_used_with_a_note(tmp_path, capsys):
    saved = {"state": {"ema": {"a": np.ones(3, np.float32)}}, "data": DATA}
    ocp.save_checkpointables(str(tmp_path / "7"), saved)
    checkpoints = Checkpoints(tmp_path)
    assert_equal(checkpoints.restore_part(("ema",)), saved["state"]["ema"])
    assert checkpoints.restore_data() == DATA
    assert "7 is of a release without digests: it is used unchecked" in capsys.readouterr().err


def test_if_all_are_damaged_the_error_says_so_and_nothing_is_removed(tmp_path):
    checkpoints = saved(tmp_path, 3, 7)
    for step in ("3", "7"):
        shutil.rmtree(tmp_path / step / "data")
    with pytest.raises(DamagedCheckpoint, match="3 cannot be read"):
        checkpoints.restore(abstract(state()), "latest_good")
    assert checkpoints.steps() == [3, 7]


def test_checkpoints_past_the_one_gone_on_from_are_renamed(tmp_path):
    checkpoints = saved(tmp_path, 3, 7)
    (tmp_path / "7.damaged").mkdir()
    checkpoints.set_aside(after=3)
    assert checkpoints.steps() == [3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "7.damaged", "7.damaged.2"]


def test_a_save_that_fails_is_no_checkpoint_and_the_next_one_may_succeed(tmp_path):
    checkpoints = saved(tmp_path, 3)
    large = {"a": np.random.default_rng(0).standard_normal(20_000).astype(np.float32)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (30_000, before[1])
    )  # the system refuses to write more
    try:
        checkpoints.save(7, large, DATA)
        with pytest.raises(
            FailedSave, match=r"7 could not be written \(.*is the disk full"
        ) as error:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.step == 7 and checkpoints.steps() == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    checkpoints.poll()  # it has been reported
    checkpoints.save(7, large, DATA)
    checkpoints.wait()
    assert_equal(checkpoints.restore_part(()), large)


def test_those_of_the_interval_and_the_best_are_kept_as_well(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, every=4, best="held_out_psnr_db")
    psnr = {1: 20.0, 2: 26.0, 3: float("nan"), 4: 26.0, 5: 25.0, 6: 24.0}
    for step, value in psnr.items():
        data = {**DATA, "held_out": {"held_out_psnr_db": value, "held_out_loss": step}}
        checkpoints.save(step, {"a": np.full(1, step)}, data)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 6]
    assert Checkpoints(tmp_path).resolve("best") == 2
    assert Checkpoints(tmp_path).best_step("held_out_loss") == 2
    assert Checkpoints(tmp_path).restore_part((), "best")["a"] == 2
    assert Checkpoints(tmp_path).restore_part((), "4")["a"] == 4
    with pytest.raises(UserError, match="has a held-out figure to compare: train with"):
        saved(tmp_path / "others", 3).resolve("best")


def test_what_is_stored_is_what_the_digests_are_of(tmp_path):
    """The names, kinds and digests of all arrays lie in the checkpoint's data."""
    saved(tmp_path, 7)
    stored = ocp.load_checkpointables(str(tmp_path / "7"), {"data": None})["data"]
    record = json.loads(stored["json"])
    assert record["digests"].keys() == record["arrays"].keys() == array_shapes(state()).keys()
    assert record["arrays"]["params/a/kernel"] == "float32 8x4"
