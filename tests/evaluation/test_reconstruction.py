"""Reconstruction metrics against scikit-image's values, and their identities."""

import json
import math
import pathlib

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.evaluation import reconstruction
from xgen_jax.evaluation.artifacts import blockiness

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
        (
            noise((2, 16, 16, 3)),
            noise((3, 16, 16, 3)),
            r"\(2, 16, 16, 3\) and \(3, 16, 16, 3\).*as many frames of the one as of the other",
        ),
        (
            noise((2, 16, 16, 3)),
            noise((3, 16, 18, 3)),
            r"\(3, 16, 18, 3\).*resize or crop one of them to the size of the other",
        ),
        (noise((2, 1, 1, 3)), noise((2, 1, 1, 3)), "at least 11x11 pixels.* 1x1"),
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
    assert [(one["clip"], one["name"]) for one in result["worst_clips"]] == [
        (1, "clip1"),
        (2, "clip2"),
    ]
    assert all(
        one["psnr_db"] == result["videos"][one["clip"]]["psnr_db"] for one in result["worst_clips"]
    )
    assert [row["file"] for row in result["videos"]] == ["000.mp4", "001.mp4", "002.mp4", "003.mp4"]
    row = result["videos"][0]
    assert (row["name"], row["frames"], row["height"], row["width"]) == ("clip0", 3, 16, 18)
    for name, value in result["mean"].items():
        assert value == pytest.approx(
            np.mean([row[name] for row in result["videos"]])
        ) and math.isfinite(value)
        assert name in result["conventions"]
    json.dumps(result, allow_nan=False)


def test_blockiness_is_reported_for_a_size_of_patch():
    video = noise((2, 32, 32, 3)) // 8 + 100
    darker = video.copy()
    darker[:, :8] -= 60
    result = reconstruction.evaluate_reconstruction(lambda video: darker, [("one", video)], patch=8)
    (row,) = result["videos"]
    assert row["blockiness"] == blockiness(video, darker, 8)
    assert result["mean"]["blockiness"] == row["blockiness"] > 1.05
    assert "Blockiness" in " ".join(result["notes"])
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


def moving(frames, seed=0, height=16, width=18):
    """A clip that moves evenly: every frame is the one before, two levels brighter."""
    return (
        noise((1, height, width, 3), seed) // 4
        + 2 * np.arange(frames, dtype=np.uint8)[:, None, None, None]
    )


def test_curves_by_frame_and_seams_of_clips_of_two_lengths():
    """A decoder that is 3 levels off in each second chunk of four frames."""

    def reconstruct(video):
        return video + np.uint8(3) * (np.arange(len(video)) // 4 % 2 == 1)[:, None, None, None]

    clips = [("long", moving(9)), ("short", moving(5, seed=1))]
    result = reconstruction.evaluate_reconstruction(
        reconstruct, clips, chunk_starts=lambda frames: [4, 8][: (frames - 1) // 4]
    )
    curves = result["by_frame"]
    assert curves["clips"] == [2] * 5 + [1] * 4 and curves["chunk_starts"] == [4, 8]
    off = 10 * np.log10(255**2 / 9)
    np.testing.assert_allclose(curves["psnr_db"], [100] * 4 + [off] * 4 + [100])
    # From 2 levels a frame to 5 at the first border, and to 1 at the second, which one clip has.
    assert curves["change"] == [None, 1, 1, 1, 2.5, 1, 1, 1, 0.5]
    assert result["seams"]["border"] == pytest.approx((5 + 5 + 1) / 6)
    assert result["seams"]["elsewhere"] == 1.0 and result["seams"]["borders"] == 3
    assert any(note.startswith("Seam ratio 1.83") for note in result["notes"])
    assert {"seam_ratio", "change"} <= result["conventions"].keys()
    without = reconstruction.evaluate_reconstruction(reconstruct, clips)
    assert "seams" not in without and without["by_frame"]["chunk_starts"] == []


def test_a_clip_in_parts_has_the_figures_of_the_whole():
    a, b = noise((7, 170, 176, 3), seed=1), noise((7, 170, 176, 3), seed=2)
    scores = reconstruction.ClipScores(MeanDifference(), patch=8)
    for part in (slice(0, 1), slice(1, 5), slice(5, 7)):
        scores.add(a[part], b[part])
    whole = reconstruction.compare(a, b, MeanDifference(), patch=8)
    result = scores.result()
    assert result.keys() == whole.keys() and len(whole["change_frames"]) == 6
    for name, value in whole.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-12)


class Set:
    name, convention = "rfvd", "a stand-in"

    def __init__(self):
        self.clips = []

    def add(self, original, reconstruction):
        self.clips.append((original.copy(), reconstruction.copy()))

    def result(self):
        return {"value": float(len(self.clips)), "frames": 3, "notes": ["2 clips are few"]}


def test_a_distance_of_sets_gets_every_clip():
    clips = [("one", noise(seed=1)), ("two", noise(seed=2))]
    distance = Set()
    result = reconstruction.evaluate_reconstruction(lambda x: 255 - x, clips, sets=[distance])
    assert result["sets"] == {"rfvd": {"value": 2.0, "frames": 3}}
    assert "rfvd: 2 clips are few." in result["notes"]
    assert result["conventions"]["rfvd"] == "a stand-in"
    for (_, video), pair in zip(clips, distance.clips):
        np.testing.assert_array_equal(pair, (video, 255 - video))


def test_errors_of_the_means_and_what_is_easily_misread():
    clips = [(str(seed), noise(seed=seed)) for seed in range(4)]
    errors = iter([1, 9, 3, 5])
    flat = reconstruction.evaluate_reconstruction(lambda x: x // 4 + next(errors), clips)
    values = [row["psnr_db"] for row in flat["videos"]]
    assert flat["standard_error"]["psnr_db"] == pytest.approx(np.std(values, ddof=1) / 2)
    assert flat["standard_error"].keys() == flat["mean"].keys()
    notes = " ".join(flat["notes"])
    assert "4 clips: the mean PSNR has a standard error of" in notes and "is blur" in notes
    assert "161 pixels" in flat["not_computed"]["ms_ssim"]
    grain = reconstruction.evaluate_reconstruction(
        lambda x: noise(x.shape, 9), [("one", moving(3))]
    )
    assert grain["standard_error"] == {}
    notes = " ".join(grain["notes"])
    assert "One clip" in notes and "grain or ringing, not detail" in notes
