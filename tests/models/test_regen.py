"""REGEN's networks: causality, no hidden positions, any size, images and videos alike, the paper's
sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.regen import REGEN, Conditioning, Decoder, count_parameters, frame_times
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.nn.choices import REMAT
from xgen_jax.testing import REGEN_MODEL, random_regen_params


def randomised(params, seed=1):
    """Every parameter moved, those that start at zero too."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    )


@functools.cache
def build(config=REGEN_MODEL, height=12, width=8):
    model = REGEN(config)
    video = jax.random.uniform(
        jax.random.key(0), (2, config.chunk_frames, height, width, 3), minval=-1
    )
    params = randomised(jax.jit(model.init)(jax.random.key(1), video, jnp.zeros(2)))
    return model, params, video


def encode(model, params, video):
    return jax.jit(lambda p, v: model.apply(p, v, method="encode")[0])(params, video)


def expand(model, params, z, at):
    return jax.jit(lambda p, z, at: model.apply(p, z, at, method="expand"))(params, z, at)


def denoise(model, params, x, time, told):
    time_B = jnp.full(len(x), time)
    return jax.jit(lambda p, *a: model.apply(p, *a, method="denoise"))(params, x, time_B, told)


def times(config, batch=2, frames=None):
    return jnp.broadcast_to(
        frame_times(config, frames or config.chunk_frames)[None],
        (batch, frames or config.chunk_frames),
    )


def predict(model, params, x, z, at, time=600.0):
    conditioning = expand(model, params, z, at)
    return denoise(model, params, x, time, conditioning)


@pytest.mark.slow
def test_the_content_latent_sees_the_first_frame_alone():
    model, params, video = build()
    gradient = jax.jit(jax.grad(lambda v: encode(model, params, v)[:, 0].sum()))(video)
    assert jnp.abs(gradient[:, 0]).max() > 0
    assert jnp.abs(gradient[:, 1:]).max() == 0
    gradient = jax.jit(jax.grad(lambda v: jnp.square(encode(model, params, v)[:, 1]).sum()))(video)
    assert all(jnp.abs(gradient[:, frame]).max() > 0 for frame in range(REGEN_MODEL.chunk_frames))


@pytest.mark.slow
def test_an_image_is_the_content_latent_of_a_video_that_begins_with_it():
    model, params, video = build()
    np.testing.assert_allclose(
        encode(model, params, video[:, :1])[:, 0],
        encode(model, params, video)[:, 0],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.slow
def test_an_image_and_a_first_frame_are_expanded_by_one_function():
    """With the same motion latent their conditioning is the same, whatever the content latent is.

    Both programs expand the same number of times, so that they round alike.
    """
    model, params, video = build()
    z = encode(model, params, video)
    image = expand(model, params, z[:, 1:], jnp.zeros_like(times(REGEN_MODEL)))
    first = expand(model, params, z, times(REGEN_MODEL))
    np.testing.assert_array_equal(image.added_BFHWD[:, 0], first.added_BFHWD[:, 0])
    later = expand(model, params, z.at[:, 0].add(1.0), times(REGEN_MODEL))
    assert jnp.abs(later.added_BFHWD[:, 1:] - first.added_BFHWD[:, 1:]).min() > 0


@pytest.mark.slow
def test_nothing_but_the_latents_tells_a_token_its_place():
    """Tokens moved in space and time, together with what they are told, give the same frames,
    moved."""
    model, params, video = build()
    z = encode(model, params, video)
    conditioning = expand(model, params, z, times(REGEN_MODEL))
    x = jax.random.normal(jax.random.key(2), video.shape)
    plain = denoise(model, params, x, 300.0, conditioning)

    def moved(a, patch):
        return jnp.roll(a, (2, patch, -patch), axis=(1, 2, 3))

    told = Conditioning(moved(conditioning.added_BFHWD, 1))
    shifted = denoise(model, params, moved(x, 4), 300.0, told)
    np.testing.assert_allclose(shifted, moved(plain, 4), rtol=0, atol=2e-5)

    order = np.array([3, 0, 4, 1, 2])
    told = Conditioning(conditioning.added_BFHWD[:, order])
    permuted = denoise(model, params, x[:, order], 300.0, told)
    np.testing.assert_allclose(permuted, plain[:, order], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_in_context_latents_have_fixed_places():
    model, params, video = build(dataclasses.replace(REGEN_MODEL, conditioning="in_context"))
    z = encode(model, params, video)
    x = jax.random.normal(jax.random.key(2), video.shape)
    plain = predict(model, params, x, z, times(REGEN_MODEL))
    shifted = predict(
        model, params, jnp.roll(x, 4, axis=2), jnp.roll(z, 1, axis=2), times(REGEN_MODEL)
    )
    assert jnp.abs(shifted - jnp.roll(plain, 4, axis=2)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["content_aware", "in_context"])
@pytest.mark.parametrize("height, width", [pytest.param(4, 4, marks=pytest.mark.slow), (20, 24)])
def test_any_multiple_of_the_patch_can_be_encoded_and_drawn(height, width, conditioning):
    model, params, _ = build(dataclasses.replace(REGEN_MODEL, conditioning=conditioning))
    video = jax.random.uniform(jax.random.key(3), (1, REGEN_MODEL.chunk_frames, height, width, 3))
    z = encode(model, params, video)
    assert z.shape == (1, *REGEN_MODEL.latent_shape(video.shape[1:4]), 4)
    prediction = predict(model, params, video, z, times(REGEN_MODEL, 1))
    assert prediction.shape == video.shape
    assert jnp.isfinite(prediction).all()


def test_a_token_is_told_of_all_its_cells_and_no_others():
    config = dataclasses.replace(REGEN_MODEL, latent_patch=2)
    assert (config.space_factor, config.patch, config.token_grid(3, 4)) == (4, 8, (2, 2))
    # 3x2 cells, of which the third row fills half a token.
    model, params = REGEN(config), random_regen_params(config)
    z, video = (
        jax.random.normal(jax.random.key(0), (2, frames, *shape))
        for frames, shape in ((2, (3, 2, 4)), (config.chunk_frames, (12, 8, 3)))
    )

    def expanded(params, z):
        return expand(model, params, z, times(config)).added_BFHWD

    plain = expanded(params, z)
    assert plain.shape[:4] == (2, config.chunk_frames, 2, 1)
    for row in range(3):
        change = np.abs(expanded(params, z.at[:, :, row, 0].add(1.0)) - plain).max((0, 1, 4))[:, 0]
        assert (change > 1e-3).tolist() == [row < 2, row == 2]
    prediction = predict(model, params, video, z, times(config))
    assert prediction.shape == video.shape
    assert np.isfinite(prediction).all()


@pytest.mark.parametrize("conditioning", ["content_aware", "in_context"])
def test_a_decoder_sees_its_windows_of_space(conditioning):
    """One layer sees a window; one as large as the picture changes nothing."""
    config = dataclasses.replace(
        REGEN_MODEL, depth=1, conditioning=conditioning, attention_window=(3, 6)
    )
    model, params = REGEN(config), random_regen_params(config)
    z, video = (
        jax.random.normal(jax.random.key(0), (1, frames, *shape))
        for frames, shape in ((2, (6, 6, 4)), (config.chunk_frames, (24, 24, 3)))
    )
    everywhere = REGEN(dataclasses.replace(config, attention_window=None))
    covering = REGEN(dataclasses.replace(config, attention_window=(6, 9)))
    at = times(config, 1)
    np.testing.assert_array_equal(
        predict(covering, params, video, z, at), predict(everywhere, params, video, z, at)
    )
    conditioning = expand(model, params, z, at)

    def change(model):
        """Which 6x6 tokens change with the pixels of the last of them."""
        moved = video.at[:, :, -1, -1].add(1.0)
        both = (denoise(model, params, x, 300.0, conditioning) for x in (video, moved))
        difference = np.abs(np.subtract(*both)).max((0, 1, 4))
        return difference.reshape(6, 4, 6, 4).max((1, 3)) > 1e-6

    assert change(everywhere).all()
    near = np.zeros((6, 6), bool)
    near[4:] = True  # the last rows: the window of the last is shifted inward; all columns
    np.testing.assert_array_equal(change(model), near)


@pytest.mark.slow
def test_a_picture_tiled_is_encoded_and_drawn_tiled():
    """Content-aware attention over copies is attention over one: the size alone changes nothing (no
    edge is near)."""
    config = dataclasses.replace(
        REGEN_MODEL,
        encoder=dataclasses.replace(REGEN_MODEL.encoder, kernels=((1, 1, 1), (3, 1, 1))),
        width=16,
    )
    # The convolutions in and out look aside as well: latents are tiled, not pictures.
    model, params, video = build(config)
    z = encode(model, params, video)
    x = jax.random.normal(jax.random.key(2), video.shape)
    plain = predict(model, params, x, z, times(config))
    tiled = predict(
        model, params, jnp.tile(x, (1, 1, 2, 2, 1)), jnp.tile(z, (1, 1, 2, 2, 1)), times(config)
    )
    np.testing.assert_allclose(tiled, jnp.tile(plain, (1, 1, 2, 2, 1)), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_time_is_continuous():
    """Between two frames lies what is between them, and near a frame what is near it."""
    model, params, video = build()
    z = encode(model, params, video)
    at = jnp.array([[0.5, 0.5 + 1e-4, 0.75]]).repeat(2, axis=0)
    told = expand(model, params, z, at).added_BFHWD
    near, far = jnp.abs(told[:, 1] - told[:, 0]).max(), jnp.abs(told[:, 2] - told[:, 0]).max()
    assert 0 < near < far / 50


def looped(params):
    """Parameters of a decoder whose layers are a scan, for one whose layers are in a loop."""
    decoder = dict(params["params"]["decoder"])
    stacked = decoder.pop("blocks")
    for layer in range(REGEN_MODEL.depth):
        decoder[f"blocks_{layer}"] = jax.tree.map(lambda a, layer=layer: a[layer], stacked)
    return {"params": {**params["params"], "decoder": decoder}}


@pytest.mark.slow
@pytest.mark.parametrize("remat", REMAT)
def test_loops_and_recomputation_change_neither_values_nor_gradients(remat):
    model, params, video = build()

    def value_and_gradient(changes, params):
        model = REGEN(dataclasses.replace(REGEN_MODEL, **changes))

        def loss(params):
            y = model.apply(params, video, jnp.full(2, 10.0))
            return jnp.square(y).mean(), y

        (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return y, gradient

    def assert_close(one, other):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other
        )

    y, gradient = value_and_gradient({}, params)
    assert_close(value_and_gradient({"remat": remat}, params), (y, gradient))
    loop = value_and_gradient({"remat": remat, "scan_layers": False}, looped(params))
    assert_close(loop, (y, looped(gradient)))


def test_lengths_are_whole_chunks_and_a_frame():
    assert REGEN_MODEL.chunk_frames == 5
    for frames, latents in ((1, 1), (5, 2), (6, 3), (10, 4), (11, 5)):
        assert REGEN_MODEL.latent_shape((frames, 8, 12)) == (latents, 2, 3)
        assert REGEN_MODEL.frames(latents) == frames
    assert [REGEN_MODEL.padded_frames(n) for n in (1, 2, 5, 6, 7, 10, 11, 12)] == [
        1,
        5,
        5,
        6,
        10,
        10,
        11,
        15,
    ]
    with pytest.raises(UserError, match=r"8 frames .* 5n and 5n \+ 1; the nearest are 6, 10"):
        REGEN_MODEL.latent_shape((8, 8, 8))
    with pytest.raises(UserError, match="height 10 is not a multiple of 4"):
        REGEN_MODEL.latent_shape((5, 10, 8))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_two_latent_frames_of_a_chunk(name):
    config, ratio = PRESETS[name], int(name.split("-")[1][:-1])
    assert config.ratio == ratio
    assert config.latent_shape((ratio + 1, 64, 64)) == (2, 8, 8)
    assert (config.latent_channels, config.space_factor) == (8, 8)


def test_a_head_lets_patches_overlap_within_each_frame():
    config = dataclasses.replace(REGEN_MODEL, head_channels=4)
    decoder, patch = Decoder(config, jnp.float32), config.patch
    side = 2 * patch
    x = jax.random.normal(jax.random.key(0), (1, 2, side, side, 3))
    conditioning = Conditioning(jnp.ones((1, 2, 2, 2, config.width)))

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(decoder.init, jax.random.key(1), x, jnp.zeros(1), conditioning)
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)

    @jax.jit
    def with_bias(bias):
        """Decode with another bias of the pixels (1, 1) of all patches in front of the head."""
        final = params["params"]["final"]
        final = {**final, "bias": jnp.asarray(final["bias"]).at[(patch + 1) * 4].add(bias)}
        changed = {"params": {**params["params"], "final": final}}
        return decoder.apply(changed, x, jnp.zeros(1), conditioning)

    change = np.abs(with_bias(1.0) - with_bias(0.0)).max(-1)
    rows, columns = np.indices((side, side)) % patch
    near = (np.abs(rows - 1) <= 1) & (np.abs(columns - 1) <= 1)
    np.testing.assert_array_equal(change > 1e-4, np.broadcast_to(near, change.shape))


def test_the_papers_decoder_has_the_papers_size():
    assert (PRESETS["paper-32x"].depth, PRESETS["paper-32x"].width, PRESETS["paper-32x"].heads) == (
        24,
        2048,
        16,
    )
    counts = count_parameters(PRESETS["paper-32x"])
    assert counts["decoder"] == 1_213_919_424  # 24 x 12 x 2048^2 and what is around it


def test_patches_of_16_change_the_ends_of_the_papers_network_alone():
    paper, patch16 = PRESETS["paper-32x"], PRESETS["paper-32x-patch16"]
    assert (paper.patch, patch16.patch, patch16.space_factor) == (8, 16, 8)
    assert paper.token_grid(24, 40) == (24, 40) and patch16.token_grid(24, 40) == (12, 20)
    before, counts = count_parameters(paper), count_parameters(patch16)
    assert counts["encoder"] == before["encoder"]
    # Patches in and out, to 16 channels at pixels, and the convolution of 3x3 taps.
    entering, leaving = 3 * (16**2 - 8**2) * 2048, 2049 * (16 * 16**2 - 3 * 8**2)
    assert counts["decoder"] - before["decoder"] == entering + leaving + 9 * 16 * 3 + 3
    assert counts["expansion"] - before["expansion"] == 3 * 2 * 64 * 2048


@pytest.mark.parametrize(
    "change, message",
    [
        ({"conditioning": "none"}, "conditioning='none' is not known"),
        ({"heads": 3}, "width 16 must be a multiple of the 3 heads"),
        ({"siren_depth": 0}, "siren_depth must be 1 or more"),
        ({"head_channels": -1}, "head_channels must be 0 or more, not -1"),
        ({"latent_patch": 0}, "latent_patch must be 1 or more, not 0"),
        ({"attention_window": (3, 4)}, r"attention_window=\(3, 4\) must be two multiples of 3"),
        ({"attention_window": (0, 3)}, "or None for the whole frame"),
        (
            {
                "encoder": dataclasses.replace(
                    REGEN_MODEL.encoder, stem=(1, 4, 4), time_reduction=(False, False)
                )
            },
            "reduce time",
        ),
        (
            {"encoder": dataclasses.replace(REGEN_MODEL.encoder, norm="group")},
            "must see only the first frame",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(REGEN_MODEL, **change)
