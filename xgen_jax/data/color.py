"""Colours of decoded frames: RGB of BT.709 with 8 bits, opaque, as a player shows a video.

- Matrix and range are those of the tags. Without a tag the matrix is BT.709 for HD and BT.601 for
  smaller frames, as in mpv and VLC.
- Transparency is composited on white, as that of images is, before anything is resized: colours
  under alpha 0 never show.
- PQ and HLG (ITU-R BT.2100) are tone-mapped to SDR: to absolute light, through the curve of ITU-R
  BT.2390-10 section 5.4.1 on the largest of R, G and B, which keeps the hue, from a peak of 1000
  to 203 cd/m^2, the reference white of ITU-R BT.2408.
- Primaries of BT.2020 (ITU-R BT.2087) and Display P3 become those of BT.709; what lies outside is
  clipped. SDR is decoded and encoded with the gamma of ITU-R BT.1886.
"""

import functools

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

from xgen_jax.data.video_writer import EXACT

WHITE = 203.0  # cd/m^2 of SDR white
PEAK = 1000.0  # cd/m^2, for which most HDR is mastered; brighter is clipped
_GAMMA = 2.4  # of SDR
# Constants of PQ.
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020
_BT2020 = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
_DISPLAY_P3 = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]
_TO_BT709 = {
    int(ColorPrimaries.BT2020): np.array(_BT2020, np.float32),
    int(ColorPrimaries.SMPTE432): np.array(_DISPLAY_P3, np.float32),
}
_PQ, _HLG = int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
_MATRICES = {1, 4, 5, 6, 7, 9}  # tags that swscale knows
_UNTAGGED, _BT2020_CONSTANT = 2, 10
_SMPTE170M = 6  # by another name than ITU601, which is 5
_BT601 = {int(Colorspace.ITU601), _SMPTE170M}


def scaling_flags(height: int, width: int, target_height: int, target_width: int) -> int:
    """Return swscale's flags: an area average does not alias, bicubic does not show blocks."""
    smaller = target_height * target_width < height * width
    return (Interpolation.AREA if smaller else Interpolation.BICUBIC) | EXACT


class RGBConverter:
    """Converts the frames of a video to uint8 (height, width, 3) RGB, as the module says."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        # One scaler a purpose: to set one up costs as much as to use it.
        self._scale, self._opaque, self._alpha = (VideoReformatter() for _ in range(3))

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame of any size."""
        if _is_transparent(frame):
            colour = _convert(self._opaque, frame, frame.height, frame.width)
            alpha = _reformat(self._alpha, frame, frame.height, frame.width, "rgba")[..., 3:]
            image = over_white(colour, alpha)
            if image.shape[:2] == (self.height, self.width):
                return image
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        return _convert(self._scale, frame, self.height, self.width)


class FastConverter:
    """Converts frames to about what `RGBConverter` gives, at a fraction of its cost: no tone
    mapping, no transparency, and swscale's default shortcuts."""

    def __init__(self, height: int, width: int):
        self._size, self._scale = (width, height), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame of any size."""
        return self._scale.reformat(
            frame, *self._size, "rgb24", interpolation=Interpolation.FAST_BILINEAR, threads=1
        ).to_ndarray()


class YUVConverter:
    """Converts the frames of a video to yuv420p in limited range, for an encoder.

    SDR keeps the matrix of its first frame, BT.601 or BT.709: another would cost more than to
    encode the frame. All else, and what is turned, goes through RGB to BT.709.

    Args:
      height, width: of the result, even.
      first: the first frame.
      turns: quarters by which a frame is turned counter-clockwise.

    Attributes:
      matrix: of the result, the value for the tag of a file.
    """

    def __init__(self, height: int, width: int, first: av.VideoFrame, turns: int = 0):
        self._height, self._width, self._turns = height, width, turns
        self._rgb = RGBConverter(*((width, height) if turns % 2 else (height, width)))
        self._scale = VideoReformatter()
        old = self._is_direct(first) and _yuv_matrix(first) in _BT601
        self.matrix = _SMPTE170M if old else int(Colorspace.ITU709)

    def _is_direct(self, frame: av.VideoFrame) -> bool:
        return not self._turns and _is_plain(frame) and not _is_transparent(frame)

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Convert a frame of any size."""
        matrix, wanted = None, self.matrix
        if self._is_direct(frame):
            matrix = _yuv_matrix(frame)
            # Two names of one matrix must not cost a conversion.
            wanted = matrix if {matrix, wanted} <= _BT601 else wanted
        else:
            image = np.ascontiguousarray(np.rot90(self._rgb(frame), self._turns))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        return self._scale.reformat(
            frame,
            self._width,
            self._height,
            "yuv420p",
            src_colorspace=matrix,
            dst_colorspace=wanted,
            dst_color_range=ColorRange.MPEG,
            interpolation=scaling_flags(frame.height, frame.width, self._height, self._width),
            threads=1,
        )


def _yuv_matrix(frame: av.VideoFrame) -> int | None:
    """The matrix of a frame, by its tag or size; None for RGB."""
    if frame.format.is_rgb:
        return None
    return int(_matrix(frame) or frame.colorspace)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite uint8 (H, W, 3) with uint8 (H, W, 1) opacity on white."""
    cover = alpha.astype(np.float32) / 255.0
    return np.rint(colour * cover + 255.0 * (1.0 - cover)).astype(np.uint8)


def _is_transparent(frame: av.VideoFrame) -> bool:
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def _is_plain(frame: av.VideoFrame) -> bool:
    """Return whether a frame has the curve and primaries of SDR."""
    return frame.color_trc not in (_PQ, _HLG) and frame.color_primaries not in _TO_BT709


def _convert(scaler: VideoReformatter, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    curve, primaries = frame.color_trc, frame.color_primaries
    if _is_plain(frame):
        return _reformat(scaler, frame, height, width, "rgb24")
    hdr = curve in (_PQ, _HLG)
    if hdr and primaries == ColorPrimaries.UNSPECIFIED:
        primaries = int(ColorPrimaries.BT2020)
    return _to_sdr(_reformat(scaler, frame, height, width, "rgb48le"), curve, primaries)


def _reformat(scaler, frame: av.VideoFrame, height: int, width: int, pixels: str) -> np.ndarray:
    return scaler.reformat(
        frame,
        width,
        height,
        pixels,
        src_colorspace=_matrix(frame),
        interpolation=scaling_flags(frame.height, frame.width, height, width),
        threads=1,
    ).to_ndarray()


def _matrix(frame: av.VideoFrame) -> Colorspace | None:
    """The matrix of a frame whose tag swscale would not take; None where it does."""
    tag = frame.colorspace
    if frame.format.is_rgb or frame.format.has_palette or tag in _MATRICES:
        return None
    if tag == _BT2020_CONSTANT or frame.color_primaries == ColorPrimaries.BT2020:
        return Colorspace.BT2020
    sides = sorted((frame.height, frame.width))
    return Colorspace.ITU709 if sides[0] > 576 or sides[1] >= 1280 else Colorspace.ITU601


def _to_sdr(codes: np.ndarray, curve: int, primaries: int) -> np.ndarray:
    """Convert uint16 (H, W, 3) RGB with any curve and primaries to uint8 BT.709."""
    light = _light(curve)[codes]  # cd/m^2; of HLG scene light, 0..1
    if curve == _HLG:  # the display's part of the curve, for a peak of 1000 cd/m^2
        light *= PEAK * np.maximum(light @ _LUMINANCE, 1e-9)[..., None] ** np.float32(0.2)
    if curve in (_PQ, _HLG):
        brightest = light.max(-1, keepdims=True)
        before, after = _tone_curve()
        light *= np.interp(brightest, before, after).astype(np.float32) / np.maximum(
            brightest, 1e-6
        )
    linear = light / WHITE
    if primaries in _TO_BT709:
        linear = linear @ _TO_BT709[primaries].T
    return np.rint(255.0 * np.clip(linear, 0.0, 1.0) ** np.float32(1 / _GAMMA)).astype(np.uint8)


@functools.cache
def _light(curve: int) -> np.ndarray:
    """Table of the light of each 16-bit code, float32 (65536,)."""
    signal = np.arange(65536) / 65535
    if curve == _PQ:
        light = pq_to_light(signal)
    elif curve == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = WHITE * signal**_GAMMA
    return light.astype(np.float32)


def pq_to_light(signal: np.ndarray) -> np.ndarray:
    """Convert PQ codes, 0..1, to cd/m^2."""
    power = signal ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def light_to_pq(light) -> np.ndarray:
    """Convert cd/m^2, an array or a number, to PQ codes, 0..1."""
    power = (np.asarray(light) / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


@functools.cache
def _tone_curve() -> tuple[np.ndarray, np.ndarray]:
    """cd/m^2 of the source and of the display, at points equally spaced in PQ.

    BT.2390's curve: the identity up to the knee, then a Hermite spline to the display's peak.
    """
    peak = light_to_pq(PEAK)
    x = np.linspace(0, 1, 1025)  # PQ, relative to the source's peak
    top = light_to_pq(WHITE) / peak
    knee = 1.5 * top - 0.5
    t = np.maximum(x - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    spline += (3 * t**2 - 2 * t**3) * top
    return pq_to_light(x * peak), pq_to_light(np.where(x < knee, x, spline) * peak)
