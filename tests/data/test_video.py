"""Video files: reading inverts writing, frames have the times asked for, bad files are refused."""

import os
import resource
import signal
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from xgen_jax.data.pixels import center_crop, crop, random_crop
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video import cover_size, probe, read_video, resize_cover, resize_frames
from xgen_jax.data.video_writer import VideoWriter, write_video
from xgen_jax.errors import UserError


def moving_crop(frames, height, width, step=2):
    """A window that slides over a smooth coloured image, so every frame differs from every
    other."""
    y, x = np.mgrid[0 : height + step * frames, 0 : width + step * frames]
    channels = np.sin(x / 19 + y / 31), np.sin(x / 37 - y / 23), np.cos((x + y) / 41)
    image = (127 + 120 * np.stack(channels, -1)).astype(np.uint8)
    return np.stack([image[step * i :, step * i :][:height, :width] for i in range(frames)])


def which(frames, video):
    """Return the index of the nearest frame of `video` for each of `frames`."""
    height, width = video.shape[1:3]
    return [
        int(np.argmin([np.abs(f[:height, :width] - v).mean() for v in video.astype(int)]))
        for f in frames
    ]


def psnr(a, b):
    return 20 * np.log10(255 / np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def encode(path, video, codec, times, time_base, format=None, options=None, rotation=0):
    """Write frames at the given ticks, unlike `write_video` with any codec and variable rate."""
    with av.open(str(path), "w", format=format) as out:
        stream = out.add_stream(codec, rate=Fraction(25), options=options or {})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for time, image in zip(times, video, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = time, time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    "suffix,frames,height,width,least",
    [
        (".mp4", 25, 64, 96, 38),
        (".mp4", 9, 61, 97, 38),
        (".webm", 9, 61, 97, 38),
        (".gif", 9, 61, 97, 20),
    ],
)
def test_written_is_read(tmp_path, suffix, frames, height, width, least):
    video = moving_crop(frames, height, width)
    path = tmp_path / "new" / f"a{suffix}"
    write_video(path, video, fps=12.5)
    info = probe(path)
    assert (info.frames, info.fps) == (frames, 12.5)
    assert info.duration_s == pytest.approx(frames / 12.5, abs=0.01)
    back, fps = read_video(path)
    assert fps == 12.5
    assert back.shape == (frames, info.height, info.width, 3)
    assert info.height - height in (0, 1) and info.width - width in (0, 1)
    assert psnr(back[:, :height, :width], video) > least
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_come_back_unshifted(tmp_path, suffix):
    # On smaller frames the encoder's own rounding is the larger bias.
    video = moving_crop(5, 128, 128)
    write_video(tmp_path / f"a{suffix}", video)
    assert (
        np.abs((read_video(tmp_path / f"a{suffix}")[0].astype(float) - video).mean((0, 1, 2))).max()
        < 0.4
    )


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_one_frame(tmp_path, suffix):
    write_video(tmp_path / f"a{suffix}", moving_crop(1, 16, 16))
    assert read_video(tmp_path / f"a{suffix}")[0].shape == (1, 16, 16, 3)


def test_still_gif_keeps_its_frames(tmp_path):
    write_video(tmp_path / "a.gif", np.repeat(moving_crop(1, 16, 16), 5, 0))
    assert len(read_video(tmp_path / "a.gif", fps=8)[0]) == 5


def test_the_same_video_is_the_same_bytes(tmp_path):
    source = SyntheticSource(seed=0, num_clips=48)
    clips = [source.read(i, np.random.default_rng(i), 9, 32, 32)["video"] for i in range(48)]

    def written(clip):
        write_video(tmp_path / "a.mp4", clip)
        return (tmp_path / "a.mp4").read_bytes()

    first, *others = ([written(clip) for clip in clips] for _ in range(3))
    assert all(other == first for other in others)


def test_every_frame_has_its_time(tmp_path):
    write_video(tmp_path / "a.mp4", moving_crop(9, 32, 32), fps=29.97)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, rel=1e-4)
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([i / 29.97 for i in range(9)], abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".avi", ".gif"])
def test_frames_are_those_on_display(tmp_path, suffix):
    video = moving_crop(50, 48, 64)
    path = tmp_path / f"a{suffix}"
    if suffix == ".avi":
        encode(path, video, "mpeg4", range(50), Fraction(1, 25), options={"b": "4M"})
    else:
        write_video(path, video, fps=25)
    assert which(read_video(path)[0], video) == list(range(50))
    assert which(read_video(path, fps=8)[0], video) == [int(k * 25 / 8 + 1e-6) for k in range(16)]
    assert which(read_video(path, fps=10, start_s=1.3, frames=4)[0], video) == [32, 35, 37, 40]
    assert which(read_video(path, start_s=1.22, frames=3)[0], video) == [30, 31, 32]
    assert which(read_video(path, fps=50, start_s=1.9)[0], video) == [47, 48, 48, 49, 49]


def test_variable_rate_goes_by_time(tmp_path):
    video = moving_crop(6, 32, 32, step=5)
    ticks = [0, 100, 150, 700, 720, 1500]  # milliseconds
    encode(tmp_path / "a.mp4", video, "libx264", ticks, Fraction(1, 1000), options={"crf": "10"})
    shown, _ = read_video(tmp_path / "a.mp4", fps=10, frames=16)
    assert which(shown, video) == [
        max(i for i, t in enumerate(ticks) if t <= 100 * k) for k in range(16)
    ]


def test_random_access_in_a_long_file_with_b_frames(tmp_path):
    video = moving_crop(240, 32, 48, step=1)
    options = {"g": "40", "bf": "3", "crf": "12"}
    encode(tmp_path / "a.mp4", video, "libx264", range(240), Fraction(1, 24), options=options)
    for start in (1, 39, 40, 41, 119, 160, 237):
        back, _ = read_video(tmp_path / "a.mp4", start_s=start / 24, frames=3)
        assert which(back, video) == [start, start + 1, start + 2]


def test_rotation_is_applied(tmp_path):
    video = moving_crop(3, 32, 64)
    encode(
        tmp_path / "a.mp4",
        video,
        "libx264",
        range(3),
        Fraction(1, 25),
        options={"crf": "8"},
        rotation=90,
    )
    info = probe(tmp_path / "a.mp4")
    assert (info.height, info.width) == (64, 32)
    back, _ = read_video(tmp_path / "a.mp4")
    assert psnr(back, np.rot90(video, 1, axes=(1, 2))) > 30
    assert read_video(tmp_path / "a.mp4", cover=(32, 16))[0].shape == (3, 32, 16, 3)


def test_cover_is_resizing_after_reading(tmp_path):
    write_video(tmp_path / "a.mp4", moving_crop(3, 120, 200))
    together, _ = read_video(tmp_path / "a.mp4", cover=(30, 40))
    after = resize_cover(read_video(tmp_path / "a.mp4")[0], 30, 40)
    assert together.shape == after.shape == (3, 30, 50, 3)
    assert psnr(together, after) > 40


def test_resizing_averages(tmp_path):
    checks = np.indices((64, 96)).sum(0)[None, :, :, None] % 2 * np.full(3, 255)
    assert np.abs(resize_frames(checks.astype(np.uint8), 16, 24).astype(int) - 127).max() <= 2, (
        "no aliasing"
    )
    assert cover_size(480, 854, 256, 256) == (256, 455)
    assert cover_size(10, 1000, 16, 16) == (16, 1600)
    video = moving_crop(2, 20, 30)
    assert np.array_equal(crop(video, 4, 6, 3, 5), video[:, 3:7, 5:11])
    assert np.array_equal(center_crop(video, 10, 10), video[:, 5:15, 10:20])
    assert np.array_equal(random_crop(video, 20, 10, (0.999, 0.999)), video[:, :, 20:])
    with pytest.raises(UserError, match="does not lie within"):
        crop(video, 21, 6, 0, 0)


def bad_files(folder):
    write_video(folder / "good.mp4", moving_crop(30, 64, 64))
    good = (folder / "good.mp4").read_bytes()
    for name, content in {
        "zero.mp4": b"",
        "text.mp4": b"this is not a video\n" * 50,
        "half.mp4": good[: len(good) // 2],
        "head.mp4": good[:200],
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "concat.mp4": b"ffconcat version 1.0\nfile good.mp4\n",
        "binary.gif": bytes(range(256)) * 20,
    }.items():
        (folder / name).write_bytes(content)
    with av.open(str(folder / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 44100, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    (folder / "folder.mp4").mkdir()
    return {
        "missing.mp4": "no such file",
        "folder.mp4": "is a folder",
        "zero.mp4": "empty",
        "text.mp4": "not a video",
        "half.mp4": "truncated",
        "head.mp4": "no video stream",
        "playlist.mp4": "not a video",
        "concat.mp4": "not a video",
        "binary.gif": "not a video",
        "sound.mp4": "no video stream",
    }


def test_bad_files_are_refused_in_words(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=reason) as caught:
            read_video(tmp_path / name)
        assert name in str(caught.value)
        if name != "half.mp4":  # its header and first frame are whole
            with pytest.raises(UserError, match=reason):
                probe(tmp_path / name)


def test_limits_hold_before_decoding(tmp_path):
    write_video(tmp_path / "a.mp4", moving_crop(30, 64, 64))
    with pytest.raises(UserError, match=r"64x64.*limit of 4000"):
        read_video(tmp_path / "a.mp4", max_pixels=4000)
    with pytest.raises(UserError, match="30 frames of 64x64"):
        read_video(tmp_path / "a.mp4", max_bytes=29 * 64 * 64 * 3)
    assert len(read_video(tmp_path / "a.mp4", frames=9, max_bytes=9 * 64 * 64 * 3)[0]) == 9
    with pytest.raises(UserError, match="ends before"):
        read_video(tmp_path / "a.mp4", start_s=60)
    for wrong in ({"fps": 0}, {"fps": float("nan")}, {"frames": 0}, {"start_s": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            read_video(tmp_path / "a.mp4", **wrong)


def test_what_cannot_be_written_is_refused(tmp_path):
    video = moving_crop(2, 16, 16)
    for path, array, fps, reason in [
        ("a.mkv", video, 8, "suffix"),
        ("a", video, 8, "suffix"),
        ("a.mp4", video.astype(np.float32), 8, "float32"),
        ("a.mp4", video[0], 8, "uint8 array"),
        ("a.mp4", video[:0], 8, "empty"),
        ("a.mp4", video, 0, "fps"),
        ("a.mp4", video, float("inf"), "fps"),
        ("a.gif", video, 60, "50 for .gif"),
    ]:
        with pytest.raises(UserError, match=reason):
            write_video(tmp_path / path, array, fps=fps)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "file" / "a.mp4", video)
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "taken.mp4", video)
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.mp4"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    write_video(tmp_path / "a.mp4", moving_crop(2, 16, 16))
    old = (tmp_path / "a.mp4").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # stands in for a full disk
    try:
        with pytest.raises(UserError, match="cannot write"):
            write_video(tmp_path / "a.mp4", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == old


def test_frames_are_encoded_while_the_caller_makes_the_next(tmp_path, monkeypatch):
    """`write` returns before its frames are encoded, and waits when two chunks are ahead."""
    go_on, encoded = threading.Semaphore(0), []
    encode = VideoWriter._encode

    def held(self, frames):
        go_on.acquire()
        encode(self, frames)
        encoded.append(threading.current_thread().name)

    clip = moving_crop(8, 16, 16)
    write_video(tmp_path / "whole.mp4", clip)
    monkeypatch.setattr(VideoWriter, "_encode", held)
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for start in (0, 2, 4):  # one in the encoder's hands, two ahead of it
            writer.write(clip[start : start + 2])
        assert not encoded
        threading.Timer(0.2, go_on.release).start()
        writer.write(clip[6:])
        assert len(encoded) == 1
        for _ in range(3):
            go_on.release()
        writer.flush()
        assert encoded == ["video encoder"] * 4
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_an_error_of_the_encoder_reaches_the_caller(tmp_path, monkeypatch):
    def fails(self, frames):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "_encode", fails)
    clip = moving_crop(2, 16, 16)
    full = pytest.raises(UserError, match="cannot write .*a.mp4: No space left on device")
    with full, VideoWriter(tmp_path / "a.mp4") as writer:
        for _ in range(100):  # more than wait: a later `write` has the error
            writer.write(clip)
    with full, VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(clip)  # none follows
    assert not os.listdir(tmp_path)


@pytest.fixture
def interruptible():
    """In the background of a shell the tests ignore the interrupt."""
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, ignored)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("where", ["body", "end"])
def test_an_interrupted_writer_ends_soon_and_leaves_no_file(tmp_path, monkeypatch, where):
    entered, encoded, yuv = threading.Event(), [], VideoWriter._yuv

    def slow(self, video):
        entered.set()
        for frame in yuv(self, video):
            encoded.append(time.sleep(0.02))
            yield frame

    monkeypatch.setattr(VideoWriter, "_yuv", slow)
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(np.zeros((1000, 16, 16, 3), np.uint8))
        entered.wait()
        if where == "body":
            raise KeyboardInterrupt
        interrupt.start()  # leaving waits for the encoder
    assert len(encoded) < 100
    assert not os.listdir(tmp_path)
    assert not [t for t in threading.enumerate() if t.name == "video encoder"]
