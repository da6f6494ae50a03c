"""Images as displayed: orientation, colours, transparency, depth; refusals say why."""

import struct
import time
import zlib

import numpy as np
import pytest
from image_files import chunk, exif, jpeg, png, riff, saved, webp
from PIL import ImageCms

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


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", sorted(STORE))
def test_orientation_of_other_kinds(kind, orientation, tmp_path):
    stored = np.ascontiguousarray(STORE[orientation](picture()))
    options = {"quality": 100} if kind == "AVIF" else {}
    seen = read(tmp_path, saved(stored, kind, exif=exif(orientation), **options))
    assert seen.shape == (24, 40, 3)
    assert np.abs(seen.astype(int) - picture()).mean() < 2
    info = probe_image(tmp_path / "image")
    assert (info.height, info.width) == (24, 40)


def test_orientation_behind_the_pixels(tmp_path):
    stored = np.ascontiguousarray(STORE[6](picture()))
    data = png(stored)
    data = data[:-12] + chunk(b"eXIf", exif(6)) + data[-12:]
    np.testing.assert_array_equal(read(tmp_path, data), picture())
    assert probe_image(tmp_path / "image").width == 40


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


@pytest.mark.parametrize("gamma", [1.0, 0.6, 0.25])
def test_a_pngs_own_gamma_becomes_that_of_srgb(gamma, tmp_path):
    codes = np.arange(256, dtype=np.uint8)[None]
    # The file's values are light to the power of gamma; a screen's are light to that of 1 / 2.2.
    shown = np.rint(255 * (codes / 255) ** (1 / 2.2 / gamma))[..., None].repeat(3, -1)
    np.testing.assert_array_equal(read(tmp_path, png(codes, gamma=gamma)), shown)
    deep = codes.astype(np.uint16) * 257
    np.testing.assert_array_equal(read(tmp_path, png(deep, gamma=gamma)), shown)
    clear = np.dstack([codes] * 3 + [np.full_like(codes, 255)])
    np.testing.assert_array_equal(read(tmp_path, png(clear, gamma=gamma)), shown)
    # sRGB's own, none, and what is meant by 0: nothing changes.
    plain = codes[..., None].repeat(3, -1)
    for own in ({"gamma": 0.45455}, {"gamma": gamma, "srgb": b"\0"}, {"gamma": 0.0}, {}):
        np.testing.assert_array_equal(read(tmp_path, png(codes, **own)), plain)


@pytest.mark.parametrize("curve", [16, 18])
def test_hdr_is_refused(curve, tmp_path):
    for data in (
        png(picture(), cicp=bytes([9, curve, 0, 1])),
        avif(picture()).replace(b"colrnclx\0\1\0\x0d", b"colrnclx\0\x09\0" + bytes([curve])),
    ):
        with pytest.raises(UserError, match="its colours are HDR .PQ or HLG."):
            read(tmp_path, data)
        with pytest.raises(UserError, match="its colours are HDR"):
            probe_image(tmp_path / "image")
    assert read(tmp_path, png(picture(), cicp=bytes([1, 13, 0, 1]))).shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"GIF89a", "not a PNG, JPEG, WebP, AVIF, BMP or TIFF image"),
        (png(picture())[:-40], "damaged or cut off"),
        (png(picture())[:60] + b"\0\0\0\0" + png(picture())[64:], "damaged or cut off"),
        (jpeg(picture())[:-40], "damaged or cut off"),
        (webp(picture())[:-40], "damaged or cut off"),
        (webp(picture())[:40] + b"\xff" * len(webp(picture())[40:]), "damaged or cut off"),
        (saved(picture(), "WEBP", frames=2), "it is an animation"),
        (saved(picture(), "PNG", frames=2), "it is an animation"),
        (saved(picture(), "AVIF", frames=2), "it is an animation"),
        (saved(picture(), "AVIF")[:-40], "damaged or cut off"),
        (saved(picture(), "BMP")[:-40], "damaged or cut off"),
        (saved(picture(), "TIFF")[:-40], "damaged or cut off"),
        (saved(np.zeros((2, 2), np.float32), "TIFF"), "floating-point numbers"),
        (jpeg(picture())[:200] + b"\xff\xd9", "damaged or cut off"),
        (png(np.zeros((1, 2), np.uint8)).replace(b"IHDR", b"IHDX"), "damaged or cut off"),
    ],
)
def test_what_is_no_image_is_refused(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, data)


def avif(image):
    return saved(image, "AVIF")


@pytest.mark.parametrize("kind", [png, jpeg, webp, avif])
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


def test_other_kinds(tmp_path):
    for kind in ("BMP", "TIFF"):
        np.testing.assert_array_equal(read(tmp_path, saved(picture(), kind)), picture())
        assert probe_image(tmp_path / "image").width == 40
    seen = read(tmp_path, saved(picture(), "AVIF", quality=100))
    assert np.abs(seen.astype(int) - picture()).mean() < 2
    alpha = np.full((24, 40, 1), 128, np.uint8)
    seen = read(tmp_path, saved(np.dstack([picture(), alpha]), "AVIF", quality=100))
    assert np.abs(seen - (picture() / 255 * 128 + 127)).mean() < 3
    deep = picture()[..., 0].astype(np.uint16) * 257
    np.testing.assert_array_equal(
        read(tmp_path, saved(deep, "TIFF")), np.repeat(picture()[..., :1], 3, -1)
    )


def test_cmyk(tmp_path):
    flat = np.broadcast_to(np.uint8([200, 40, 90]), (16, 16, 3))
    for kind in ("JPEG", "TIFF"):
        seen = read(tmp_path, saved(flat, kind, mode="CMYK"))
        assert np.abs(seen.astype(int) - flat).max() <= 3


def matrix_profile(columns, gamma=1.0):
    """An ICC profile: XYZ (D50) of red, green and blue, and a gamma."""

    def fixed(x):
        return struct.pack(">i", round(x * 65536))

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + b"\0" * 78
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0x\0\0\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    tags |= {b"%cXYZ" % name: xyz(column) for name, column in zip(b"rgb", columns, strict=True)}
    tags |= {b"%cTRC" % name: curve for name in b"rgb"}
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table, body = table + name + struct.pack(">II", at + len(body), len(data)), body + data
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + b"".join(map(fixed, (0.9642, 1, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


# sRGB's primaries at D50, and with red and green exchanged.
RED, GREEN, BLUE = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_colour_profiles_become_srgb(kind, tmp_path):
    flat = np.broadcast_to(np.uint8([128, 30, 200]), (16, 16, 3))
    linear = flat[0, 0] / 255  # of a profile whose gamma is 1
    expected = 255 * np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    options = {"quality": 100} if kind != "PNG" and kind != "TIFF" else {}
    profile = matrix_profile((RED, GREEN, BLUE))
    seen = read(tmp_path, saved(flat, kind, icc_profile=profile, **options)).astype(int)
    assert np.abs(seen - expected).max() <= 8
    profile = matrix_profile((GREEN, RED, BLUE))
    seen = read(tmp_path, saved(flat, kind, icc_profile=profile, **options)).astype(int)
    assert np.abs(seen - expected[[1, 0, 2]]).max() <= 8


def test_profiles_of_other_pictures(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    seen = read(tmp_path, saved(picture(), "PNG", icc_profile=srgb)).astype(int)
    assert np.abs(seen - picture()).max() <= 1
    # Broken, or of RGB for grey pixels: as if there were none.
    for data in (
        saved(picture(), "PNG", icc_profile=b"no profile"),
        saved(picture(), "PNG", icc_profile=srgb[:200]),
    ):
        np.testing.assert_array_equal(read(tmp_path, data), picture())
    grey = np.ascontiguousarray(picture()[..., 0])
    seen = read(tmp_path, saved(grey, "PNG", icc_profile=srgb))
    np.testing.assert_array_equal(seen, np.repeat(grey[..., None], 3, -1))
    # Colours are converted, transparency is not.
    flat = np.broadcast_to(np.uint8([128, 128, 128, 128]), (4, 4, 4))
    linear = matrix_profile((RED, GREEN, BLUE))
    seen = read(tmp_path, saved(flat, "PNG", icc_profile=linear)).astype(int)
    assert np.abs(seen - (188 * 128 / 255 + 127)).max() <= 2


def test_much_metadata_takes_no_time(tmp_path):
    comment = b"\xff\xfe" + struct.pack(">H", 4) + b"hi"
    block = b"Exif\0\0" + exif(6)
    app1 = b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block
    begun = time.monotonic()
    data = jpeg(picture())
    assert read(tmp_path, data[:2] + comment * 250_000 + data[2:]).shape == (24, 40, 3)
    with pytest.raises(UserError, match="more than 64 EXIF blocks"):
        read(tmp_path, data[:2] + app1 * 250_000 + data[2:])
    data = png(picture())
    data = data[:33] + chunk(b"tEXt", b"k\0v") * 50_000 + data[33:]
    np.testing.assert_array_equal(read(tmp_path, data), picture())
    data = webp(picture(), exif(1))
    body = data[12:] + riff(b"ABCD", b"x") * 250_000
    data = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    np.testing.assert_array_equal(read(tmp_path, data), picture())
    assert time.monotonic() - begun < 30


def test_what_unpacks_to_too_much_is_refused(tmp_path):
    def claim(height, width):
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")

    with pytest.raises(UserError, match="6000x6000 pixels are above the limit"):
        read(tmp_path, claim(6000, 6000))
    for side in (12_000, 60_000):
        with pytest.raises(UserError, match="more pixels than the limit"):
            read(tmp_path, claim(side, side))
    with pytest.raises(UserError, match="damaged or cut off"):
        read(tmp_path, claim(3000, 3000))
    data = png(picture())
    text = chunk(b"zTXt", b"n\0\0" + zlib.compress(bytes(20 << 20)))
    with pytest.raises(UserError, match="damaged or cut off"):
        read(tmp_path, data[:33] + text + data[33:])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken tags of a TIFF
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF"])
def test_broken_bytes_are_a_user_error_at_most(kind, tmp_path):
    data, rng = saved(picture(), kind), np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 6):
            broken[at] = rng.integers(256)
        try:
            image = read(tmp_path, bytes(broken))
            ended += image.dtype == np.uint8 and image.ndim == 3
        except UserError as error:
            ended += "cannot read" in str(error)
    assert ended == 60
