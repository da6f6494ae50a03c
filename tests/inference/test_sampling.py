"""Drawing: known frames stay, pieces continue one another, neither batch nor devices nor where
weights lie matter."""

import dataclasses

import jax
import numpy as np
import pytest

import xgen_jax
from xgen_jax.data.pixels import to_uint8
from xgen_jax.diffusion.frame_masks import OPEN_SORA
from xgen_jax.errors import UserError
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.sampling import default_batch_size
from xgen_jax.inference.streaming import decode, encode
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.parallel.memory import GB

PROMPT = "a red circle moving left"
RANDOM = np.random.default_rng(0)
VIDEO = RANDOM.integers(0, 256, (7, 20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tiny_runs):
    """With masks and clip conditions, and random all through: a new transformer's last layer is
    zero."""
    loaded = xgen_jax.load(tiny_runs / "vdit")
    network = dataclasses.replace(loaded.config.model, micro_cond=True)
    loss = dataclasses.replace(loaded.config.loss, frame_masks=OPEN_SORA)
    random = np.random.default_rng(0)
    shapes = abstract_variables(network, loaded.embedder.latent_channels)
    vdit = jax.tree.map(lambda p: 0.2 * random.normal(size=p.shape).astype(p.dtype), shapes)
    config = dataclasses.replace(loaded.config, model=network, loss=loss)
    return dataclasses.replace(
        loaded, config=config, model=VDiT(network), params={**loaded.params, "vdit": vdit}
    )


def latents(model, batch=1, condition=None, seed=3, progress=None, **request):
    drawer = model.drawer(model.plan(**request), batch, condition=condition)
    pieces = drawer.latents(
        [PROMPT] * batch, [seed + row for row in range(batch)], None, condition, progress
    )
    return np.concatenate([np.asarray(piece) for piece in pieces], axis=1)


def test_a_condition_comes_back_exactly_and_the_rest_follows_it(model):
    request = {"frames": 13, "piece_frames": 13, "overlap": 2}
    fitted = fit_condition(VIDEO, model.plan(**request), model.embedder)
    assert fitted.shape == (5, 16, 16, 3)  # the last that are 1 + 4n
    known = encode(model.embedder, model.params["embedder"], fitted[None])
    drawn = latents(model, batch=2, condition=VIDEO, **request)
    assert drawn.shape[:2] == (2, 4)
    np.testing.assert_array_equal(drawn[:, :2], np.repeat(known, 2, axis=0))
    free = latents(model, batch=2, **request)
    assert np.abs(drawn[:, 2:] - free[:, 2:]).max() > 1e-3
    image = latents(model, condition=VIDEO[:1], **request)
    known = encode(
        model.embedder,
        model.params["embedder"],
        fit_condition(VIDEO[:1], model.plan(**request), model.embedder)[None],
    )
    np.testing.assert_array_equal(image[:, :1], known)


def test_a_long_video_begins_as_the_short_one_and_goes_on(model):
    told = []
    short = latents(model, frames=5)
    long = latents(model, frames=13, progress=lambda: told.append(1))
    assert long.shape[1] == 4 and len(told) == 3 * model.config.sample_steps
    np.testing.assert_array_equal(long[:, :2], short)
    np.testing.assert_array_equal(long, latents(model, frames=13))
    np.testing.assert_array_equal(long[:, :3], latents(model, frames=9))
    # Other noise in each piece, and each depends on the one before: the last on what the first was
    # given.
    assert np.abs(long[:, 1:2] - long[:, 2:3]).max() > 1e-2
    ends = [latents(model, frames=13, condition=VIDEO[at : at + 1])[:, -1] for at in (0, 1)]
    assert np.abs(ends[0] - ends[1]).max() > 1e-4


def test_decoding_has_no_seam_between_pieces(model):
    drawer = model.drawer(model.plan(frames=25), 1)
    video = np.concatenate(list(drawer([PROMPT], [3])), axis=1)
    whole = decode(model.embedder, model.params["embedder"], latents(model, frames=25))
    assert video.shape == (1, 25, 16, 16, 3)
    assert np.abs(video.astype(int) - to_uint8(whole)).max() <= 1


def test_the_network_is_told_of_a_piece(model):
    drawer = model.drawer(model.plan(frames=13, size=(16, 24), fps=12.0), 1)
    assert drawer._clip.tolist() == pytest.approx([16, 24, 16 / 24, 5, 12])


def test_devices_share_a_batch_and_change_nothing(model):
    drawer = model.drawer(model.plan(frames=9), 4)
    (first, second) = drawer.latents([PROMPT] * 4, [5, 6, 7, 8])
    assert len(first.sharding.device_set) == 4 and not first.is_fully_replicated
    alone = latents(model, seed=7, frames=9)
    np.testing.assert_allclose(
        np.concatenate([first, second], axis=1)[2:3], alone, atol=2e-5, rtol=1e-4
    )


def test_where_the_parameters_lie_changes_nothing(model):
    def draw(**options):
        other = dataclasses.replace(model, params=jax.device_get(model.params), **options)
        drawer = other.drawer(other.plan(frames=9), 1)
        return drawer, np.concatenate(list(drawer([PROMPT], [3], None, VIDEO)), axis=1)

    resident, expected = draw()
    assert resident._resident.keys() == model.params.keys()
    offloaded, video = draw(offload=True)
    assert not offloaded._resident
    np.testing.assert_array_equal(video, expected)
    enough, video = draw(memory_budget_gb=1.0)
    assert not enough.offload
    assert np.abs(video.astype(int) - expected).max() <= 1
    # Enough for a step, but not for the decoder beside it.
    tight, video = draw(memory_budget_gb=(enough._step_bytes() + 1) / GB)
    assert tight.offload
    assert np.abs(video.astype(int) - expected).max() <= 1
    with pytest.raises(
        UserError,
        match="more than memory_budget_gb=1e-05; allow more, or take a smaller batch_size",
    ):
        draw(memory_budget_gb=1e-5)


def test_mistakes_are_named(model, capsys):
    with pytest.raises(UserError, match="a condition is a uint8 video"):
        latents(model, condition=VIDEO.astype(np.float32), frames=9)
    with pytest.raises(UserError, match="has no room for a condition"):
        latents(model, condition=VIDEO, frames=1)
    with pytest.raises(UserError, match="batch_size=0"):
        model.drawer(model.plan(), 0)
    assert capsys.readouterr().err == ""
    untrained = dataclasses.replace(
        model.config, loss=dataclasses.replace(model.config.loss, frame_masks=type(OPEN_SORA)())
    )
    dataclasses.replace(model, config=untrained).drawer(model.plan(), 1, condition=VIDEO)
    assert (
        "a condition is given, and the run was not trained on given frames"
        in capsys.readouterr().err
    )


def test_the_default_batch_keeps_devices_busy(model):
    assert default_batch_size(model.plan(), 2) == 16 * 8
    assert (
        default_batch_size(model.plan(frames=13, piece_frames=13, size=(256, 256)), 2) == 2 * 8
    )  # 4,096 tokens
