"""Image files as bytes, made for tests."""

import io
import struct
import zlib

from PIL import Image


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(image, exif=b"", palette=b"", transparency=b"", gamma=None, srgb=b"", cicp=b""):
    """PNG bytes of an array (H, W) or (H, W, 1, 2, 3 or 4) of uint8 or uint16; `palette` makes them
    its indices."""
    colours = [
        (b"gAMA", b"" if gamma is None else struct.pack(">I", round(gamma * 100_000))),
        (b"sRGB", srgb),
        (b"cICP", cicp),
    ]
    image = image if image.ndim == 3 else image[..., None]
    kind = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[image.shape[2]]
    depth = 8 * image.dtype.itemsize
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], depth, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(image.dtype.newbyteorder(">")).tobytes() for row in image)
    about = [(b"eXIf", exif), (b"PLTE", palette), (b"tRNS", transparency)]
    chunks = [(b"IHDR", header), *colours, *about]
    chunks = [(name, data) for name, data in chunks if data] + [(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def jpeg(image, exif=b""):
    """JPEG bytes, nearly without loss."""
    block = b"Exif\0\0" + exif if exif else b""
    return saved(image, "JPEG", exif=block, quality=100, subsampling=0)


def exif(orientation, order="<"):
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x010F, 2, 4, 0x0041), (0x0112, 3, 1, orientation)]
    packed = b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries)
    return head + struct.pack(order + "IH", 8, len(entries)) + packed + struct.pack(order + "I", 0)


def webp(image, exif=b"", lossless=True):
    """WebP bytes of an array (H, W, 3 or 4) of uint8."""
    return saved(image, "WEBP", exif=exif, lossless=lossless, quality=95, exact=True)


def saved(image, kind, mode=None, frames=1, **options):
    """Bytes of an array as Pillow writes them; `frames` more than 1 are an animation."""
    file, picture = io.BytesIO(), Image.fromarray(image)
    if mode is not None:
        picture = picture.convert(mode)
    if frames > 1:
        others = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)] * (frames - 1)
        options |= {"save_all": True, "append_images": others}
    picture.save(file, kind, **options)
    return file.getvalue()


def riff(kind, data):
    return kind + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)
