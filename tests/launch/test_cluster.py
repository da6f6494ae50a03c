"""The recipes for clusters: what they start exists, and runs are started again when they should."""

import ast
import dataclasses
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

from xgen_jax.commands.arguments import find_config
from xgen_jax.commands.config_file import load_config

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
RECIPES = sorted(path for path in FOLDER.iterdir() if path.suffix != ".dockerignore")
PROCESS_FLAGS = {"coordinator", "num_processes", "process_id"}
# launch/NAME.py, `slurm.sh NAME` or `tpu_vm.sh run NAME`, and its line with what goes on from it.
COMMAND = re.compile(
    r"(?:launch/(?=\w+\.py)|slurm\.sh |tpu_vm\.sh run )([a-z]+)\b((?:\\\n|[^\n])*)"
)


def flags_of(command):
    """Return the flags that a file of launch/ defines."""
    tree = ast.parse((ROOT / "launch" / f"{command}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    names = [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]
    return {name for name in names if isinstance(name, str)} | PROCESS_FLAGS


def commands():
    """Yield (recipe, command of launch/, its arguments) of every line that starts one."""
    for path in RECIPES:
        text = path.read_text()
        if path.suffix == ".yaml":  # a list of arguments
            yield path, "train", re.findall(r"^ +- (--\S+)", text, re.MULTILINE)
        for name, rest in COMMAND.findall(text):
            yield path, name, re.findall(r"(?<!\S)--[^\s`\"]+", rest)


def test_every_recipe_is_there():
    assert {path.name for path in RECIPES} == {
        "Dockerfile", "gke_gpu.yaml", "gke_tpu.yaml", "restart.sh", "slurm.sh", "tpu_vm.sh",
    }  # fmt: skip
    assert {path.name for path, *_ in commands()} == {path.name for path in RECIPES}
    assert {name for _, name, _ in commands()} >= {"train", "encode", "sample"}


def test_commands_flags_and_keys_in_the_recipes_exist():
    keys = []
    for path, name, arguments in commands():
        assert (ROOT / "launch" / f"{name}.py").is_file(), (path.name, name)
        for argument in arguments:
            flag, _, value = argument.removeprefix("--").partition("=")
            if flag.startswith("config."):
                keys.append(f"{flag.removeprefix('config.')}={value}")
            else:
                assert flag in flags_of(name), (path.name, argument)
            if flag == "config" and value != "...":
                assert pathlib.Path(find_config(value)).is_file()
    for text in (path.read_text() for path in RECIPES):  # also those named apart from a command
        keys += re.findall(r"--config\.(\S+=\w[\w,/]*\w)", text)
    assert "loop.profile_steps=20,25" in keys
    load_config(find_config("finetune/vdit"), sorted(set(keys)))


def test_runs_of_several_processes_use_all_devices():
    names = {
        argument.removeprefix("--config=")
        for path, name, arguments in commands()
        for argument in arguments
        if name == "train" and path.name != "Dockerfile" and argument.startswith("--config=")
    } - {"..."}
    assert {"finetune/vdit", "vdit/240p"} <= names
    for name in names:
        assert -1 in dataclasses.asdict(load_config(find_config(name), []).mesh).values(), name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    checks = [["bash", "-n"]]
    if found := shutil.which("shellcheck"):
        checks.append([found])
    for check in checks:
        done = subprocess.run([*check, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["gke_gpu.yaml", "gke_tpu.yaml"])
def test_job_sets_start_all_pods_again_but_not_after_mistakes(name):
    yaml = pytest.importorskip("yaml")
    values = yaml.safe_load((FOLDER / name).read_text())
    assert values["kind"] == "JobSet"
    spec = values["spec"]
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    (workers,) = spec["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2, 130]
    (container,) = job["template"]["spec"]["containers"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    flags = dict(each.removeprefix("--").split("=", 1) for each in container["args"])
    if name == "gke_gpu.yaml":
        host = f"{values['metadata']['name']}-{workers['name']}-0-0.{values['metadata']['name']}"
        assert flags["coordinator"] == f"{host}:{container['ports'][0]['containerPort']}"
        assert int(flags["num_processes"]) == job["parallelism"] == job["completions"]
    else:
        assert not PROCESS_FLAGS & flags.keys() and job["parallelism"] == job["completions"]


def start_again(tmp_path, codes, **env):
    """Run restart.sh on a command that ends with these codes in turn; return (its code, runs)."""
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = 'read -r code <codes; sed -i 1d codes; echo >>runs; exit "${code:-99}"'
    done = subprocess.run(
        ["bash", FOLDER / "restart.sh", "bash", "-c", command],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "RESTART_WAIT_S": "0", **env},
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    return done.returncode, len((tmp_path / "runs").read_text().splitlines())


@pytest.mark.parametrize(
    ("codes", "code", "runs"),
    [
        ([0], 0, 1),
        ([143, 129, 75, 134, 137, 0], 0, 6),
        ([75, 1, 0], 1, 2),
        ([2, 0], 2, 1),
        ([130, 0], 130, 1),
        ([134] * 9, 134, 6),  # too many short runs
    ],
)
def test_the_exit_code_decides_whether_a_run_is_started_again(tmp_path, codes, code, runs):
    assert start_again(tmp_path, codes) == (code, runs)


def test_only_short_runs_in_a_row_are_counted(tmp_path):
    assert start_again(tmp_path, [134] * 9 + [0], QUICK_S="0") == (0, 10)


def test_a_signal_is_handed_on_and_ends_it_once_the_command_has_saved(tmp_path):
    command = "trap 'sleep 0.3; echo saved >saved; exit 143' TERM; echo >ready; "
    command += "while :; do sleep 0.05; done"
    process = subprocess.Popen(
        ["bash", FOLDER / "restart.sh", "bash", "-c", command],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "RESTART_WAIT_S": "0"},
    )
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert (tmp_path / "saved").read_text() == "saved\n"
