"""The script for one GPU runs to its end on a CPU, with small networks; what fails is said in its
line and stops no other row."""

import functools
import importlib
import json
import operator
import os
import pathlib
import subprocess
import sys
import types

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*flags):
    """Return the exit code, the rows by name, and stderr."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--presets=tiny", "--repeats=2", "--nopeers", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {row["row"]: row for row in rows}, done.stderr


@pytest.mark.slow
def test_every_row_is_measured():
    code, rows, stderr = run("--batch_size=2")
    assert code == 0, stderr[-3000:]
    assert list(rows) == ["train", "vae", "regen"]
    for row in rows.values():
        assert row["error"] is None and row["compile_s"] > 0 and row["flops"] > 0
        assert 0 < row["time_s"] <= row["median_s"] < row["wall_s"]
        # No peak is known of a CPU, whose figures are compared with no target.
        assert row["mfu"] is None and row["met"] is None and row["targets"]["ratio"] == 1
        assert row["not_judged"] == list(row["targets"])
        assert row["peer"] is None and row["peer_error"] == "not asked for"
    train = rows["train"]
    # Latents of 2 clips, patches of 2x2, and every run was an update.
    assert train["shape"] == [2, 3, 8, 8, 8] and train["updates"] == 3
    assert train["tokens_per_s"] == pytest.approx(2 * 3 * 4 * 4 / train["time_s"])
    assert rows["vae"]["frames_per_s"] == pytest.approx(9 / rows["vae"]["time_s"])
    assert rows["vae"]["targets"]["time_s"] == 3


def test_a_row_that_fails_says_why_and_stops_no_other():
    code, rows, _ = run("--rows=train,regen", "--remat=some")
    assert code == 1
    assert "remat='some' is not known" in rows["train"]["error"]
    assert rows["regen"]["error"] is None and rows["regen"]["time_s"] > 0


def test_a_row_that_takes_too_long_is_ended():
    code, rows, _ = run("--rows=vae", "--row_s=0.2")
    assert code == 1
    assert rows["vae"]["error"] == "not finished after 0.2 s" and rows["vae"]["wall_s"] < 5


def test_what_was_measured_is_compared_with_the_targets(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    met = importlib.import_module("gpu").met
    assert met("train", {"mfu": 0.46, "ratio": 0.9}) == {"mfu": True, "ratio": False}
    assert met("vae", {"time_s": 2.9}) == {"time_s": True, "ratio": None}
    assert met("vae", {"time_s": 3.1, "ratio": 1.5}) == {"time_s": False, "ratio": True}


def test_targets_that_were_not_measured_are_named(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    verdict = importlib.import_module("gpu").verdict
    assert verdict("regen", {"time_s": 1.0}, judged=True) == {
        "targets": {"ratio": 1.0},
        "met": None,
        "not_judged": ["ratio"],
    }
    found = verdict("vae", {"time_s": 2.9}, judged=True)
    assert found["met"] == {"time_s": True, "ratio": None} and found["not_judged"] == ["ratio"]
    found = verdict("vae", {"time_s": 2.9, "ratio": 1.5}, judged=True)
    assert found["met"] == {"time_s": True, "ratio": True} and found["not_judged"] == []
    found = verdict("vae", {"time_s": 2.9, "ratio": 1.5}, judged=False)
    assert found["met"] is None and found["not_judged"] == ["time_s", "ratio"]


def test_a_peer_needs_only_what_it_imports(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    peers = importlib.import_module("gpu_peers")
    monkeypatch.setattr(peers, "torch", types.SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    options = types.SimpleNamespace(nopeers=False, repeats=1)

    def of_torch():
        return "torch alone", lambda: None, []

    def of_diffusers():
        import diffusers

        return "diffusers", diffusers, []

    def line(make):
        return functools.reduce(operator.or_, peers.time_peers(options, make))

    assert line(of_torch)["peer"].startswith("torch alone")
    assert line(of_torch)["peer_time_s"] >= 0 and "peer_error" not in line(of_torch)
    assert line(of_diffusers) == {"peer": None, "peer_error": "diffusers is not installed"}
    monkeypatch.setattr(peers, "torch", None)
    assert line(of_torch) == {"peer": None, "peer_error": "torch is not installed"}


@pytest.mark.parametrize(
    "flag,said", [("--rows=vae,speed", "'speed' is none of"), ("--repeats=0", "at least 1")]
)
def test_a_wrong_flag_is_refused(flag, said):
    code, rows, stderr = run(flag)
    assert code == 2 and not rows and said in stderr
