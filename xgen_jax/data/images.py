"""Image files through PyAV: PNG, JPEG and WebP as they are displayed.

The orientation in EXIF is applied, transparency is composited on white, 16 bits become 8, grey
becomes RGB. The first bytes decide the kind, not the name.
"""

import pathlib
import struct

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from xgen_jax.data.video import MAX_PIXELS, VideoInfo
from xgen_jax.data.video_writer import EXACT, reason
from xgen_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
IMAGE_FPS = 120.0  # the frame rate on which Open-Sora 1.1 conditions for images
_MAX_BYTES = 2**28  # of a file
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_ORIENTATION = 0x0112  # EXIF's tag
_ANIMATED = 0x02  # a bit of WebP's VP8X chunk


def read_image(path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a PNG, JPEG or WebP file as upright uint8 (H, W, 3) RGB.

    Transparency is composited on white, since such images are made for pages. Colour profiles are
    ignored.

    Raises:
      UserError: the file is missing, empty, damaged, cut off, of another kind, animated, or above
        `max_pixels` (height x width).
    """
    kind, orientation, _, rest = _opened(path, max_pixels)
    frame = _decode(path, rest, kind, max_pixels)
    if frame is None:
        raise UserError(f"cannot read {path}: it is damaged or cut off")
    return np.ascontiguousarray(_upright(_rgb(frame), orientation))


def probe_image(path, *, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Read the size of an image: one upright frame at IMAGE_FPS; see `video.probe`.

    Raises:
      UserError: as in `read_image`, except for damage that only decoding finds.
    """
    _, orientation, (height, width), _ = _opened(path, max_pixels)
    if orientation >= 5:
        height, width = width, height
    return VideoInfo(width=width, height=height, fps=IMAGE_FPS, frames=1, duration_s=1 / IMAGE_FPS)


def _opened(path, max_pixels: int) -> tuple[str, int, tuple[int, int], bytes]:
    """(decoder, orientation, stored (height, width), the file without EXIF)."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f"cannot read {path}: " + ("it is a folder" if path.is_dir() else "no such file")
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"cannot read {path}: it is above the limit of {_MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if not data:
        raise UserError(f"cannot read {path}: the file is empty (zero bytes)")
    if data.startswith(_PNG):
        kind, whole, parts = "png", b"IEND" in data[-64:], _parts_of_png(data)
    elif data.startswith(_JPEG):
        kind, parts = "mjpeg", _parts_of_jpeg(data)
        whole = b"\xff\xd9" in parts[2]  # EXIF may hold a thumbnail, with an end of its own
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if data[12:16] == b"VP8X" and data[20:21] and data[20] & _ANIMATED:
            raise UserError(
                f"cannot read {path}: it is an animation; convert it to a video or to a still image"
            )
        kind, whole, parts = (
            "webp",
            len(data) >= 8 + int.from_bytes(data[4:8], "little"),
            _parts_of_webp(data),
        )
    else:
        raise UserError(
            f"cannot read {path}: it is not a PNG, JPEG or WebP image; convert it to one"
        )
    exif, size, rest = parts
    if size and size[0] * size[1] > max_pixels:
        raise UserError(
            f"cannot read {path}: {size[1]}x{size[0]} pixels are above the limit of {max_pixels}"
        )
    if not size or not all(size) or not whole:
        raise UserError(f"cannot read {path}: it is damaged or cut off")
    return kind, _orientation(exif), size, rest


def _decode(path, data: bytes, kind: str, max_pixels: int) -> av.VideoFrame | None:
    codec = av.CodecContext.create(kind, "r")
    assert isinstance(codec, av.VideoCodecContext)
    codec.thread_type, codec.thread_count = "NONE", 1
    codec.options = {
        "max_pixels": str(max_pixels),
        "err_detect": "crccheck+bitstream+buffer+explode",
    }
    try:
        frames = [*codec.decode(av.Packet(data)), *codec.decode(None)]
    except (av.error.InvalidDataError, av.error.ArgumentError, av.error.EOFError):
        return None
    except av.FFmpegError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    return frames[0] if frames else None


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3), over white."""
    transparent = frame.format.has_palette or any(
        component.is_alpha for component in frame.format.components
    )
    target, flags = "rgba" if transparent else "rgb24", Interpolation.BICUBIC | EXACT
    image = (
        VideoReformatter()
        .reformat(frame, format=target, interpolation=flags, threads=1)
        .to_ndarray()
    )
    if not transparent:
        return image
    cover = image[..., 3:].astype(np.float32) / 255.0
    return np.rint(image[..., :3] * cover + 255.0 * (1.0 - cover)).astype(np.uint8)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):  # row 0 of the stored image is a side of the scene
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


# EXIF, (height, width) of the header, and the file without EXIF: the decoder would refuse an EXIF
# block that makes no sense.
Parts = tuple[bytes, tuple[int, int] | None, bytes]


def _parts_of_jpeg(data: bytes) -> Parts:
    exif, size, at = b"", None, 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # until the scan
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            exif, data = exif or data[at + 10 : end], data[:at] + data[end:]
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(data) >= at + 9:
            size = struct.unpack_from(">HH", data, at + 5)
        at = end
    return exif, size, data


def _parts_of_png(data: bytes) -> Parts:
    exif, size, at = b"", None, len(_PNG)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        if kind == b"eXIf":
            exif, data = exif or data[at + 8 : end - 4], data[:at] + data[end:]
            continue
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data, at + 8)[::-1]
        at = end
    return exif, size, data


def _parts_of_webp(data: bytes) -> Parts:
    exif, size, at = b"", None, 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body, end = data[at + 8 : at + 8 + length], at + 8 + length + length % 2
        if kind == b"EXIF":
            exif, data = exif or body.removeprefix(b"Exif\0\0"), data[:at] + data[end:]
            continue
        if kind == b"VP8 " and len(body) >= 10:
            width, height = struct.unpack_from("<HH", body, 6)
            size = height & 0x3FFF, width & 0x3FFF
        elif kind == b"VP8L" and len(body) >= 5:
            packed = int.from_bytes(body[1:5], "little")
            size = 1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF)
        at = end
    data = data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    return exif, size, data


def _orientation(exif: bytes) -> int:
    """Read the orientation in an EXIF block; 1 (upright) if there is no valid one."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, first + 2 + 12 * entry)
            if tag == _ORIENTATION and kind == 3 and 1 <= value <= 8:
                return value
    except struct.error:  # the block is cut off
        return 1
    return 1
