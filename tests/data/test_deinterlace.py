"""Interlaced video is read without combs, alike however a frame is reached; all else is as it
was."""

from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest

from xgen_jax.data import video as video_module
from xgen_jax.data.color import RGBConverter
from xgen_jax.data.deinterlace import deinterlace
from xgen_jax.data.video import VideoReader, probe, read_video
from xgen_jax.data.video_cache import VideoCache

HEIGHT, WIDTH, STEP = 96, 128, 2
FORMATS = {
    "gop.mp4": ("libx264", "tff", {"bf": "2"}, 12),
    "lower.mkv": ("libx264", "bff", {"bf": "2"}, 12),
    "broadcast.ts": ("mpeg2video", "tff", {"bf": "2", "b": "4M"}, 12),
    "disc.mpg": ("mpeg2video", "tff", {"b": "4M"}, 15),
    "intra.mkv": ("mpeg2video", "bff", {"b": "8M"}, 1),
}


def bar(place):
    """A bright bar, `place` pixels from the left, on texture that stands still."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.repeat((60 + 20 * np.sin(x / 9 + y / 13))[..., None], 3, -1)
    image[:, place : place + 16] = 220
    return image.astype(np.uint8)


def picture(index, first):
    """Two fields, half a frame apart, with the rows of `first` (0: upper) shown first."""
    fields = [bar(8 + 2 * STEP * index), bar(8 + STEP + 2 * STEP * index)]
    woven = fields[0].copy()
    woven[1 - first :: 2] = fields[1][1 - first :: 2]
    return woven


def write(path, codec, order, options, gop, frames=24, marked=True, matrix=None):
    """Write 25 frames a second of two fields each; without `marked` as if they were whole."""
    clock = Fraction(1, 25)
    flags = av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        stream.codec_context.flags |= flags if marked else 0
        if matrix:
            stream.codec_context.colorspace = matrix
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=WIDTH, height=HEIGHT, format=av.VideoFormat("yuv420p"), time_base=clock
        )
        mark = graph.add("setfield", order if marked else "prog")
        graph.link_nodes(source, mark, graph.add("buffersink")).configure()
        for index in range(frames):
            image = picture(index, 0 if order == "tff" else 1)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, clock
            graph.push(frame)
            out.mux(stream.encode(graph.pull()))
        out.mux(stream.encode())


def combs(video):
    """How much rows differ from the mean of those above and below."""
    rows = video.astype(int)
    return np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:]).mean()


def decoded(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), frames


@pytest.mark.parametrize("name", FORMATS)
def test_a_moving_bar_has_no_comb_and_its_rate_stays(tmp_path, name):
    path = tmp_path / name
    write(path, *FORMATS[name])
    stored, frames = decoded(path)
    assert all(frame.interlaced_frame for frame in frames)
    video, fps = read_video(path)
    assert (len(video), fps) == (24, 25)
    still = np.stack([bar(8 + 2 * STEP * index) for index in range(24)])
    assert 8 * combs(video) < combs(stored)  # measured: 11 to 12 times
    # The field that is shown first stays where it was.
    middle = np.abs(video[6:-6].astype(int) - still[6:-6]).mean()
    assert middle < 4 and middle < np.abs(stored[6:-6].astype(int) - still[6:-6]).mean() / 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("fps", [None, 10])
def test_a_clip_is_the_same_however_it_is_reached(tmp_path, name, fps):
    path = tmp_path / name
    write(path, *FORMATS[name])
    info = probe(path)
    cache = VideoCache([info], 10**9)
    whole = read_video(path)[0]
    for start_s in (0.0, 0.04, 0.4, 0.48, 0.5, 0.64, 0.8):
        options = {"start_s": start_s, "frames": 3, "cover": (48, 64)}
        cache.read(path, fps=fps, **options)
        cache.wait()
        clip = read_video(path, fps=fps, **options)[0]
        np.testing.assert_array_equal(cache.read(path, fps=fps, **options), clip)
        if fps is None:
            first = round(start_s * 25 - 0.01)  # 0.5 s is within a frame: it is on display
            there = read_video(path, start_s=start_s, frames=3)[0]
            np.testing.assert_array_equal(there, whole[first : first + 3])


def test_a_clip_from_a_key_frame_does_not_read_from_the_beginning(tmp_path, monkeypatch):
    path, sought = tmp_path / "intra.mkv", []
    write(path, *FORMATS["intra.mkv"], frames=30)
    seek = video_module.seek
    monkeypatch.setattr(video_module, "seek", lambda *a: sought.append(a[2]) or seek(*a))
    whole = read_video(path)[0]
    np.testing.assert_array_equal(read_video(path, start_s=1.0, frames=2)[0], whole[25:27])
    assert sought == [1.0, 0.8]


def test_frames_that_are_not_marked_keep_their_bits_and_are_not_held_back(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, *FORMATS["gop.mp4"], marked=False)
    frames = decoded(path)[1]
    assert not any(frame.interlaced_frame for frame in frames)
    entries = [(index / 25, 1 / 25, frame) for index, frame in enumerate(frames)]
    read = []

    def given():
        for index, entry in enumerate(entries):
            assert len(read) == index
            yield entry

    for entry in deinterlace(path, given(), sought=True):
        read.append(entry)
    assert [entry[2] for entry in read] == frames
    with VideoReader(path) as reader:
        assert not reader._interlaced
        convert = RGBConverter(HEIGHT, WIDTH)
        np.testing.assert_array_equal(list(reader), [convert(frame) for frame in frames])


def test_frames_of_both_kinds_in_one_file(tmp_path):
    """Whole frames keep their bits, the others look at their neighbours, whatever came before."""
    for marked in (True, False):
        write(tmp_path / f"{marked}.mp4", *FORMATS["gop.mp4"], marked=marked)
    fields, whole = (decoded(tmp_path / f"{marked}.mp4")[1] for marked in (True, False))
    frames = [*whole[:4], *fields[4:8], *whole[8:10], *fields[10:]]
    entries = [(float(index), 1.0, frame) for index, frame in enumerate(frames)]
    read = list(deinterlace("a", iter(entries), sought=False))
    assert [entry[0] for entry in read] == list(range(24))
    arrays = [entry[2].to_ndarray() for entry in read]
    for index, frame in enumerate(frames):
        same = np.array_equal(arrays[index], frame.to_ndarray())
        assert same != bool(frame.interlaced_frame)
    for start in range(1, 20):
        later = list(deinterlace("a", iter(entries[start:]), sought=True))
        left_out = bool(frames[start].interlaced_frame)
        assert [entry[0] for entry in later] == list(range(start + left_out, 24))
        for time_s, _, frame in later:
            np.testing.assert_array_equal(frame.to_ndarray(), arrays[int(time_s)])


def test_tags_of_colour_and_times_stay(tmp_path):
    path = tmp_path / "a.mkv"
    write(path, *FORMATS["gop.mp4"], matrix=5)
    frames = decoded(path)[1]
    entries = ((float(index), 1.0, frame) for index, frame in enumerate(frames))
    for (_, _, made), frame in zip(deinterlace(path, entries, sought=False), frames, strict=True):
        assert not made.interlaced_frame
        for name in ("colorspace", "color_range", "pts", "time_base", "width", "height"):
            assert getattr(made, name) == getattr(frame, name), name
