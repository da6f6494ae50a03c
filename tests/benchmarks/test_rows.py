"""The benchmark prints rows only, each with the fields that its readers need."""

import importlib.util
import json
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).parents[2] / "benchmarks" / "vidvae.py"
FIELDS = {
    "what",
    "shape",
    "dtype",
    "device",
    "threads",
    "time_s",
    "median_s",
    "compile_s",
    "peak_bytes",
}
FIELDS |= {"frames_per_s", "peer", "peer_time_s", "ratio"}


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_vidvae", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(PATH.parent)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "torch", None)
    return module


def test_one_json_line_a_row(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "CONVOLUTIONS", {"tiny": (1, 2, 4, 4, 2)})
    monkeypatch.setattr(sys, "argv", ["vidvae.py", "--rows=conv", "--repeats=2"])
    benchmark.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["what"] for row in rows] == [
        "causal conv tiny, forward",
        "causal conv tiny, forward+backward",
    ]
    for row in rows:
        assert row.keys() >= FIELDS
        assert 0 < row["time_s"] <= row["median_s"] and row["frames_per_s"] == 2 / row["time_s"]
        # Without torch there is nothing to compare with.
        assert row["peer"] is None and row["ratio"] is None
    forward, backward = (row["peak_bytes"] for row in rows)
    assert 4 * (2 * 2 * 16 * 2 + 27 * 4) <= forward < backward  # input, output and kernel at least


def test_the_quickest_peer_is_the_one_compared_with(benchmark, monkeypatch):
    clock = [0.0]
    rows = sys.modules["rows"]
    monkeypatch.setattr(rows.time, "perf_counter", lambda: clock[0])

    def peer(name, *durations_s):
        remaining = iter(durations_s)

        def run():
            clock[0] += next(remaining)

        return rows.Peer(name=name, run=run)

    # The first run, which a compiler may make long, does not count.
    peers = [peer("slow", 1, 3), peer("quick", 9, 2), peer("slower", 1, 4)]
    assert rows.fastest(peers).name == "quick"
    assert rows.fastest([]) is None


@pytest.mark.parametrize(
    "flag,said", [("--rows=conv,speed", "'speed' is none of"), ("--repeats=0", "at least 1")]
)
def test_a_wrong_flag_is_refused(benchmark, monkeypatch, capsys, flag, said):
    monkeypatch.setattr(sys, "argv", ["vidvae.py", flag])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert said in capsys.readouterr().err
