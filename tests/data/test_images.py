"""Images as displayed: orientation, transparency, depth; refusals name the file and the reason."""

import numpy as np
import pytest
from image_files import exif, jpeg, png, webp

from xgen_jax.data.images import IMAGE_FPS, probe_image, read_image
from xgen_jax.errors import UserError

# Source of a stored pixel (row, column) of an upright (H, W) image under each EXIF orientation.
STORE = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def picture(height=24, width=40):
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [rows * 255 // height, columns * 255 // width, (rows + columns) * 3], -1
    ).astype(np.uint8)


def read(tmp_path, data):
    (tmp_path / "image").write_bytes(data)  # the name says nothing
    return read_image(tmp_path / "image")


@pytest.mark.parametrize("orientation", sorted(STORE))
def test_orientation_is_applied(orientation, tmp_path):
    upright = picture()
    stored = np.ascontiguousarray(STORE[orientation](upright))
    for order in "<>":
        np.testing.assert_array_equal(
            read(tmp_path, png(stored, exif(orientation, order))), upright
        )
        np.testing.assert_array_equal(
            read(tmp_path, webp(stored, exif(orientation, order))), upright
        )
        info = probe_image(tmp_path / "image")
        assert (info.height, info.width, info.frames, info.fps) == (
            *upright.shape[:2],
            1,
            IMAGE_FPS,
        )
    seen = read(tmp_path, jpeg(stored, exif(orientation))).astype(int)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright).mean() < 1.5


def test_exif_that_makes_no_sense_says_nothing(tmp_path):
    for block in (exif(9), exif(6)[:12], b"II*\0\xff\xff\xff\xff", b"not EXIF at all"):
        np.testing.assert_array_equal(read(tmp_path, png(picture(), block)), picture())
        np.testing.assert_array_equal(read(tmp_path, webp(picture(), block)), picture())


def test_transparency_lies_on_white(tmp_path):
    alpha = np.broadcast_to(np.linspace(0, 255, 40).astype(np.uint8)[None], (24, 40))
    expected = np.rint(
        picture() * (alpha / 255.0)[..., None] + 255 - alpha[..., None].astype(float)
    )
    composited = read(tmp_path, png(np.dstack([picture(), alpha]))).astype(int)
    assert np.abs(composited - expected).max() <= 1
    composited = read(tmp_path, webp(np.dstack([picture(), alpha]))).astype(int)
    assert np.abs(composited - expected).max() <= 1
    grey = np.dstack([picture()[..., 0], alpha])
    expected = np.rint(grey[..., 0] * (alpha / 255.0) + 255 - alpha.astype(float))
    assert np.abs(read(tmp_path, png(grey)) - expected[..., None]).max() <= 1
    indices, colours = np.array([[0, 1], [1, 0]], np.uint8), bytes([10, 20, 30, 200, 100, 50])
    composited = read(tmp_path, png(indices, palette=colours, transparency=b"\xff\x00"))
    assert composited.tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]


def test_deep_and_grey_images(tmp_path):
    deep = picture().astype(np.uint16) * 257
    assert np.abs(read(tmp_path, png(deep)).astype(int) - picture()).max() <= 1
    grey = picture()[..., 0]
    np.testing.assert_array_equal(read(tmp_path, png(grey)), np.repeat(grey[..., None], 3, -1))
    assert (
        np.abs(
            read(tmp_path, png(grey.astype(np.uint16) * 257)).astype(int) - grey[..., None]
        ).max()
        <= 1
    )
    half = np.dstack([deep, np.full(deep.shape[:2], 32768, np.uint16)])
    assert np.abs(read(tmp_path, png(half)) - (picture() / 2 + 127.5)).max() <= 1.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"GIF89a", "not a PNG, JPEG or WebP image"),
        (png(picture())[:-40], "damaged or cut off"),
        (png(picture())[:60] + b"\0\0\0\0" + png(picture())[64:], "damaged or cut off"),
        (jpeg(picture())[:-40], "damaged or cut off"),
        (webp(picture())[:-40], "damaged or cut off"),
        (webp(picture())[:40] + b"\xff" * len(webp(picture())[40:]), "damaged or cut off"),
        (webp(picture(), exif(1), animated=True), "it is an animation"),
        (jpeg(picture())[:200] + b"\xff\xd9", "damaged or cut off"),
        (png(np.zeros((1, 2), np.uint8)).replace(b"IHDR", b"IHDX"), "damaged or cut off"),
    ],
)
def test_what_is_no_image_is_refused(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, data)


@pytest.mark.parametrize("kind", [png, jpeg, webp])
def test_a_file_that_is_cut_off_is_found_without_decoding(kind, tmp_path):
    (tmp_path / "image").write_bytes(kind(picture()))
    info = probe_image(tmp_path / "image")
    assert (info.height, info.width, info.frames, info.duration_s) == (24, 40, 1, 1 / IMAGE_FPS)
    (tmp_path / "image").write_bytes(kind(picture())[:-20])
    with pytest.raises(UserError, match="damaged or cut off"):
        probe_image(tmp_path / "image")


def test_lossy_webp(tmp_path):
    smooth = np.broadcast_to(np.linspace(40, 200, 40).astype(np.uint8)[None, :, None], (24, 40, 3))
    for block in (b"", exif(1)):
        seen = read(tmp_path, webp(np.ascontiguousarray(smooth), block, lossless=False)).astype(int)
        assert seen.shape == smooth.shape and np.abs(seen - smooth).mean() < 2


def test_missing_and_too_large(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="it is a folder"):
        read_image(tmp_path)
    (tmp_path / "image.png").write_bytes(png(picture()))
    with pytest.raises(UserError, match="40x24 pixels are above the limit of 900"):
        read_image(tmp_path / "image.png", max_pixels=900)
