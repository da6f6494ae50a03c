"""The commands as a user calls them: one JSON line on stdout, the rest on stderr, mistakes without
a traceback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if path.stem != "command")


ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}


def command(name, *arguments):
    return [sys.executable, str(ROOT / "launch" / f"{name}.py"), *map(str, arguments)]


def call(name, *arguments, cwd=ROOT):
    arguments = command(name, *arguments)
    return subprocess.run(
        arguments, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=300
    )


def test_there_are_commands_and_each_is_short():
    assert {"train", "sample", "reconstruct", "evaluate", "encode"} <= set(COMMANDS)
    for name in COMMANDS:
        assert len((ROOT / "launch" / f"{name}.py").read_text().splitlines()) < 70, name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_commands_own_flags_first(name):
    done = call(name, "--help")
    assert done.returncode == 0
    own = {
        "train": "--config",
        "sample": "--prompt",
        "evaluate": "--suite",
        "encode": "--shard_size",
        "curate": "--videos",
    }
    assert own.get(name, "--embedder") in done.stdout
    assert "--alsologtostderr" not in done.stdout
    assert f"python launch/{name}.py" in done.stdout.split("flags:")[0]


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--config=quickstart/vidvea", "--config=quickstart/vidvea is not known (did you mean"),
        ("--wrokdir=x", "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
        (
            "--config=quickstart/vidvae --config.optimizer.leraning_rate=1",
            "did you mean --config.optimizer.learning_rate",
        ),
        ("--config=quickstart/vdit --config.loop.setps=1", "did you mean --config.loop.steps"),
        ("--config=quickstart/vidvae --config.loop.steps=abc", "abc is not a whole number"),
        ("--config=quickstart/vidvae --config.model=papr", "(did you mean 'paper'?)"),
        ("--config=quickstart/regen --config.loss.windows=chunks", "(did you mean 'chunk'?)"),
        ("--config=quickstart/vdit --config.optimizer.name=adam", "(did you mean 'adamw'?)"),
    ],
)
def test_what_is_not_known_is_refused_before_jax_is_loaded(flags, named):
    script = (
        "import runpy, sys\nsys.path.insert(0, 'launch')\n"
        "try:\n    runpy.run_path('launch/train.py', run_name='__main__')\n"
        "finally:\n    print('loaded:', *{'jax', 'av'} & {*sys.modules}, file=sys.stderr)\n"
    )
    arguments = [sys.executable, "-c", script, *flags.split(), "--workdir=/nowhere/run"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode in (1, 2) and named in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == "loaded:"


def test_help_with_a_config_lists_its_keys_with_values():
    done = call("train", "--config=quickstart/vidvae", "--config.loop.steps=7", "--help")
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("keys of --config=quickstart/vidvae")[1]
    assert "\n  --config.loop.steps=7\n      updates in all.\n" in text
    assert "\n  --config.data.buckets=9x32x32x4\n" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
@pytest.mark.parametrize("own", [None, "glibc.malloc.check=0"])
@pytest.mark.parametrize("run_as", ["file", "stdin"])
def test_a_command_restarts_with_huge_pages_unless_the_user_chose(tmp_path, run_as, own):
    shown = "os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:], 'jax' in sys.modules"
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom absl import flags\n"
        f"sys.path.insert(0, {str(ROOT / 'launch')!r})\n"
        "import command\nprint('imported', os.getpid())\n"
        "flags.DEFINE_string('flag', None, '')\n"
        f"command.run(lambda: [{shown}], '')\n"
    )
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": own} if own else {}
    arguments = [
        sys.executable,
        "-W",
        "error",
        str(script) if run_as == "file" else "-",
        "--flag=a b",
    ]
    options = {
        "env": environment,
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen(arguments, **options) as process:
        printed = process.communicate(script.read_text(), timeout=60)[0]
    assert process.returncode == 0
    wanted = own or ("glibc.malloc.hugetlb=1" if run_as == "file" else None)
    *imported, result = printed.splitlines()
    assert json.loads(result) == [process.pid, wanted, "--flag=a b", False]
    # Importing the module does not start the process again; only a command does.
    again = run_as == "file" and own is None
    assert imported == [f"imported {process.pid}"] * (2 if again else 1)


def test_the_samplers_offered_are_those_that_there_are():
    from xgen_jax.diffusion.samplers import SOLVERS

    done = call("sample", "--model=x", "--prompt=x", "--out=x.mp4", "--sampler=ode45")
    assert done.returncode != 0
    assert "|".join(sorted(SOLVERS)) in done.stderr.replace("\n", "").replace(" ", "")


@pytest.mark.slow
def test_train_and_sample_print_json(tiny_runs, tmp_path):
    config = tmp_path / "config.py"
    values = json.loads((tiny_runs / "vidvae" / "config.json").read_text())
    config.write_text(
        "from ml_collections import config_dict\n\n\ndef get_config():\n"
        f"    return config_dict.ConfigDict({values!r}, convert_dict=True)\n"
    )
    done = call(
        "train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.loop.steps=3"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["step"] == 3
    assert "vidvae 3/3" in done.stderr

    # The same folder with another configuration is refused, and says which key.
    done = call(
        "train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.loop.seed=5"
    )
    assert done.returncode == 1
    assert "loop.seed: 0 -> 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""

    # A mistyped key names the nearest one.
    done = call(
        "train", f"--config={config}", f"--workdir={tmp_path / 'x'}", "--config.loop.stepz=3"
    )
    assert done.returncode == 2
    assert "steps" in done.stderr
    assert "Traceback" not in done.stderr

    out = tmp_path / "circle.mp4"
    done = call(
        "sample",
        f"--model={tiny_runs / 'vdit'}",
        "--prompt=a red circle moving left",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["video"] == str(out)
    assert out.stat().st_size > 0


@pytest.mark.slow
def test_encode_prints_json_and_continues_after_an_interrupt(tiny_runs, tmp_path):
    arguments = [
        f"--embedder={tiny_runs / 'vidvae'}",
        "--data=synthetic",
        "--shard_size=64",
        "--batch_size=2",
    ]
    arguments += ["--count=4000", f"--out={tmp_path / 'out'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # In the background of a shell the tests ignore the interrupt, and what they start would do so
    # too.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command("encode", *arguments), cwd=ROOT, env=ENVIRONMENT, **pipes)
    signal.signal(signal.SIGINT, ignored)
    try:
        while not list(tmp_path.glob("out/5x16x16/shard-*.json")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert "run the same command again to go on" in err and "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp*")) and not (tmp_path / "out" / "manifest.json").exists()
    done = call("encode", *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["buckets"], result["shards"]) == ({"5x16x16": 4000}, 63)
    assert 1 <= result["kept_shards"] < 63
    assert "encode 4000/4000" in done.stderr
    done = call("encode", *arguments, "--dtype=bfloat16")
    assert done.returncode == 1
    assert "dtype: 'float32' -> 'bfloat16'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", (), "give --config=FILE and --workdir=DIR"),
        ("train", ("--config=missing.py", "--workdir=x"), "missing.py"),
        (
            "train",
            ("--config=quickstart/vidvea", "--workdir=x"),
            "--config=quickstart/vidvea is not known (did you mean quickstart/vidvae or ",
        ),
        (
            "train",
            ("--config=quickstart/regen:7", "--workdir=x"),
            "error: ratio='7' is not known; choose one of 4, 8, 16, 32",
        ),
        (
            "train",
            ("--config=quickstart/vidvae", "--workdir=x", "--config.loop.stepz=3"),
            "error: --config.loop.stepz is not a key; did you mean --config.loop.steps?\n",
        ),
        (
            "train",
            ("--config=vdit/240p:many", "--workdir=x"),
            "the config file fails: ValueError: invalid literal for int()",
        ),
        ("sample", ("--model=nowhere", "--prompt=x", "--out=x.mp4"), "there is no folder nowhere"),
        (
            "sample",
            (
                f"--flagfile={ROOT / 'configs/sampling/720p_14s.flags'}",
                "--model=gone",
                "--prompt=x",
                "--out=x.mp4",
            ),
            "there is no folder gone",
        ),
        ("sample", ("--modle=x",), "modle"),
        ("reconstruct", ("--embedder=nowhere",), "give --video"),
        ("evaluate", ("--suite=captoins",), "captoins"),
        ("encode", ("--data=synthetic",), "give --embedder"),
        (
            "encode",
            ("--embedder=nowhere", "--data=synthetic", "--count=1", "--out=x"),
            "there is no folder nowhere",
        ),
    ],
)
def test_mistakes_have_no_traceback(name, arguments, message, tmp_path):
    done = call(name, *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
