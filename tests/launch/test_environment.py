"""The scripts install JAX for the GPU that they see; settings before JAX is loaded."""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from xgen_jax import environment

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "environment.sh"


@pytest.mark.parametrize(
    ("answer", "extra"),
    [
        ("echo 580.65.06", "gpu"),
        ("printf '610.10\\n610.10\\n'", "gpu"),
        ("echo 550.54.15", "gpu12"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", ""),
        ("exit 127", ""),
    ],
)
def test_the_driver_decides_the_extra(tmp_path, answer, extra):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{answer}\n")
    smi.chmod(0o755)
    said = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"source {SCRIPT}; gpu_extra"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == extra


@pytest.mark.parametrize(
    ("plugin", "jaxlib", "before", "after"),
    [
        (True, "0.10.2", "", "--xla_gpu_force_conv_nhwc=true"),
        (True, "0.10.2", "--other=1", "--other=1 --xla_gpu_force_conv_nhwc=true"),
        (True, "0.10.2", "--xla_gpu_force_conv_nhwc=false", "--xla_gpu_force_conv_nhwc=false"),
        (True, "0.99.0", "", ""),
        (False, "0.10.2", "", ""),
    ],
)
def test_channels_last_is_asked_for_where_it_is_known(
    monkeypatch, capsys, plugin, jaxlib, before, after
):
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin or None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: jaxlib)
    environment.prefer_channels_last()
    assert os.environ["XLA_FLAGS"] == after
    # On the one that may not know it a person learns of it.
    assert ("jaxlib 0.99.0 may not know" in capsys.readouterr().err) == (jaxlib == "0.99.0")


@pytest.mark.skipif(not environment.knows_channels_last(), reason="a jaxlib without the flag")
def test_this_jaxlib_takes_the_flag():
    """XLA ends a process with a flag that it does not know."""
    flags = f"--{environment.CHANNELS_LAST}=true"
    run = "import jax; print(jax.device_count())"
    done = subprocess.run(
        [sys.executable, "-c", run],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1", done.stderr
