"""Image files as bytes, made for tests."""

import struct
import zlib

import av
import numpy as np


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(image, exif=b"", palette=b"", transparency=b""):
    """PNG bytes of an array (H, W) or (H, W, 1, 2, 3 or 4) of uint8 or uint16; `palette` makes them
    its indices."""
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
    codec.width, codec.height, codec.pix_fmt, codec.time_base = (
        image.shape[1],
        image.shape[0],
        "yuvj444p",
        1,
    )
    codec.options = {"qmin": "1", "qmax": "1"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
        format="yuvj444p"
    )
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    block = b"Exif\0\0" + exif
    return (
        data[:2]
        + (b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block if exif else b"")
        + data[2:]
    )


def exif(orientation, order="<"):
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010F, 2, 4, 0x0041), (0x0112, 3, 1, orientation)]
    packed = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return head + struct.pack(order + "IH", 8, len(entries)) + packed + struct.pack(order + "I", 0)


def webp(image, exif=b"", lossless=True, animated=False):
    """WebP bytes of an array (H, W, 3 or 4) of uint8."""
    transparent = image.shape[2] == 4
    codec = av.CodecContext.create("libwebp", "w")
    codec.width, codec.height, codec.time_base = image.shape[1], image.shape[0], 1
    codec.pix_fmt = "bgra" if lossless else "yuv420p"
    codec.options = {"lossless": str(int(lossless)), "quality": "95"}
    frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(image), format="rgba" if transparent else "rgb24"
    )
    frame = frame.reformat(format=codec.pix_fmt)
    data = b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
    if not exif and not animated:
        return data
    # The extended form: a header with flags and the canvas, then the image, then EXIF.
    flags = 0x08 * bool(exif) | 0x10 * transparent | 0x02 * animated
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in (image.shape[1], image.shape[0]))
    start = 30 if data[12:16] == b"VP8X" else 12
    body = (
        b"WEBP"
        + riff(b"VP8X", bytes([flags, 0, 0, 0]) + canvas)
        + data[start:]
        + riff(b"EXIF", exif)
    )
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def riff(kind, data):
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
