"""VidVAE: the paper's size, the map of lengths, strict causality, and chunks that give what the
whole gives."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.vidvae import Head, TimeMix, VidVAE
from xgen_jax.models.vidvae_config import PRESETS, VidVAEConfig
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import on_mesh, replicated, video_sharding
from xgen_jax.testing import PYRAMID, tiny_vidvae

CONFIGS = {
    "pyramid": PYRAMID,
    # Open-Sora-Plan v1.1's: learnt mixes of pool and convolution, a first level that mixes no
    # frames, look-ahead.
    "mixed": dataclasses.replace(
        PYRAMID,
        time_down="convolution",
        time_up="trilinear",
        time_up_convolution=True,
        flat_levels=1,
        mid_attention=False,
        norm="rms",
    ),
    "stem": tiny_vidvae(latent_channels=3, stem_hidden=8, kernels=((3, 3, 3), (3, 3, 3))),
    "head": tiny_vidvae(latent_channels=3, head_channels=4, norm="rms"),
}
SIDE = 8


def build(name, frames):
    """A model with random parameters (biases too, so that a lost bias shows), and a clip."""
    model = VidVAE(CONFIGS[name])
    video = jax.random.normal(jax.random.key(0), (1, frames, SIDE, SIDE, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = tree.unflatten(
        [leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    )
    return model, params, video


@pytest.mark.parametrize(
    "preset,parameters",
    [("paper", 229_169_895), ("osp-v1.0", 229_169_895), ("osp-v1.1", 246_859_499)],
)
def test_the_published_networks_have_their_parameters(preset, parameters):
    video = jax.ShapeDtypeStruct((1, 5, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(VidVAE(PRESETS[preset]).init, jax.random.key(0), video)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert (PRESETS[preset].time_factor, PRESETS[preset].space_factor) == (4, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "paper", "tiny"])
def test_latent_shape_is_the_shape_of_the_latents(name):
    config = PRESETS.get(name) or CONFIGS[name]
    size = config.space_factor * 2
    for n in (0, 1, 3):
        shape = (2, 1 + config.time_factor * n, size, 2 * size, 3)
        model = VidVAE(config)

        def both(key, video, model=model):
            return model.init_with_output(key, video)[0]

        video, mean, logvar = jax.eval_shape(
            both, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32)
        )
        assert (
            mean.shape
            == logvar.shape
            == config.latent_shape(shape)
            == (2, 1 + n, 2, 4, config.latent_channels)
        )
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
    "changes,message",
    [
        ({"stem": (4, 4, 8)}, "as wide as high"),
        ({"channels": (4,)}, "one entry a level"),
        (
            {"time_expansion": (True, False, False, False)},
            "halves the frame rate 2 times, but the decoder doubles it 1",
        ),
        ({"time_up": "cubic"}, "time_up='cubic' is not known; choose one of causal, trilinear"),
        ({"flat_levels": 5}, "flat_levels must be 0 to 4"),
        ({"head_channels": -1}, "head_channels must be 0 or more, not -1"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        VidVAEConfig(**changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "stem" else pytest.mark.slow) for n in CONFIGS]
)
def test_no_latent_and_no_frame_depends_on_the_future(name):
    model, params, video = build(name, frames=9)
    factor = model.config.time_factor

    def output(method, x):
        out = model.apply(params, x, method=method)[0]
        return out.mean if method == "encode" else out

    def influence(method, x):
        """(out, in): how much each output frame moves with each input frame, by gradients."""
        frames_out = jax.eval_shape(lambda x: output(method, x), x).shape[1]

        @jax.jit
        def row(j):
            def scalar(x):
                y = output(method, x)
                return (
                    jnp.take(y, j, axis=1)
                    * jnp.cos(jnp.arange(y[0, 0].size).reshape(1, *y.shape[2:]))
                ).sum()

            return jnp.abs(jax.grad(scalar)(x)).sum((0, 2, 3, 4))

        return np.stack([row(j) for j in range(frames_out)])

    encode = influence("encode", video)
    for j, row in enumerate(encode):
        assert not np.any(row[factor * j + 1 :]), f"latent {j} depends on later frames: {row}"
        assert row[factor * j] > 0, f"latent {j} does not depend on its own last frame"
        assert j == 0 or row[factor * (j - 1)] > 0, f"latent {j} does not look back"
    latents = model.apply(params, video, method="encode")[0].mode()
    decode = influence("decode", latents)
    ahead = 0
    for frame, row in enumerate(decode):
        own = -(-frame // factor)  # frames 1 + factor*(n-1) .. factor*n belong to latent n
        assert row[own] > 0, f"frame {frame} does not depend on its own latent"
        latest = np.flatnonzero(row).max()
        ahead = max(ahead, 1 + factor * (latest - 1) - frame)
    # No more than is declared, and not less either.
    assert ahead == model.config.look_ahead == (3 if name == "mixed" else 0)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"norm": "group"}, "statistics over the whole clip; norm='group_per_frame' would not"),
        ({"attention_layout": "released"}, "mixes all frames of a clip; 'per_frame' would not"),
    ],
)
def test_a_model_that_depends_on_the_whole_clip_refuses_chunks(changes, message):
    model = VidVAE(dataclasses.replace(CONFIGS["pyramid"], **changes))
    z = jnp.zeros((1, 1, 4, 4, 3))

    def first_chunk(key):
        return model.init(key, z, None, False, method="decode")

    with pytest.raises(UserError, match=message):
        jax.eval_shape(first_chunk, jax.random.key(0))


def test_a_mix_begins_with_the_pool_and_ends_where_its_share_says():
    x, y = jnp.ones((1, 2, 2, 2, 3)), jnp.zeros((1, 2, 2, 2, 3))
    mixed, params = TimeMix().init_with_output(jax.random.key(0), x, y)
    np.testing.assert_allclose(mixed, np.full(x.shape, 1 / (1 + np.exp(-2.0))), atol=1e-6)
    other = {"params": {"mix": jnp.float32(-1.5)}}
    assert jax.tree.structure(other) == jax.tree.structure(params)
    np.testing.assert_allclose(
        TimeMix().apply(other, x, 3 + y), np.full(x.shape, 3 - 2 / (1 + np.exp(1.5))), atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["level", "block"])
def test_recomputation_changes_neither_values_nor_gradients(remat):
    model, params, video = build("mixed", frames=5)
    again = VidVAE(dataclasses.replace(model.config, remat=remat))

    def value_and_gradient(model):
        return jax.jit(
            jax.value_and_grad(lambda p: jnp.square(model.apply(p, video)[0] - 1).mean())
        )(params)

    plain, remat = value_and_gradient(model), value_and_gradient(again)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5), plain, remat)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [pytest.param({"sequence": 8}, marks=pytest.mark.slow), {"sequence": 4, "tensor": 2}],
)
@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_height_and_width_over_devices_change_nothing_and_gather_nothing(verb, mesh):
    config = dataclasses.replace(CONFIGS["pyramid"], kernels=((3, 3, 3), (3, 3, 3)))
    model, mesh = VidVAE(config), make_mesh(MeshConfig(fsdp=1, **mesh))
    video = jax.random.normal(jax.random.key(0), (1, 5, 32, 32, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)
    x = (
        video
        if verb == "encode"
        else jax.random.normal(jax.random.key(2), config.latent_shape(video.shape))
    )

    def run(params, x):
        return model.apply(params, x, method=verb)[0]

    whole = jax.jit(run)(params, x)
    with on_mesh(mesh):
        placed = jax.device_put(params, replicated(mesh)), jax.device_put(x, video_sharding(mesh))
        compiled = jax.jit(lambda p, x: run(p, x)).lower(*placed).compile()
        np.testing.assert_allclose(compiled(*placed), whole, atol=1e-5)
    text = compiled.as_text()
    assert "collective-permute" in text  # neighbours exchange rows
    # All that is gathered are what one attention over a frame of latents must see: its keys and
    # values (and, with the width cut, queries), never an activation of the pyramid.
    cells = math.prod(config.latent_shape(video.shape)[1:4]) * config.channels[-1]
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)(?:-start)?\(", text)
    assert gathered, "the attention must gather something, or this test sees nothing"
    for shape in gathered:
        assert math.prod(int(side) for side in shape.split(",")) <= cells, f"{shape} is gathered"


@pytest.mark.parametrize("channels,reach", [(0, 0), (4, 1)])
def test_a_head_lets_patches_overlap_by_a_pixel(channels, reach):
    config = tiny_vidvae(head_channels=channels, norm="rms")
    head = Head(config, jnp.float32)
    features = jax.random.normal(jax.random.key(0), (1, 2, 3, 3, 8))
    params = jax.jit(head.init)(jax.random.key(1), features)
    assert ("pixels" in params["params"]) == bool(channels)

    def pixels(middle):
        return head.apply(params, features.at[0, 1, 1, 1].set(middle))[0][0]

    # The second latent frame is frames 1 to 4, the middle patch rows and columns 4 to 7.
    influence = np.abs(jax.jit(jax.jacrev(pixels))(features[0, 1, 1, 1])).max((3, 4))
    expected = np.zeros((5, 12, 12), bool)
    expected[1:, 4 - reach : 8 + reach, 4 - reach : 8 + reach] = True
    np.testing.assert_array_equal(influence > 0, expected)


@pytest.mark.slow
def test_the_posterior_is_sampled_with_the_noise_handed_in():
    model, params, video = build("stem", frames=5)
    noise = jax.random.normal(jax.random.key(3), model.config.latent_shape(video.shape))
    sampled, mean, logvar = jax.jit(model.apply)(params, video, noise)
    decoded, _ = jax.jit(lambda z: model.apply(params, z, method="decode"))(
        mean + jnp.exp(0.5 * logvar) * noise
    )
    np.testing.assert_allclose(sampled, decoded, atol=1e-6)


def test_half_precision_keeps_moments_and_video_in_float32():
    def both(key, video):
        return VidVAE(CONFIGS["pyramid"], jnp.bfloat16).init_with_output(key, video)

    video = jax.ShapeDtypeStruct((1, 5, SIDE, SIDE, 3), jnp.float32)
    outputs, params = jax.eval_shape(both, jax.random.key(0), video)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, params))} == {jnp.dtype("float32")}
