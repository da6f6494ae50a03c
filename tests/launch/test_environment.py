"""The scripts install JAX for the GPU that they see."""

import pathlib
import subprocess

import pytest

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
