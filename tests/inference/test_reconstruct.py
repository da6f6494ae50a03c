"""Reconstruction in a stream: equal to that of the whole clip, chunk by chunk."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.inference import reconstruct
from xgen_jax.inference.chunks import ChunkPlan
from xgen_jax.inference.reconstruct import Reconstructor
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import PYRAMID, regen_embedder, tiny_vidvae

CONFIGS = {
    "trilinear": dataclasses.replace(PYRAMID, time_up="trilinear", time_up_convolution=True),
    "small": tiny_vidvae(kernels=((1, 3, 3), (1, 1, 1))),
    "group": dataclasses.replace(PYRAMID, norm="group"),
}


@functools.cache
def reconstructor(name):
    if name == "regen":
        embedder, params = regen_embedder()
        return Reconstructor(embedder=embedder, params=params)
    model = VidVAE(CONFIGS[name])
    params = jax.jit(model.init)(jax.random.key(1), np.zeros((1, 1, 8, 8, 3), np.float32))
    embedder = VidVAEEmbedder(model=model)
    channels = CONFIGS[name].latent_channels
    params = embedder.bundle(
        params, np.linspace(-0.1, 0.1, channels), np.linspace(0.5, 2, channels)
    )
    return Reconstructor(embedder=embedder, params=params)


def clip(frames, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def cut(video, lengths):
    ends = np.cumsum(lengths)
    assert ends[-1] == len(video)
    return [video[end - length : end] for length, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        "small",
        pytest.param("trilinear", marks=pytest.mark.slow),
        pytest.param("regen", marks=pytest.mark.slow),
    ],
)
def test_a_stream_gives_what_the_whole_clip_gives(name):
    run = reconstructor(name)
    # 19 frames are no length that can be encoded, and 7x6 no size.
    video = clip(19, 7, 6)
    whole = run(video)
    assert whole.shape == video.shape
    for lengths in ((19,), (1, 2, 9, 7)):
        parts = list(run.stream(cut(video, lengths)))
        streamed = np.concatenate(parts)
        assert streamed.shape == whole.shape and streamed.dtype == np.uint8
        # Sums of floats may be rounded to the next level.
        assert np.abs(streamed.astype(int) - whole).max() <= 1
        assert (streamed != whole).mean() < 0.01
    key = jax.random.key(5)
    other = np.concatenate(list(run.stream([video], key)))
    assert np.abs(other.astype(int) - run(video, key=key)).max() <= 1


@pytest.mark.parametrize("frames", [1, 2])
def test_few_frames(frames):
    video = clip(frames)
    parts = list(reconstructor("small").stream(iter(video[:, None])))
    np.testing.assert_array_equal(np.concatenate(parts), reconstructor("small")(video))


def test_frames_are_taken_as_they_are_needed():
    """Memory does not grow: of a video without end, no more is read than what comes out needs."""
    taken = shown = 0

    def endless():
        nonlocal taken
        while True:
            taken += 3
            yield np.full((3, 8, 8, 3), taken % 256, np.uint8)

    stream = reconstructor("small").stream(endless())
    for _ in range(12):
        shown += len(next(stream))
        assert taken - shown <= 3 * 4 * 4
    assert shown > 100


@pytest.mark.slow
def test_blocks_of_rows(monkeypatch):
    run, video = reconstructor("small"), clip(9, 64, 8)
    whole = run(video)
    monkeypatch.setattr(reconstruct, "plan_chunks", lambda *_: ChunkPlan(rows=5, frames=1))
    streamed = np.concatenate(list(run.stream(cut(video, (2, 7)))))
    assert np.abs(streamed.astype(int) - whole).max() <= 1


@pytest.mark.slow
def test_an_embedder_that_depends_on_the_whole_clip_gets_it():
    run, video = reconstructor("group"), clip(5)
    assert run.embedder.depends_on_whole_clip
    (streamed,) = run.stream(cut(video, (2, 3)))
    np.testing.assert_array_equal(streamed, run(video))


def test_what_cannot_be_streamed_is_refused():
    run = reconstructor("small")
    with pytest.raises(UserError, match="holds no frame"):
        next(run.stream([]))
    with pytest.raises(UserError, match="uint8 array"):
        next(run.stream([np.zeros((5, 8, 8, 3), np.float32)]))
    with pytest.raises(UserError, match="does not continue"):
        list(run.stream([clip(5), clip(4, 16, 8)]))
    small = dataclasses.replace(run, memory_budget_gb=1e-6)
    with pytest.raises(UserError, match="more than memory_budget_gb=1e-06"):
        next(small.stream([clip(5)]))
