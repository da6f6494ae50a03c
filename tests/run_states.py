"""Contents of a run's folder, for tests of exact resume."""

import pathlib

import jax
import numpy as np

from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.training.metric_writers import read_jsonl

# Metrics that depend on the clock.
CLOCK = {"steps_per_s", "tokens_per_s", "frames_per_s", "mfu", "input_wait", "time_s"}


def rows_of(workdir):
    """Read the metrics of a run without those that depend on the clock."""
    return [
        {name: value for name, value in row.items() if name not in CLOCK}
        for row in read_jsonl(pathlib.Path(workdir) / "metrics.jsonl")
    ]


def state_of(workdir, step=None):
    """Load all arrays of a run's newest checkpoint, without a model: the sub-trees on disk."""
    checkpoints = Checkpoints(pathlib.Path(workdir) / "checkpoints")
    return {
        name: checkpoints.restore_part((name,), step)
        for name in ("step", "params", "ema", "opt_state")
    }


def assert_same(one, other):
    """Check that two trees have the same arrays, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.leaves(one)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def contents(folder):
    """Read all files below a folder, by relative path."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
