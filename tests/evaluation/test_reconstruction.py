"""Reconstruction metrics against scikit-image's values, and their identities."""

import json
import math
import pathlib

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.evaluation import reconstruction

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "psnr_ssim.npz")
SETS = ("smooth", "random", "same", "flat")


def noise(shape=(3, 16, 18, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", SETS)
def test_frames_agree_with_the_reference(name):
    a, b = GOLDENS[f"{name}/a"], GOLDENS[f"{name}/b"]
    np.testing.assert_allclose(
        reconstruction.psnr_frames(a, b), GOLDENS[f"{name}/psnr_db"], rtol=1e-9
    )
    np.testing.assert_allclose(reconstruction.ssim_frames(a, b), GOLDENS[f"{name}/ssim"], rtol=1e-9)


@pytest.mark.parametrize("name", ["smooth", "random", "flat"])
def test_clips_agree_with_the_reference(name):
    result = reconstruction.compare(GOLDENS[f"{name}/a"], GOLDENS[f"{name}/b"])
    assert result["psnr_db"] == pytest.approx(float(GOLDENS[f"{name}/psnr_db_mean"]), rel=1e-9)
    assert result["psnr_of_mean_mse_db"] == pytest.approx(
        float(GOLDENS[f"{name}/psnr_of_mean_mse_db"]), rel=1e-9
    )
    np.testing.assert_allclose(result["mse_frames"], GOLDENS[f"{name}/mse"], rtol=1e-9)
    assert result["mse"] == pytest.approx(GOLDENS[f"{name}/mse"].mean(), rel=1e-9)
    assert result["psnr_of_mean_mse_db"] <= result["psnr_db"] + 1e-9  # Jensen


def test_identical_frames_are_infinite_alone_and_capped_in_means():
    a = noise()
    b = a.copy()
    b[0] ^= 1
    assert np.isinf(reconstruction.psnr_frames(a, b)).tolist() == [False, True, True]
    result = reconstruction.compare(a, b)
    first = reconstruction.psnr_frames(a, b)[0]
    assert result["identical_frames"] == 2
    assert result["psnr_db"] == pytest.approx((first + 200) / 3)
    assert result["ssim_frames"][1] == 1.0
    same = reconstruction.compare(a, a)
    assert (
        same["psnr_db"] == same["psnr_of_mean_mse_db"] == 100
        and same["ssim"] == 1
        and same["mse"] == 0
    )
    json.dumps([result, same], allow_nan=False)


def test_black_against_white_is_the_far_end():
    black, white = np.zeros((1, 11, 11, 3), np.uint8), np.full((1, 11, 11, 3), 255, np.uint8)
    result = reconstruction.compare(black, white)
    assert result["psnr_db"] == 0 and result["mse"] == pytest.approx(4)  # (-1 - 1)^2
    assert result["ssim"] == pytest.approx((0.01 * 255) ** 2 / (255**2 + (0.01 * 255) ** 2))


def test_metrics_are_symmetric_and_see_each_frame_alone():
    a, b = noise(seed=1), noise(seed=2)
    for metric in (reconstruction.psnr_frames, reconstruction.ssim_frames):
        np.testing.assert_allclose(metric(a, b), metric(b, a), rtol=1e-12)
        np.testing.assert_array_equal(metric(a, b)[1:2], metric(a[1:2], b[1:2]))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (noise((2, 10, 32, 3)), noise((2, 10, 32, 3)), "at least 11x11 pixels.* 10x32"),
        (noise((2, 16, 16, 3)), noise((3, 16, 16, 3)), r"\(2, 16, 16, 3\) and \(3, 16, 16, 3\)"),
        (noise((2, 16, 16, 3)), noise((2, 16, 16, 3)).astype(np.float32), "float32"),
        (noise((0, 16, 16, 3)), noise((0, 16, 16, 3)), r"\(0, 16, 16, 3\)"),
        (noise((16, 16, 3)), noise((16, 16, 3)), r"\(16, 16, 3\)"),
    ],
)
def test_what_cannot_be_compared(a, b, message):
    with pytest.raises(UserError, match=message):
        reconstruction.compare(a, b)


def test_evaluation_means_rows_and_worst_clips():
    clips = [(f"clip{seed}", noise(seed=seed)) for seed in range(4)]
    errors = iter([1, 9, 3, 0])
    seen = []

    def reconstruct(video):
        return np.clip(video.astype(int) + next(errors), 0, 255).astype(np.uint8)

    def visit(row, original, result):
        assert original.shape == result.shape
        row["file"] = f"{len(seen):03d}.mp4"
        seen.append(row["name"])

    result = reconstruction.evaluate_reconstruction(reconstruct, iter(clips), visit=visit, worst=2)
    assert result["clips"] == 4 and seen == ["clip0", "clip1", "clip2", "clip3"]
    assert result["worst"] == ["clip1", "clip2"]
    assert [row["file"] for row in result["videos"]] == ["000.mp4", "001.mp4", "002.mp4", "003.mp4"]
    row = result["videos"][0]
    assert (row["name"], row["frames"], row["height"], row["width"]) == ("clip0", 3, 16, 18)
    for name, value in result["mean"].items():
        assert value == pytest.approx(
            np.mean([row[name] for row in result["videos"]])
        ) and math.isfinite(value)
        assert name in result["conventions"]
    json.dumps(result, allow_nan=False)


def box_blur(video):
    """Mean of each pixel's 3x3 neighbourhood, edges repeated."""
    padded = np.pad(video.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = video.shape[1:3]
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.rint(np.mean(shifted, axis=0)).astype(np.uint8)


def test_sharpness_detects_blur():
    video = noise((2, 40, 48, 3))
    np.testing.assert_array_equal(reconstruction.sharpness_frames(video, video), 1.0)
    blurred = box_blur(video)
    again = box_blur(blurred)
    once, twice = (reconstruction.sharpness_frames(video, x) for x in (blurred, again))
    # In white noise, neighbouring 3x3 means overlap by 6 of 9 pixels: they differ by sqrt(6)/9 of a
    # deviation, not sqrt(2).
    np.testing.assert_allclose(once, np.sqrt(6) / 9 / np.sqrt(2), atol=0.02)
    assert (twice < 0.7 * once).all()
    np.testing.assert_allclose(
        reconstruction.sharpness_frames(again, blurred), once / twice, rtol=1e-12
    )
    assert reconstruction.compare(video, blurred)["sharpness"] == pytest.approx(once.mean())


def test_sharpness_of_a_ramp_is_the_ratio_of_slopes_of_luma():
    x, y = np.meshgrid(np.arange(12), np.arange(12))
    ramp = (3 * x + 4 * y).astype(np.uint8)  # slope 5 everywhere
    original = np.stack([ramp, ramp, ramp], axis=-1)[None]
    across = np.stack([6 * x, 6 * x, 6 * x], axis=-1).astype(np.uint8)[None]
    np.testing.assert_allclose(reconstruction.sharpness_frames(original, across), 6 / 5)
    green = original * np.array([0, 1, 0], np.uint8)
    np.testing.assert_allclose(reconstruction.sharpness_frames(original, green), 0.587)


def test_sharpness_of_flat_frames_is_finite():
    flat, other = np.full((2, 16, 17, 3), (7, 130, 201), np.uint8), noise((2, 16, 17, 3))
    np.testing.assert_array_equal(reconstruction.sharpness_frames(flat, flat // 2), 1.0)
    np.testing.assert_array_equal(reconstruction.sharpness_frames(flat, other), 4.0)
    np.testing.assert_array_equal(reconstruction.sharpness_frames(other, flat), 0.0)
    with pytest.raises(UserError, match="at least 2x2 pixels; these are 1x17"):
        reconstruction.sharpness_frames(flat[:, :1], flat[:, :1])


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
    assert reconstruction.blockiness(video, video, patch) == 1.0
    faint, strong = (
        reconstruction.blockiness(video, mesh(video, patch, levels=levels), patch)
        for levels in (4, 12)
    )
    assert 1.05 < faint < strong
    # On another grid it is no mesh of this one: the differences elsewhere grow instead.
    assert reconstruction.blockiness(video, mesh(video, patch, offset=2), patch) < 1.0


def test_blockiness_of_a_shifted_source_is_about_one():
    video = photo()
    for offset in (1, 2, 5):
        shifted = photo(offset=offset)
        assert reconstruction.blockiness(video, shifted, 4) == pytest.approx(1, abs=0.02)
        blurred = reconstruction.blockiness(video, box_blur(shifted), 4)
        assert blurred == pytest.approx(1, abs=0.04)  # neither blur nor grain is a mesh


def test_blockiness_by_hand():
    # Luma steps of 10 across the borders of 4x4 patches and 0 elsewhere, against 2 everywhere.
    x = np.arange(12)
    blocks = np.broadcast_to((10 * (x // 4))[:, None] + 10 * (x // 4), (1, 12, 12))
    ramp = np.broadcast_to(2 * x[:, None] + 2 * x, (1, 12, 12))
    grey = [np.repeat(v[..., None], 3, -1).astype(np.uint8) for v in (blocks, ramp)]
    assert reconstruction.blockiness(grey[1], grey[0], 4) == reconstruction.BLOCKINESS_CAP
    soft = grey[0] + 3 * grey[1]  # steps of 16 across borders, and of 6
    np.testing.assert_allclose(reconstruction.blockiness(grey[1], soft, 4), 16.1 / 6.1)


def test_blockiness_is_defined_for_flat_clips_and_single_patches():
    flat = np.full((2, 16, 20, 3), (7, 130, 201), np.uint8)
    assert reconstruction.blockiness(flat, flat // 2, 4) == 1.0
    assert reconstruction.blockiness(flat, mesh(flat + 20, 4), 4) == 4.0
    assert reconstruction.blockiness(flat, noise(flat.shape), 4) == pytest.approx(1, abs=0.1)
    assert reconstruction.blockiness(flat, noise(flat.shape), 20) == 1.0
    assert reconstruction.blockiness(flat, noise(flat.shape), 1) == 1.0
    with pytest.raises(UserError, match="1x1 pixels or more, not 0x0"):
        reconstruction.blockiness(flat, flat, 0)
    with pytest.raises(UserError, match="differ in shape"):
        reconstruction.blockiness(flat, flat[1:], 4)


def test_blockiness_is_reported_for_a_size_of_patch():
    video = photo() // 2 + 40
    result = reconstruction.evaluate_reconstruction(
        lambda video: mesh(video, 8), [("one", video)], patch=8
    )
    (row,) = result["videos"]
    assert row["blockiness"] == reconstruction.blockiness(video, mesh(video, 8), 8)
    assert result["mean"]["blockiness"] == row["blockiness"] > 1.05
    assert "8x8 patches" in result["conventions"]["blockiness"]
    without = reconstruction.compare(video, video)
    assert "blockiness" not in without and "blockiness" not in reconstruction.CONVENTIONS


class MeanDifference:
    """A stand-in for a learned distance."""

    name, convention = "lpips_vgg", "a stand-in"

    def __call__(self, a, b):
        return np.abs(a.astype(np.float32) - b).mean((1, 2, 3))


def test_a_learned_distance_is_reported_under_its_name():
    clips = [("one", noise(seed=1)), ("two", noise(seed=2))]
    result = reconstruction.evaluate_reconstruction(
        lambda video: 255 - video, clips, lpips=MeanDifference()
    )
    rows = result["videos"]
    for row, (_, video) in zip(rows, clips):
        np.testing.assert_allclose(row["lpips_vgg_frames"], MeanDifference()(video, 255 - video))
        assert row["lpips_vgg"] == pytest.approx(np.mean(row["lpips_vgg_frames"]))
    assert result["mean"]["lpips_vgg"] == pytest.approx(np.mean([row["lpips_vgg"] for row in rows]))
    assert (
        result["conventions"]["lpips_vgg"] == "a stand-in"
        and "lpips_vgg" not in reconstruction.CONVENTIONS
    )
    json.dumps(result, allow_nan=False)


def test_evaluation_names_the_clip_at_fault_and_refuses_none():
    with pytest.raises(UserError, match=r"clip 'short'.*\(3, 16, 18, 3\) and \(2, 16, 18, 3\)"):
        reconstruction.evaluate_reconstruction(lambda video: video[:-1], [("short", noise())])
    with pytest.raises(UserError, match="no clips"):
        reconstruction.evaluate_reconstruction(lambda video: video, [])


@pytest.mark.parametrize("width", [18, 17])
def test_side_by_side(width):
    a, b = noise((2, 16, width, 3), 1), noise((2, 16, width, 3), 2)
    both = reconstruction.side_by_side(a, b)
    assert (
        both.shape == (2, 16, 2 * width + 2, 3)
        and both.dtype == np.uint8
        and both.shape[2] % 2 == 0
    )
    np.testing.assert_array_equal(both[:, :, :width], a)
    np.testing.assert_array_equal(both[:, :, -width:], b)
    with pytest.raises(UserError, match="even"):
        reconstruction.side_by_side(a, b, separator=1)
