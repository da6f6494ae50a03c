"""SSIM and MS-SSIM against pytorch-msssim's values and a direct computation."""

import itertools
import pathlib

import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.evaluation.reconstruction import compare
from xgen_jax.evaluation.ssim import MS_LEAST, WEIGHTS, ssim_frame

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "psnr_ssim.npz")


def frames(height, width, seed=0):
    """A smooth random frame and a noisy copy of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / a + y / b) for a, b in ((9, 17), (6, 31), (23, 5))]
    picture = 127 + 100 * np.stack(waves, -1)
    return tuple(
        np.clip(picture + rng.normal(0, level, picture.shape), 0, 255).astype(np.uint8)
        for level in (4, 25)
    )


def test_of_five_scales_it_agrees_with_pytorch_msssim():
    a, b = GOLDENS["ms/a"], GOLDENS["ms/b"]
    one, several = ssim_frame(a[0], b[0])
    np.testing.assert_allclose(one, GOLDENS["ms/ssim"][0], rtol=1e-9)
    # The golden is rounded to float32.
    np.testing.assert_allclose(several, GOLDENS["ms/ms_ssim"][0], rtol=1e-6)
    result = compare(a, b)
    assert (
        (result["ssim"], result["ms_ssim"])
        == (one, several)
        == (
            result["ssim_frames"][0],
            result["ms_ssim_frames"][0],
        )
    )


def direct_ms_ssim(a, b):
    """MS-SSIM by one 11x11 sum for each place, without separable windows or bands."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    total = []
    for channel in range(3):
        x, y = a[..., channel].astype(np.float64), b[..., channel].astype(np.float64)
        product = 1.0
        for scale, weight in enumerate(WEIGHTS):
            views = [np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (x, y)]
            mean_x, mean_y = ((v * window).sum((2, 3)) for v in views)
            off_x, off_y = (v - m[..., None, None] for v, m in zip(views, (mean_x, mean_y)))
            var_x, var_y, cov = (
                (window * p * q).sum((2, 3))
                for p, q in ((off_x, off_x), (off_y, off_y), (off_x, off_y))
            )
            contrast = (2 * cov + (0.03 * 255) ** 2) / (var_x + var_y + (0.03 * 255) ** 2)
            light = (2 * mean_x * mean_y + (0.01 * 255) ** 2) / (
                mean_x**2 + mean_y**2 + (0.01 * 255) ** 2
            )
            last = scale == len(WEIGHTS) - 1
            product *= (contrast * light if last else contrast).mean() ** weight
            x, y = (halved(v) for v in (x, y))
        total.append(product)
    return np.mean(total)


def halved(x):
    if len(x) % 2:
        x = np.concatenate([x, x[-1:]])
    if x.shape[1] % 2:
        x = np.concatenate([x, x[:, -1:]], axis=1)
    parts = [x[i::2, j::2] for i, j in itertools.product((0, 1), repeat=2)]
    return np.mean(parts, axis=0)


@pytest.mark.parametrize("size", [(176, 192), (161, 175)])
def test_it_agrees_with_a_direct_computation_also_of_odd_sides(size):
    a, b = frames(*size)
    np.testing.assert_allclose(ssim_frame(a, b)[1], direct_ms_ssim(a, b), rtol=1e-10)


def test_equal_frames_have_one_and_opposite_ones_do_not_fail():
    a, b = frames(164, 170)
    assert ssim_frame(a, a) == (1.0, 1.0)
    _, several = ssim_frame(a, 255 - a)  # contrasts below 0 have no root
    assert 0 <= several < 0.1
    assert ssim_frame(a, b)[1] > ssim_frame(a, b)[0]  # noise is fine, and gone at coarse scales


def test_small_frames_have_no_more_than_one_scale():
    a, b = frames(MS_LEAST - 1, MS_LEAST)
    assert ssim_frame(a, b)[1] is None
    result = compare(a[None], b[None])
    assert "ms_ssim" not in result and "ms_ssim_frames" not in result
    with pytest.raises(UserError, match="at least 11x11 pixels, its window; these are 10x20"):
        ssim_frame(a[:10, :20], b[:10, :20])
