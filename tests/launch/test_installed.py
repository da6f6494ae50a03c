"""The commands from an installed package, in a folder outside the repository."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "xgen_jax", "configs", "launch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        int(importlib.metadata.version("setuptools").split(".")[0]) < 77,
        reason="builds with setuptools 77 or newer, an extra of the tests",
    ),
]


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Run `python ARGUMENTS...` with the package as pip installs it, and returns its stdout."""
    folder = tmp_path_factory.mktemp("installed")
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / "source" / part, ignore=ignored)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / part, folder / "source" / part)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    install += ["--no-build-isolation", f"--target={folder / 'package'}", str(folder / "source")]
    subprocess.run(install, check=True, timeout=300)
    outside = folder / "outside"
    outside.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(folder / "package")

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=outside, env=environment, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_package_is_the_installed_one_and_says_that_it_is_typed(call):
    file = pathlib.Path(call("-c", "import xgen_jax; print(xgen_jax.__file__)").strip())
    assert file.parents[1].name == "package"
    assert (file.parent / "py.typed").exists()
    templates = {path.name for path in (file.parent / "evaluation" / "templates").iterdir()}
    assert templates == {
        path.name for path in (ROOT / "xgen_jax" / "evaluation" / "templates").iterdir()
    }


def test_every_command_shows_its_flags(call):
    shown = call("-m", "xgen_jax")
    commands = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))
    commands.remove("command")
    for name in commands:
        assert f"\n  {name} " in shown
        assert "--" in call("-m", "xgen_jax", name, "--help").split("flags:")[1]


def test_from_a_config_to_a_sample(call):
    def xgen(*arguments):
        return json.loads(call("-m", "xgen_jax", *arguments))

    def train(config, workdir, *keys):
        keys = (f"--config.{key}" for key in (*keys, *small))
        return xgen("train", f"--config={config}", f"--workdir={workdir}", *keys)

    bucket = {"frames": 5, "height": 16, "width": 16, "batch_size": 2}
    small = ("loop.steps=1", "optimizer.name=adamw", f"data.buckets=({bucket},)")
    assert train("quickstart/vidvae", "ae", "model.channels=(8,)", "model.blocks=1")["step"] == 1
    encoded = xgen("encode", "--embedder=ae", "--data=synthetic", "--count=4", "--out=latents")
    assert encoded["buckets"] == {"5x16x16": 4}
    sizes = ("model.depth=2", "model.width=16", "model.heads=2", "model.patch=1", "sample_steps=2")
    train("quickstart/vdit", "dit", "embedder=ae", *sizes)
    sampled = xgen("sample", "--model=dit", "--prompt=a red circle moving left", "--out=a.mp4")
    assert sampled["video"] == "a.mp4"
    rebuilt = xgen("reconstruct", "--embedder=ae", "--video=a.mp4", "--out=both.mp4")
    assert rebuilt["video"]
