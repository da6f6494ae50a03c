"""Train and sampling steps compiled for a TPU slice without hardware; libtpu in its own process."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from xgen_jax.commands import plan
from xgen_jax.config.runs import run_config
from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.testing import BUCKET, REGEN_MODEL, VDIT, VIDVAE, tiny_run

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

SCRIPT = """
import json, sys
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.commands.plan import compile_denoise_step, compile_train_step
from xgen_jax.config.runs import run_config
values = json.loads(sys.argv[1])
reports = [compile_train_step(run_config(v), "v5e:2x2", PRESETS["paper"]) for v in values]
for frames in (9, 113):
    shape = frames, 64, 64
    run = run_config(values[0])
    reports.append(compile_denoise_step(run, "v5e:2x2", PRESETS["paper"], shape, clips=4))
print(json.dumps(reports))
"""


def test_the_largest_bucket_is_that_of_most_latent_cells_a_batch():
    config = run_config(VALUES)
    assert plan.largest_bucket(config, PRESETS["paper"]).name == "9x64x64"
    never = Bucket(frames=97, height=512, width=512, batch_size=8, keep_prob=0.0)
    data = dataclasses.replace(config.data, buckets=(never, *config.data.buckets))
    assert (
        plan.largest_bucket(dataclasses.replace(config, data=data), PRESETS["paper"]).name
        == "9x64x64"
    )


def test_named_bytes_reads_the_compilers_message():
    message = (
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 16.51G of 15.75G hbm."
    )
    assert plan.named_bytes(message) == int(16.51 * 2**30)
    assert plan.named_bytes("Used 512.00M of 16.00M vmem") == 512 * 2**20
    assert plan.named_bytes("no figure") is None


@pytest.mark.slow
@WITH_LIBTPU
def test_steps_are_compiled_for_a_slice_and_a_large_one_does_not_fit():
    values = [VALUES, {**VALUES, "data": {"source": {"kind": "latents"}, "buckets": [HUGE]}}]
    environment = {**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(values)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    small, huge, *denoising = json.loads(done.stdout.splitlines()[-1])
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
    assert not huge["fits"]
    assert "memory" in huge["why"]
    short, long = denoising
    assert (short["bucket"], long["bucket"]) == ("9x64x64", "113x64x64")
    # Each device has all parameters, and the activations of its own clip.
    assert 4 * short["parameters"] < short["peak_bytes"] < long["peak_bytes"] < long["limit_bytes"]
    assert short["parameters"] == small["parameters"]


CHANGES = {
    "vidvae": {"loss": {"lpips": 1.0}, "data": {"buckets": [{**BUCKET, "height": 32}]}},
    "vdit": {"embedder": "nowhere"},
    "lora": {"init_from": "nowhere", "lora": {"rank": 2}},
    "regen": {},
}
REGEN = {**VIDVAE, "objective": "regen", "model": dataclasses.asdict(REGEN_MODEL)}


@pytest.mark.parametrize(
    "family",
    ["vidvae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vdit", "lora", "regen"))],
)
def test_every_familys_step_is_compiled_from_its_configuration_alone(family, tiny_runs):
    values = {"vidvae": VIDVAE, "regen": REGEN}.get(family, VDIT)
    run = tiny_run(values, **CHANGES[family])
    embedder = tiny_run(VIDVAE).model if run.objective == "vdit" else None
    report = plan.compile_train_step(run, "cpu", embedder)
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
    if family == "vidvae":
        assert report["peak_bytes"] > 4 * LPIPS_PARAMETERS


def test_a_batch_that_cannot_be_split_over_the_devices_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "named_devices", lambda topology: jax.devices()[:4])
    with pytest.raises(UserError, match="clips=6 cannot be split over the 4 devices of v5e:2x2"):
        plan.compile_denoise_step(
            run_config(VALUES), "v5e:2x2", PRESETS["paper"], (9, 64, 64), clips=6
        )
