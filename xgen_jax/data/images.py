"""Image files through Pillow: PNG, JPEG, WebP, AVIF, BMP and TIFF as they are displayed.

The orientation in EXIF is applied, colour profiles and a PNG's gamma are converted to sRGB,
transparency is composited on white, 16 bits become 8, grey and CMYK become RGB. HDR that a PNG or
an AVIF names in its header (cICP, nclx) is refused. The first bytes decide the kind, not the name.
"""

import functools
import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

from xgen_jax.data.color import over_white
from xgen_jax.data.video import MAX_PIXELS, VideoInfo
from xgen_jax.data.video_writer import reason
from xgen_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")
IMAGE_FPS = 120.0  # the frame rate on which Open-Sora 1.1 conditions for images
_MAX_BYTES = 2**28  # of a file
_MAX_HEADER = 2**16  # bytes in which what names the colours begins
_MAX_EXIF = 64  # blocks of a JPEG, which Pillow joins in quadratic time
_ORIENTATION = 0x0112  # EXIF's tag
_HDR = {16, 18}  # PQ and HLG, as ITU-T H.273 numbers the curves
_GAMMA = 1 / 2.2  # of a PNG that says nothing
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for broken files, by kind; none has an error of its own.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, TypeError),
    *(ArithmeticError, MemoryError, struct.error, zlib.error),
)


def read_image(path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file as upright uint8 (H, W, 3) RGB, sRGB.

    Transparency is composited on white, since such images are made for pages. Of a TIFF the first
    page is read.

    Raises:
      UserError: the file is missing, empty, damaged, cut off, of another kind, animated, or above
        `max_pixels` (height x width).
    """
    image, orientation = _opened(path, max_pixels)
    try:
        image.load()
        return _rgb(_turned(image, orientation))
    except _DAMAGE as error:
        raise _damaged(path) from error


def probe_image(path, *, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Read the size of an image: one upright frame at IMAGE_FPS; see `video.probe`.

    Raises:
      UserError: as in `read_image`, except for damage that only decoding finds.
    """
    image, orientation = _opened(path, max_pixels)
    width, height = image.size[::-1] if orientation >= 5 else image.size
    return VideoInfo(width=width, height=height, fps=IMAGE_FPS, frames=1, duration_s=1 / IMAGE_FPS)


def _opened(path, max_pixels: int) -> tuple[Image.Image, int]:
    """(image that is not decoded yet, orientation)."""
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
    kind = _kind(data)
    if kind is None:
        raise UserError(
            f"cannot read {path}: it is not a PNG, JPEG, WebP, AVIF, BMP or TIFF image; convert it "
            "to one"
        )
    if kind == "JPEG" and data.count(b"Exif\0\0") > _MAX_EXIF:
        raise UserError(f"cannot read {path}: it has more than {_MAX_EXIF} EXIF blocks")
    curves = _curves(data, kind)
    if curves and set(curves) <= _HDR:
        raise UserError(
            f"cannot read {path}: its colours are HDR (PQ or HLG), which is read in videos only; "
            "convert it to SDR"
        )
    file = io.BytesIO(data)
    try:
        image = Image.open(file, formats=[kind])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"cannot read {path}: it has more pixels than the limit of {max_pixels}"
        ) from error
    except _DAMAGE as error:
        raise _damaged(path) from error
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"cannot read {path}: {width}x{height} pixels are above the limit of {max_pixels}"
        )
    if not _is_whole(data, kind, file.tell()):
        raise _damaged(path)
    if kind in ("PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False):
        raise UserError(
            f"cannot read {path}: it is an animation; convert it to a video or to a still image"
        )
    if image.mode == "F":
        raise UserError(
            f"cannot read {path}: its pixels are floating-point numbers; convert them to 8 or 16 "
            "bits"
        )
    # Pillow applies a TIFF's own orientation.
    return image, 1 if kind == "TIFF" else _orientation(image, data)


def _damaged(path) -> UserError:
    return UserError(f"cannot read {path}: it is damaged or cut off")


def _kind(data: bytes) -> str | None:
    starts = {
        b"\x89PNG\r\n\x1a\n": "PNG",
        b"\xff\xd8\xff": "JPEG",
        b"BM": "BMP",
        b"II*\0": "TIFF",
        b"MM\0*": "TIFF",
    }
    for start, kind in starts.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and {b"avif", b"avis"} & {data[8:12], data[16:20], data[20:24]}:
        return "AVIF"
    return None


def _curves(data: bytes, kind: str) -> list[int]:
    """List the numbers of the transfer curves that the header of an AVIF or a PNG names; an AVIF
    with a gain map names that of the picture and that of the map."""
    # AVIF: colr, nclx, then primaries and curve of 2 bytes each; PNG: cICP, a byte each.
    mark, place = {"AVIF": (b"colrnclx", 3), "PNG": (b"cICP", 1)}.get(kind, (b"", 0))
    parts = data[:_MAX_HEADER].split(mark)[1:] if mark else []
    return [part[place] for part in parts if len(part) > place]


def _is_whole(data: bytes, kind: str, scan: int) -> bool:
    """Whether the file reaches its end, as far as that shows without decoding; of a JPEG `scan` is
    where its pixels begin, since EXIF may hold a thumbnail, with an end of its own."""
    if kind == "PNG":
        return b"IEND" in data[-64:]
    if kind == "JPEG":
        return b"\xff\xd9" in data[scan:]
    if kind == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if kind == "AVIF":
        at = 0
        while at + 8 <= len(data):
            length = int.from_bytes(data[at : at + 4])
            if length == 1:
                length = int.from_bytes(data[at + 8 : at + 16])
            if length < 8:  # 0: up to the end
                return True
            at += length
        return at <= len(data)
    return True


def _orientation(image: Image.Image, data: bytes) -> int:
    """Read the orientation in EXIF; 1 (upright) if there is no valid one."""
    exif = image.info.get("exif") or (_last_exif(data) if image.format == "PNG" else b"")
    exif = exif.removeprefix(b"Exif\0\0")
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


def _last_exif(png: bytes) -> bytes:
    """EXIF behind the pixels of a PNG, which Pillow finds only when it has decoded them."""
    at = png.rfind(b"eXIf")
    end = at + 4 + int.from_bytes(png[at - 4 : at]) if at > 0 else 0
    found = at > 0 and zlib.crc32(png[at:end]) == int.from_bytes(png[end : end + 4])
    return png[at + 4 : end] if found else b""


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3), sRGB, over white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        codes = np.asarray(image).astype(np.int64)
        grey = np.rint(255 * (np.clip(codes, 0, 65535) / 65535) ** _exponent(image.info))
        grey = grey.astype(np.uint8)
        colour = np.repeat(grey[..., None], 3, -1)
        clear = image.info.get("transparency")
        return over_white(colour, np.where(codes == clear, 0, 255)[..., None].astype(np.uint8))
    if not image.has_transparency_data:
        return np.array(_srgb(image, image.info))
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))[..., None]
    # The palette's or the key colour's transparency is in `alpha` now.
    opaque = image.convert("RGBA").convert("RGB") if image.mode not in ("LA", "La") else image
    return over_white(np.asarray(_srgb(opaque, image.info)), alpha)


def _srgb(image: Image.Image, info) -> Image.Image:
    """Convert any colours to RGB, sRGB."""
    if image.mode in ("LA", "La", "1"):
        image = image.convert("L")
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    if profile := info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _srgb_profile(), outputMode="RGB")
            assert converted is not None  # it is not done in place
            return converted
        except (ImageCms.PyCMSError, OSError):
            # A broken profile, or one of other channels, is ignored, as browsers do.
            return image.convert("RGB")
    image, exponent = image.convert("RGB"), _exponent(info)
    if exponent == 1:
        return image
    return image.point([round(255 * (code / 255) ** exponent) for code in range(256)] * 3)


def _exponent(info) -> float:
    """Return the power that makes the values of a PNG with a gamma of its own sRGB's; else 1."""
    gamma = info.get("gamma", _GAMMA)
    if gamma <= 0 or "srgb" in info or info.get("icc_profile") or abs(gamma / _GAMMA - 1) < 0.02:
        return 1.0
    return _GAMMA / gamma


@functools.cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
