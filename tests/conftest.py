"""Strictness for every test: eight fake CPU devices, no silent rank promotion. Warnings are errors (pyproject.toml)."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402  (the flags above must be set first)

jax.config.update("jax_numpy_rank_promotion", "raise")
