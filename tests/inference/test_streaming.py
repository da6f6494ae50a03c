"""Chunks, rows and budgets: a clip cut in any way gives the result of the whole clip."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from xgen_jax.data.pixels import to_uint8
from xgen_jax.errors import UserError
from xgen_jax.inference import streaming
from xgen_jax.inference.chunks import (
    ChunkPlan,
    chunk_bytes,
    decode_chunk,
    encode_chunk,
    plan_chunks,
    round_to_uint8,
)
from xgen_jax.inference.streaming import (
    decode,
    decode_segments,
    decode_stream,
    encode,
    encode_stream,
)
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.parallel.memory import program_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.testing import PYRAMID, tiny_vidvae

CONFIGS = {
    "plain": dataclasses.replace(PYRAMID, kernels=((3, 3, 3), (3, 3, 3))),
    "convolution": dataclasses.replace(
        PYRAMID, time_down="convolution", time_up_convolution=True, flat_levels=1
    ),
    "trilinear": dataclasses.replace(PYRAMID, time_up="trilinear", time_up_convolution=True),
    "rms": dataclasses.replace(
        PYRAMID, norm="rms", mid_attention=False, time_expansion=(True, True)
    ),
    "stem": tiny_vidvae(
        latent_channels=3,
        time_reduction=(True,),
        stem=(2, 2, 2),
        time_up="trilinear",
        kernels=((3, 3, 3), (3, 3, 3)),
    ),
    "head": tiny_vidvae(
        latent_channels=3, stem=(4, 2, 2), stem_hidden=8, head_channels=4, norm="rms"
    ),
}
# Cuts of a clip of 17 frames, and of its 5 latent frames.
VIDEO_CUTS = [(1, 16), (5, 12), (3, 7, 7)]
LATENT_CUTS = [(1, 1, 3), (2, 3)]
MORE_VIDEO_CUTS = [(1,) * 17, (9, 8), (2, 15), (4,) * 4 + (1,), (13, 1, 3), (17,)]
MORE_LATENT_CUTS = [(1,) * 5, (1, 4), (4, 1), (5,), (2, 2, 1), (3, 2)]


@functools.cache
def built(config, frames=17, height=8, width=8):
    """(embedder, parameters with non-trivial statistics, clip, its latents, their video)."""
    model = VidVAE(config)
    video = (
        np.random.default_rng(0).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)
    )
    params = jax.jit(model.init)(jax.random.key(1), video)
    embedder = VidVAEEmbedder(model=model)
    params = embedder.bundle(params, np.linspace(-0.1, 0.1, 3), np.linspace(0.5, 2, 3))
    latents = np.asarray(jax.jit(embedder.encode)(params, video))
    return embedder, params, video, latents, np.asarray(jax.jit(embedder.decode)(params, latents))


def cut_at(x, lengths):
    assert sum(lengths) == x.shape[1]
    ends = np.cumsum(lengths)
    return [x[:, end - length : end] for length, end in zip(lengths, ends)]


def check_streams(config, video_cuts, latent_cuts):
    embedder, params, video, latents, decoded = built(config)
    for cut in video_cuts:
        parts = list(encode_stream(embedder, params, cut_at(video, cut)))
        np.testing.assert_allclose(np.concatenate(parts, 1), latents, atol=1e-5, err_msg=str(cut))
    for cut in latent_cuts:
        parts = list(decode_stream(embedder, params, cut_at(latents, cut)))
        np.testing.assert_allclose(np.concatenate(parts, 1), decoded, atol=1e-5, err_msg=str(cut))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("stem", "head") else pytest.mark.slow) for n in CONFIGS],
)
def test_a_stream_gives_what_the_whole_clip_gives(name):
    check_streams(CONFIGS[name], VIDEO_CUTS, LATENT_CUTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_stream_gives_what_the_whole_clip_gives_in_every_cut(name):
    check_streams(CONFIGS[name], MORE_VIDEO_CUTS, MORE_LATENT_CUTS)


@pytest.mark.slow
def test_a_decoder_that_looks_ahead_gives_its_last_frames_late():
    embedder, params, _, latents, _ = built(CONFIGS["trilinear"])
    assert embedder.look_ahead == 3
    lengths = [
        part.shape[1] for part in decode_stream(embedder, params, cut_at(latents, (1, 1, 3)))
    ]
    assert lengths == [1, 1, 12, 3]
    assert [
        part.shape[1] for part in decode_stream(embedder, params, cut_at(latents[:, :1], (1,)))
    ] == [1]


@pytest.mark.slow
def test_a_stream_gives_latents_as_soon_as_possible():
    embedder, params, video, _, _ = built(CONFIGS["plain"])
    consumed = []

    def chunks():
        for number, part in enumerate(cut_at(video, (5, 12))):
            consumed.append(number)
            yield part

    stream = encode_stream(embedder, params, chunks())
    assert next(stream).shape[1] == 2
    assert consumed == [0]


@pytest.mark.slow
def test_uint8_and_float_videos_have_the_same_latents():
    embedder, params, video, _, _ = built(CONFIGS["plain"])
    eight = np.rint((video + 1) * 127.5).astype(np.uint8)
    as_float = eight.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(
        encode(embedder, params, eight), encode(embedder, params, as_float), atol=1e-5
    )


def bad(change):
    video = np.zeros((1, 5, 8, 8, 3), np.float32)
    return [change(video)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunks,message",
    [
        ([], "holds no chunk"),
        (
            bad(lambda x: x[:, :4]),
            "4 frames cannot be encoded: lengths are 1 . 4n; the nearest are 1, 5",
        ),
        (bad(lambda x: x[:, :, :7]), "height 7 is not a multiple of 2; the nearest are 6 and 8"),
        (bad(lambda x: x[..., :2]), r"video is \(B, T, H, W, 3\), not \(1, 5, 8, 8, 2\)"),
        (bad(lambda x: x.astype(np.int32)), "uint8, or float in .-1, 1., not int32"),
        (bad(lambda x: x + 255), r"lies in \[-1, 1\], but this one in \[0, 255\]; 0..255 is uint8"),
        (
            bad(lambda x: np.where(np.arange(5).reshape(1, 5, 1, 1, 1) == 3, np.nan, x)),
            r"not finite.*\[0, 3, 0, 0, 0\]",
        ),
        (
            [*bad(lambda x: x), *bad(lambda x: x[:, :4, :6])],
            r"\(1, 4, 6, 8, 3\) does not continue.*\(1, 5, 8, 8, 3\)",
        ),
        (
            [*bad(lambda x: x), *bad(lambda x: np.repeat(x, 2, 0))],
            r"\(2, 5, 8, 8, 3\) does not continue a stream",
        ),
    ],
)
def test_chunks_that_cannot_be_encoded_are_refused(chunks, message):
    embedder, params, *_ = built(CONFIGS["plain"])
    with pytest.raises(UserError, match=message):
        list(encode_stream(embedder, params, chunks))


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunks,message",
    [
        ([], "holds no latents"),
        (
            [np.zeros((1, 2, 4, 4, 5), np.float32)],
            r"latents are \(B, t, h, w, 3\), not \(1, 2, 4, 4, 5\)",
        ),
        ([np.zeros((1, 2, 4, 4, 3), np.uint8)], "latents are floats, not uint8"),
        (
            [np.full((1, 2, 4, 4, 3), np.inf, np.float32)],
            r"values that are not finite.*\[0, 0, 0, 0, 0\]",
        ),
        (
            [np.zeros((1, 2, 4, 4, 3), np.float32), np.zeros((1, 2, 4, 5, 3), np.float32)],
            "does not continue a stream",
        ),
    ],
)
def test_chunks_that_cannot_be_decoded_are_refused(chunks, message):
    embedder, params, *_ = built(CONFIGS["plain"])
    with pytest.raises(UserError, match=message):
        list(decode_stream(embedder, params, chunks))


# Frames as uint8


@pytest.mark.slow
def test_frames_rounded_on_the_device_are_those_rounded_on_the_host():
    embedder, params, _, latents, _ = built(CONFIGS["stem"])
    latents = 3 * latents  # some pixels beyond the range
    for cut in ((5,), (2, 2, 1)):
        as_float = list(decode_stream(embedder, params, cut_at(latents, cut)))
        rounded = list(decode_stream(embedder, params, cut_at(latents, cut), uint8=True))
        assert [x.shape for x in rounded] == [x.shape for x in as_float]
        assert min(x.min() for x in as_float) < -1 and max(x.max() for x in as_float) > 1
        for x, y in zip(as_float, rounded):
            assert y.dtype == np.uint8
            np.testing.assert_array_equal(y, to_uint8(x))
    np.testing.assert_array_equal(
        decode(embedder, params, latents, uint8=True), to_uint8(decode(embedder, params, latents))
    )


def test_rounding_on_the_device_is_exact():
    steps = np.float32(np.arange(-2, 2, 1e-5))
    halves = np.float32((np.arange(512) / 2) / 127.5 - 1)
    near = [np.nextafter(halves, np.float32(side)) for side in (-2, 2)]
    video = np.concatenate([steps, halves, *near, np.float32([-np.inf, np.inf])])
    np.testing.assert_array_equal(jax.jit(round_to_uint8)(video), to_uint8(video))


@pytest.mark.parametrize(
    "uint8,expected",
    [
        (False, "dispatch 0, fetch 0, use, dispatch 1, fetch 1, use, dispatch 2, fetch 2, use"),
        (True, "dispatch 0, dispatch 1, fetch 0, use, dispatch 2, fetch 1, use, fetch 2, use"),
    ],
)
def test_a_chunk_is_fetched_after_the_next_was_dispatched(monkeypatch, uint8, expected):
    events = []

    class Video:
        shape = (1, 1, 4, 4, 3)

        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.full(self.shape, self.number)

    def dispatch(*arguments):
        number = sum(event.startswith("dispatch") for event in events)
        events.append(f"dispatch {number}")
        assert arguments[-1] is uint8
        return Video(number), None

    monkeypatch.setattr(streaming, "decode_chunk", dispatch)
    embedder = types.SimpleNamespace(
        halo=None, space_factor=1, unit=1, look_ahead=0, latent_channels=3
    )
    chunks = [np.zeros((1, 1, 4, 4, 3), np.float32)] * 3
    for number, video in enumerate(decode_stream(embedder, None, chunks, uint8=uint8)):
        events.append("use")
        assert (video == number).all()
    assert ", ".join(events) == expected


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["encode", "decode"])
@pytest.mark.parametrize(
    "side,chunk",
    [
        (4, 2),
        *(
            pytest.param(side, n, marks=pytest.mark.slow)
            for side in (4, 16, 24)
            for n in (1, 6, 16)
        ),
    ],
)
def test_predicted_bytes_are_within_a_fifth_of_the_running_programs(verb, side, chunk):
    embedder, params, *_ = built(PYRAMID)
    predicted = chunk_bytes(embedder, params, verb, (1, 64, side, side, 3), np.float32, chunk)
    # In the middle of a stream, with the cache of two chunks before it.
    f, s = embedder.model.config.time_factor, embedder.model.config.space_factor
    cache = None
    for n in (1, 1):
        if verb == "encode":
            x = np.zeros((1, f if cache else 1, s * side, s * side, 3), np.float32)
            cache = encode_chunk(embedder, params, x, cache)[1]
        else:
            cache = decode_chunk(
                embedder, params, np.zeros((1, n, side, side, 3), np.float32), cache, False
            )[1]
    if verb == "encode":
        x = np.zeros((1, f * chunk, s * side, s * side, 3), np.float32)
        program = encode_chunk.lower(embedder, params, x, cache)
    else:
        x = np.zeros((1, chunk, side, side, 3), np.float32)
        program = decode_chunk.lower(embedder, params, x, cache, False)
    assert predicted == pytest.approx(program_bytes(program.compile()), rel=0.2)


@pytest.mark.slow
def test_segments_are_decoded_like_the_whole_clip():
    embedder, params, _, latents, decoded = built(CONFIGS["stem"])
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    for plan, chunks in ((ChunkPlan(4, 2), 3), (ChunkPlan(4, 5), 1), (ChunkPlan(4, 1), 5)):
        segments = (part for part in cut_at(latents, (3, 2)))
        parts = list(decode_segments(embedder, params, segments, latents.shape, plan, mesh))
        assert len(parts) >= chunks
        np.testing.assert_allclose(np.concatenate(parts, 1), decoded, atol=1e-5)


@pytest.mark.slow
def test_a_budget_chooses_chunks_that_fit_and_change_nothing():
    embedder, params, video, latents, decoded = built(CONFIGS["rms"])
    for verb, function, x, whole in (
        ("encode", encode, video, latents),
        ("decode", decode, latents, decoded),
    ):
        measure = functools.partial(chunk_bytes, embedder, params, verb, latents.shape, np.float32)
        budget_gb = measure(4) / 1e9
        rows, n = plan_chunks(embedder, params, verb, latents.shape, np.float32, budget_gb)
        assert (rows, n) == (4, 4)
        np.testing.assert_allclose(function(embedder, params, x, budget_gb), whole, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rms", "head"])
def test_blocks_of_rows_change_nothing_but_need_the_whole_halo(monkeypatch, name):
    config = CONFIGS[name]
    if name == "rms":
        config = dataclasses.replace(config, time_reduction=(False, False), time_expansion=None)
    embedder, params, video, latents, decoded = built(config, frames=1, height=64, width=4)
    monkeypatch.setattr(streaming, "plan_chunks", lambda *_: (5, 1))
    np.testing.assert_allclose(encode(embedder, params, video), latents, atol=1e-5)
    np.testing.assert_allclose(decode(embedder, params, latents), decoded, atol=1e-5)
    halo = config.halo
    monkeypatch.setattr(VidVAEConfig, "halo", property(lambda self: halo - 1))
    assert np.abs(decode(embedder, params, latents) - decoded).max() > 1e-5


@pytest.mark.slow
def test_rows_are_cut_only_if_one_latent_frame_does_not_fit():
    embedder, params, *_ = built(CONFIGS["rms"])
    shape = (1, 5, 64, 4, 3)
    one = chunk_bytes(embedder, params, "decode", shape, np.float32, 1) / 1e9
    assert plan_chunks(embedder, params, "decode", shape, np.float32, one)[0] == 64
    rows, n = plan_chunks(embedder, params, "decode", shape, np.float32, 0.8 * one)
    assert (rows < 64, n) == (True, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes,budget_gb,message",
    [
        (
            {"norm": "group"},
            1e-6,
            r"takes .* GB, more than memory_budget_gb=1e-06, and there are no chunks: norm='group'",
        ),
        (
            {},
            1e-6,
            "even a latent frame at a time, and only a model with norm='rms' and no attention can",
        ),
        ({"norm": "rms", "mid_attention": False}, 1e-6, "even a latent frame and row at a time"),
        ({}, 0.0, "memory_budget_gb=0.0 must be above 0"),
    ],
)
def test_a_budget_in_which_nothing_fits_is_refused(changes, budget_gb, message):
    embedder, params, video, latents, _ = built(dataclasses.replace(PYRAMID, **changes), frames=5)
    with pytest.raises(UserError, match=message):
        decode(embedder, params, latents, budget_gb)
