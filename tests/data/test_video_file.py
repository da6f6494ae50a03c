"""Video files as people have them: odd containers, pixels, streams, and headers that are wrong."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from xgen_jax.data.video import READ_SUFFIXES, VideoReader, probe, read_video
from xgen_jax.data.video_file import stream_seconds
from xgen_jax.errors import UserError


def ramp(frames, height=48, width=64):
    """Frames of one grey each, 4 levels apart."""
    levels = 8 + 4 * np.arange(frames)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).astype(np.uint8)


def which(video):
    return np.rint((video.astype(float).mean((1, 2, 3)) - 8) / 4).astype(int).tolist()


def encode(path, video, codec="libx264", *, fps=24, ticks=None, container=None, **options):
    """Write a video; options: `codec_options`, `container_options`, `sound_s`, `rate`, `cover`, and
    attributes of the codec's context."""
    own = options.pop("codec_options", {"g": "12", "b": "2M"})
    container_options = options.pop("container_options", {})
    sound_s, rate = options.pop("sound_s", 0.0), Fraction(options.pop("rate", fps))
    cover, turn = options.pop("cover", None), options.pop("rotation", 0)
    with av.open(str(path), "w", format=container, options=container_options) as out:
        if cover is not None:
            picture = out.add_stream("mjpeg", rate=1)
            picture.height, picture.width = cover.shape[:2]
            picture.pix_fmt, picture.disposition = "yuvj420p", Disposition.attached_pic
        stream = out.add_stream(codec, rate=rate, options=own)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        if turn:
            stream.set_display_rotation(turn)
        sound = out.add_stream("aac", rate=48000, layout="mono") if sound_s else None
        if cover is not None:
            frame = av.VideoFrame.from_ndarray(cover, format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1)
            out.mux(picture.encode(frame) + picture.encode())
        for i, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (i if ticks is None else ticks[i]), Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound:
            for i in range(int(sound_s * 50)):
                silence = np.zeros((1, 960), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, 960 * i, Fraction(1, 48000)
                out.mux(sound.encode(frame))
            out.mux(sound.encode())


@pytest.mark.parametrize(
    "suffix, codec, container, options",
    [
        (".mpg", "mpeg2video", "vob", {}),
        (".mpeg", "mpeg1video", "mpeg", {}),
        (".ts", "libx264", "mpegts", {}),
        (".mts", "libx264", "mpegts", {"mpegts_m2ts_mode": "1"}),
        (".m2ts", "mpeg2video", "mpegts", {"mpegts_m2ts_mode": "1"}),
        (".wmv", "wmv2", "asf", {}),
        (".flv", "libx264", "flv", {}),
        (".flv", "flv", "flv", {}),
        (".3gp", "mpeg4", "3gp", {}),
        (".ogv", "libvpx", "ogg", {}),
        (".mov", "mjpeg", None, {}),
        (".mkv", "libx264", None, {}),
        (".avi", "mpeg4", None, {}),
        (".mp4", "libx264", None, {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_containers_are_probed_read_and_sought(tmp_path, suffix, codec, container, options):
    assert suffix in READ_SUFFIXES
    path, video = tmp_path / f"a{suffix}", ramp(60, 96, 128)
    coding = {"g": "12", "b": "2M"} | ({"cpu-used": "8"} if codec == "libvpx" else {})
    encode(
        path,
        video,
        codec,
        container=container,
        container_options=options,
        codec_options=coding,
    )
    info = probe(path)
    assert (info.width, info.height, info.fps, info.frames) == (128, 96, 24, 60)
    assert info.duration_s == pytest.approx(2.5, abs=0.01)
    assert which(read_video(path)[0]) == list(range(60))
    for start in (1, 12, 13, 31, 47, 58):
        back, fps = read_video(path, start_s=start / 24, frames=2)
        assert which(back) == [start, start + 1] and fps == 24
    assert which(read_video(path, fps=8, start_s=0.5)[0]) == list(range(12, 60, 3))
    # Cut off, the file is refused or announces no more than what a decoder loses at the end.
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    try:
        info = probe(cut)
    except UserError as error:
        assert "damaged" in str(error)
        return
    frames = 0
    try:
        with VideoReader(cut) as reader:
            for _ in reader:
                frames += 1
    except UserError as error:
        assert "damaged" in str(error)
    assert 0 < info.frames <= frames + 5 and info.frames < 60


@pytest.mark.parametrize("aspect", ["2", "12/11", "8/9", "1/2"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_pixels_are_square(tmp_path, aspect, rotation):
    aspect = Fraction(aspect)
    y, x = np.mgrid[:96, :96] - 47.5
    disc = (x * float(aspect)) ** 2 + y**2 < (40 * min(1, float(aspect))) ** 2
    image = np.where(disc[..., None], 255, 20).astype(np.uint8).repeat(3, -1)
    path = tmp_path / "a.mp4"
    encode(path, image[None].repeat(3, 0), sample_aspect_ratio=aspect, rotation=rotation)
    size = [round(96 * max(aspect, 1)), round(96 / min(aspect, 1))]
    if rotation:
        size.reverse()
    info, (video, _) = probe(path), read_video(path)
    assert [info.width, info.height] == size
    assert video.shape == (3, size[1], size[0], 3)
    seen = video[0, ..., 0] > 128
    assert seen.any(0).sum() / seen.any(1).sum() == pytest.approx(1, abs=0.06)
    covering = read_video(path, cover=(32, 32))[0]
    assert min(covering.shape[1:3]) == 32
    assert covering.shape[2] / covering.shape[1] == pytest.approx(size[0] / size[1], abs=0.04)


def test_aspects_that_make_no_sense_are_ignored(tmp_path):
    for aspect in (Fraction(300), Fraction(1, 300), Fraction(400, 399)):
        encode(tmp_path / "a.mp4", ramp(2), sample_aspect_ratio=aspect)
        assert read_video(tmp_path / "a.mp4")[0].shape == (2, 48, 64, 3)
        assert (probe(tmp_path / "a.mp4").width, probe(tmp_path / "a.mp4").height) == (64, 48)
    encode(tmp_path / "a.mp4", ramp(2), sample_aspect_ratio=Fraction(3))
    with pytest.raises(UserError, match="192x48 pixels are above the limit of 4000"):
        read_video(tmp_path / "a.mp4", max_pixels=4000)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".ts", ".avi", ".flv"])
def test_the_length_is_that_of_the_video(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    encode(path, ramp(24), fps=12, sound_s=6)
    info = probe(path)
    assert (info.frames, info.fps) == (24, 12)
    assert info.duration_s == pytest.approx(2.0, abs=0.01)
    assert which(read_video(path)[0]) == list(range(24))
    with pytest.raises(UserError, match="ends before that"):
        read_video(path, start_s=3)
    # A limit is checked against the video's own length.
    assert len(read_video(path, max_bytes=24 * 48 * 64 * 3)[0]) == 24


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cover_picture_is_not_the_video(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    encode(path, ramp(10), cover=np.full((200, 200, 3), 255, np.uint8))
    assert (probe(path).width, probe(path).frames) == (64, 10)
    assert which(read_video(path)[0]) == list(range(10))


def test_frame_counts_and_durations_may_be_wrong(tmp_path):
    path = tmp_path / "a.avi"
    encode(path, ramp(40), "mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, 444)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 444)
    path.write_bytes(data)
    info = probe(path)
    assert (info.frames, info.duration_s) == (40, pytest.approx(40 / 24))
    path = tmp_path / "a.mkv"
    encode(path, ramp(48))
    data = path.read_bytes()
    assert data.count(b"00:00:02.000000000") == 1
    for lie in (
        b"99:00:02.000000000",
        b"00:00:00.100000000",
        b"not a duration....",
        b"inf:nan:00.0000000",
    ):
        path.write_bytes(data.replace(b"00:00:02.000000000", lie))
        info = probe(path)
        assert info.frames == 48 and info.duration_s == pytest.approx(2, abs=0.01)


def test_mp4_that_was_cut_off_behind_its_index(tmp_path):
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 64, 3), np.uint8)
    encode(path, noise, container_options={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = probe(path)
    assert 10 < info.frames < 36
    assert info.duration_s == pytest.approx(info.frames / 24)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_rate_that_is_a_clocks_is_measured(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    encode(path, ramp(31), rate=90000, fps=90000, ticks=[3000 * i for i in range(31)])
    info = probe(path)
    assert info.fps == pytest.approx(30, rel=0.04) and info.frames == 31
    assert read_video(path)[1] == pytest.approx(30, rel=0.04)
    encode(path, ramp(1), rate=90000, fps=90000)
    assert probe(path).fps == 25  # nothing to measure


def test_the_reader_gives_frames_one_by_one(tmp_path):
    encode(tmp_path / "a.mp4", ramp(10))
    with VideoReader(tmp_path / "a.mp4", frames=8) as reader:
        assert (reader.height, reader.width, reader.fps, reader.expected) == (48, 64, 24, 8)
        chunks = list(reader.chunks(3))
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    assert which(np.concatenate(chunks)) == list(range(8))
    with pytest.raises(OSError, match="mine"), VideoReader(tmp_path / "a.mp4"):
        raise OSError("mine")  # not taken for an error of the file
    with (
        VideoReader(tmp_path / "a.mp4", start_s=9) as reader,
        pytest.raises(UserError, match="ends"),
    ):
        next(iter(reader))


def test_seconds_that_the_header_gives(tmp_path):
    encode(tmp_path / "a.mkv", ramp(24), sound_s=3)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert stream_seconds(container.streams.video[0]) == pytest.approx(1, abs=0.01)
