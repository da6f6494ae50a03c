"""Strictness for every test: eight fake CPU devices, no silent rank promotion. Warnings are errors
(pyproject.toml)."""

import os

# Tests compile much and compute little: without LLVM's optimisations they take half the time.
FLAGS = " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402  (the flags above must be set first)

jax.config.update("jax_numpy_rank_promotion", "raise")

import pathlib  # noqa: E402

import pytest  # noqa: E402

TINY_DATA = {
    "source": {"kind": "synthetic", "num_clips": 100},
    "buckets": [{"frames": 5, "height": 16, "width": 16, "batch_size": 2}],
}
TINY_VIDVAE = {
    "objective": "vidvae",
    "model": {
        "channels": [8],
        "space_reduction": [False],
        "time_reduction": [False],
        "latent_channels": 4,
        "blocks": 1,
        "stem": [4, 4, 4],
        "mid_attention": False,
        "norm": "rms",
    },
    "loss": {"lpips": 0.0},
    "data": TINY_DATA,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    "loop": {"steps": 2, "compute_dtype": "float32", "log_every": 1},
    "mesh": {"fsdp": 1},
}
TINY_VDIT = {
    **TINY_VIDVAE,
    "objective": "vdit",
    "loss": {},
    "model": {"width": 16, "depth": 2, "heads": 2, "patch": 2, "text_width": 16, "remat": "none"},
    "text": {"width": 16, "depth": 1, "heads": 2, "max_bytes": 64},
    "sample_steps": 2,
}


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory) -> pathlib.Path:
    """A folder with two finished runs, vidvae/ and vdit/, of two steps each. Tests must not change
    it."""
    from xgen_jax.config.runs import run_config
    from xgen_jax.training.fit import train

    root = tmp_path_factory.mktemp("runs")
    train(run_config(TINY_VIDVAE), root / "vidvae")
    train(run_config({**TINY_VDIT, "embedder": str(root / "vidvae")}), root / "vdit")
    return root
