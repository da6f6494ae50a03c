"""The bounds of a program that was saved, and of one that is compiled; what cannot be had."""

import gzip
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import roofline  # noqa: E402  (the path comes first)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(roofline, "compile_only", lambda topology: None)  # jax is loaded here
    monkeypatch.setattr(sys, "argv", ["roofline.py", *arguments])
    roofline.main()


@pytest.fixture
def saved(tmp_path):
    x, w = np.ones((256, 512), np.float32), np.ones((512, 1024), np.float32)
    program = jax.jit(lambda x, w: x @ w).lower(x, w).compile().as_text()
    path = tmp_path / "program.hlo.gz"
    with gzip.open(path, "wt") as file:
        file.write(program)
    return path


def test_a_saved_program(saved, monkeypatch, capsys):
    run(monkeypatch, f"--hlo={saved}", "--topology=v5p:2x2x1", "--tflop=2.68e-4")
    out, err = capsys.readouterr()
    row = json.loads(out)
    flops = 2 * 256 * 512 * 1024
    assert row["padded_tflop"] == {"float32": pytest.approx(flops / 1e12, abs=1e-6)}
    assert row["compute_s"] == pytest.approx(flops / 459e12)
    assert row["memory_s"] == pytest.approx(row["gb"] / 2765, rel=0.2)
    assert row["network_s"] == 0 and row["collectives"] == {}
    assert row["overlap_s"] == max(row["compute_s"], row["memory_s"])
    assert row["serial_s"] == pytest.approx(row["compute_s"] + row["memory_s"])
    assert 0 < row["mfu_serial"] < row["mfu_overlap"] <= 1.01
    assert row["mfu_overlap"] == pytest.approx(2.68e8 / 459e12 / row["overlap_s"])
    assert "MFU at most" in err and "other" in err


def test_a_small_program_is_compiled_for_this_host_only_by_name(monkeypatch):
    for topology in ("cpu", "gpu:4080", "v9:2x2"):
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, "--config=quickstart/vidvae", f"--topology={topology}")
        message = str(caught.value)
        assert f"the peak of '{topology}' is not known; known are those of v4, v5e" in message
        assert "gpu:h200" in message


def test_what_is_no_program_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.hlo").write_text("hello")
    for arguments, message in (
        ([f"--hlo={tmp_path}/a.hlo"], "is not the text of an optimised program"),
        ([f"--hlo={tmp_path}/none"], "cannot be read: No such file"),
        ([], "give --config=NAME or --hlo=FILE, one of them"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, *arguments, "--topology=gpu:h100")


def test_parts_are_named_by_the_first_word_that_is_known():
    names = {
        "jit(update)/jvp(VDiT)/Stack_0/while/body/attention_space/qkv": "attention_space forward",
        "jit(update)/transpose(jvp(VDiT))/mlp/dot": "mlp backward",
        "jit(update)/adamw/mul": "optimizer",
        "jit(update)/add": "other",
    }
    assert {name: roofline.part_of(name) for name in names} == names


@pytest.mark.slow
def test_a_configuration_is_compiled_for_a_slice(tmp_path):
    pytest.importorskip("libtpu")
    flags = ["--config=quickstart/vidvae", "--topology=v5e:1x1", "--config.mesh.fsdp=1"]
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / "roofline.py",
            *flags,
            f"--save={tmp_path}/p.hlo.gz",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    row = json.loads(done.stdout)
    assert row["fits"] and row["devices"] == 1 and row["unknown_kernels"] == {}
    assert row["useful_tflop"] <= sum(row["tflop"].values()) * 1.05
    assert 0 < row["mfu_serial"] < row["mfu_overlap"] < 1
    assert (tmp_path / "p.hlo.gz").stat().st_size > 1000
