"""Trackers follow a run over its calls, and end none."""

import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import types

import pytest

from xgen_jax.commands.train import train
from xgen_jax.config.build import flat
from xgen_jax.config.changes import FREE_KEYS
from xgen_jax.config.keys import set_keys
from xgen_jax.config.runs import VidVAERun, run_config, to_dict
from xgen_jax.errors import UserError
from xgen_jax.runs.folder import RunFolder
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_run, tiny_values
from xgen_jax.training.metric_writers import read_jsonl, trackers

ROOT = pathlib.Path(__file__).parents[2]


class FakeRun:
    """Records what a tracker's run is given."""

    def __init__(self, options, broken=()):
        self.options, self.broken, self.calls = options, broken, []

    def log(self, values, step):
        if "log" in self.broken:
            raise ConnectionError("network is unreachable")
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")


class FakePackage(types.ModuleType):
    """A package like wandb or trackio, whose runs record what they are given."""

    def __init__(self, name, *broken):
        super().__init__(name)
        self.runs, self.broken = [], broken
        self.Settings = lambda **settings: settings
        self.Video = lambda path, format=None: ("video", path)
        self.Image = lambda path: ("image", path)
        self.context_vars = self.current_run = self

    def get(self):
        return self.runs[-1]

    def finish(self):
        self.runs[-1].finish()

    def init(self, **options):
        if "init" in self.broken:
            raise RuntimeError("api_key not configured (no-tty)\nmore")
        self.runs.append(FakeRun(options, self.broken))
        return self.runs[-1]


@pytest.fixture
def packages(monkeypatch):
    """Fakes of both packages, under their names."""
    fakes = {name: FakePackage(name) for name in trackers.TRACKERS}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return fakes


def opened(path, *own, names=("wandb", "trackio")):
    return trackers.open_trackers(names, own, path / "trackers.json", {"loop": {"steps": 9}})


def test_trackers_get_configuration_name_and_images_and_a_resumed_run_no_step_twice(
    packages, tmp_path
):
    workdir = tmp_path / "shapes"
    with opened(workdir) as writers:
        writers.image(2, "preview", pathlib.Path("previews/2.gif"))
        writers.write(2, {"loss": 1.0})
        writers.progress(3, {"loss": 0.9})
        writers.image(4, "preview", pathlib.Path("previews/4.gif"))  # and is killed before its row
    with opened(workdir) as writers:
        for step in (2, 4):
            writers.image(step, "preview", pathlib.Path(f"previews/{step}.png"))
            writers.write(step, {"loss": step})
        writers.image(5, "preview", pathlib.Path("previews/5.png"))
    ids = {name: fake.runs[0].options for name, fake in packages.items()}
    assert ids["wandb"]["name"] == "shapes" and ids["wandb"]["dir"] == workdir
    assert ids["trackio"]["name"].startswith("shapes-")
    for name, (first, second) in ((n, fake.runs) for n, fake in packages.items()):
        assert first.options["project"] == "xgen_jax"
        assert first.options["config"] == {"loop": {"steps": 9}}
        assert first.options["resume"] in (None, "never") and second.options["resume"] == "allow"
        assert all(first.options[key] == second.options[key] for key in ("name", "project"))
        assert first.options.get("id") == second.options.get("id"), name
        video = {"preview": ("video", "previews/2.gif")}
        assert first.calls[:2] == [(2, video), (2, {"loss": 1.0})]
        assert [call if call == "finish" else call[0] for call in first.calls] == [
            2,
            2,
            4,
            "finish",
        ]
        assert second.calls == [
            (4, {"loss": 4}),
            (5, {"preview": ("image", "previews/5.png")}),
            "finish",
        ]


def test_a_new_run_of_the_same_name_is_another_one_there(packages, tmp_path):
    for folder in ("a/run", "b/run"):
        opened(tmp_path / folder).close()
    one, other = packages["wandb"].runs
    assert one.options["id"] != other.options["id"] and other.options["resume"] is None
    one, other = packages["trackio"].runs
    assert one.options["name"] != other.options["name"]


def test_a_tracker_that_fails_is_reported_once_and_closed(packages, tmp_path, capsys):
    packages["wandb"].broken = ("log",)
    noted = []
    with opened(tmp_path) as writers:
        writers.report_to(lambda *note: noted.append(note))
        for step in (1, 2, 3):
            writers.write(step, {"loss": 1.0})
    assert [(event, step) for event, step, _ in noted] == [("failed_writer", 1)]
    assert "wandb failed at step 1 (network is unreachable); the run goes on" in noted[0][2]
    assert packages["wandb"].runs[0].calls == ["finish"]
    assert [call[0] for call in packages["trackio"].runs[0].calls[:-1]] == [1, 2, 3]


def test_a_tracker_that_cannot_start_is_refused_before_training(packages, tmp_path):
    packages["trackio"].broken = ("init",)
    with pytest.raises(UserError, match=r"trackio could not be started \(api_key not configured"):
        opened(tmp_path)
    assert packages["wandb"].runs[0].calls == ["finish"]


def test_a_tracker_that_cannot_start_again_does_not_keep_a_run_from_going_on(
    packages, tmp_path, capsys
):
    opened(tmp_path).close()
    packages["wandb"].broken = ("init",)
    with opened(tmp_path) as writers:
        writers.write(3, {"loss": 1.0})
    assert "wandb could not be started (api_key" in capsys.readouterr().err
    assert packages["trackio"].runs[1].calls == [(3, {"loss": 1.0}), "finish"]


def test_a_missing_package_is_refused_with_its_extra_before_anything_is_written(
    monkeypatch, tmp_path
):
    run = tiny_run(VIDVAE, loop={"writers": ["jsonl", "wandb"]})
    # What is found where a run has left a folder wandb/: a package without a file.
    for spec in (None, types.SimpleNamespace(origin=None)):
        monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(UserError, match=r'pip install "xgen_jax\[wandb\]"'):
            train(run, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no metric writer: it has no method write and no progress"):
        train(tiny_run(VIDVAE), tmp_path / "run", writers=[object()])
    assert not (tmp_path / "run").exists()


def test_writers_are_chosen_by_flag_and_may_change():
    def chosen(text):
        return run_config(set_keys(VidVAERun, VIDVAE, [("loop.writers", text)], print)).loop.writers

    assert run_config(VIDVAE).loop.writers == ("console", "jsonl", "tensorboard")
    assert chosen("console,jsonl,wandb") == ("console", "jsonl", "wandb")
    assert chosen("jsonl") == ("jsonl",) and chosen("()") == ()
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        chosen("jsonl,tensorbord")
    with pytest.raises(UserError, match="names a writer twice"):
        chosen("jsonl,jsonl")
    assert "loop.writers" in FREE_KEYS & flat(to_dict(run_config(VIDVAE))).keys()


class OwnWriter:
    """A user's writer that fails at a step."""

    def __init__(self, fails_at=None):
        self.fails_at, self.calls = fails_at, []

    def write(self, step, metrics):
        if step == self.fails_at:
            raise RuntimeError("no route to host")
        self.calls.append(("write", step, metrics["loss"]))

    def progress(self, step, metrics):
        self.calls.append(("progress", step))

    def image(self, step, name, path):
        self.calls.append(("image", step, name, path.name))

    def close(self):
        self.calls.append(("close",))


def test_own_writers_follow_a_run_which_a_failing_one_does_not_end(tmp_path, capsys, monkeypatch):
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 1, "schedule": "constant"}

    def call(workdir, steps, *own, **loop):
        loop = {"steps": steps, "evaluate_every": 3, "evaluate_batches": 1, "log_every": 2} | loop
        values = tiny_values(VIDVAE, model=POINTWISE, optimizer=optimizer, loop=loop)
        train(run_config(values), tmp_path / workdir, writers=own)

    good, bad = OwnWriter(), OwnWriter(fails_at=2)
    call("followed", 3, bad, good, writers=["jsonl"])
    assert not (tmp_path / "followed" / "tensorboard").exists()
    rows = read_jsonl(tmp_path / "followed" / "metrics.jsonl")
    seen = [("write", row["step"], row["loss"]) for row in rows]
    image = ("image", 3, "preview", "00000003.gif")
    assert good.calls == [("progress", 1), seen[0], image, seen[1], ("close",)]
    assert bad.calls == [("progress", 1), ("close",)]
    assert capsys.readouterr().err.count("OwnWriter failed at step 2 (no route to host)") == 1
    events = RunFolder(tmp_path / "followed").facts()["events"]
    assert [(event["event"], event["step"]) for event in events] == [("failed_writer", 2)]
    resumed, finished = OwnWriter(), OwnWriter()
    call("followed", 4, resumed)  # with the writers that a run has by default
    assert [call[:2] for call in resumed.calls] == [("image", 4), ("write", 4), ("close",)]
    assert (tmp_path / "followed" / "tensorboard").exists()
    call("followed", 4, finished)
    assert finished.calls == [("close",)]
    monkeypatch.setattr("xgen_jax.training.fit.is_first", lambda: False)
    other = OwnWriter()
    call("followed", 4, other)  # of another process
    assert other.calls == []


SCRIPT = """
import sys
from xgen_jax.commands.train import train
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_run

for steps in (2, 4):
    loop = {"steps": steps, "evaluate_every": 2, "writers": ["wandb", "trackio"]}
    loop |= {"evaluate_batches": 1}
    schedule = {"learning_rate": 1e-3, "schedule": "constant"}
    train(tiny_run(VIDVAE, model=POINTWISE, optimizer=schedule, loop=loop), sys.argv[1])
"""


def wandb_records(path):
    """Yield the records of a .wandb file: a log of LevelDB's form, in blocks of 32768 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""  # after wandb's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.slow
def test_the_real_packages_keep_a_resumed_run_as_one(tmp_path):
    environment = dict(
        os.environ,
        WANDB_MODE="offline",
        TRACKIO_DIR=str(tmp_path / "trackio"),
        TRACKIO_PROJECT="tracked",
        PYTHONPATH=str(ROOT),
        HF_HUB_OFFLINE="1",
    )
    workdir = tmp_path / "shapes"
    command = [sys.executable, "-c", SCRIPT, str(workdir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    ids = json.loads((workdir / "trackers.json").read_text())
    files = sorted((workdir / "wandb").glob(f"offline-run-*-{ids['wandb']['id']}/*.wandb"))
    steps, videos = [], 0
    for file in files:
        for record in wandb_records(file):
            keys = {
                item.key or ".".join(item.nested_key): item.value_json
                for item in record.history.item
            }
            if "loss" in keys:
                steps.append(int(keys["_step"]))
            videos += any(key.startswith("preview") for key in keys)
    assert len(files) == 2 and steps == [1, 2, 3, 4] and videos == 2
    with sqlite3.connect(tmp_path / "trackio" / "tracked.db") as database:
        rows = database.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
    held = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert {name for name, _, _ in rows} == {"shapes-" + ids["trackio"]["id"]}
    assert [step for step, metrics in held if "loss" in metrics] == [1, 2, 3, 4]
    assert [step for step, metrics in held if "preview" in metrics] == [2, 4]
