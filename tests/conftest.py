"""Strictness for every test: eight fake CPU devices, no silent rank promotion. Warnings are errors
(pyproject.toml)."""

import atexit
import fcntl
import os
import pathlib
import shutil
import tempfile

# Tests compile much and compute little: without LLVM's optimisations they take half the time.
FLAGS = " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Processes and calls share what they compile.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What is remembered of the files that tests make is of no use to anyone.
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers have that of the process that starts them
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="xgen_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import jax  # noqa: E402  (the flags above must be set first)

jax.config.update("jax_numpy_rank_promotion", "raise")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory) -> pathlib.Path:
    """A folder with two finished runs, vidvae/ and vdit/, of two steps each. Tests must not change
    it."""

    from xgen_jax.commands.train import train
    from xgen_jax.testing import VDIT, VIDVAE, tiny_run

    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share what the first has trained
        root = tmp_path_factory.getbasetemp().parent / "tiny_runs"
        root.mkdir(exist_ok=True)
    else:
        root = tmp_path_factory.mktemp("runs")
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "vdit" / "run.json").exists():
            train(tiny_run(VIDVAE), root / "vidvae")
            train(tiny_run(VDIT, embedder=str(root / "vidvae")), root / "vdit")
    return root
