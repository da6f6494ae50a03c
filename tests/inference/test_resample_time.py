"""Another speed: moments between the frames, and the frames themselves as they always are."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from xgen_jax import evaluate
from xgen_jax.commands.reconstruct import ReconstructRequest, reconstruct_file
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.inference import resample_time
from xgen_jax.inference.reconstruct import Reconstructor, load_reconstructor
from xgen_jax.inference.resample_time import decode_at_speed, moments, stream_at_speed
from xgen_jax.inference.streaming import decode
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import REGEN_MODEL, regen_embedder, write_regen_run


def test_moments_go_from_the_first_frame_to_the_last():
    np.testing.assert_array_equal(moments(3, 1.0), [0, 1, 2])
    np.testing.assert_array_equal(moments(3, 0.5), [0, 0.5, 1, 1.5, 2])
    np.testing.assert_array_equal(moments(5, 2.0), [0, 2, 4])
    assert len(moments(11, 0.1)) == 101
    assert moments(11, 0.1)[30] == 3  # a frame's moment is exactly that
    for speed in (0.0, -1.0, 0.01, float("nan"), 65.0):
        with pytest.raises(UserError, match="must be within 1/64 .. 64"):
            moments(5, speed)


@pytest.fixture(scope="module")
def built():
    """(embedder, params, latents of two chunks and an image, the frames as decoding has them)."""
    embedder, params = regen_embedder()
    latents = np.random.default_rng(0).standard_normal((1, 5, 2, 2, 4)).astype(np.float32)
    return embedder, params, latents, decode(embedder, params, latents, key=jax.random.key(3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "speed, every, between",
    [(1.0, 1, "interpolated"), (0.5, 2, "interpolated"), (0.5, 2, "continuous")],
)
def test_the_clips_own_frames_stay_what_they_are(built, speed, every, between):
    embedder, params, latents, plain = built
    slow = decode_at_speed(embedder, params, latents, speed, key=jax.random.key(3), between=between)
    assert slow.shape[1] == every * 10 + 1
    np.testing.assert_allclose(slow[:, ::every], plain, atol=2e-5)
    # Every moment has its own noise: those in between are not copies of their neighbours.
    assert all(np.abs(slow[:, i] - slow[:, i + 1]).max() > 1e-2 for i in range(10 * every))


@pytest.mark.slow
def test_latents_that_are_tokens_are_drawn_at_any_time_too():
    embedder, params = regen_embedder(
        dataclasses.replace(REGEN_MODEL, conditioning="in_context"), windows="chunk"
    )
    latents = np.random.default_rng(0).standard_normal((1, 5, 2, 2, 4)).astype(np.float32)
    slow = decode_at_speed(embedder, params, latents, 0.5)
    np.testing.assert_allclose(slow[:, ::2], decode(embedder, params, latents), atol=2e-5)


def test_twice_as_fast_is_every_other_frame(built):
    embedder, params, latents, plain = built
    np.testing.assert_allclose(
        decode_at_speed(embedder, params, latents, 2.0, key=jax.random.key(3)),
        plain[:, ::2],
        atol=2e-5,
    )


@pytest.mark.parametrize("windows", ["chunk", "shifted"])
@pytest.mark.parametrize("speed", [0.5, 0.3, 1.5, 3.0])
def test_a_stream_holds_few_frames_and_adds_up_each_of_its_windows(monkeypatch, windows, speed):
    """Windows return their positions: a frame is whole when its weights add up to 1."""
    embedder, params = regen_embedder(windows=windows)
    latents, length = np.zeros((1, 2 * 12, 1, 1, 4), np.float32), embedder.model.config.chunk_frames
    monkeypatch.setattr(
        resample_time,
        "sample_window",
        lambda e, p, z, window, key: (
            np.ones((1, len(window.mix_F), 4, 4, 3)) * window.frames_F[None, :, None, None, None]
        ),
    )
    every = max(1, int(np.ceil(speed)))
    chunks = [chunk[0, :, 0, 0, 0] for chunk in stream_at_speed(embedder, params, latents, speed)]
    wanted = np.arange(0, len(moments(12 * length, speed / every)), every)
    np.testing.assert_allclose(np.concatenate(chunks), wanted, atol=1e-5)
    assert max(map(len, chunks)) <= 2 * length / speed + 1 and len(chunks) >= 10


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_a_stream_at_another_speed_equals_the_whole_clip(speed):
    embedder, params = regen_embedder()
    reconstruct = Reconstructor(embedder=embedder, params=params)
    video = np.random.default_rng(4).integers(0, 256, (13, 7, 6, 3), np.uint8)
    whole = reconstruct(video, speed)
    parts = list(reconstruct.stream(iter([video[:4], video[4:5], video[5:]]), speed=speed))
    assert len(parts) > 1
    streamed = np.concatenate(parts)
    assert streamed.shape == whole.shape == (len(moments(13, speed)), 7, 6, 3)
    assert np.abs(streamed.astype(int) - whole).max() <= 1


def test_times_far_beyond_a_chunk_are_told_of(built, monkeypatch, capsys):
    embedder, params, latents, _ = built
    monkeypatch.setattr(
        resample_time,
        "sample_window",
        lambda e, p, z, window, key: np.zeros((1, len(window.mix_F), 8, 8, 3)),
    )
    for speed, between, frames in ((0.4, "interpolated", 26), (0.5, "continuous", 21)):
        assert decode_at_speed(embedder, params, latents, speed, between=between).shape[1] == frames
    assert capsys.readouterr().err == ""
    assert decode_at_speed(embedder, params, latents, 0.4, between="continuous").shape[1] == 26
    assert (
        "speed=0.4 asks for moments up to 0.8 of a frame after a chunk's last"
        in capsys.readouterr().err
    )
    with pytest.raises(
        UserError, match="between='linear' is not known; choose one of interpolated, continuous"
    ):
        decode_at_speed(embedder, params, latents, 0.5, between="linear")


def test_a_budget_in_which_no_window_fits_is_refused(built):
    embedder, params, latents, _ = built
    with pytest.raises(
        UserError, match=r"to sample 5 frames at once takes .* more than memory_budget_gb=1e-06"
    ):
        decode_at_speed(embedder, params, latents, 0.5, memory_budget_gb=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_regen_run(tmp_path_factory.mktemp("regen") / "run")


@pytest.mark.slow
def test_any_length_and_size_comes_back_whole(run):
    reconstruct = load_reconstructor(run)
    video = np.random.default_rng(1).integers(0, 256, (8, 7, 6, 3), np.uint8)
    plain = reconstruct(video)
    assert plain.shape == video.shape
    slow = reconstruct(video, speed=0.5)
    assert slow.shape == (15, 7, 6, 3)
    assert np.abs(slow[::2].astype(int) - plain).max() <= 1
    assert (reconstruct(video, key=jax.random.key(1)) != plain).any()


@pytest.mark.slow
def test_a_file_is_shown_beside_the_original_slowed_by_repetition(run, tmp_path):
    video = np.random.default_rng(2).integers(0, 256, (6, 16, 16, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", video, fps=8)
    arguments = {"embedder": run, "video": tmp_path / "clip.mp4", "out": str(tmp_path / "slow.mp4")}
    result = reconstruct_file(ReconstructRequest(**arguments, speed=0.5, steps=2))
    assert result["shape"] == [11, 16, 16, 3] and result["fps"] == 8
    with pytest.raises(UserError, match="steps"):
        reconstruct_file(ReconstructRequest(**arguments, steps=0, overwrite=True))


@pytest.mark.slow
def test_a_run_is_scored_with_n_evaluations(run, tmp_path):
    result = evaluate("reconstruction", embedder=str(run), out=str(tmp_path), count=1, steps=2)
    assert result["shapes"]["10x16x16"]["clips"] == 1
    assert (
        json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())[
            "decode_steps"
        ]
        == 2
    )


def test_a_vidvae_has_neither_speed_nor_steps(tiny_runs):
    network = Reconstructor(embedder=VidVAEEmbedder(model=VidVAE(PRESETS["tiny"])), params={})
    with pytest.raises(
        UserError, match=r"speed=0.5 is for a REGEN.* only the frames that were encoded"
    ):
        network(np.zeros((5, 8, 8, 3), np.uint8), speed=0.5)
    with pytest.raises(
        UserError, match="steps=4 is for a REGEN.* this embedder decodes in one evaluation"
    ):
        load_reconstructor(tiny_runs / "vidvae", steps=4)
