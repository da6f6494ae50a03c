"""Plans: what they hold, what fits, what is refused before anything is compiled, and programs for a
TPU slice without hardware; libtpu in its own process."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from xgen_jax.commands import plan as plans
from xgen_jax.commands.arguments import find_config
from xgen_jax.commands.config_file import load_config
from xgen_jax.commands.plan import PlanRequest, plan
from xgen_jax.commands.plan_programs import find_embedder, sample_program
from xgen_jax.commands.plan_text import advice
from xgen_jax.config.runs import run_config
from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoRequest
from xgen_jax.models import flops
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel.device_figures import Peak
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.testing import (
    BUCKET,
    POINTWISE,
    REGEN_MODEL,
    VDIT,
    VIDVAE,
    tiny_run,
    tiny_values,
    write_regen_run,
)

ROOT = pathlib.Path(__file__).parents[2]
LPIPS_PARAMETERS = 14_714_688  # of VGG16's convolutions
WITH_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
IMAGE = {"frames": 1, "height": 128, "width": 64, "batch_size": 8}
VIDEO = {"frames": 9, "height": 64, "width": 64, "batch_size": 8}
VALUES = {
    "objective": "vdit",
    "embedder": "nowhere",
    "model": {"width": 256, "depth": 2, "heads": 2, "text_width": 64, "null_caption_tokens": 8},
    "text": {"kind": "t5", "path": "nowhere", "length": 8},
    "data": {"source": {"kind": "latents"}, "buckets": [IMAGE, VIDEO]},
    "optimizer": {},
    "loop": {"steps": 10},
}
# A batch whose activations fit no chip.
HUGE = {"frames": 113, "height": 720, "width": 1280, "batch_size": 4096}
FIGURES = Peak(bf16_tflops=2, f32_tflops=1, memory_gb_s=1, link_gb_s=0.1, network_gb_s=0.01)
QUIET = {"say": lambda line: None}


def pointwise(**changes):
    """A VidVAE that compiles in a moment, on two devices."""
    values = tiny_values(VIDVAE, model=POINTWISE, mesh={"fsdp": 2})
    return tiny_run(values, **changes)


@pytest.fixture
def figures(monkeypatch):
    """Give the CPU what a device has."""
    monkeypatch.setattr(plans, "peak_of", lambda device: FIGURES)
    monkeypatch.setattr(plans, "memory_limit", lambda device: 2**20)


def test_a_plan_holds_memory_operations_and_what_is_sent():
    config, said = pointwise(), []
    report = plan(PlanRequest(config=config, topology="cpu:2"), said.append)
    assert json.loads(json.dumps(report)) == report
    assert (report["what"], report["devices"], report["chips"]) == ("train", 2, 2)
    assert (report["bucket"], report["batch_size"]) == ("5x16x16", 2)
    assert (report["fits"], report["why"], report["limit_bytes"]) == (True, None, None)
    assert report["runs"] == config.loop.steps
    sizes = report["bytes"]
    assert sum(sizes.values()) == report["peak_bytes"]
    # So small that every parameter is on both devices; Adam has two moments of each.
    assert sizes["parameters"] == sizes["ema"] == 4 * report["parameters"]
    assert 2 * sizes["parameters"] <= sizes["optimizer"] <= 2 * sizes["parameters"] + 64
    assert sizes["batch"] == 5 * 16 * 16 * 3  # a clip of bytes each
    assert report["flops"] == flops.vidvae_train_flops(config.model, (2, 5, 16, 16, 3))
    assert report["collectives"]["all-reduce"]["link_bytes"] > sizes["parameters"] / 2
    assert "floor" not in report
    assert "train on cpu:2: 2 x cpu (mesh: fsdp 2)" in said[-1]
    assert "time         not known" in said[-1]


def test_with_a_devices_figures_it_has_the_least_time_and_the_cost(figures):
    request = PlanRequest(config=pointwise(), topology="cpu:2", dollars_per_hour=3600.0)
    said = []
    report = plan(request, said.append)
    floor, sizes = report["floor"], report["bytes"]
    assert floor["compute_s"] == report["flops"] / 2 / 1e12
    state = sizes["parameters"] + sizes["ema"] + sizes["optimizer"]
    memory = 2 * state + sizes["frozen"] + sizes["batch"] + 2 * sizes["temporaries"]
    assert floor["memory_s"] == pytest.approx(memory / 1e9)
    sent = sum(row["link_bytes"] for row in report["collectives"].values())
    assert floor["network_s"] == pytest.approx(sent / 1e8, rel=1e-6)
    assert floor["step_s"] == max(floor["compute_s"], floor["memory_s"], floor["network_s"])
    assert report["at_floor"]["total_s"] == 2 * floor["step_s"]
    assert report["at_floor"]["dollars"] == round(2 * report["at_floor"]["total_s"], 2)
    assert report["at_assumed_mfu"]["mfu"] == 0.4
    assert report["at_assumed_mfu"]["step_s"] >= floor["step_s"]
    assert "FITS" in said[-1] and "$" in said[-1]


def test_what_does_not_fit_is_said_with_both_numbers_and_what_to_change(figures, monkeypatch):
    monkeypatch.setattr(plans, "memory_limit", lambda device: 4096)
    said = []
    report = plan(PlanRequest(config=pointwise(), topology="cpu:2", batch_size=4), said.append)
    assert not report["fits"]
    assert report["why"].startswith("does not fit: needs 0.00 GiB, has 0.00 GiB")
    assert "DOES NOT FIT: needs" in said[-1]
    flags = " ".join(report["advice"])
    for flag in ("--config.model.remat=block", "--config.loop.accumulate=2", "--batch_size=2"):
        assert flag in flags and flag in said[-1]


@pytest.mark.parametrize(
    "remat,advised",
    [
        ("none", "full dots"),
        ("dots", "full attention qkv"),
        ("qkv", "full attention"),
        ("attention", "full"),
        ("full", "offload"),
        ("offload", ""),
    ],
)
def test_a_transformer_is_advised_what_keeps_less(remat, advised):
    config = tiny_run(VDIT, model={"remat": remat}, embedder="nowhere")
    report = {
        "what": "train",
        "batch_size": 2,
        "mesh": {"data": 1, "fsdp": 2},
        "device_kind": "cpu",
        "bytes": {},
        "peak_bytes": 1,
    }
    flags = re.findall(r"--config.model.remat=(\w+)", " ".join(advice(config, report)))
    assert flags == advised.split()


def test_the_largest_batch_is_found_by_bisection(figures, monkeypatch):
    config = pointwise(loop={"accumulate": 2}, data={"buckets": [{**BUCKET, "batch_size": 4}]})
    request = PlanRequest(config=config, topology="cpu:2", largest_batch=True)
    real, lowered, compiled, limits = plans.train_program, [], [], [0]

    def lower(config, embedder, mesh, bucket):
        lowered[:] = lowered or [real(config, embedder, mesh, bucket)]
        return dataclasses.replace(lowered[0], batch_size=bucket.batch_size)

    def compile_program(program):
        compiled.append(program.batch_size)
        peak = 80 * program.batch_size
        return plans.Outcome(None, peak, "does not fit" if peak > limits[0] else None, 1.0)

    monkeypatch.setattr(plans, "memory_limit", lambda device: limits[0])
    monkeypatch.setattr(plans, "train_program", lower)
    monkeypatch.setattr(plans, "compile_program", compile_program)
    for limits[0], largest in ((1000, 12), (330, 4), (300, 0)):
        compiled.clear()
        report = plan(request, lambda line: None)
        assert report["largest_batch"]["batch_size"] == largest
        assert report["batch_size"] == (largest or 4)
        # Multiples of the devices times the parts of a batch, each compiled once; if none fits,
        # the report is of the batch asked for.
        tried = list(report["largest_batch"]["tried"])
        assert all(size % 4 == 0 for size in tried)
        assert compiled == (tried if largest else [*tried, 4])


SAMPLE = {"what": "sample"}


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, {"topology": ""}, "give --topology"),
        ({}, {"what": "fly"}, "--what='fly' is not known"),
        ({}, {"batch_size": 0}, "--batch_size must be 1 or more, not 0"),
        ({}, {"dollars_per_hour": 0.0}, "--dollars_per_hour must be above 0"),
        ({}, {"frames": 5}, "--size and --frames are for --what=sample"),
        ({}, {"bucket": "5x16x16", "what": "sample"}, "--bucket is for training"),
        ({}, {"batch_size": 2, "largest_batch": True}, "--batch_size or --largest_batch"),
        ({}, {"largest_batch": True}, "--largest_batch needs devices whose memory is known"),
        ({}, {"topology": "cpu:4"}, "has 2 of the 4 devices of cpu:4; give --config.mesh.fsdp=2"),
        ({}, {"topology": "cpu"}, "has 2 devices, and there are 1"),
        (
            {},
            {"batch_size": 3},
            "batch of 3 cannot be split .* over 2 devices .*give a batch_size of 2 or 4",
        ),
        ({"loop": {"accumulate": 2}}, {}, "x loop.accumulate=2; give a batch_size of 4"),
        ({}, {"bucket": "5x16x17"}, "--bucket='5x16x17' is not known .did you mean '5x16x16'"),
        ({}, {"embedder": "paper"}, "--embedder is for a vdit run; this one trains a vidvae"),
        ({}, SAMPLE, "--what=sample is for a vdit run"),
        ({}, {"what": "encode", "batch_size": 3}, "--batch_size=3 .* 2 devices; give a multiple"),
        ({}, {"what": "encode", "bucket": "5x16"}, "must be FRAMESxHEIGHTxWIDTH"),
        ({}, {"what": "decode", "frames": 6}, "6 frames cannot be encoded"),
        ({}, {"what": "decode", "size": "16"}, "--size=16 must be HEIGHTxWIDTH"),
    ],
)
def test_mistakes_are_refused_before_anything_is_compiled(changes, flags, message, monkeypatch):
    monkeypatch.setattr(plans, "compile_program", lambda program: pytest.fail("compiled"))
    with pytest.raises(UserError, match=message):
        request = PlanRequest(**{"config": pointwise(**changes), "topology": "cpu:2", **flags})
        plan(request, lambda line: None)


def test_tokens_that_the_sequence_axis_cannot_divide_are_refused():
    config = tiny_run({**VDIT, "embedder": "runs/vidvae"}, mesh={"sequence": 4, "fsdp": 1})
    message = "mesh.sequence=4 cannot divide the 1x1 = 1 tokens of a frame"
    with pytest.raises(UserError, match=message):
        plan(PlanRequest(config=config, topology="cpu:4", embedder="paper"), lambda line: None)


def test_a_transformers_embedder_is_a_preset_or_a_folder(tmp_path, tiny_runs):
    config = tiny_run({**VDIT, "embedder": "nowhere"})
    with pytest.raises(UserError, match="give --embedder=FOLDER, or a preset: paper, osp"):
        find_embedder(config, None)
    with pytest.raises(UserError, match="--embedder='papper' is not known .did you mean 'paper'"):
        find_embedder(config, "papper")
    paper, origin = find_embedder(dataclasses.replace(config, embedder="runs/vidvae"), None)
    assert (paper.model.config, origin) == (PRESETS["paper"], "the preset paper")
    assert find_embedder(config, "paper-32x")[0].latent_channels == 8
    folder, origin = find_embedder(config, str(tiny_runs / "vidvae"))
    assert (folder.latent_channels, origin) == (4, f"that in {tiny_runs / 'vidvae'}")
    # An adapter's is that of the run it begins from.
    values = tiny_values(VDIT, init_from=str(tiny_runs / "vdit"), lora={"rank": 2})
    adapter, _ = find_embedder(run_config(values), None)
    assert adapter.model.config == folder.model.config
    regen = write_regen_run(tmp_path / "regen")
    assert find_embedder(config, str(regen))[0].windows == "shifted"


def test_the_largest_bucket_is_that_of_most_latent_cells_a_batch():
    config = run_config(VALUES)
    embedder, _ = find_embedder(config, "paper")
    assert plans.largest_bucket(config, embedder).name == "9x64x64"
    never = Bucket(frames=97, height=512, width=512, batch_size=8, keep_prob=0.0)
    data = dataclasses.replace(config.data, buckets=(never, *config.data.buckets))
    longer = dataclasses.replace(config, data=data)
    assert plans.largest_bucket(longer, embedder).name == "9x64x64"
    # A REGEN has two latent frames of 33: it is its pixels that are computed on.
    regen = load_config(find_config("regen/paper"), [])
    assert plans.largest_bucket(regen, find_embedder(regen, None)[0]).name == "66x192x320"


def test_named_bytes_reads_the_compilers_message():
    message = (
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 16.51G of 15.75G hbm."
    )
    assert plans.named_bytes(message) == int(16.51 * 2**30)
    assert plans.named_bytes("Used 512.00M of 16.00M vmem") == 512 * 2**20
    assert plans.named_bytes("no figure") is None
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (7.75T) exceeds available HBM (15.75G)."
    )
    # The parameters and the batch are not in it.
    assert plans.named_bytes(message, 1000) == int(7.75 * 2**40) + 1000
    assert plans.named_bytes(message.replace("temporaries", "arguments"), 1000) == int(7.75 * 2**40)


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_encoding_and_decoding_are_planned_as_the_commands_run_them(what):
    config = pointwise()
    request = PlanRequest(config=config, topology="cpu:2", what=what, frames=33, batch_size=4)
    report = plan(request, lambda line: None)
    assert (report["bucket"], report["batch_size"]) == ("33x16x16", 4)
    assert report["bytes"]["parameters"] == 4 * (report["parameters"] + 4)  # and the statistics
    # The 9 latent frames are decoded 4 at a time, and encoded at once.
    assert report["runs"] == (3 if what == "decode" else 1)
    if what == "encode":
        assert report["flops"] == flops.vidvae_encode_flops(config.model, (4, 33, 16, 16, 3))
        assert report["bytes"]["batch"] == 2 * 33 * 16 * 16 * 3
    else:
        latents = (4, 4, 4, 4, 2)
        expected = flops.vidvae_decode_flops(config.model, latents, started=True)
        assert report["flops"] == expected
        assert report["bytes"]["batch"] == 2 * 4 * np.prod(latents[1:])
    assert report["collectives"] == {}


SMALL_VDIT = {**VDIT, "sample_steps": 3, "guidance_scale": 2.0, "mesh": {"fsdp": 1}}


@pytest.mark.slow
def test_sampling_is_planned_as_the_command_runs_it(tiny_runs):
    config = tiny_run({**SMALL_VDIT, "embedder": str(tiny_runs / "vidvae")})
    request = PlanRequest(
        config=config, topology="cpu:2", what="sample", size="16x16", frames=9, batch_size=2
    )
    report = plan(request, lambda line: None)
    # A segment has the 5 frames trained on; its two latent frames share one with the next.
    assert (report["bucket"], report["runs"]) == ("9x16x16", 2 * 3)
    # Condition and null caption of two clips.
    expected = flops.vdit_flops(config.model, (4, 2, 4, 4, 4), config.text.tokens)
    assert report["flops"] == expected
    assert report["bytes"]["parameters"] == 4 * report["parameters"]


def test_a_sampling_step_counts_the_evaluations_of_its_solver():
    """Heun evaluates the network twice in each step but the last of a segment."""
    embedder, _ = find_embedder(tiny_run(VIDVAE), None)
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    request = VideoRequest(frames=9, size=(16, 16))

    def flops_of(sampler):
        config = tiny_run({**SMALL_VDIT, "embedder": "nowhere", "sampler": sampler})
        return sample_program(config, embedder, mesh, 1, request).flops

    assert flops_of("heun") == pytest.approx(flops_of("euler") * 5 / 3)


CHANGES = {
    "vidvae": {"loss": {"lpips": 1.0}, "data": {"buckets": [{**BUCKET, "height": 32}]}},
    "vdit": {"embedder": "nowhere"},
    "lora": {"init_from": "nowhere", "lora": {"rank": 2}},
    "regen": {},
}
REGEN = {**VIDVAE, "objective": "regen", "model": dataclasses.asdict(REGEN_MODEL)}


@pytest.mark.slow
@pytest.mark.parametrize("family", CHANGES)
def test_every_familys_step_is_compiled_from_its_configuration_alone(family, tiny_runs):
    values = {"vidvae": VIDVAE, "regen": REGEN}.get(family, VDIT)
    run = tiny_run(values, **CHANGES[family])
    embedder = str(tiny_runs / "vidvae") if run.objective == "vdit" else None
    report = plan(PlanRequest(config=run, topology="cpu", embedder=embedder), lambda line: None)
    assert (report["devices"], report["limit_bytes"], report["fits"]) == (1, None, True)
    assert report["bucket"] == ("5x32x16" if family == "vidvae" else "5x16x16")
    trained = {
        name: json.loads((tiny_runs / name / "run.json").read_text())["parameters"]
        for name in ("vidvae", "vdit")
    }
    if family in trained:
        assert report["parameters"] == trained[family]
    elif family == "lora":
        assert 0 < report["parameters"] < trained["vdit"]
    # Parameters, their EMA and two moments; of LPIPS and of an adapter's base also the weights.
    assert report["peak_bytes"] > 16 * report["parameters"]
    frozen = {"vidvae": 4 * LPIPS_PARAMETERS, "lora": 4 * trained["vdit"]}.get(family, 0)
    assert frozen <= report["bytes"]["frozen"] <= 1.001 * frozen + 4096


def test_the_command_prints_one_line_and_names_a_mistake(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}

    def call(*flags):
        return subprocess.run(
            [sys.executable, "-m", "xgen_jax", "plan", *flags],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    done = call("--config=quickstart/vidvae", "--topology=v5p:3x3x3")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: there is no slice 'v5p:3x3x3'; v5p has v5p:1x1x1" in done.stderr
    assert "Traceback" not in done.stderr


SCRIPT = """
import json, sys
from xgen_jax.commands.plan import PlanRequest, plan
from xgen_jax.config.runs import run_config
small, huge = map(run_config, json.loads(sys.argv[1]))
base = {"topology": "v5e:2x2", "embedder": "paper"}
requests = [PlanRequest(config=config, **base) for config in (small, huge)]
for frames in (9, 113):
    flags = {"what": "sample", "frames": frames, "size": "64x64", "batch_size": 4}
    requests.append(PlanRequest(config=small, **base, **flags))
print(json.dumps([plan(request) for request in requests]))
"""


@pytest.mark.slow
@WITH_LIBTPU
def test_steps_are_compiled_for_a_slice_and_a_large_one_does_not_fit():
    values = [VALUES, {**VALUES, "data": {"source": {"kind": "latents"}, "buckets": [HUGE]}}]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(values)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    small, huge, *sampling = json.loads(done.stdout.splitlines()[-1])
    assert (small["bucket"], small["devices"], small["device_kind"]) == (
        "9x64x64",
        4,
        "TPU v5 lite",
    )
    assert small["fits"] and 2**20 < small["peak_bytes"] < small["limit_bytes"] == int(
        15.75 * 2**30
    )
    # Parameters, their EMA and two moments, a quarter of each on a device.
    assert small["peak_bytes"] > 4 * small["parameters"]
    assert small["collectives"]["all-gather"]["link_bytes"] > 0
    assert small["floor"]["step_s"] > 0
    assert not huge["fits"]
    assert re.match(r"does not fit: needs [\d.]+ GiB, has 15.75 GiB", huge["why"])
    assert huge["peak_bytes"] > 10 * huge["limit_bytes"]
    short, long = sampling
    assert (short["bucket"], long["bucket"]) == ("9x64x64", "113x64x64")
    assert 4 * short["parameters"] < short["peak_bytes"] < short["limit_bytes"]
    assert short["parameters"] == small["parameters"]
    assert jax.default_backend() == "cpu"
