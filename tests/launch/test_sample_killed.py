"""Sampling 64 prompts that is killed and started again ends with the same bytes as without the
kill."""

import os
import signal
import subprocess
import time

import pytest
from test_commands import ROOT, command

from xgen_jax.commands.sample import SampleRequest, sample_files

LINES = [
    f"a {color} {shape} moving {way}"
    for color in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "triangle", "bar")
    for way in ("left", "right", "up", "down")
]


@pytest.mark.slow
def test_64_prompts_with_a_kill(tiny_runs, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(LINES) + "\n")
    arguments = {
        "model": str(tiny_runs / "vdit"),
        "prompts_file": str(tmp_path / "prompts.txt"),
        "batch_size": 4,
    }
    whole = sample_files(SampleRequest(out=str(tmp_path / "whole"), **arguments))
    assert whole["generated"] == 64
    # The same devices and compiler flags as here, or the last bits may differ.
    flags = [f"--{name}={value}" for name, value in arguments.items()]
    process = subprocess.Popen(
        command("sample", *flags, f"--out={tmp_path / 'cut'}"),
        cwd=ROOT,
        env=dict(os.environ),
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and len(list(tmp_path.glob("cut/[0-9]*.mp4"))) < 6:
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait(60) == -signal.SIGKILL
    there = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("cut/[0-9]*.mp4")}
    assert 6 <= len(there) < 64
    done = sample_files(SampleRequest(out=str(tmp_path / "cut"), **arguments))
    assert (done["generated"], done["kept"]) == (64 - len(there), len(there))
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in there} == there
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(os.listdir(tmp_path / "whole"))
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes(), path.name
