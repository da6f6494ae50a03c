"""VidVAE: the paper's size, the map of lengths, strict causality, and chunks that give what the whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.vidvae import PRESETS, VidVAE, VidVAEConfig

CONFIGS = {
    "pyramid": VidVAEConfig(
        channels=(4, 8),
        space_reduction=(True, False),
        time_reduction=(True, True),
        latent_channels=3,
        blocks=1,
        kernels=((1, 3, 3), (3, 1, 1)),  # compiles in half the time of 3x3x3, which the first and last layers have
    ),
    "pyramid_rms": VidVAEConfig(
        channels=(4,),
        space_reduction=(True,),
        time_reduction=(True,),
        latent_channels=3,
        blocks=1,
        mid_attention=False,
        norm="rms",
        kernels=((1, 3, 3), (3, 1, 1)),
    ),
    "stem": VidVAEConfig(
        channels=(8,),
        space_reduction=(False,),
        time_reduction=(False,),
        latent_channels=3,
        blocks=1,
        stem=(4, 4, 4),
        stem_hidden=8,
        mid_attention=False,
        norm="rms",
    ),
}
SIDE = 8


def build(name, frames):
    """A model with random parameters (biases too, so that a lost bias shows), and a clip."""
    model = VidVAE(CONFIGS[name])
    video = jax.random.normal(jax.random.key(0), (1, frames, SIDE, SIDE, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = tree.unflatten([leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
    return model, params, video


def test_the_papers_network_has_its_parameters():
    video = jax.ShapeDtypeStruct((1, 5, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(VidVAE(PRESETS["paper"]).init, jax.random.key(0), video)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 229_169_895
    assert (PRESETS["paper"].time_factor, PRESETS["paper"].space_factor) == (4, 8)


@pytest.mark.parametrize("name", [*CONFIGS, "paper", "tiny"])
def test_latent_shape_is_the_shape_of_the_latents(name):
    config = PRESETS.get(name) or CONFIGS[name]
    size = config.space_factor * 2
    for n in (0, 1, 3):
        shape = (2, 1 + config.time_factor * n, size, 2 * size, 3)
        model = VidVAE(config)

        def both(key, video, model=model):
            return model.init_with_output(key, video)[0]

        video, mean, logvar = jax.eval_shape(both, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
        assert mean.shape == logvar.shape == config.latent_shape(shape) == (2, 1 + n, 2, 4, config.latent_channels)
        assert video.shape == shape
        assert config.latent_shape(shape[1:4]) == mean.shape[1:4]


@pytest.mark.parametrize(
    "shape,message",
    [
        ((10, 16, 16), r"10 frames cannot be encoded: lengths are 1 \+ 4n; the nearest are 9, 13"),
        ((4, 16, 16), r"the nearest are 1, 5"),
        ((0, 16, 16), r"0 frames"),
        ((9, 20, 16), r"height 20 is not a multiple of 8; the nearest are 16 and 24"),
        ((9, 16, 4), r"width 4 is not a multiple of 8; the nearest are 8 and 16"),
    ],
)
def test_a_shape_it_cannot_take_is_an_error_that_names_the_nearest(shape, message):
    with pytest.raises(UserError, match=message):
        PRESETS["paper"].latent_shape(shape)


@pytest.mark.parametrize(
    "changes,message", [({"stem": (4, 4, 8)}, "as wide as high"), ({"channels": (4,)}, "one entry a level")]
)
def test_a_network_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        VidVAEConfig(**changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_latent_and_no_frame_depends_on_the_future(name):
    model, params, video = build(name, frames=9)
    factor = model.config.time_factor

    def influence(method, x):
        """(out, in): how much each output frame moves with each input frame, by gradients."""
        frames_out = jax.eval_shape(lambda x: model.apply(params, x, method=method)[0], x).shape[1]

        @jax.jit
        def row(j):
            def scalar(x):
                y = model.apply(params, x, method=method)[0]
                return (jnp.take(y, j, axis=1) * jnp.cos(jnp.arange(y[0, 0].size).reshape(1, *y.shape[2:]))).sum()

            return jnp.abs(jax.grad(scalar)(x)).sum((0, 2, 3, 4))

        return np.stack([row(j) for j in range(frames_out)])

    encode = influence("encode", video)
    for j, row in enumerate(encode):
        assert not np.any(row[factor * j + 1 :]), f"latent {j} depends on later frames: {row}"
        assert row[factor * j] > 0, f"latent {j} does not depend on its own last frame"
        assert j == 0 or row[factor * (j - 1)] > 0, f"latent {j} does not look back"
    latents = model.apply(params, video, method="encode")[0]
    for frame, row in enumerate(influence("decode", latents)):
        own = -(-frame // factor)  # frames 1 + factor*(n-1) .. factor*n belong to latent n
        assert not np.any(row[own + 1 :]), f"frame {frame} depends on later latents: {row}"
        assert row[own] > 0, f"frame {frame} does not depend on its own latent"


@pytest.mark.parametrize("name", CONFIGS)
def test_encoding_and_decoding_in_chunks_is_the_whole(name):
    frames = 9
    model, params, video = build(name, frames)
    factor, encode = model.config.time_factor, jax.jit(lambda x, h: model.apply(params, x, h, method="encode"))
    decode = jax.jit(lambda z, h: model.apply(params, z, h, method="decode"))
    mean, logvar, _ = encode(video, None)
    whole, _ = decode(mean, None)
    n = (frames - 1) // factor
    for first, *later in ((0, *[1] * n), (1, *[1] * (n - 1)), (0, n)):
        means, logvars, outs, encoder_history, decoder_history, start, place = [], [], [], None, None, 0, 0
        for i, count in enumerate((first, *later)):
            length, cells = factor * count + (i == 0), count + (i == 0)
            m, v, encoder_history = encode(video[:, start : start + length], encoder_history)
            y, decoder_history = decode(mean[:, place : place + cells], decoder_history)
            assert (m.shape[1], y.shape[1]) == (cells, length)
            start, place = start + length, place + cells
            means.append(m), logvars.append(v), outs.append(y)
        assert (start, place) == (frames, mean.shape[1])
        np.testing.assert_allclose(np.concatenate(means, 1), mean, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(logvars, 1), logvar, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(outs, 1), whole, atol=1e-5)


def test_the_posterior_is_sampled_with_the_noise_handed_in():
    model, params, video = build("stem", frames=5)
    noise = jax.random.normal(jax.random.key(3), model.config.latent_shape(video.shape))
    sampled, mean, logvar = jax.jit(model.apply)(params, video, noise)
    decoded, _ = jax.jit(lambda z: model.apply(params, z, method="decode"))(mean + jnp.exp(0.5 * logvar) * noise)
    np.testing.assert_allclose(sampled, decoded, atol=1e-6)


def test_half_precision_keeps_moments_and_video_in_float32():
    def both(key, video):
        return VidVAE(CONFIGS["pyramid"], jnp.bfloat16).init_with_output(key, video)

    video = jax.ShapeDtypeStruct((1, 5, SIDE, SIDE, 3), jnp.float32)
    outputs, params = jax.eval_shape(both, jax.random.key(0), video)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, params))} == {jnp.dtype("float32")}
