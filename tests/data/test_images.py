"""Images as people see them: orientation, transparency, depth; refusals that name the file and the reason."""

import struct
import zlib

import av
import numpy as np
import pytest

from xgen_jax.data.images import read_image
from xgen_jax.errors import UserError

# What a stored pixel (row, column) of an upright (H, W) image would be under each EXIF orientation.
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
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 3], -1).astype(np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(image, exif=b"", palette=b"", transparency=b""):
    """PNG bytes of an array (H, W) or (H, W, 1, 2, 3 or 4) of uint8 or uint16; `palette` makes them its indices."""
    image = image if image.ndim == 3 else image[..., None]
    kind = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[image.shape[2]]
    depth = 8 * image.dtype.itemsize
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(image.dtype.newbyteorder(">")).tobytes() for row in image)
    chunks = [(b"IHDR", header), (b"eXIf", exif), (b"PLTE", palette), (b"tRNS", transparency)]
    chunks = [(name, data) for name, data in chunks if data] + [(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def jpeg(image, exif=b""):
    """JPEG bytes, nearly without loss."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = image.shape[1], image.shape[0], "yuvj444p", 1
    codec.options = {"qmin": "1", "qmax": "1"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuvj444p")
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    block = b"Exif\0\0" + exif
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block if exif else b"") + data[2:]


def exif(orientation, order="<"):
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010F, 2, 4, 0x0041), (0x0112, 3, 1, orientation)]
    packed = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return head + struct.pack(order + "IH", 8, len(entries)) + packed + struct.pack(order + "I", 0)


def read(tmp_path, data):
    (tmp_path / "image").write_bytes(data)  # the name says nothing
    return read_image(tmp_path / "image")


@pytest.mark.parametrize("orientation", sorted(STORE))
def test_orientation_is_applied(orientation, tmp_path):
    upright = picture()
    stored = np.ascontiguousarray(STORE[orientation](upright))
    for order in "<>":
        np.testing.assert_array_equal(read(tmp_path, png(stored, exif(orientation, order))), upright)
    seen = read(tmp_path, jpeg(stored, exif(orientation))).astype(int)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright).mean() < 1.5


def test_exif_that_makes_no_sense_says_nothing(tmp_path):
    for block in (exif(9), exif(6)[:12], b"II*\0\xff\xff\xff\xff", b"not EXIF at all"):
        np.testing.assert_array_equal(read(tmp_path, png(picture(), block)), picture())


def test_transparency_lies_on_white(tmp_path):
    alpha = np.broadcast_to(np.linspace(0, 255, 40).astype(np.uint8)[None], (24, 40))
    expected = np.rint(picture() * (alpha / 255.0)[..., None] + 255 - alpha[..., None].astype(float))
    drawn = read(tmp_path, png(np.dstack([picture(), alpha]))).astype(int)
    assert np.abs(drawn - expected).max() <= 1
    grey = np.dstack([picture()[..., 0], alpha])
    expected = np.rint(grey[..., 0] * (alpha / 255.0) + 255 - alpha.astype(float))
    assert np.abs(read(tmp_path, png(grey)) - expected[..., None]).max() <= 1
    indices, colours = np.array([[0, 1], [1, 0]], np.uint8), bytes([10, 20, 30, 200, 100, 50])
    drawn = read(tmp_path, png(indices, palette=colours, transparency=b"\xff\x00"))
    assert drawn.tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [10, 20, 30]]]


def test_deep_and_grey_images(tmp_path):
    deep = picture().astype(np.uint16) * 257
    assert np.abs(read(tmp_path, png(deep)).astype(int) - picture()).max() <= 1
    grey = picture()[..., 0]
    np.testing.assert_array_equal(read(tmp_path, png(grey)), np.repeat(grey[..., None], 3, -1))
    assert np.abs(read(tmp_path, png(grey.astype(np.uint16) * 257)).astype(int) - grey[..., None]).max() <= 1
    half = np.dstack([deep, np.full(deep.shape[:2], 32768, np.uint16)])
    assert np.abs(read(tmp_path, png(half)) - (picture() / 2 + 127.5)).max() <= 1.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"GIF89a", "neither a PNG nor a JPEG"),
        (png(picture())[:-40], "damaged or cut off"),
        (png(picture())[:60] + b"\0\0\0\0" + png(picture())[64:], "damaged or cut off"),
        (jpeg(picture())[:-40], "damaged or cut off"),
        (jpeg(picture())[:200] + b"\xff\xd9", "damaged or cut off"),
        (png(np.zeros((1, 2), np.uint8)).replace(b"IHDR", b"IHDX"), "damaged or cut off"),
    ],
)
def test_what_is_no_image_is_refused(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, data)


def test_missing_and_too_large(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="it is a folder"):
        read_image(tmp_path)
    (tmp_path / "image.png").write_bytes(png(picture()))
    with pytest.raises(UserError, match="40x24 pixels are above the limit of 900"):
        read_image(tmp_path / "image.png", max_pixels=900)
