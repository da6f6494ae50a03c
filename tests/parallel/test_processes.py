"""What two processes tell each other, and how one of several is started."""

import json
import os
import platform
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from agreeing import make_pipeline
from cluster import ROOT, environment, free_port

from xgen_jax.errors import UserError
from xgen_jax.parallel.processes import started

HOST = platform.node()


@pytest.fixture(scope="module")
def found():
    """What `agreeing.py` found in two processes, and what each printed on stderr."""
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "tests" / "parallel" / "agreeing.py", coordinator, str(number)],
            env=environment(1) | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        done = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], [err for _, err in done]
    return [json.loads(out.splitlines()[-1]) for out, _ in done], [err for _, err in done]


def test_values_of_all_processes_are_known_to_all(found):
    for each in found[0]:
        assert each["gather"] == [
            {"process": number, "text": "ü" * (1 + 90 * number)} for number in range(2)
        ]
        assert each["arrays"] == [[0, 0], [1, 1]]
        assert each["from_first"] == "made by 0"


def test_a_mistake_of_one_process_is_raised_in_all_with_its_number_and_host(found):
    for each in found[0]:
        assert each["one fails"] == f"process 1 ({HOST}): it is empty"
        assert each["all fail"] == "it is empty"
    # The one that asked for a value hears of it; the one that failed raises its own.
    assert {each["before a gather"] for each in found[0]} == {f"process 1 ({HOST}): it is empty"}


def test_processes_that_were_started_otherwise_are_named(found):
    for each in found[0]:
        assert each["equal"] is None
        assert f"process 1 ({HOST}): config.steps is 4, and 3 in process 0" in each["unequal"]
        assert "seed" not in each["unequal"] and "same command" in each["unequal"]


def test_arrays_are_put_over_processes_and_fetched(found):
    for each in found[0]:
        assert each["addressable"] is False
        assert each["fetched"] == {"rows": np.arange(8.0).reshape(4, 2).tolist(), "sum": 28.0}
        assert each["key"] == jax.random.key_data(jax.random.key(3)).tolist()


def test_a_batch_is_divided_as_the_mesh_divides_it(found):
    assert [each["part"] for each in found[0]] == [[0, 2], [1, 2]]
    assert [each["shared part"] for each in found[0]] == [[0, 1], [0, 1]]
    for each in found[0]:
        assert "none of process 1" in each["no device"] and "mesh.fsdp=-1" in each["no device"]


def test_all_processes_take_the_same_bucket_and_other_samples(found):
    whole = make_pipeline()
    first, second = found[0]
    assert first["buckets"] == second["buckets"] == [whole.bucket(s).name for s in range(8)]
    assert len(set(first["buckets"])) == 2
    for step in range(4):
        ids = first["sample ids"][step] + second["sample ids"][step]
        assert ids == whole.batch(step)["sample_id"].tolist() and len(set(ids)) == 4


def test_a_signal_to_one_process_is_known_to_all(found):
    assert [each["stop"] for each in found[0]] == [signal.SIGTERM, signal.SIGTERM]


def test_only_the_first_process_speaks(found):
    assert [each["first"] for each in found[0]] == [True, False]
    assert "what the first process says" in found[1][0]
    assert "what the first process says" not in found[1][1]


def test_a_coordinator_that_is_not_there_is_named():
    """Both are alone: one waits for others, the other one's coordinator is not there."""
    script = "import sys; from xgen_jax.parallel.processes import started\n"
    script += "with started(sys.argv[1], 2, int(sys.argv[2]), timeout_s=2): pass"
    coordinators = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, coordinator, str(number)],
            env=environment(1) | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, coordinator in enumerate(coordinators)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, (process, coordinator) in enumerate(zip(processes, coordinators)):
        assert process.returncode == 75
        assert f"not all of 2 processes have joined the coordinator {coordinator}" in said[number]
        assert f"process {number} on" in said[number]
    assert "cannot be reached" in said[1]


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-4]",
}
SETTINGS = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_", "CUDA_VISIBLE", "JAX_C")


class Asked(Exception):
    """In place of joining other processes."""


def asked(monkeypatch, env, **flags):
    """Return what jax.distributed.initialize is called with; None if it is not called."""
    for name in os.environ:
        if name.startswith(SETTINGS):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    calls = []

    def initialize(**options):
        calls.append(options)
        raise Asked

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    try:
        with started(**flags) as first:
            assert first
    except Asked:
        del calls[0]["initialization_timeout"]
        return calls[0]
    return None


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ({}, None),
        # A job of one task; a shell inside an allocation, and a batch script, of eight.
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),
        # Two tasks a node: the GPU of each by its number there. One a node: all GPUs.
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "4"},
            {"num_processes": 8},
        ),
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "4"},
            {"num_processes": 4, "local_device_ids": []},
        ),
        # Slurm shows each task its own GPU only.
        (
            {
                **SLURM,
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_STEP_NUM_NODES": "4",
                "CUDA_VISIBLE_DEVICES": "1",
            },
            {"num_processes": 8, "local_device_ids": []},
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        # TPUs, as jax notes them: a VM of Google Cloud, and pods of Kubernetes with one or more.
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "tpu,cpu"}, {}),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "tpu,cpu"}, None),
        (
            {
                "TPU_ML_PLATFORM": "JAX",
                "JAX_PLATFORMS": "tpu,cpu",
                "TPU_WORKER_HOSTNAMES": "localhost",
            },
            None,
        ),
        (
            {"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "tpu,cpu", "TPU_WORKER_HOSTNAMES": "a,b"},
            {},
        ),
    ],
)
def test_the_environment_decides(monkeypatch, env, options):
    assert asked(monkeypatch, env) == options


def test_flags_come_before_the_environment(monkeypatch):
    slurm = {**SLURM, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "4"}
    assert asked(monkeypatch, slurm, num_processes=1) is None
    given = {"num_processes": 2, "process_id": 1}
    options = {**given, "local_device_ids": []}
    assert asked(monkeypatch, slurm, coordinator="host:1234", **given) == {
        "coordinator_address": "host:1234",
        **options,
    }
    # Nobody outside of this machine is meant to reach it.
    for local in ("127.0.0.1:1234", "localhost:1234", "[::1]:1234"):
        assert asked(monkeypatch, {}, coordinator=local, **given) == {
            "coordinator_address": local,
            "coordinator_bind_address": local,
            **options,
        }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"coordinator": "host:1"}, "--num_processes, --process_id too"),
        ({"num_processes": 2}, "--coordinator, --process_id too"),
        ({"num_processes": 1, "process_id": 0}, "--coordinator too"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "host:x", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "h:70000", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "must be in [0, 2)"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, said):
    with pytest.raises(UserError) as raised, started(**flags):
        raise AssertionError("it was started")
    assert said in str(raised.value)
