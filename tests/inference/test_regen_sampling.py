"""From a REGEN's run to videos: encoded, trained on, drawn in pieces of whole chunks, each clip by
its own key."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_regen import TINY, tiny_embedder, write_run

import xgen_jax
from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.pixels import to_uint8
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.errors import UserError
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.request import plan_clip
from xgen_jax.inference.streaming import decode, encode
from xgen_jax.models.vdit import abstract_variables
from xgen_jax.runs.load import load_embedder
from xgen_jax.testing import VDIT

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
    """regen/, the latents/ it made, and vdit/, trained on those."""
    root = tmp_path_factory.mktemp("regen")
    write_run(root / "regen")
    arguments = {"data": "synthetic", "count": 4, "buckets": "10x16x16,1x16x16", "batch_size": 2}
    folders = {"embedder": str(root / "regen"), "out": str(root / "latents")}
    result = encode_dataset(EncodeRequest(**folders, **arguments))
    assert result["buckets"] == {"10x16x16": 4, "1x16x16": 4}
    train(vdit(root), root / "vdit")
    return root


@pytest.fixture(scope="module")
def model(root):
    """With random parameters: a new transformer's last layer is zero."""
    loaded, random = xgen_jax.load(root / "vdit"), np.random.default_rng(0)
    shapes = abstract_variables(loaded.config.model, loaded.embedder.latent_channels)
    params = jax.tree.map(lambda p: 0.2 * random.normal(size=p.shape).astype(p.dtype), shapes)
    return dataclasses.replace(loaded, params={**loaded.params, "vdit": params})


def test_latents_on_disk_are_what_the_embedder_gives(root):
    source, (embedder, params) = LatentSource(root / "latents"), load_embedder(root / "regen")
    assert source.made_by["embedder"] == embedder.fingerprint(params)
    assert source.read(0, None, 10, 16, 16)["latents"].shape == (4, 4, 4, 4)
    assert source.read(0, None, 1, 16, 16)["latents"].shape == (1, 4, 4, 4)


def test_latents_of_another_ratio_are_refused(root, tmp_path):
    slower = dataclasses.replace(
        TINY, encoder=dataclasses.replace(TINY.encoder, time_reduction=(False, False))
    )
    (tmp_path / "runs").mkdir()
    write_run(tmp_path / "runs" / "regen", config=slower)  # chunks of three frames
    (tmp_path / "runs" / "latents").symlink_to(root / "latents")
    with pytest.raises(
        UserError, match=r"of another ratio \(10x16x16 has latents 4x4x4, not 7x4x4\): encode"
    ):
        train(vdit(tmp_path / "runs"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_video_is_drawn_by_its_own_seed(model):
    options = {"seed": 3, "frames": 10, "steps": 1}
    both = model(PROMPTS, **options)
    assert both.shape == (2, 10, 16, 16, 3)
    np.testing.assert_array_equal(model(PROMPTS, **options), both)
    single = np.concatenate([model(PROMPTS, batch_size=1, **options)])
    assert np.abs(single.astype(int) - both).max() <= 1


def test_the_decoders_noise_is_the_seeds(model):
    """The same latents, drawn with the keys of two seeds, are two videos."""
    drawer = model.drawer(model.plan(frames=10), 1, steps=1)
    latents = np.concatenate(
        [np.asarray(piece) for piece in drawer.latents(PROMPTS[:1], [3])], axis=1
    )
    plain = to_uint8(decode(model.embedder, model.params["embedder"], latents))
    drawn = np.concatenate(list(drawer(PROMPTS[:1], [3])), axis=1)
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    assert drawer.settings["decode_steps"] == 1


def test_pieces_are_whole_chunks(model):
    plan = model.plan(frames=20, piece_frames=10, overlap=2)
    assert (plan.pieces, plan.piece_shape, plan.latent_frames) == (3, (4, 4, 4, 4), 8)
    drawer = model.drawer(plan, 1, steps=1)
    pieces = [piece.shape[1] for piece in drawer.latents(PROMPTS[:1], [3])]
    assert pieces == [4, 2, 2]
    assert sum(part.shape[1] for part in drawer(PROMPTS[:1], [3])) == 20


def test_a_condition_image_is_the_first_content_latent(model):
    plan = model.plan(frames=10)
    fitted = fit_condition(VIDEO[:1], plan, model.embedder)
    known = encode(model.embedder, model.params["embedder"], fitted[None])
    drawer = model.drawer(plan, 1, condition=VIDEO[:1], steps=1)
    drawn = np.concatenate(
        [np.asarray(p) for p in drawer.latents(PROMPTS[:1], [3], None, VIDEO[:1])], axis=1
    )
    np.testing.assert_array_equal(drawn[:, :1], known)


def test_of_a_condition_video_whole_chunks_are_taken(model):
    embedder = tiny_embedder()[0]
    for frames, overlap, taken in ((8, 2, 5), (8, 4, 5), (4, 2, 1), (1, 2, 1)):
        plan = dataclasses.replace(model.plan(frames=20, piece_frames=20), overlap=overlap)
        assert len(fit_condition(VIDEO[:frames], plan, embedder)) == taken
    # One chunk leaves room for an image alone.
    assert len(fit_condition(VIDEO, model.plan(frames=5), embedder)) == 1


def test_plans_count_in_whole_chunks(root):
    embedder, config = tiny_embedder()[0], vdit(root)

    def plan(**request):
        return plan_clip(config, embedder, **request)

    assert (plan(frames=40).pieces, plan(frames=40).overlap, plan(frames=40).piece_shape[0]) == (
        7,
        2,
        4,
    )
    assert plan(frames=16, piece_frames=16).latent_frames == 7
    odd = dataclasses.replace(config.data.buckets[0], frames=11)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, buckets=(odd,)))
    assert (plan(frames=11).pieces, plan(frames=11).piece_frames) == (1, 11)
    assert (plan(frames=15).pieces, plan(frames=15).piece_frames) == (2, 10)
    for request, message in (
        ({"frames": 12}, "12 frames cannot be encoded"),
        ({"frames": 20, "piece_frames": 11}, "piece_frames=11 must be a multiple of 5"),
        (
            {"frames": 20, "overlap": 1},
            "overlap=1 must be 2 or more latent frames, whole chunks of 2",
        ),
        ({"frames": 20, "overlap": 3}, "overlap=3 must be"),
        ({"frames": 20, "piece_frames": 5}, "fewer than a piece's 2"),
    ):
        with pytest.raises(UserError, match=message):
            plan(**request)
