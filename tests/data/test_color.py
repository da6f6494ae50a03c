"""Colours of decoded frames: matrix and range of the tags, HDR as SDR, transparency on white."""

from fractions import Fraction

import av
import numpy as np
import pytest

from xgen_jax.data.color import (
    PEAK,
    WHITE,
    RGBConverter,
    light_to_pq,
    over_white,
    pq_to_light,
    scaling_flags,
)
from xgen_jax.data.video import read_video

BT601, BT709, BT2020, UNTAGGED = 5, 1, 9, 2
PQ, HLG, P3 = 16, 18, 12
LUMA = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 200]]) / 255


def yuv_frame(rgb_N3, matrix, full=False, height=16, deep=True):
    """A frame of stripes, as BT.601, 709 and 2020 define Y'CbCr of R'G'B'; untagged."""
    red, blue = LUMA[matrix]
    luma = rgb_N3 @ [red, 1 - red - blue, blue]
    chroma = [(rgb_N3[:, 2] - luma) / (2 - 2 * blue), (rgb_N3[:, 0] - luma) / (2 - 2 * red)]
    top = 1023 if deep else 255
    unit = (top + 1) / 256
    if full:
        values = [luma * top, *((top + 1) / 2 + top * c for c in chroma)]
    else:
        values = [unit * (16 + 219 * luma), *(unit * (128 + 224 * c) for c in chroma)]
    width = 16 * len(rgb_N3)
    frame = av.VideoFrame(width, height, "yuv444p10le" if deep else "yuv444p")
    for plane, value in zip(frame.planes, values, strict=True):
        codes = np.rint(value).astype("<u2" if deep else "u1").repeat(16)
        rows = np.zeros((height, plane.line_size // codes.itemsize), codes.dtype)
        rows[:, :width] = codes
        plane.update(rows.tobytes())
    return frame


def stripes(frame, height=None, width=None):
    """The colours of the stripes after conversion."""
    image = RGBConverter(height or frame.height, width or frame.width)(frame)
    step = image.shape[1] * 16 // frame.width
    return image[image.shape[0] // 2, step // 2 :: step].astype(int)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("matrix", [BT601, BT709, BT2020])
@pytest.mark.parametrize("full", [False, True])
def test_matrix_and_range_are_those_of_the_tags(matrix, full, deep):
    frame = yuv_frame(COLOURS, matrix, full, deep=deep)
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    assert np.abs(stripes(frame) - COLOURS * 255).max() <= 2


@pytest.mark.parametrize("height, matrix", [(480, BT601), (720, BT709), (1280, BT709)])
def test_hd_without_a_tag_is_bt709(height, matrix):
    colours = np.tile(COLOURS, (10, 1))
    frame = yuv_frame(colours, matrix, height=height, deep=False)
    frame.colorspace = UNTAGGED
    assert np.abs(stripes(frame) - colours * 255).max() <= 2
    assert np.abs(stripes(frame, height // 2, 320) - colours * 255).max() <= 2


def test_wide_matrix_without_a_tag_follows_the_primaries():
    frame = yuv_frame(np.full((1, 3), 0.5), BT2020)
    frame.colorspace, frame.color_primaries = UNTAGGED, BT2020
    assert np.abs(stripes(frame) - 127.5).max() <= 1


def hlg(scene):
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.asarray(scene)
    return np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    )


def hdr(rgb_N3, curve, primaries=BT2020):
    frame = yuv_frame(rgb_N3, BT2020)
    frame.colorspace, frame.color_range = BT2020, 1
    frame.color_trc, frame.color_primaries = curve, primaries
    return stripes(frame)


def test_pq_is_tone_mapped():
    nits = np.array([0, 1, 26, 92, 203, 400, 700, PEAK, 4000])
    grey = hdr(light_to_pq(nits)[:, None].repeat(3, 1), PQ)
    assert np.abs(grey - grey[:, :1]).max() <= 2  # grey stays grey
    shown = grey.mean(1)
    assert (np.diff(shown[:-2]) > 2).all()  # highlights differ, up to the peak
    # Below the knee light is kept: 26 of 203 cd/m^2 is 18% grey's neighbour at gamma 2.4.
    np.testing.assert_allclose(shown[:4], 255 * (nits[:4] / WHITE) ** (1 / 2.4), atol=2)
    assert 215 < shown[4] < 240  # diffuse white leaves room for highlights
    assert shown[-2] >= 253 and shown[-1] == 255


def test_hlg_is_tone_mapped():
    red = hlg(np.array([0.6274, 0.0691, 0.0164]) * 0.265)  # BT.709's red, as BT.2020
    white, red, black = hdr(np.stack([np.full(3, 0.75), red, np.zeros(3)]), HLG)
    assert white.min() > 215 and np.ptp(white) <= 2  # 203 cd/m^2 on a display of 1000
    assert red[0] > 205 and max(red[1:]) < 20
    assert black.max() == 0


def test_hue_is_kept_in_highlights():
    light = np.array([[800.0, 400.0, 200.0]])
    frame = yuv_frame(light_to_pq(light), BT2020)
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, PQ, BT709
    linear = (stripes(frame)[0] / 255) ** 2.4
    np.testing.assert_allclose(linear / linear[0], [1, 0.5, 0.25], atol=0.02)


def test_wide_primaries_become_bt709():
    """P3's and BT.2020's coordinates of a colour inside BT.709."""
    linear = np.array([0.5, 0.2, 0.1])
    from_p3 = np.array([[0.8225, 0.1774, 0], [0.0332, 0.9669, 0], [0.0171, 0.0724, 0.9108]])
    from_2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    for primaries, matrix in ((P3, from_p3), (BT2020, np.array(from_2020))):
        shown = hdr((matrix @ linear)[None] ** (1 / 2.4), BT709, primaries)
        assert np.abs(shown[0] - 255 * linear ** (1 / 2.4)).max() <= 2


def test_pq_inverts():
    nits = np.geomspace(1e-3, 10000, 50)
    np.testing.assert_allclose(pq_to_light(light_to_pq(nits)), nits, rtol=1e-6)


def rgba_video(path, rgba, codec, pixels, options):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=8, options=options)
        stream.height, stream.width = rgba.shape[:2]
        stream.pix_fmt = pixels
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pixels)
            frame.pts, frame.time_base = i, Fraction(1, 8)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    "suffix, codec, pixels, options",
    [
        (".mov", "prores_ks", "yuva444p10le", {}),
        (".mov", "png", "rgba", {}),
        (".mov", "qtrle", "argb", {}),
        (".webm", "libvpx-vp9", "yuva420p", {"b": "0", "crf": "4", "auto-alt-ref": "0"}),
        (".webm", "libvpx", "yuva420p", {"b": "4M", "crf": "4", "auto-alt-ref": "0"}),
    ],
)
def test_transparency_lies_on_white(tmp_path, suffix, codec, pixels, options):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:32] = [40, 60, 220, 255]
    rgba[16:48, 32:48] = [40, 60, 220, 128]
    path = tmp_path / f"a{suffix}"
    rgba_video(path, rgba, codec, pixels, options)
    video, _ = read_video(path)
    assert video.shape == (4, 64, 64, 3)
    assert np.abs(video[:, 5, 5].astype(int) - 255).max() <= 2
    assert np.abs(video[:, 32, 24] - np.array([40, 60, 220])).max() <= 8
    assert np.abs(video[:, 32, 40] - np.array([147, 157, 237])).max() <= 8
    # Resized: the black under alpha 0 shows nowhere, but for what 4:2:0 has mixed into the chroma.
    assert read_video(path, cover=(20, 20))[0][..., 2].min() > 190
    # From the middle of the file, too.
    assert len(read_video(path, start_s=0.25, frames=2)[0]) == 2


def test_over_white():
    colour = np.array([[[10, 20, 30]] * 3], np.uint8)
    alpha = np.array([[[0], [51], [255]]], np.uint8)
    assert over_white(colour, alpha).tolist() == [[[255] * 3, [206, 208, 210], [10, 20, 30]]]


def test_smaller_is_averaged():
    assert scaling_flags(64, 64, 32, 32) != scaling_flags(32, 32, 64, 64)
    assert scaling_flags(32, 32, 32, 32) == scaling_flags(32, 32, 64, 64)
