"""Rates hold the steps of real intervals, and the work of each of them."""

import pytest

from xgen_jax.data.buckets import Bucket
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.parallel.device_figures import Peak
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.testing import VDIT, VIDVAE, task_of, tiny_run
from xgen_jax.training import rates
from xgen_jax.training.rates import Rates
from xgen_jax.training.tasks.base import Work

SMALL, LARGE = Work("tokens", 10, 10, 100.0), Work("tokens", 30, 30, 900.0)


def test_an_interval_has_the_work_of_its_steps():
    measured = Rates(flops_per_s=1000.0)
    measured.waited(50.0)  # for the first batch, as long as for its program
    measured.mark(0, 60.0, SMALL)
    assert measured.read() == {}
    measured.waited(0.5)
    measured.mark(1, 61.0, LARGE)
    measured.waited(0.5)
    measured.mark(2, 64.0, SMALL)
    found = measured.read()  # of steps 0 and 1, in four seconds
    assert found == {"steps_per_s": 0.5, "tokens_per_s": 10.0, "mfu": 0.25, "input_wait": 0.25}
    # A step that is looked at without a next one ends no interval: what it took is not known.
    assert measured.read() == found
    measured.mark(3, 66.0, None)  # step 3 is left out
    assert measured.read() == {
        "steps_per_s": 0.5,
        "tokens_per_s": 5.0,
        "mfu": 0.05,
        "input_wait": 0.0,
    }
    measured.mark(4, 68.0, SMALL)
    last = measured.read()
    assert last["steps_per_s"] == 0.5 and "tokens_per_s" not in last
    measured.leave_out(100.0)  # an evaluation, whose row comes before the next step
    assert measured.read() == last
    measured.leave_out(20.0)
    measured.mark(5, 190.0, SMALL)
    assert measured.read()["tokens_per_s"] == 5.0
    measured.mark(6, 192.0, SMALL)
    assert measured.read()["tokens_per_s"] == 5.0


def test_no_use_is_claimed_of_steps_whose_operations_are_not_known(tiny_runs, monkeypatch):
    measured = Rates(flops_per_s=1000.0)
    for step, work in enumerate((SMALL, SMALL._replace(flops=None), SMALL, SMALL)):
        measured.mark(step, float(step), work)
    assert "mfu" not in measured.read()
    measured.mark(4, 4.0, SMALL)
    assert measured.read()["mfu"] == 0.1
    # As of a transformer on the latents of an embedder that has no formula (docs/extending.md).
    task = task_of(tiny_run(VDIT, embedder=str(tiny_runs / "vidvae")))
    monkeypatch.setattr(type(task.embedder), "encode_flops", Embedder.encode_flops)
    work = task.work(Bucket(frames=9, height=16, width=32, batch_size=3))
    assert work.flops is None and work.count > 0


def test_no_use_is_claimed_of_a_device_without_a_known_peak(monkeypatch):
    mesh = make_mesh(MeshConfig(fsdp=4))
    assert rates.flops_per_s(mesh, "float32") is None  # a CPU
    peak = Peak(bf16_tflops=2, f32_tflops=1, memory_gb_s=1, link_gb_s=1, network_gb_s=1)
    monkeypatch.setattr(rates, "peak_of", lambda device: peak)
    assert rates.flops_per_s(mesh, "float32") == 4e12
    assert rates.flops_per_s(mesh, "bfloat16") == 8e12
    measured = Rates()
    measured.mark(0, 0.0, SMALL)
    measured.mark(1, 1.0, SMALL)
    assert "mfu" not in measured.read()


def test_a_task_counts_what_its_network_works_on(tiny_runs):
    bucket = Bucket(frames=9, height=16, width=32, batch_size=3)
    embedder = task_of(tiny_run(VIDVAE))
    frames = embedder.work(bucket)
    assert frames[:3] == ("frames", 3 * 9, 3 * 9 * 16 * 32)
    config = tiny_run(VDIT, embedder=str(tiny_runs / "vidvae"))
    task = task_of(config)
    tokens = task.work(bucket)
    shape = task.latent_shape(bucket.shape)
    cells = shape[0] * -(-shape[1] // config.model.patch) * -(-shape[2] // config.model.patch)
    assert tokens[:3] == ("tokens", 3 * cells, 3 * cells)
    assert isinstance(config.text, ByteTextConfig)
    # Twice the clips are twice the work, text encoder and frozen embedder included.
    twice = task.work(Bucket(frames=9, height=16, width=32, batch_size=6))
    assert twice.flops == pytest.approx(2 * tokens.flops)
    assert tokens.flops > task.embedder.encode_flops((3, *bucket.shape, 3)) > 0
