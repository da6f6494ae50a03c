"""The commands as a user calls them: one JSON line on stdout, the rest on stderr, mistakes without a traceback."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if path.stem != "command")


def call(name, *arguments, cwd=ROOT):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, str(ROOT / "launch" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def test_there_are_commands_and_each_is_short():
    assert {"train", "sample", "reconstruct", "evaluate"} <= set(COMMANDS)
    for name in COMMANDS:
        assert len((ROOT / "launch" / f"{name}.py").read_text().splitlines()) < 70, name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_commands_own_flags_first(name):
    done = call(name, "--help")
    assert done.returncode == 0
    own = {"train": "--config", "sample": "--prompt", "reconstruct": "--embedder", "evaluate": "--suite"}[name]
    assert own in done.stdout
    assert "--alsologtostderr" not in done.stdout
    assert f"python launch/{name}.py" in done.stdout.split("flags:")[0]


def test_train_and_sample_speak_json(tiny_runs, tmp_path):
    config = tmp_path / "config.py"
    values = json.loads((tiny_runs / "vidvae" / "config.json").read_text())
    config.write_text(
        "from ml_collections import config_dict\n\n\ndef get_config():\n"
        f"    return config_dict.ConfigDict({values!r}, convert_dict=True)\n"
    )
    done = call("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.loop.steps=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["step"] == 3
    assert "vidvae 3/3" in done.stderr

    # The same folder with another configuration is refused, and says which key.
    done = call("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.loop.seed=5")
    assert done.returncode == 1
    assert "loop.seed: 0 -> 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""

    # A mistyped key names the nearest one.
    done = call("train", f"--config={config}", f"--workdir={tmp_path / 'x'}", "--config.loop.stepz=3")
    assert done.returncode == 2
    assert "steps" in done.stderr
    assert "Traceback" not in done.stderr

    out = tmp_path / "circle.mp4"
    done = call("sample", f"--model={tiny_runs / 'vdit'}", "--prompt=a red circle moving left", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["video"] == str(out)
    assert out.stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", (), "give --config=FILE and --workdir=DIR"),
        ("train", ("--config=missing.py", "--workdir=x"), "missing.py"),
        ("sample", ("--model=nowhere", "--prompt=x", "--out=x.mp4"), "there is no folder nowhere"),
        ("sample", ("--modle=x",), "modle"),
        ("reconstruct", ("--embedder=nowhere",), "give --video"),
        ("evaluate", ("--suite=captoins",), "captoins"),
    ],
)
def test_mistakes_have_no_traceback(name, arguments, message, tmp_path):
    done = call(name, *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
