"""The bounds of a program that was saved, and of one that is compiled; what cannot be had."""

import gzip
import json
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import roofline  # noqa: E402  (the path comes first)

from xgen_jax.commands import plan  # noqa: E402
from xgen_jax.parallel.device_figures import GPUS  # noqa: E402


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


SENT = """
ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  ROOT %sum = f32[1024]{0} all-reduce(%x), replica_groups={}, to_apply=%add
}
"""


@pytest.mark.parametrize(
    "topology,link,network",
    [
        ("gpu:h100", 2 * 4096 * 7 / 8, 4096 / 8),  # two hosts of eight
        ("v5p:2x2x4", 2 * 4096 * 15 / 16, 0),  # one slice
    ],
)
def test_a_saved_program_of_several_hosts(topology, link, network, tmp_path, monkeypatch, capsys):
    (tmp_path / "sent.hlo").write_text(SENT)
    run(monkeypatch, f"--hlo={tmp_path}/sent.hlo", f"--topology={topology}", "--devices=16")
    sent = json.loads(capsys.readouterr().out)["collectives"]["all-reduce"]
    assert (sent["link_bytes"], sent["network_bytes"]) == (link, network)


def test_a_saved_programs_fractions_are_of_the_dtype_that_it_mostly_computes_in(
    saved, monkeypatch, capsys
):
    run(monkeypatch, f"--hlo={saved}", "--topology=gpu:h100", "--tflop=2.68e-4")
    row, peak = json.loads(capsys.readouterr().out), GPUS["h100"].peak
    assert peak.f32_tflops < peak.bf16_tflops
    assert row["dtype"] == "float32"
    assert row["mfu_overlap"] == pytest.approx(2.68e-4 / peak.f32_tflops / row["overlap_s"])


def _unknown_instruction():
    raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Unknown HLO opcode")


@pytest.mark.parametrize("as_text", [_unknown_instruction, lambda: "", lambda: None])
def test_a_program_that_cannot_be_shown_is_refused(as_text, monkeypatch):
    compiled = types.SimpleNamespace(as_text=as_text)
    monkeypatch.setattr(plan, "lower", lambda request: None)
    monkeypatch.setattr(plan, "compile_program", lambda _: plan.Outcome(compiled, 1, None, 1.0))
    message = "this jaxlib cannot read the program that it compiled for tpu7x:2x2x1"
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--config=quickstart/vidvae", "--topology=tpu7x:2x2x1")


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
