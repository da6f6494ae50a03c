"""A clip of a video as small mp4 files in memory, at one or more sizes from one decoding.

H.264 4:2:0 with key frames about a second apart and no B-frames: a random clip of 17 frames costs
17 to 25% more to read from a file with a key frame every 250. The bytes follow from the video, the
settings and the versions of PyAV's libraries alone.
"""

import dataclasses
import io
import math
from collections.abc import Sequence
from fractions import Fraction

import av

from xgen_jax.curation.config import PackConfig
from xgen_jax.data.shard_layout import stored_size
from xgen_jax.data.video import VideoReader
from xgen_jax.errors import UserError

# Frames that a video may have less than its header says, before a clip of it is refused.
_MISSING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """A clip as files.

    Attributes:
      media: bytes of an mp4 file, by tier.
      frames: of each.
      fps: their rate.
    """

    media: dict[int, bytes]
    frames: int
    fps: float


def encode_clip(
    path, start_s: float, end_s: float, tiers: Sequence[int], config: PackConfig
) -> EncodedClip:
    """Encode the frames at start_s <= time < end_s, upright, with square pixels and in SDR.

    The rate is constant: the video's, divided by a whole number where it is above `config.fps`.
    Frames are streamed: memory does not grow with the clip but by the files.

    Args:
      path: of the video.
      start_s, end_s: seconds since its start.
      tiers: shorter sides, of `config.tiers`; see `data.shard_layout.stored_size`.
      config: rate, key frames and quality.

    Raises:
      UserError: an unreadable video, or one that ends before the clip does.
    """
    if end_s <= start_s:
        raise UserError(f"cannot cut {path}: the clip ends at {end_s:g} s, before its start")
    with VideoReader(path, start_s=start_s, max_fps=config.fps) as reader:
        sizes = [stored_size(reader.height, reader.width, tier) for tier in tiers]
        rate = Fraction(reader.fps).limit_denominator(1001)
        # A clip ends where a frame of the next shot begins, to a rounding error.
        wanted = max(1, math.ceil((end_s - start_s) * reader.fps - 0.01))
        matrix, encodable = reader.to_encode(sizes)
        encoders = [_Encoder(*size, rate, matrix, config) for size in sizes]
        frames = 0
        for images in encodable:
            for encoder, image in zip(encoders, images, strict=True):
                encoder.add(image, frames)
            frames += 1
            if frames == wanted:
                break
        if frames < wanted - _MISSING:
            raise UserError(
                f"cannot cut {path} from {start_s:g} s to {end_s:g} s: it has {frames} frames "
                f"there, and {wanted} were expected"
            )
        media = {
            tier: encoder.finish(frames) for tier, encoder in zip(tiers, encoders, strict=True)
        }
    return EncodedClip(media=media, frames=frames, fps=float(rate))


class _Encoder:
    """Writes one file in memory."""

    def __init__(self, height: int, width: int, rate: Fraction, matrix: int, config):
        self._buffer, self._rate = io.BytesIO(), rate
        self._container = av.open(self._buffer, "w", format="mp4")
        stream = self._container.add_stream("libx264", rate=rate)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", height, width
        stream.options = {
            "crf": str(config.crf),
            "preset": "superfast",  # half the time of veryfast, for a fifth more bytes
            "g": str(max(1, round(config.gop_s * rate))),
            "bf": "0",
            "sc_threshold": "0",  # a clip has no cut
            "a53cc": "0",  # no subtitles of the source
            # With the tree of macroblocks the same frames may give other bytes; see
            # `data.video_writer`. Nothing else looks ahead, and frames would be kept for it.
            "x264-params": "mbtree=0:rc-lookahead=0",
        }
        codec = stream.codec_context
        codec.thread_count, codec.thread_type = 1, "NONE"
        # Tagged, limited range: untagged files change colour between players.
        codec.colorspace = matrix
        codec.color_primaries = codec.color_trc = codec.color_range = 1  # BT.709
        self._stream = stream

    def add(self, image: av.VideoFrame, number: int) -> None:
        # Without its own time every frame would be at zero. The kind of frame that it was in the
        # source would be kept, key frames included.
        image.pts, image.time_base = number, 1 / self._rate
        image.pict_type = av.video.frame.PictureType.NONE
        self._container.mux(self._stream.encode(image))

    def finish(self, frames: int) -> bytes:
        """Return the file, once it is sure to hold what was encoded."""
        self._container.mux(self._stream.encode())
        self._container.close()
        data = self._buffer.getvalue()
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            times = {packet.pts for packet in container.demux(stream) if packet.size}
            seconds = float((stream.duration or 0) * (stream.time_base or 0))
        if len(times) != frames or abs(seconds - frames / self._rate) > 0.5 / self._rate:
            raise RuntimeError(
                f"{frames} frames at {self._rate} fps were encoded, but {len(times)} of {seconds:g}"
                " s are in the file"
            )
        return data
