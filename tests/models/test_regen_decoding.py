"""Windows that straddle chunk borders: however a clip is cut it is the same, and what windows agree
on stays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_regen import build, encode, times

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.models.regen import REGEN, Conditioning, decoding_parameters
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.models.regen_decoding import decode_chunks, frame_noise, sample_frames
from xgen_jax.models.regen_windows import look_ahead, windows_at_once
from xgen_jax.testing import REGEN_MODEL, random_regen_params

FLOW = RectifiedFlow(prediction="x0")
LENGTH, HELD, BEYOND = REGEN_MODEL.chunk_frames, 2, 1


class Exact:
    """A model that draws what it is told, a level a frame: content + motion * time; or the noise it
    is given."""

    config = REGEN_MODEL

    def __init__(self, draws="told"):
        self.draws = draws

    def apply(self, params, x, t, conditioning=None, method=None):
        if method == "expand":
            return Conditioning(x[:, 0, None] + x[:, -1, None] * t[:, :, None, None, None])
        return (
            x
            if self.draws == "noise"
            else conditioning.added_BFHWD.repeat(4, axis=2).repeat(4, axis=3)
        )


def latents_of(chunks, tail=0, batch=2):
    return jax.random.normal(jax.random.key(5), (batch, 2 * chunks + tail, 2, 3, 4))


def keys(batch=2, seed=9):
    return jax.random.split(jax.random.key(seed), batch)


def in_parts(model, params, z, cuts, steps=1, windows="shifted"):
    """Decodes z cut at these latent frames; the last part may be empty."""
    decode = jax.jit(
        functools.partial(decode_chunks, model, params, FLOW, steps), static_argnums=(2, 4)
    )
    parts, cache, edges = [], None, [0, *cuts, z.shape[1]]
    for number, (a, b) in enumerate(zip(edges, edges[1:])):
        video, cache = decode(z[:, a:b], cache, number == len(cuts), keys(), windows)
        parts.append(video)
    return np.concatenate(parts, axis=1), [part.shape[1] for part in parts]


@pytest.mark.parametrize("chunks, tail, steps", [(1, 0, 1), (3, 0, 3), (2, 1, 1), (0, 1, 3)])
def test_with_an_exact_decoder_windows_change_nothing(chunks, tail, steps):
    """Of a clip whose levels go on linearly each chunk knows what lies beyond its borders, and all
    windows agree."""
    slope = np.random.default_rng(0).standard_normal((2, 1, 2, 3, 3)).astype(np.float32)
    content = [slope * i * LENGTH / REGEN_MODEL.ratio for i in range(chunks)]
    z = np.concatenate([part for c in content for part in (c, slope)] + [slope] * tail, axis=1)
    video, _ = in_parts(Exact(), None, z, [], steps)
    wanted = [slope * np.arange(chunks * LENGTH)[:, None, None, None] / REGEN_MODEL.ratio] + [
        slope
    ] * tail
    wanted = np.concatenate(wanted, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    np.testing.assert_allclose(
        video, wanted, rtol=0, atol=1e-3
    )  # a chunk's first frame is told of at time 1e-4


@pytest.mark.parametrize("cuts", [[], [2, 4], [4, 6]])
def test_all_frames_of_a_clip_are_drawn_out_of_one_noise_in_any_window(cuts):
    video, _ = in_parts(Exact("noise"), None, latents_of(3, tail=1), cuts)
    noise = frame_noise(keys(), 3 * LENGTH + 1, 8, 12)
    np.testing.assert_allclose(video, noise, rtol=0, atol=1e-6)
    assert np.abs(noise[0] - noise[1]).max() > 1  # clips have their own
    np.testing.assert_array_equal(noise[:, 0], noise[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunks, tail, cuts",
    [pytest.param(4, 1, [2, 6], marks=pytest.mark.slow), (3, 0, [2, 4, 6]), (1, 1, [2])],
)
def test_a_clip_in_parts_is_the_whole_clip(chunks, tail, cuts):
    model, params, _ = build()
    z = latents_of(chunks, tail)
    whole, _ = in_parts(model, params, z, [], steps=2)
    assert whole.shape == (2, REGEN_MODEL.frames(z.shape[1]), 8, 12, 3)
    parts, lengths = in_parts(model, params, z, cuts, steps=2)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=2e-5)
    assert lengths[0] == cuts[0] // 2 * LENGTH - HELD - BEYOND  # what lags behind


@pytest.mark.parametrize(
    "preset, clips, grid, windows",
    [
        ("paper-32x", 1, (24, 40), 1),
        ("paper-32x-patch16", 1, (24, 40), 1),
        ("base-8x", 1, (16, 16), 3),
        ("base-8x", 2, (16, 16), 1),
        ("tiny-8x", 1, (4, 4), 16),
    ],
)
def test_as_many_windows_at_once_as_occupy_a_device(preset, clips, grid, windows):
    assert windows_at_once(PRESETS[preset], (clips, 8, *grid, 8)) == windows


@pytest.mark.slow
def test_one_chunk_alone_is_drawn_in_its_own_window():
    model, params, video = build()
    z = encode(model, params, video)
    ours, _ = in_parts(model, params, z, [])
    noise = frame_noise(keys(), LENGTH, *video.shape[2:4])
    told = model.apply(params, z, times(REGEN_MODEL), method="expand")
    np.testing.assert_allclose(
        ours, sample_frames(model, params, FLOW, 1, told, noise), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_pixels_bound_what_a_small_error_of_eps_makes_of_them(steps):
    """With the noise predicted to 1% off, the first step alone would be off by more than all there
    is."""
    process = DDPM(prediction="eps", learned_variance=False)

    class Off(Exact):
        def apply(self, params, x, t, conditioning=None, method=None):
            return 0.99 * x

    noise = frame_noise(keys(), LENGTH, 8, 12)
    unbounded = 0.01 * float(noise.max()) / float(process.schedule(np.ones(1))[0][0])
    assert unbounded > 2
    assert np.abs(sample_frames(Off(), None, process, steps, None, noise)).max() <= 1


@pytest.mark.slow
def test_at_a_border_both_chunks_are_seen():
    """Frames near a border depend on both chunks' latents, those of its outer halves, but for the
    frames where windows meet, on their own alone.
    """
    model, params, _ = build()
    z = latents_of(3)
    plain, _ = in_parts(model, params, z, [])
    moved, _ = in_parts(model, params, z.at[:, 2:4].add(1.0), [])
    change = np.abs(moved - plain).max((0, 2, 3, 4))
    begin, end = LENGTH - HELD - BEYOND, 3 * LENGTH - HELD + BEYOND
    assert (change[:begin] == 0).all()
    assert (change[begin:end] > 1e-3).all()
    assert (change[end:] == 0).all()


@pytest.mark.slow
def test_a_clip_does_not_depend_on_its_batch():
    model, params, _ = build()
    z = latents_of(2)
    both, _ = in_parts(model, params, z, [])
    alone, _ = decode_chunks(model, params, FLOW, 1, z[1:], None, True, keys()[1:], "shifted")
    np.testing.assert_allclose(alone[0], both[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_parameters_in_the_dtype_of_the_computation_give_the_same_frames(dtype):
    config = dataclasses.replace(REGEN_MODEL, head_channels=4)
    model, params = REGEN(config, dtype), random_regen_params(config)
    cast = decoding_parameters(params, dtype)
    kinds = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(cast["params"]):
        kinds.setdefault((path[0].key, path[-1].key), set()).add(leaf.dtype)
    float32 = np.dtype(np.float32)
    assert kinds == {
        ("encoder", "kernel"): {float32},
        ("encoder", "bias"): {float32},
        ("encoder", "scale"): {float32},
        ("expansion", "kernel"): {np.dtype(dtype)},
        ("expansion", "bias"): {np.dtype(dtype)},
        ("decoder", "kernel"): {np.dtype(dtype)},
        ("decoder", "bias"): {np.dtype(dtype)},
        ("decoder", "scale"): {float32},
    }
    video, _ = in_parts(model, params, latents_of(2, tail=1), [])
    np.testing.assert_array_equal(in_parts(model, cast, latents_of(2, tail=1), [])[0], video)


@pytest.mark.slow
@pytest.mark.parametrize(
    "conditioning", ["content_aware", pytest.param("in_context", marks=pytest.mark.slow)]
)
def test_a_model_trained_on_chunks_draws_chunks(conditioning):
    config = dataclasses.replace(REGEN_MODEL, conditioning=conditioning)
    model, params, _ = build(config)
    assert look_ahead(config, "chunk") == 0
    z = latents_of(2, tail=1)
    whole, _ = in_parts(model, params, z, [], windows="chunk")
    parts, lengths = in_parts(model, params, z, [2, 4], windows="chunk")
    np.testing.assert_allclose(parts, whole, rtol=0, atol=2e-5)
    assert lengths == [LENGTH, LENGTH, 1]
    moved, _ = in_parts(model, params, z.at[:, 2:4].add(1.0), [], windows="chunk")
    assert (np.abs(moved - whole).max((0, 2, 3, 4)) > 0).tolist() == [False] * LENGTH + [
        True
    ] * LENGTH + [False]
