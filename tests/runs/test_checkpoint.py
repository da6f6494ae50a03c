"""Checkpoints: restored bit for bit, on any layout, and never half written."""

import gc
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xgen_jax.errors import UserError
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.training.state import TrainState

# A read that fails leaves event loops and coroutines of Orbax behind, which complain when they are
# collected.
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
def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path, damage):
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
    with pytest.raises(UserError, match=r"7 cannot be read \(.*; remove .*7 to go on from step 3"):
        checkpoints.restore(abstract(state()))
    with pytest.raises(UserError, match="7 cannot be read"):
        checkpoints.restore_part(("ema",))


def test_a_checkpoint_of_another_model_is_an_error(tmp_path):
    checkpoints = saved(tmp_path, 7)
    other = state()
    other = other.replace(params={**other.params, "a": {"kernel": jnp.zeros((8, 5))}})
    with pytest.raises(UserError, match="7 cannot be read"):
        checkpoints.restore(abstract(other))


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
