"""An embedder's two verbs: latents of zero mean and unit variance by its statistics, and the way
back.

Both embedders count frames and latents alike, and REGEN's draws each clip by itself.
"""

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.regen_config import PRESETS as REGEN_PRESETS
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import regen_embedder, tiny_vidvae

CONFIG = tiny_vidvae(channels=(4,), latent_channels=3, kernels=((3, 3, 3), (3, 3, 3)))


def setup():
    model = VidVAE(CONFIG)
    video = jax.random.normal(jax.random.key(0), (4, 5, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)
    mean = np.asarray(jax.jit(lambda x: model.apply(params, x, method="encode")[0].mode())(video))
    statistics = mean.mean((0, 1, 2, 3)), mean.std((0, 1, 2, 3))
    embedder = VidVAEEmbedder(model=model)
    return embedder, embedder.bundle(params, *statistics), video, mean


@pytest.mark.slow
def test_encoded_latents_have_zero_mean_and_unit_variance_by_their_statistics():
    embedder, params, video, mean = setup()
    latents = jax.jit(embedder.encode)(params, video)
    assert latents.shape == embedder.latent_shape(video.shape)
    assert latents.shape[-1] == embedder.latent_channels == 3
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3)), np.ones(3), atol=1e-4)
    # The statistics belong to channels that differ, else a wrong axis would go unseen.
    assert np.ptp(mean.std((0, 1, 2, 3))) > 0.01


@pytest.mark.slow
def test_decode_undoes_the_normalisation():
    embedder, params, video, mean = setup()
    latents = jax.jit(embedder.encode)(params, video)
    decoded = jax.jit(lambda z: embedder.decode(params, z, jax.random.key(0)))(latents)
    plain, _ = jax.jit(lambda z: embedder.model.apply(params["model"], z, method="decode"))(mean)
    assert decoded.shape == video.shape
    np.testing.assert_allclose(decoded, plain, atol=1e-5)


EMBEDDERS = {
    "vidvae": VidVAEEmbedder(model=VidVAE(CONFIG)),
    "regen": regen_embedder()[0],
    "regen-16x": regen_embedder(REGEN_PRESETS["tiny-16x"])[0],
}


@pytest.mark.parametrize("name", EMBEDDERS)
def test_frames_and_latents_are_counted_alike(name):
    embedder, side = EMBEDDERS[name], EMBEDDERS[name].space_factor
    assert isinstance(embedder, Embedder)
    assert embedder.frames(0) == 0
    allowed = [embedder.frames(latents) for latents in range(1, 9)]
    assert [embedder.latent_shape((frames, side, 2 * side)) for frames in allowed] == [
        (n, 1, 2) for n in range(1, 9)
    ]
    for frames in range(1, allowed[-1] + 1):
        assert embedder.padded_frames(frames) == min(
            length for length in allowed if length >= frames
        )
        whole = embedder.whole_latents(frames)
        assert whole % embedder.unit == 0
        assert embedder.frames(whole) <= frames < embedder.frames(whole + embedder.unit)
        if frames not in allowed:
            with pytest.raises(UserError, match=f"{frames} frames cannot be encoded"):
                embedder.latent_shape((frames, side, side))
    with pytest.raises(UserError, match=f"height {side + 1} is not a multiple of {side}"):
        embedder.latent_shape((1, side + 1, side))


@pytest.fixture(scope="module")
def regen():
    """(embedder, params, video of two chunks and an image, latents, decode)."""
    embedder, params = regen_embedder()
    video = np.random.default_rng(0).uniform(-1, 1, (2, 11, 8, 8, 3)).astype(np.float32)
    return (
        embedder,
        params,
        video,
        np.asarray(jax.jit(embedder.encode)(params, video)),
        jax.jit(embedder.decode),
    )


def test_chunks_are_encoded_each_by_itself_and_a_frame_alone_as_an_image(regen):
    embedder, params, video, latents, _ = regen
    assert latents.shape == embedder.latent_shape(video.shape) == (2, 5, 2, 2, 4)
    encode = jax.jit(lambda x: embedder.model.apply(params["model"], x, method="encode")[0])
    mean, std = np.asarray(params["mean"]), np.asarray(params["std"])
    for frames, own in (
        (slice(0, 5), slice(0, 2)),
        (slice(5, 10), slice(2, 4)),
        (slice(10, 11), slice(4, 5)),
    ):
        np.testing.assert_allclose(
            np.asarray(encode(video[:, frames])), latents[:, own] * std + mean, atol=1e-5
        )


def test_an_image_has_the_content_latent_of_the_video_that_begins_with_it(regen):
    embedder, params, video, latents, _ = regen
    image = jax.jit(embedder.encode)(params, video[:, :1])
    np.testing.assert_allclose(image[:, 0], latents[:, 0], atol=1e-5)


def test_a_clip_is_drawn_from_its_own_latents_and_key(regen):
    embedder, params, video, latents, decode = regen
    keys = jax.random.split(jax.random.key(1), 2)
    drawn = np.asarray(decode(params, latents, keys))
    assert drawn.shape == video.shape
    np.testing.assert_array_equal(decode(params, latents, keys), drawn)
    np.testing.assert_allclose(decode(params, latents[::-1], keys[::-1])[::-1], drawn, atol=1e-5)
    other = np.asarray(
        decode(params, latents + np.float32([[[[[0]]]], [[[[1]]]]]), keys[np.array([0, 0])])
    )
    np.testing.assert_allclose(other[0], drawn[0], atol=1e-5)
    assert np.abs(other[1] - drawn[1]).max() > 0.1
    noisy = np.asarray(decode(params, latents, jax.random.split(jax.random.key(2), 2)))
    assert all(np.abs(noisy[:, frame] - drawn[:, frame]).max() > 1e-3 for frame in range(11))


@pytest.mark.slow
def test_without_a_key_and_with_one_for_all_each_clip_is_drawn_alike(regen):
    embedder, params, _, latents, decode = regen
    same = latents[[0, 0]]
    drawn = np.asarray(decode(params, same))
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(embedder.decode)(params, same, jax.random.key(0)), drawn, atol=1e-6
    )


def test_an_odd_latent_frame_in_the_middle_is_refused():
    embedder, params = regen_embedder()
    with pytest.raises(
        UserError, match="3 latent frames are no whole chunks.* can only be the last of a clip"
    ):
        embedder.decode_chunk(params, np.zeros((1, 3, 2, 2, 4)), last=False)


def test_evaluations_are_no_part_of_what_made_the_latents():
    embedder, params = regen_embedder()
    slower, _ = regen_embedder(steps=4)
    assert (embedder.settings, slower.settings) == ({"decode_steps": 1}, {"decode_steps": 4})
    assert embedder.fingerprint(params) == slower.fingerprint(params)


def test_chunks_start_where_a_latent_frame_or_a_regens_chunk_begins():
    vidvae, regen = EMBEDDERS["vidvae"], EMBEDDERS["regen"]  # 4 frames, and 5, after the first
    assert vidvae.chunk_starts(1) == [] and vidvae.chunk_starts(13) == [1, 5, 9]
    assert regen.chunk_starts(1) == regen.chunk_starts(5) == []
    assert regen.chunk_starts(10) == [5] and regen.chunk_starts(11) == [5, 10]
