"""A loaded model as a callable: shapes, determinism, independence of the batch, clear refusals."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import xgen_jax
from xgen_jax.diffusion.config import GuidanceConfig
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.models.micro_conditions import MicroConditions
from xgen_jax.models.vdit import VDiT


@pytest.fixture(scope="module")
def model(tiny_runs):
    return xgen_jax.load(tiny_runs / "vdit")


def test_one_prompt_and_several(model):
    one = model("a red circle moving left", seed=3)
    assert one.shape == (5, 16, 16, 3)
    assert one.dtype == np.uint8
    assert model(["a red circle moving left", "a blue square moving up"], seed=3).shape == (
        2,
        5,
        16,
        16,
        3,
    )


def test_same_seed_same_video_other_seed_other_video(model):
    a, b, c = (model("a red circle moving left", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.slow
def test_a_video_does_not_depend_on_its_batch(model):
    prompts = [
        "a red circle moving left",
        "a blue square moving up",
        "a green triangle moving down",
    ]
    whole = model(prompts, batch_size=3).astype(int)
    pairs = model(prompts, batch_size=2).astype(int)
    # Rounding to uint8 of sums that differ in the last bits.
    assert np.abs(whole - pairs).max() <= 1


@pytest.mark.slow
def test_size_and_length_may_differ_from_training(model):
    assert model("a red circle moving left", frames=9, size=(16, 24)).shape == (9, 16, 24, 3)


def test_steps_may_differ_from_the_runs_and_samplers_are_checked(model):
    assert model("a red circle moving left", steps=1).shape == (5, 16, 16, 3)
    with pytest.raises(UserError, match="sampler='heuun' is not known .*'heun'"):
        model("a red circle moving left", sampler="heuun")


def test_a_time_grid_is_asked_for_by_name_or_is_the_runs(model):
    prompt = "a red circle moving left"
    asked = model(prompt, spacing="flow_match_euler")
    config = dataclasses.replace(model.config, sample_spacing="flow_match_euler")
    np.testing.assert_array_equal(dataclasses.replace(model, config=config)(prompt), asked)
    assert (asked != model(prompt)).any()
    settings = model.generator(model.plan(VideoRequest(spacing="unipc_flow")), 1).settings
    assert settings["spacing"] == "unipc_flow" and "steps_offset" not in settings
    with pytest.raises(UserError, match="spacing='ddim_leading' is for the process 'ddpm'"):
        model(prompt, spacing="ddim_leading")
    with pytest.raises(UserError, match="steps_offset=1 is for the spacings ddim_leading"):
        model(prompt, steps_offset=1)


@pytest.mark.slow
def test_sampler_and_guidance_are_the_runs_by_default(model):
    def generate(sampler=None, **config):
        other = dataclasses.replace(model, config=dataclasses.replace(model.config, **config))
        return other("a red circle moving left", sampler=sampler, steps=3, guidance_scale=9.0)

    as_asked, as_configured = generate("unipc"), dataclasses.replace(model.config, sampler="unipc")
    other = dataclasses.replace(model, config=as_configured)
    np.testing.assert_array_equal(
        other("a red circle moving left", steps=3, guidance_scale=9.0), as_asked
    )
    assert (as_asked != generate()).any()
    # Without a guided time it is the conditional prediction.
    alone = model("a red circle moving left", steps=3, guidance_scale=1.0).astype(int)
    assert np.abs(generate(guidance=GuidanceConfig(interval=(0.0, 1e-6))) - alone).max() <= 1


@pytest.mark.slow
def test_ddpm_with_a_learned_variance_and_micro_conditions_generates(model):
    config = dataclasses.replace(
        model.config,
        model=dataclasses.replace(model.config.model, learned_variance=True, micro_cond=True),
        loss=dataclasses.replace(model.config.loss, process="ddpm", time_distribution="uniform"),
        sampler="ancestral",
        guidance=GuidanceConfig(channels=3),
    )
    network = VDiT(config.model)
    embedder = model.networks.embedder
    shape = (*embedder.latent_shape((5, 16, 16)), embedder.latent_channels)
    text, mask = np.zeros((1, 4, config.model.text_width), np.float32), np.ones((1, 4), bool)
    micro_cond = MicroConditions(*np.ones((5, 1), np.float32))
    shapes = jax.eval_shape(
        network.init, jax.random.key(0), np.zeros((1, *shape)), np.zeros(1), text, mask, micro_cond
    )
    # Random parameters: the last layer of a new transformer is zero, so nothing would depend on the
    # conditions.
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda p: 0.2 * random.normal(size=p.shape).astype(p.dtype), shapes)
    networks = dataclasses.replace(
        model.networks, model=network, params={**model.networks.params, "vdit": params}
    )
    ddpm = dataclasses.replace(model, config=config, networks=networks)
    video = ddpm("a red circle", steps=4)
    assert video.shape == (5, 16, 16, 3)
    assert (ddpm("a red circle", steps=4, seed=1) != video).any()
    faster = dataclasses.replace(ddpm, config=dataclasses.replace(config, sample_fps=60.0))
    assert (faster("a red circle", steps=4) != video).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "  "}, "a prompt is empty"),
        ({"prompt": []}, "there is no prompt"),
        ({"prompt": "x" * 65}, "65 bytes; this model takes at most 64"),
        (
            {"prompt": "a\tcircle"},
            r"the prompt 'a\\tcircle' has the control character U\+0009 at place 1",
        ),
        (
            {"prompt": "x", "overlap": 2, "frames": 9},
            "overlap=2 must be 1 or more latent frames and fewer than",
        ),
        ({"prompt": "x", "batch_size": 0}, "batch_size=0"),
        ({"prompt": "x", "frames": 6}, "nearest are 5 and 9|the nearest are 5, 9"),
        (
            {"prompt": "x", "size": (16, 18)},
            "width 18 is not a multiple of 4; the nearest are 16 and 20",
        ),
        ({"prompt": "x", "seed": -1}, "seed=-1"),
    ],
)
def test_bad_requests_are_refused(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model(**arguments)


def test_loading_refuses_other_folders(tiny_runs, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        xgen_jax.load(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no config.json"):
        xgen_jax.load(tmp_path)
    with pytest.raises(UserError, match="give a text-to-video model: a vdit run"):
        load_text_to_video(tiny_runs / "vidvae")
    with pytest.raises(UserError, match="text_encoder=t5 is for a run with a T5"):
        load_text_to_video(tiny_runs / "vdit", text_encoder="t5")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tiny_runs / "vdit", unfinished)
    shutil.rmtree(unfinished / "checkpoints")
    with pytest.raises(UserError, match="no finished checkpoint"):
        xgen_jax.load(unfinished)


def test_run_folders_moved_together_find_each_other(tiny_runs, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_runs, moved)
    config = (
        (moved / "vdit" / "config.json").read_text().replace(str(tiny_runs), str(tmp_path / "gone"))
    )
    (moved / "vdit" / "config.json").write_text(config)
    assert xgen_jax.load(moved / "vdit")("a red circle moving left").shape == (5, 16, 16, 3)


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (1, 16, 16, 3), (7, 13, 21, 3)])
def test_reconstructor_takes_any_length_and_size(tiny_runs, shape):
    video = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = xgen_jax.load(tiny_runs / "vidvae")(video)
    assert out.shape == shape
    assert out.dtype == np.uint8


def test_reconstructor_refuses_floats(tiny_runs):
    with pytest.raises(UserError, match="uint8"):
        xgen_jax.load(tiny_runs / "vidvae")(np.zeros((5, 16, 16, 3), np.float32))


def test_show_writes_a_file_outside_notebooks_and_overwrites_nothing(tmp_path):
    video = np.zeros((3, 16, 16, 3), np.uint8)
    first = xgen_jax.show(video, path=tmp_path / "video.mp4")
    second = xgen_jax.show(video, path=tmp_path / "video.mp4")
    assert first.name == "video.mp4"
    assert second.name == "video-2.mp4"


def test_a_loaded_model_shows_six_lines(tiny_runs):
    model = xgen_jax.load(tiny_runs / "vdit")
    lines = repr(model).splitlines()
    assert len(lines) == 6 and max(map(len, lines)) < 100
    assert lines[0] == "TextToVideo: 5x16x16 at 8 fps, step 2 of its run"
    assert lines[1].startswith("  transformer  width 16, depth 2, ")
    assert "VidVAE: 4 channels, 4x4 pixels a latent cell, " in lines[3]
    generator = model.generator(model.plan(), 2)
    assert repr(generator).startswith("VideoGenerator of 2 videos at once on 2 devices\n")
    assert len(repr(generator).splitlines()) == 4
    # What is shown is the class's own business: the networks in it stay out of it.
    assert len(repr(xgen_jax.load(tiny_runs / "vidvae"))) < 300
    embedder, params = pair = xgen_jax.load_embedder(tiny_runs / "vidvae")
    assert repr(pair).startswith("(embedder, params) of a VidVAE: 4 channels, 4x4 pixels")
    assert embedder is pair[0] and params is pair[1] and len(repr(pair)) < 120
