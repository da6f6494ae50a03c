"""REGEN in chunks: cut anywhere, a clip has the same latents and the same frames."""

import logging

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.inference.chunks import ChunkPlan, chunk_bytes, decode_chunk, plan_chunks
from xgen_jax.inference.reconstruct import Reconstructor
from xgen_jax.inference.streaming import (
    decode,
    decode_segments,
    decode_stream,
    encode,
    encode_stream,
)
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import on_mesh, replicated
from xgen_jax.testing import regen_embedder

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def built():
    """(embedder, params, clip of three chunks and an image, its latents, its frames)."""
    embedder, params = regen_embedder()
    video = np.random.default_rng(0).uniform(-1, 1, (1, 16, 8, 8, 3)).astype(np.float32)
    latents = np.asarray(jax.jit(embedder.encode)(params, video))
    return (
        embedder,
        params,
        video,
        latents,
        np.asarray(jax.jit(embedder.decode)(params, latents, KEY)),
    )


def cut_at(x, *lengths):
    edges = [0, *np.cumsum(lengths), x.shape[1]]
    return (x[:, a:b] for a, b in zip(edges, edges[1:]))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(5, 5, 5), (3, 4, 0, 4), (10,)])
def test_latents_do_not_depend_on_the_cut(built, cut):
    embedder, params, video, latents, _ = built
    parts = list(encode_stream(embedder, params, cut_at(video, *cut)))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), latents, atol=1e-5)
    assert all(part.shape[1] % 2 == 0 for part in parts[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(2, 2, 2), (1, 4), (4, 1, 1)])
def test_frames_do_not_depend_on_the_cut(built, cut):
    embedder, params, _, latents, decoded = built
    parts = list(decode_stream(embedder, params, cut_at(latents, *cut), key=KEY))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), decoded, atol=1e-5)
    assert sum(part.shape[1] for part in parts) == 16
    # The first chunk comes as soon as possible, without the frames of the look-ahead.
    assert parts[0].shape[1] == embedder.frames(cut[0] if cut[0] > 1 else 4) - embedder.look_ahead


@pytest.mark.slow
def test_a_whole_clip_is_cut_into_whole_chunks(built):
    embedder, params, video, latents, decoded = built
    # A window of five frames of 64x64 tokens occupies a device; of 2x2 tokens 16 are taken.
    for shape, frames in (((1, 8, 64, 64, 4), 2), ((1, 99, 2, 2, 4), 32), (latents.shape, 7)):
        plan = plan_chunks(embedder, params, "decode", shape, np.float32, None)
        assert plan == (shape[2], frames)
    np.testing.assert_allclose(encode(embedder, params, video), latents, atol=1e-5)
    np.testing.assert_allclose(decode(embedder, params, latents, key=KEY), decoded, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [None, 4])
def test_devices_share_the_windows_of_a_clip(built, cut):
    """Two windows in the middle of the clip and one at each end, on three devices."""
    embedder, params, _, latents, decoded = built
    mesh = make_mesh(MeshConfig(data=3, fsdp=1), jax.devices()[:3])
    plan = ChunkPlan(2, cut or latents.shape[1])
    segments = decode_segments(embedder, params, [latents], latents.shape, plan, mesh, KEY)
    np.testing.assert_allclose(np.concatenate(list(segments), axis=1), decoded, atol=1e-5)


@pytest.mark.slow
def test_no_device_samples_all_windows(built):
    embedder, params, *_ = built
    latents = np.zeros((1, 8, 8, 8, 4), np.float32)  # few tokens: a loop over heads counts once

    def flops(devices):
        mesh = make_mesh(MeshConfig(data=devices, fsdp=1), jax.devices()[:devices])
        arguments = jax.device_put((params, latents), replicated(mesh))
        with on_mesh(mesh):
            program = decode_chunk.lower(embedder, arguments[0], arguments[1], None, True, KEY)
        return program.compile().cost_analysis()["flops"]  # of a device

    # Of four chunks: three windows of seven frames and two of five.
    assert flops(3) < 0.4 * flops(1)


@pytest.mark.slow
def test_a_reconstructor_on_several_devices_is_one_on_one(built):
    embedder, params, *_ = built
    clip = np.random.default_rng(1).integers(0, 256, (23, 10, 8, 3), np.uint8)
    mesh = make_mesh(MeshConfig(data=3, fsdp=1), jax.devices()[:3])
    one = Reconstructor(embedder=embedder, params=params)
    shared = jax.device_put(params, replicated(mesh))
    several = Reconstructor(embedder=embedder, params=shared, mesh=mesh)
    wanted = one(clip).astype(int)
    # Of float32 that rounds differently a pixel may be rounded to the next level.
    assert np.abs(several(clip) - wanted).max() <= 1
    parts = list(several.stream(part[0] for part in cut_at(clip[None], 7, 9)))
    assert np.abs(np.concatenate(parts) - wanted).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_a_budget_is_planned_in_whole_chunks(built, verb):
    embedder, params, *_ = built
    shape = (1, 9, 2, 2, 4)
    for chunk in (2, 4):
        budget_gb = 1.01 * chunk_bytes(embedder, params, verb, shape, np.float32, chunk) / 1e9
        assert plan_chunks(embedder, params, verb, shape, np.float32, budget_gb) == (2, chunk)
    with pytest.raises(UserError, match="even 2 latent frames at a time"):
        plan_chunks(embedder, params, verb, shape, np.float32, 1e-6)


@pytest.mark.slow
def test_another_key_compiles_nothing_and_decodes_other_frames(built, caplog):
    embedder, params, _, latents, decoded = built
    decode(embedder, params, latents, key=KEY)
    key = jax.random.key(8)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        other = decode(embedder, params, latents, key=key)
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(np.ones(3))
        assert "Compiling" in caplog.text
    assert np.abs(other - decoded).max(axis=(0, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize(
    "stream, frames, message",
    [
        (
            "encode",
            12,
            "12 frames cannot be encoded: lengths are 5n and 5n [+] 1; the nearest are 11, 15",
        ),
        ("encode", 4, "4 frames cannot be encoded.* nearest are 1, 5"),
    ],
)
def test_frames_that_fill_no_chunk_are_refused(built, stream, frames, message):
    embedder, params, video, *_ = built
    with pytest.raises(UserError, match=message):
        list(encode_stream(embedder, params, cut_at(video[:, :frames], 5)))


def test_latents_of_other_channels_are_refused(built):
    embedder, params, _, latents, _ = built
    with pytest.raises(UserError, match=r"latents are \(B, t, h, w, 4\), not \(1, 7, 2, 2, 3\)"):
        decode(embedder, params, latents[..., :3])
