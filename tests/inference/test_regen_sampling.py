"""A REGEN's run end to end: encode, train, generate segments of whole chunks; one key a video."""

import dataclasses

import jax
import numpy as np
import pytest

import xgen_jax
from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.pixels import to_uint8
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.errors import UserError
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.request import VideoRequest, plan_video
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.streaming import decode, encode
from xgen_jax.models.vdit import abstract_variables
from xgen_jax.runs.load import load_embedder
from xgen_jax.testing import REGEN_MODEL, VDIT, regen_embedder, write_regen_run

PROMPTS = ["a red circle moving left", "a blue square moving up"]
BUCKETS = [{"frames": 10, "height": 16, "width": 16, "batch_size": 2}]
VIDEO = np.random.default_rng(0).integers(0, 256, (8, 20, 30, 3), np.uint8)


def vdit(root, **data):
    source = {"kind": "latents", "path": str(root / "latents")}
    data = {"source": source, "buckets": BUCKETS, **data}
    config = {**VDIT, "embedder": str(root / "regen"), "data": data}
    return run_config({**config, "loop": {**VDIT["loop"], "steps": 1}})


pytestmark = pytest.mark.slow  # an embedder and a transformer are trained


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with regen/, its latents/, and vdit/, trained on those."""
    root = tmp_path_factory.mktemp("regen")
    write_regen_run(root / "regen")
    arguments = {"data": "synthetic", "count": 4, "buckets": "10x16x16,1x16x16", "batch_size": 2}
    folders = {"embedder": str(root / "regen"), "out": str(root / "latents")}
    result = encode_dataset(EncodeRequest(**folders, **arguments))
    assert result["buckets"] == {"10x16x16": 4, "1x16x16": 4}
    train(vdit(root), root / "vdit")
    return root


@pytest.fixture(scope="module")
def model(root):
    """A model with random parameters: a new transformer's last layer is zero."""
    loaded, random = xgen_jax.load(root / "vdit"), np.random.default_rng(0)
    shapes = abstract_variables(loaded.config.model, loaded.networks.embedder.latent_channels)
    params = jax.tree.map(lambda p: 0.2 * random.normal(size=p.shape).astype(p.dtype), shapes)
    params = {**loaded.networks.params, "vdit": params}
    networks = dataclasses.replace(loaded.networks, params=params)
    return dataclasses.replace(loaded, networks=networks)


def plan_of(model, **request):
    return model.plan(VideoRequest(**request))


ROW = BatchRow(PROMPTS[0], 3)


def test_latents_on_disk_are_what_the_embedder_gives(root):
    source, (embedder, params) = LatentSource(root / "latents"), load_embedder(root / "regen")
    assert source.made_by["embedder"] == embedder.fingerprint(params)
    assert source.read(0, None, 10, 16, 16)["latents"].shape == (4, 4, 4, 4)
    assert source.read(0, None, 1, 16, 16)["latents"].shape == (1, 4, 4, 4)


def test_latents_of_another_ratio_are_refused(root, tmp_path):
    slower = dataclasses.replace(
        REGEN_MODEL, encoder=dataclasses.replace(REGEN_MODEL.encoder, time_reduction=(False, False))
    )
    (tmp_path / "runs").mkdir()
    write_regen_run(tmp_path / "runs" / "regen", config=slower)  # chunks of three frames
    (tmp_path / "runs" / "latents").symlink_to(root / "latents")
    with pytest.raises(
        UserError, match=r"of another ratio \(10x16x16 has latents 4x4x4, not 7x4x4\): encode"
    ):
        train(vdit(tmp_path / "runs"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_video_depends_on_its_own_seed(model):
    options = {"seed": 3, "frames": 10, "steps": 1}
    both = model(PROMPTS, **options)
    assert both.shape == (2, 10, 16, 16, 3)
    np.testing.assert_array_equal(model(PROMPTS, **options), both)
    single = np.concatenate([model(PROMPTS, batch_size=1, **options)])
    assert np.abs(single.astype(int) - both).max() <= 1


def test_the_decoders_noise_depends_on_the_seed(model):
    """The same latents decoded with the keys of two seeds are two videos."""
    generator = model.generator(plan_of(model, frames=10, steps=1), 1)
    latents = np.concatenate([np.asarray(part) for part in generator.latents([ROW])], axis=1)
    embedder, params = model.networks.embedder, model.networks.params["embedder"]
    of_seed_0 = to_uint8(decode(embedder, params, latents))
    video = np.concatenate(list(generator([ROW])), axis=1)
    assert video.shape == of_seed_0.shape
    assert (video != of_seed_0).any()
    assert generator.settings["decode_steps"] == 1


def test_segments_are_whole_chunks(model):
    plan = plan_of(model, frames=20, segment_frames=10, overlap=2, steps=1)
    assert (plan.segments, plan.segment_shape, plan.latent_frames) == (3, (4, 4, 4, 4), 8)
    generator = model.generator(plan, 1)
    assert [segment.shape[1] for segment in generator.latents([ROW])] == [4, 2, 2]
    assert sum(chunk.shape[1] for chunk in generator([ROW])) == 20


def test_a_condition_image_is_the_first_content_latent(model):
    plan, networks = plan_of(model, frames=10, steps=1), model.networks
    fitted = fit_condition(VIDEO[:1], plan, networks.embedder)
    known = encode(networks.embedder, networks.params["embedder"], fitted[None])
    generator = model.generator(plan, 1, conditioned=True)
    segments = generator.latents([ROW], VIDEO[:1])
    latents = np.concatenate([np.asarray(segment) for segment in segments], axis=1)
    np.testing.assert_array_equal(latents[:, :1], known)


def test_a_condition_video_is_cut_to_whole_chunks(model):
    embedder = regen_embedder()[0]
    whole = plan_of(model, frames=20, segment_frames=20)
    for frames, overlap, taken in ((8, 2, 5), (8, 4, 5), (4, 2, 1), (1, 2, 1)):
        plan = dataclasses.replace(whole, overlap=overlap)
        assert len(fit_condition(VIDEO[:frames], plan, embedder)) == taken
    # One chunk can take an image only.
    assert len(fit_condition(VIDEO, plan_of(model, frames=5), embedder)) == 1


def test_plans_count_whole_chunks(root):
    embedder, config = regen_embedder()[0], vdit(root)

    def plan(**request):
        return plan_video(config, embedder, VideoRequest(**request))

    long = plan(frames=40)
    assert (long.segments, long.overlap, long.segment_shape[0]) == (7, 2, 4)
    assert plan(frames=16, segment_frames=16).latent_frames == 7
    odd = dataclasses.replace(config.data.buckets[0], frames=11)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, buckets=(odd,)))
    assert (plan(frames=11).segments, plan(frames=11).segment_frames) == (1, 11)
    assert (plan(frames=15).segments, plan(frames=15).segment_frames) == (2, 10)
    for request, message in (
        ({"frames": 12}, "12 frames cannot be encoded"),
        ({"frames": 20, "segment_frames": 11}, "segment_frames=11 must be a multiple of 5"),
        (
            {"frames": 20, "overlap": 1},
            "overlap=1 must be 2 or more latent frames, whole chunks of 2",
        ),
        ({"frames": 20, "overlap": 3}, "overlap=3 must be"),
        ({"frames": 20, "segment_frames": 5}, "fewer than a segment's 2"),
    ):
        with pytest.raises(UserError, match=message):
            plan(**request)
