"""Conditions of videos: an image or the last frames of a file, at the rate and crop of training."""

import numpy as np
import pytest

from xgen_jax.data.pixels import center_crop
from xgen_jax.data.video import resize_cover
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.inference.conditioning import fit_condition, read_condition
from xgen_jax.inference.request import VideoPlan
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder

EMBEDDER = VidVAEEmbedder(model=VidVAE(PRESETS["tiny"]))  # 4 frames a latent frame


def plan(overlap=2, segment=5, fps=8.0):
    return VideoPlan(
        frames=4 * segment - 3,
        height=32,
        width=48,
        fps=fps,
        latent_frames=segment,
        segment_frames=4 * segment - 3,
        segment_shape=(segment, 8, 12, 8),
        overlap=overlap,
        steps=2,
        guidance_scale=3.0,
        sampler="euler",
    )


def levels(frames):
    """Grey level of each frame, in steps of eight."""
    return np.rint(frames.reshape(len(frames), -1).mean(1) / 8).astype(int).tolist()


@pytest.fixture
def video(tmp_path):
    """24 frames at 24 frames a second, each of its own grey."""
    frames = np.broadcast_to(
        8 * np.arange(24, dtype=np.uint8)[:, None, None, None], (24, 40, 60, 3)
    )
    write_video(tmp_path / "video.mp4", np.ascontiguousarray(frames), fps=24)
    return tmp_path / "video.mp4"


def test_a_video_conditions_with_its_last_frames_at_the_plans_rate(video):
    read = read_condition(None, video, plan(fps=24), EMBEDDER)
    assert levels(fit_condition(read, plan(), EMBEDDER)) == [19, 20, 21, 22, 23]
    thinned = levels(read_condition(None, video, plan(), EMBEDDER))
    assert len(thinned) == 5 and set(np.diff(thinned)) == {3} and thinned[-1] >= 21
    # A shorter video: all of its whole latent frames.
    short = read_condition(None, video, plan(overlap=4, fps=8), EMBEDDER)
    assert len(short) == 8
    assert len(fit_condition(short, plan(overlap=4), EMBEDDER)) == 5
    # At least one latent frame is left to generate.
    assert (
        len(
            fit_condition(
                read_condition(None, video, plan(9, 3, 24), EMBEDDER), plan(9, 3, 24), EMBEDDER
            )
        )
        == 5
    )


def test_frames_are_fitted_as_in_training():
    frames = np.random.default_rng(0).integers(0, 256, (1, 100, 60, 3), np.uint8)
    fitted = fit_condition(frames, plan(), EMBEDDER)
    np.testing.assert_array_equal(fitted, center_crop(resize_cover(frames, 32, 48), 32, 48))


def test_mistakes_are_named(video, tmp_path):
    assert read_condition(None, None, plan(), EMBEDDER) is None
    with pytest.raises(UserError, match="one of --condition_image and --condition_video"):
        read_condition("a.png", video, plan(), EMBEDDER)
    with pytest.raises(UserError, match="not a PNG, JPEG, WebP, AVIF, BMP or TIFF image"):
        read_condition(video, None, plan(), EMBEDDER)
    with pytest.raises(UserError, match="no such file"):
        read_condition(None, tmp_path / "missing.mp4", plan(), EMBEDDER)
    for frames, message in (
        (np.zeros((1, 4, 4, 4), np.uint8), "not uint8 \\(1, 4, 4, 4\\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "must have frames and pixels"),
        ("image.png", "not str"),
    ):
        with pytest.raises(UserError, match=message):
            fit_condition(frames, plan(), EMBEDDER)
    with pytest.raises(UserError, match="too short for a condition"):
        fit_condition(np.zeros((1, 32, 48, 3), np.uint8), plan(segment=1), EMBEDDER)
