"""The public names: each has a docstring whose example runs, and `help` reads as a map."""

import pydoc
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import xgen_jax
from xgen_jax.commands.train import train
from xgen_jax.testing import VDIT, tiny_run

FUNCTIONS = [name for name in xgen_jax.__all__ if name != "UserError"]


@pytest.fixture(scope="module")
def folder(tiny_runs, tmp_path_factory):
    """A working folder as the examples expect it: runs/vidvae, runs/vdit, clip.mp4, videos."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "runs").mkdir()
    lora = tiny_run(
        VDIT,
        embedder=str(tiny_runs / "vidvae"),
        init_from=str(tiny_runs / "vdit"),
        lora={"rank": 2, "alpha": 4.0},
    )
    train(lora, folder / "runs" / "lora")
    for run in ("vidvae", "vdit"):
        (folder / "runs" / run).symlink_to(tiny_runs / run)
    video = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    xgen_jax.write_video(folder / "clip.mp4", video)
    xgen_jax.write_video(folder / "videos" / "clip.mp4", video)
    return folder


def example(name):
    """The code under "Example:" of a function's docstring."""
    doc = textwrap.dedent("    " + (getattr(xgen_jax, name).__doc__ or ""))
    assert doc.count("Example:") == 1, name
    return textwrap.dedent(doc.split("Example:\n")[1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = example(name)
    assert f"xgen_jax.{name}(" in code
    exec(compile(code, f"example of {name}", "exec"), {"xgen_jax": xgen_jax})


def test_help_names_every_public_function():
    text = pydoc.plain(pydoc.render_doc(xgen_jax))
    for name in FUNCTIONS:
        assert f"    {name}(" in text
        assert name in (xgen_jax.__doc__ or "")


def test_importing_the_package_imports_no_jax():
    code = "import sys, xgen_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
