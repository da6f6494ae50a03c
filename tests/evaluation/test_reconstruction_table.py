"""Clip shapes as they are written, and the table of the paper's figures next to ours."""

import pytest

from xgen_jax.errors import UserError
from xgen_jax.evaluation.reconstruction_table import check_sides, expand_shapes, table


def entry(shape, clips=8, worst=("a cat", "a dog"), **mean):
    mean = {"psnr_db": 30.125, "ssim": 0.9, "mse": 0.004, "sharpness": 0.81, **mean}
    return {"shape": shape, "clips": clips, "mean": mean, "worst": list(worst)}


def test_shapes():
    assert expand_shapes(["9x32x48", " 1X64x64"]) == [(9, 32, 48), (1, 64, 64)]
    paper = [(1, 768, 768), (17, 512, 512), (65, 256, 256)]
    assert expand_shapes(["paper"]) == paper
    assert expand_shapes(["17x512x512", "Paper", "9x32x32"]) == [
        paper[1],
        paper[0],
        paper[2],
        (9, 32, 32),
    ]


@pytest.mark.parametrize(
    "shape", ["32x32", "9x32x32x3", "0x32x32", "9x-2x32", "axbxc", "", "9x3²x32"]
)
def test_what_is_no_shape(shape):
    with pytest.raises(UserError, match="is not a clip shape; give FRAMESxHEIGHTxWIDTH"):
        expand_shapes(["9x32x32", shape])


def test_the_papers_figures_are_next_to_its_shapes():
    entries = [entry("17x512x512", lpips_alex=0.25, blockiness=1.04), entry("9x32x32")]
    lines = table(entries).splitlines()
    assert lines[0] == (
        "| frames x height x width | clips | PSNR, dB | SSIM | MSE | sharpness | blockiness "
        "| LPIPS, AlexNet | paper: PSNR / SSIM / MSE |"
    )
    assert (
        lines[2] == "| 17x512x512 | 8 | 30.12 | 0.9000 | 0.00400 | 0.810 | 1.040 | 0.2500 "
        "| 33.83 / 0.935 / 0.00281 |"
    )
    assert lines[3] == "| 9x32x32 | 8 | 30.12 | 0.9000 | 0.00400 | 0.810 | – | – | – |"
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "2408.12590" in lines[5] and "clips here are others" in lines[5]
    assert "natural at 1" in lines[7]
    assert lines[-2:] == ["- 17x512x512: a cat; a dog", "- 9x32x32: a cat; a dog"]


def test_without_the_papers_shapes_it_is_not_mentioned():
    assert "paper" not in table([entry("9x32x32")])


def test_figures_of_all_clips_together_and_what_is_missing_are_shown():
    moving = {"seam_ratio": 1.31, "border": 1.2, "elsewhere": 0.9, "borders": 7}
    first = entry("9x176x176", ms_ssim=0.97) | {
        "seams": moving,
        "sets": {"rfvd": {"value": 212.04}},
    }
    second = entry("1x32x32") | {
        "seams": {"missing": "no border"},
        "not_computed": {"ms_ssim": "too small"},
        "notes": ["8 clips are few."],
        "worst_clips": [{"clip": 3, "name": "a cat", "psnr_db": 9.876, "file": "1x32x32/003.mp4"}],
    }
    text = table([first, second])
    lines = text.splitlines()
    assert "| SSIM | MS-SSIM | MSE | sharpness | seam ratio | rFVD |" in lines[0]
    assert "| 0.9000 | 0.9700 | 0.00400 | 0.810 | 1.310 | 212.0 |" in lines[2]
    assert "| 0.9000 | – | 0.00400 | 0.810 | – | – |" in lines[3]
    remarks = ["8 clips are few.", "no MS-SSIM: too small.", "no seam ratio: no border."]
    assert [line for line in lines if line.startswith("- 1x32x32: ")] == [
        *(f"- 1x32x32: {remark}" for remark in remarks),
        "- 1x32x32: a cat (9.88 dB, 1x32x32/003.mp4)",
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 10, 32)])
def test_frames_smaller_than_the_window_are_refused(shape):
    with pytest.raises(UserError, match=r"cannot be scored: SSIM's window takes 11x11 pixels"):
        check_sides([(9, 32, 32), shape])
