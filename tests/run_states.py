"""What a run has left on disk, for tests of exact resume."""

import pathlib

import jax
import numpy as np

from xgen_jax.runs.checkpoint import Checkpoints


def state_of(workdir, step=None):
    """All arrays of a run's newest checkpoint, without a model: the sub-trees as they are on
    disk."""
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints")
    return {
        name: checkpoints.restore_part((name,), step)
        for name in ("step", "params", "ema", "opt_state")
    }


def assert_same(one, other):
    """Two trees have the same arrays, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def contents(folder):
    """Every file below a folder, by its path there."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
