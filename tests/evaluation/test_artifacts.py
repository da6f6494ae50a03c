"""Sharpness and blockiness on videos whose blur, grain or mesh is known."""

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.evaluation import artifacts
from xgen_jax.evaluation.reconstruction import compare


def noise(shape=(3, 16, 18, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def box_blur(video):
    """Mean of each pixel's 3x3 neighbourhood, edges repeated."""
    padded = np.pad(video.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = video.shape[1:3]
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.rint(np.mean(shifted, axis=0)).astype(np.uint8)


def test_sharpness_detects_blur():
    video = noise((2, 40, 48, 3))
    np.testing.assert_array_equal(artifacts.sharpness_frames(video, video), 1.0)
    blurred = box_blur(video)
    again = box_blur(blurred)
    once, twice = (artifacts.sharpness_frames(video, x) for x in (blurred, again))
    # In white noise, neighbouring 3x3 means overlap by 6 of 9 pixels: they differ by sqrt(6)/9 of a
    # deviation, not sqrt(2).
    np.testing.assert_allclose(once, np.sqrt(6) / 9 / np.sqrt(2), atol=0.02)
    assert (twice < 0.7 * once).all()
    np.testing.assert_allclose(artifacts.sharpness_frames(again, blurred), once / twice, rtol=1e-12)
    assert compare(video, blurred)["sharpness"] == pytest.approx(once.mean())


def test_sharpness_of_a_ramp_is_the_ratio_of_slopes_of_luma():
    x, y = np.meshgrid(np.arange(12), np.arange(12))
    ramp = (3 * x + 4 * y).astype(np.uint8)  # slope 5 everywhere
    original = np.stack([ramp, ramp, ramp], axis=-1)[None]
    across = np.stack([6 * x, 6 * x, 6 * x], axis=-1).astype(np.uint8)[None]
    np.testing.assert_allclose(artifacts.sharpness_frames(original, across), 6 / 5)
    green = original * np.array([0, 1, 0], np.uint8)
    np.testing.assert_allclose(artifacts.sharpness_frames(original, green), 0.587)


def test_sharpness_of_flat_frames_is_finite():
    flat, other = np.full((2, 16, 17, 3), (7, 130, 201), np.uint8), noise((2, 16, 17, 3))
    np.testing.assert_array_equal(artifacts.sharpness_frames(flat, flat // 2), 1.0)
    np.testing.assert_array_equal(artifacts.sharpness_frames(flat, other), 4.0)
    np.testing.assert_array_equal(artifacts.sharpness_frames(other, flat), 0.0)
    with pytest.raises(UserError, match="at least 2x2 pixels; these are 1x17"):
        artifacts.sharpness_frames(flat[:, :1], flat[:, :1])


def photo(offset=0):
    """A clip of smooth random ground with grain, neither of which knows a grid."""
    ground = noise((2, 104, 128, 3), seed=5)
    for _ in range(3):
        ground = box_blur(ground)
    grain = noise((2, 96, 120, 3), seed=6) // 16
    return ground[:, offset : offset + 96, offset : offset + 120] // 2 + grain


def mesh(video, patch, offset=0, levels=12):
    """Darken every second patch of a chessboard of patches."""
    y, x = np.indices(video.shape[1:3])
    board = ((y + offset) // patch + (x + offset) // patch) % 2
    return video - (levels * board[None, :, :, None]).astype(np.uint8)


@pytest.mark.parametrize("patch", [4, 8])
def test_blockiness_of_a_source_is_exactly_one_and_of_a_mesh_more(patch):
    video = photo() // 2 + 40
    assert artifacts.blockiness(video, video, patch) == 1.0
    faint, strong = (
        artifacts.blockiness(video, mesh(video, patch, levels=levels), patch) for levels in (4, 12)
    )
    assert 1.05 < faint < strong
    # On another grid it is no mesh of this one: the differences elsewhere grow instead.
    assert artifacts.blockiness(video, mesh(video, patch, offset=2), patch) < 1.0


def test_blockiness_of_a_shifted_source_is_about_one():
    video = photo()
    for offset in (1, 2, 5):
        shifted = photo(offset=offset)
        assert artifacts.blockiness(video, shifted, 4) == pytest.approx(1, abs=0.02)
        blurred = artifacts.blockiness(video, box_blur(shifted), 4)
        assert blurred == pytest.approx(1, abs=0.04)  # neither blur nor grain is a mesh


def test_blockiness_by_hand():
    # Luma steps of 10 across the borders of 4x4 patches and 0 elsewhere, against 2 everywhere.
    x = np.arange(12)
    blocks = np.broadcast_to((10 * (x // 4))[:, None] + 10 * (x // 4), (1, 12, 12))
    ramp = np.broadcast_to(2 * x[:, None] + 2 * x, (1, 12, 12))
    grey = [np.repeat(v[..., None], 3, -1).astype(np.uint8) for v in (blocks, ramp)]
    assert artifacts.blockiness(grey[1], grey[0], 4) == artifacts.BLOCKINESS_CAP
    soft = grey[0] + 3 * grey[1]  # steps of 16 across borders, and of 6
    np.testing.assert_allclose(artifacts.blockiness(grey[1], soft, 4), 16.1 / 6.1)


def test_blockiness_is_defined_for_flat_clips_and_single_patches():
    flat = np.full((2, 16, 20, 3), (7, 130, 201), np.uint8)
    assert artifacts.blockiness(flat, flat // 2, 4) == 1.0
    assert artifacts.blockiness(flat, mesh(flat + 20, 4), 4) == 4.0
    assert artifacts.blockiness(flat, noise(flat.shape), 4) == pytest.approx(1, abs=0.1)
    assert artifacts.blockiness(flat, noise(flat.shape), 20) == 1.0
    assert artifacts.blockiness(flat, noise(flat.shape), 1) == 1.0
    with pytest.raises(UserError, match="1x1 pixels or more, not 0x0"):
        artifacts.blockiness(flat, flat, 0)
    with pytest.raises(UserError, match="differ in shape"):
        artifacts.blockiness(flat, flat[1:], 4)


def test_blockiness_of_a_clip_in_parts_is_that_of_the_whole():
    video = photo() // 2 + 40
    sums = artifacts.BlockSums(8)
    for frames in (slice(0, 1), slice(1, 2)):
        sums.add(video[frames], mesh(video, 8)[frames])
    assert sums.blockiness == artifacts.blockiness(video, mesh(video, 8), 8)
