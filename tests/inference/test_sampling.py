"""Sampling: known frames stay, segments continue one another; neither the batch nor the devices nor
the residency of parameters changes a result."""

import dataclasses

import jax
import numpy as np
import pytest

import xgen_jax
from xgen_jax.data.pixels import to_uint8
from xgen_jax.diffusion.config import OPEN_SORA
from xgen_jax.errors import UserError
from xgen_jax.inference import sampling
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.residency import sampling_mesh
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.streaming import decode, encode
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.parallel.memory import GB, tree_bytes
from xgen_jax.parallel.sharding import device_bytes

PROMPT = "a red circle moving left"
RANDOM = np.random.default_rng(0)
VIDEO = RANDOM.integers(0, 256, (7, 20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tiny_runs):
    """A model trained with masks and micro conditions, with random parameters: a new transformer's
    last layer is zero."""
    loaded = xgen_jax.load(tiny_runs / "vdit")
    network = dataclasses.replace(loaded.config.model, micro_cond=True)
    loss = dataclasses.replace(loaded.config.loss, frame_masks=OPEN_SORA)
    random = np.random.default_rng(0)
    shapes = abstract_variables(network, loaded.networks.embedder.latent_channels)
    vdit = jax.tree.map(lambda p: 0.2 * random.normal(size=p.shape).astype(p.dtype), shapes)
    config = dataclasses.replace(loaded.config, model=network, loss=loss)
    networks = dataclasses.replace(
        loaded.networks, model=VDiT(network), params={**loaded.networks.params, "vdit": vdit}
    )
    return dataclasses.replace(loaded, config=config, networks=networks)


def plan(model, **request):
    return model.plan(VideoRequest(**request))


def latents(model, batch=1, condition=None, seed=3, progress=None, **request):
    generator = model.generator(plan(model, **request), batch, conditioned=condition is not None)
    rows = [BatchRow(PROMPT, seed + row) for row in range(batch)]
    segments = generator.latents(rows, condition, progress)
    return np.concatenate([np.asarray(segment) for segment in segments], axis=1)


def encoded(model, video):
    return encode(model.networks.embedder, model.networks.params["embedder"], video[None])


@pytest.mark.slow
def test_a_condition_comes_back_exactly_and_the_rest_follows_it(model):
    request = {"frames": 13, "segment_frames": 13, "overlap": 2}
    fitted = fit_condition(VIDEO, plan(model, **request), model.networks.embedder)
    assert fitted.shape == (5, 16, 16, 3)  # the last that are 1 + 4n
    known = encoded(model, fitted)
    continued = latents(model, batch=2, condition=VIDEO, **request)
    assert continued.shape[:2] == (2, 4)
    np.testing.assert_array_equal(continued[:, :2], np.repeat(known, 2, axis=0))
    free = latents(model, batch=2, **request)
    assert np.abs(continued[:, 2:] - free[:, 2:]).max() > 1e-3
    image = latents(model, condition=VIDEO[:1], **request)
    fitted = fit_condition(VIDEO[:1], plan(model, **request), model.networks.embedder)
    np.testing.assert_array_equal(image[:, :1], encoded(model, fitted))


@pytest.mark.slow
def test_a_long_video_begins_like_the_short_one(model):
    calls = []
    short = latents(model, frames=5)
    long = latents(model, frames=13, progress=lambda: calls.append(1))
    assert long.shape[1] == 4 and len(calls) == 3 * model.config.sample_steps
    np.testing.assert_array_equal(long[:, :2], short)
    np.testing.assert_array_equal(long, latents(model, frames=13))
    np.testing.assert_array_equal(long[:, :3], latents(model, frames=9))
    # Each segment has its own noise and depends on the one before it: the last on the condition of
    # the first.
    assert np.abs(long[:, 1:2] - long[:, 2:3]).max() > 1e-2
    ends = [latents(model, frames=13, condition=VIDEO[at : at + 1])[:, -1] for at in (0, 1)]
    assert np.abs(ends[0] - ends[1]).max() > 1e-4


@pytest.mark.slow
def test_decoding_has_no_seam_between_segments(model):
    generator = model.generator(plan(model, frames=25), 1)
    video = np.concatenate(list(generator([BatchRow(PROMPT, 3)])), axis=1)
    networks = model.networks
    whole = decode(networks.embedder, networks.params["embedder"], latents(model, frames=25))
    assert video.shape == (1, 25, 16, 16, 3)
    assert np.abs(video.astype(int) - to_uint8(whole)).max() <= 1


def test_micro_conditions_are_those_of_a_segment(model):
    generator = model.generator(plan(model, frames=13, size=(16, 24), fps=12.0), 1)
    assert generator.sampler.micro_cond.tolist() == pytest.approx([16, 24, 16 / 24, 5, 12])


def test_empty_rows_do_not_change_the_others(model):
    generator = model.generator(plan(model), 3)
    first, last = BatchRow(PROMPT, 5), BatchRow(PROMPT, 7)
    full = np.concatenate(list(generator([first, BatchRow("a dog", 6), last])), axis=1)
    part = np.concatenate(list(generator([first, None, last])), axis=1)
    np.testing.assert_array_equal(part[[0, 2]], full[[0, 2]])


@pytest.mark.slow
def test_a_negative_prompt_stands_in_for_the_empty_one(model):
    plain = latents(model)
    other = latents(model, negative_prompt="a green triangle")
    assert np.abs(other - plain).max() > 1e-3
    # Away from the prompt itself there is nothing to guide.
    same = latents(model, negative_prompt=PROMPT, guidance_scale=4.0)
    np.testing.assert_allclose(same, latents(model, guidance_scale=1.0), atol=2e-4)
    with pytest.raises(UserError, match="negative_prompt has no effect without guidance"):
        plan(model, negative_prompt="x", guidance_scale=1.0)
    with pytest.raises(UserError, match="is empty"):
        model(PROMPT, negative_prompt="  ")


def test_without_guidance_half_is_computed(model):
    flops = {
        scale: model.generator(plan(model, guidance_scale=scale), 2)
        .sampler.lower_step({n: t for n, t in model.networks.params.items() if n != "embedder"})
        .cost_analysis()["flops"]
        for scale in (1.0, 4.0)
    }
    assert 0.45 < flops[1.0] / flops[4.0] < 0.6


@pytest.mark.slow
def test_a_batch_split_over_devices_gives_the_same(model):
    generator = model.generator(plan(model, frames=9), 4)
    (first, second) = generator.latents([BatchRow(PROMPT, seed) for seed in (5, 6, 7, 8)])
    assert len(first.sharding.device_set) == 4 and not first.is_fully_replicated
    alone = latents(model, seed=7, frames=9)
    np.testing.assert_allclose(
        np.concatenate([first, second], axis=1)[2:3], alone, atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("batch", "frames", "sampler"), [(1, 9, "euler"), (2, 5, "euler"), (2, 5, "dpm++2m")]
)
def test_the_lowered_step_is_the_program_that_runs(model, batch, frames, sampler, monkeypatch):
    generator = model.generator(plan(model, frames=frames, sampler=sampler), batch)
    step, programs = sampling.sampling_step, []

    def recorded(*arguments):
        programs.append(step.lower(*arguments).as_text())
        return step(*arguments)

    monkeypatch.setattr(sampling, "sampling_step", recorded)
    list(generator.latents([BatchRow(PROMPT, seed) for seed in range(batch)]))
    monkeypatch.setattr(sampling, "sampling_step", step)
    params = {name: model.networks.params[name] for name in ("vdit", "text")}
    assert generator.sampler.lower_step(params).as_text() == programs[-1]
    assert generator.sampler.step_bytes(params) > tree_bytes(params["vdit"])


@pytest.mark.slow
def test_residency_changes_nothing(model):
    def generate(**options):
        networks = dataclasses.replace(model.networks, params=jax.device_get(model.networks.params))
        other = dataclasses.replace(model, networks=networks, **options)
        generator = other.generator(plan(other, frames=9), 1)
        row = BatchRow(PROMPT, 3)
        return generator, np.concatenate(list(generator([row], VIDEO)), axis=1)

    resident, expected = generate()
    assert resident.residency.resident == model.networks.params.keys()
    offloaded, video = generate(offload=True)
    assert not offloaded.residency.resident
    np.testing.assert_array_equal(video, expected)
    enough, video = generate(memory_budget_gb=1.0)
    assert not enough.residency.offload
    assert np.abs(video.astype(int) - expected).max() <= 1
    # Enough for a step, but not for the decoder next to it.
    params = {name: model.networks.params[name] for name in ("vdit", "text")}
    step_gb = (enough.sampler.step_bytes(params) + 1) / GB
    tight, video = generate(memory_budget_gb=step_gb)
    assert tight.residency.offload
    assert np.abs(video.astype(int) - expected).max() <= 1
    with pytest.raises(
        UserError,
        match="more than memory_budget_gb=1e-05; allow more, or take a smaller batch_size",
    ):
        generate(memory_budget_gb=1e-5)


@pytest.mark.parametrize(
    ("batch", "heads", "enough", "sharing"),
    [
        (8, 4, 1, (8, 1)),
        (3, 4, 1, (3, 1)),
        (3, 4, 6, (3, 2)),
        (1, 4, 1, (1, 1)),
        (1, 4, 3, (1, 4)),  # 3 do not divide the heads
        (1, 6, 8, (1, 6)),  # not enough, but the most there are
    ],
)
def test_devices_share_parameters_with_the_batch_and_more_where_memory_asks(
    batch, heads, enough, sharing
):
    mesh = sampling_mesh(batch, heads, jax.devices(), lambda mesh: mesh.size >= enough)
    assert (mesh.shape["fsdp"], mesh.shape["tensor"]) == sharing
    assert mesh.size == sharing[0] * sharing[1]


@pytest.mark.slow
def test_parameters_over_devices_give_the_video_of_one_device(model):
    network = dataclasses.replace(model.config.model, width=128, heads=4)
    channels, random = model.networks.embedder.latent_channels, np.random.default_rng(0)
    vdit = jax.tree.map(
        lambda p: 0.1 * random.standard_normal(p.shape, np.float32),
        abstract_variables(network, channels),
    )
    params = jax.device_get({**model.networks.params, "vdit": vdit})
    networks = dataclasses.replace(model.networks, model=VDiT(network), params=params)
    config = dataclasses.replace(model.config, model=network)
    wide = dataclasses.replace(model, config=config, networks=networks)
    rows = [BatchRow(PROMPT, 5), BatchRow(PROMPT, 6)]

    def generate(rows, **options):
        generator = dataclasses.replace(wide, **options).generator(plan(wide), len(rows))
        latents = np.concatenate([np.asarray(x) for x in generator.latents(rows)], axis=1)
        return generator, latents

    alone, expected = generate(rows[1:])
    two, latents_of_two = generate(rows)
    np.testing.assert_allclose(latents_of_two[1:], expected, atol=2e-5, rtol=1e-4)
    # Not enough for one device: others share its heads and channels.
    sampled_with = {name: params[name] for name in ("vdit", "text")}
    step_gb = alone.sampler.step_bytes(sampled_with) / GB
    shared, latents_of_shared = generate(rows[1:], memory_budget_gb=0.8 * step_gb)
    np.testing.assert_allclose(latents_of_shared, expected, atol=2e-5, rtol=1e-4)
    assert shared.mesh.shape["tensor"] > 1 and shared.mesh.size == shared.mesh.shape["tensor"]
    whole = device_bytes(vdit, alone.mesh)
    assert whole == tree_bytes(vdit)
    assert device_bytes(vdit, two.mesh) < 0.6 * whole
    assert device_bytes(vdit, shared.mesh) < 0.8 * whole


def test_mistakes_are_named(model, capsys):
    with pytest.raises(UserError, match="a condition must be a uint8 array"):
        latents(model, condition=VIDEO.astype(np.float32), frames=9)
    with pytest.raises(UserError, match="is too short for a condition"):
        latents(model, condition=VIDEO, frames=1)
    with pytest.raises(UserError, match="batch_size=0"):
        model.generator(model.plan(), 0)
    assert capsys.readouterr().err == ""
    untrained = dataclasses.replace(
        model.config, loss=dataclasses.replace(model.config.loss, frame_masks=type(OPEN_SORA)())
    )
    dataclasses.replace(model, config=untrained).generator(model.plan(), 1, conditioned=True)
    assert (
        "a condition is given, and the run was not trained with given frames"
        in capsys.readouterr().err
    )


def test_the_default_batch_keeps_devices_busy(model):
    assert model.batch_size(model.plan()) == 16 * 8
    large = plan(model, frames=13, segment_frames=13, size=(256, 256))
    assert large.tokens(model.config.model.patch) == 4096
    assert model.batch_size(large) == 2 * 8
