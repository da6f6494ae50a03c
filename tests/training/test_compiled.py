"""Programs of buckets: which are compiled when, and what ends a run that waits for one."""

import itertools
import os
import signal
import subprocess
import sys
import threading

import jax
import pytest
from run_states import CLOCK, assert_same, state_of

from xgen_jax.commands.train import train
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_run
from xgen_jax.training import fit
from xgen_jax.training.compiled import StepPrograms, compiling, jit_update
from xgen_jax.training.metric_writers import read_jsonl

BUCKETS = [Bucket(frames=n, height=16, width=16, batch_size=2) for n in (1, 5, 9, 13)]


class Step:
    """Stands for a compiled step."""

    def __init__(self, bucket):
        self.bucket = bucket

    def memory_analysis(self):
        return None


class Update:
    """Stands for a jitted update: its programs are compiled when they are released.

    Attributes:
      begun: buckets in the order in which they were lowered.
      released, errors: by bucket.
    """

    def __init__(self):
        self.begun = []
        self.released = {bucket: threading.Event() for bucket in BUCKETS}
        self.errors = {}
        self._begins = threading.Condition()

    def lower(self, state, bucket, *_):
        with self._begins:
            self.begun.append(bucket)
            self._begins.notify_all()
        update = self

        class Lowered:
            def compile(self):
                assert update.released[bucket].wait(30)
                if bucket in update.errors:
                    raise update.errors[bucket]
                return Step(bucket)

        return Lowered()

    def wait_for(self, count):
        with self._begins:
            assert self._begins.wait_for(lambda: len(self.begun) == count, 30)


class State:
    step = None


@pytest.fixture
def update():
    update = Update()
    yield update
    for released in update.released.values():
        released.set()


@pytest.fixture
def programs(update, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))  # one thread behind
    arguments = {bucket: (bucket,) for bucket in BUCKETS}
    programs = StepPrograms(update, State(), arguments, make_mesh(MeshConfig(fsdp=1)))
    yield programs
    programs.close()


def test_the_first_programs_come_first_and_the_others_in_order_behind(update, programs, capsys):
    for released in update.released.values():
        released.set()
    first, second, third, largest = BUCKETS
    programs.compile_first([first, largest, first])
    assert set(update.begun) == {first, largest}
    programs.compile_behind([first, third, largest, second])
    for bucket in BUCKETS:
        assert programs.get(bucket).bucket == bucket
    assert update.begun[2:] == [third, second]
    said = capsys.readouterr().err
    assert "compiled 1x16x16, batch 2: " in said and "compiled 13x16x16, batch 2: " in said
    assert "2 of 4 programs, one a bucket, are compiled while training" in said


def test_a_program_that_is_needed_now_waits_for_no_other(update, programs):
    first, second, third, largest = BUCKETS
    update.released[first].set()
    programs.compile_first([first])
    programs.compile_behind(BUCKETS)
    update.wait_for(2)  # the second is compiled, and goes on
    update.released[largest].set()
    assert programs.get(largest).bucket == largest
    assert update.begun == [first, second, largest]
    asked = iter([False, True])
    assert programs.get(third, lambda: next(asked)) is None  # asked to stop while it waits
    programs.close()
    update.released[second].set()
    update.released[third].set()
    assert programs.get(second) and programs.get(third)
    assert len(update.begun) == 4 and set(update.begun) == set(BUCKETS)


def test_a_closed_one_begins_no_others(update, programs):
    update.released[BUCKETS[0]].set()
    programs.compile_first(BUCKETS[:1])
    programs.compile_behind(BUCKETS)
    update.wait_for(2)
    assert compiling()
    programs.close()  # returns while a thread is at work
    update.released[BUCKETS[1]].set()
    assert programs.get(BUCKETS[1])
    for thread in threading.enumerate():
        if thread.name.startswith("compile"):
            thread.join(30)
    assert update.begun == BUCKETS[:2] and not compiling()


def test_a_step_that_does_not_fit_is_an_error_before_it_is_needed(update, programs):
    for released in update.released.values():
        released.set()
    programs.compile_first(BUCKETS[:1])
    programs.check()
    update.errors[BUCKETS[1]] = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 of 2 GiB")
    programs.compile_behind(BUCKETS)
    message = "step of bucket 5x16x16, batch 2, does not fit: .*3 of 2 GiB; make its batch smaller"
    with pytest.raises(UserError, match=message):
        programs.get(BUCKETS[1])
    with pytest.raises(UserError, match=message):
        programs.check()


def three_buckets(steps=8):
    """A run, and the bucket of it that is compiled behind training: steps 0 and 1 are others'."""
    loop = {"steps": steps, "checkpoint_every": 100}
    for seed in itertools.count():
        data = {"buckets": "5x16x16x2,1x16x16x2,9x16x16x2", "seed": seed}
        config = tiny_run(VIDVAE, model=POINTWISE, data=data, loop=loop)
        pipeline = Pipeline(make_source(config.data), config.data)
        *_, behind = pipeline.needed(0, steps)
        if behind.frames != 9 and pipeline.first_step(behind) == 2:
            return config, behind
    raise AssertionError("seeds have no end")


def slowed(behind, compiles):
    """Stand in for `jit_update`: `compiles` is called before a bucket's step is compiled."""

    def jit(*arguments):
        update = jit_update(*arguments)

        class Slowed:
            def lower(self, state, arrays, *others):
                lowered = update.lower(state, arrays, *others)
                if arrays["video"].shape[1:3] != (behind.frames, behind.height):
                    return lowered

                class Lowered:
                    def compile(self):
                        compiles()
                        return lowered.compile()

                return Lowered()

        return Slowed()

    return jit


class Rows:
    """A writer that says when a step's row is there."""

    def __init__(self, step):
        self.step, self.there = step, threading.Event()

    def write(self, step, metrics):
        if step >= self.step:
            self.there.set()

    def progress(self, step, metrics):
        pass

    def image(self, step, name, path):
        pass

    def close(self):
        self.there.set()


@pytest.mark.slow
def test_a_run_does_not_wait_for_programs_that_it_does_not_need_yet(tmp_path, monkeypatch):
    config, behind = three_buckets()
    train(config, tmp_path / "plain")
    rows, waited = Rows(step=1), []
    monkeypatch.setattr(
        fit, "jit_update", slowed(behind, lambda: waited.append(rows.there.wait(60)))
    )
    train(config, tmp_path / "run", writers=[rows])
    assert waited == [True]
    assert_same(state_of(tmp_path / "run"), state_of(tmp_path / "plain"))
    plain, own = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("plain", "run"))
    for one, other in zip(plain, own, strict=True):
        assert {k: one[k] for k in one if k not in CLOCK} == {
            k: other[k] for k in other if k not in CLOCK
        }


def test_a_step_that_does_not_fit_ends_a_run_with_its_state_saved(tmp_path, monkeypatch):
    config, behind = three_buckets()
    rows = Rows(step=1)

    def fail():
        rows.there.wait(60)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 of 2 GiB")

    monkeypatch.setattr(fit, "jit_update", slowed(behind, fail))
    with pytest.raises(UserError, match=f"bucket {behind.name}, batch 2, does not fit: .*3 of 2"):
        train(config, tmp_path / "run", writers=[rows])
    (step,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert int(state_of(tmp_path / "run")["step"]) == step
    written = [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert written == list(range(1, step + 1))


STOPPED = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[2])
from test_compiled import Rows, slowed, three_buckets
from xgen_jax.commands import start
from xgen_jax.commands.train import train
from xgen_jax.training import fit

config, behind = three_buckets()
rows = Rows(step=1)


def stop_and_never_end():
    rows.there.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


fit.jit_update = slowed(behind, stop_and_never_end)
folder = sys.argv[1]
del sys.argv[1:]
start.run(lambda: train(config, folder, writers=[rows]), "")
"""


def test_a_command_that_is_stopped_does_not_wait_for_a_compiler(tmp_path):
    arguments = [sys.executable, "-c", STOPPED, str(tmp_path / "run"), os.path.dirname(__file__)]
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "interrupted; run the same command again to go on" in done.stderr
    (step,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()
    assert 1 <= step < 8
