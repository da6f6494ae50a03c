"""The six lines about a run: clips by bucket, what is left out, captions, epochs."""

import jax
import numpy as np
import pytest

from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.base import Source
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.testing import VIDVAE, tiny_run
from xgen_jax.training.summary import Summary


class Clips(Source):
    """Ten clips, of which the last four are images; one caption of each."""

    name = "clips"
    path = "runs/clips"

    def __len__(self):
        return 10

    def fingerprint(self):
        return "0"

    def read(self, index, rng, frames, height, width):
        raise AssertionError("a summary reads no clip")

    def fit(self, buckets, seed):
        return [np.arange(4) if bucket.frames > 1 else np.arange(6, 9) for bucket in buckets]

    def clips_for(self, bucket):
        return np.arange(6, 10) if bucket.frames == 1 else None

    def report(self):
        return "2 x damaged: a.mp4; b.mp4\n1 x too short: " + "c.mp4; " * 60

    def captions(self):
        return iter([("a.mp4", "a cat"), ("b.mp4", "a d\u00f6g")])


def lines(fit, first_step=0):
    run = tiny_run(VIDVAE, data={"fit": fit, "buckets": "5x16x16x2,1x16x16x2"}, loop={"steps": 20})
    source = Clips()
    summary = Summary.of_data(source, run.data, Pipeline(source, run.data), run.loop.steps)
    frozen, mesh = {"lpips": np.zeros(7)}, make_mesh(MeshConfig(fsdp=1))
    summary = summary.of_run(run, first_step, 1234, frozen, mesh, 3_000_000_000)
    return summary.lines(), summary.facts


@pytest.mark.parametrize(
    ("fit", "clips", "epochs"),
    [
        (False, "10 of clips runs/clips; by bucket 5x16x16: 10, 1x16x16: 4", "4 epochs"),
        (True, "10 of clips runs/clips; by bucket 5x16x16: 4, 1x16x16: 3", "5.71 epochs"),
    ],
)
def test_the_lines_say_what_goes_in(fit, clips, epochs):
    (first, left_out, captions, steps, parameters, devices), facts = lines(fit)
    assert first == f"clips       {clips}"
    assert left_out.startswith("left out    2 x damaged: a.mp4; b.mp4; 1 x too short: c.mp4; ")
    assert len(left_out) < 215 and left_out.endswith("...")
    assert captions == "captions    2, the longest of 6 bytes"
    assert steps == f"steps       to 20: 40 samples in all, {epochs}"
    assert parameters == "parameters  1,234 trained, 7 frozen"
    assert devices.startswith("devices     1 x cpu, float32, 3 GB a device")
    assert facts["left_out"][0] == "2 x damaged: a.mp4; b.mp4" and facts["samples"] == 40


def test_devices_outside_of_the_mesh_are_told():
    shown, facts = lines(False)  # a mesh of one device
    idle = jax.device_count() - 1
    assert idle and facts["idle_devices"] == idle
    assert shown[-1].endswith(f"a device; {idle} more are idle: --config.mesh.fsdp=-1 uses all")


def test_a_resumed_run_says_from_where():
    assert lines(False, first_step=5)[0][3].startswith("steps       from step 5 to 20: ")
