"""Clips of one video from one pass: the same to the bit as those read alone, with less decoding."""

import numpy as np
import pytest
from test_video_cache import FILES, noisy
from test_video_file import encode

from xgen_jax.data import video
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video import probe, read_video
from xgen_jax.data.video_clips import read_clips
from xgen_jax.errors import UserError

COVER = (24, 20)


@pytest.fixture
def decoded(monkeypatch):
    """A list with an entry for each frame that is decoded."""
    frames, decode = [], video.decode_frames

    def counted(*args, **kwargs):
        for frame in decode(*args, **kwargs):
            frames.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "decode_frames", counted)
    return frames


def alone(path, start_s, **options):
    try:
        return read_video(path, start_s=start_s, **options)[0]
    except UserError as error:
        return str(error)


def assert_same(path, starts_s, **options):
    together = read_clips(path, starts_s, **options)
    for start_s, clip in zip(starts_s, together, strict=True):
        wanted = alone(path, start_s, **options)
        if isinstance(wanted, str):
            assert isinstance(clip, UserError) and str(clip) == wanted
        else:
            np.testing.assert_array_equal(clip, wanted)
    return together


@pytest.mark.parametrize("name", [*FILES, "program.mpg"])
@pytest.mark.parametrize("fps", [None, 7.5])
def test_clips_are_those_that_are_read_alone(tmp_path, name, fps):
    options = FILES.get(name, {"codec": "mpeg1video", "fps": 25, "codec_options": {"g": "9"}})
    path = tmp_path / name
    encode(path, noisy(24), **options)
    length_s = probe(path).duration_s
    rng = np.random.default_rng(1)
    # Far apart and overlapping, in no order, one twice, and one after the end.
    starts_s = [*rng.uniform(0, length_s, 9), 0.0, 0.3 * length_s, 0.3 * length_s, length_s + 9]
    assert_same(path, starts_s, fps=fps, frames=5, cover=COVER)


def test_a_group_of_pictures_is_decoded_once(tmp_path, decoded):
    path = tmp_path / "a.mp4"
    encode(path, noisy(48), codec_options={"g": "24"})  # 24 frames a second
    starts_s = [number / 24 for number in (2, 10, 12, 20, 30, 33)]
    options = {"fps": None, "frames": 4, "cover": COVER}
    for start_s in starts_s:
        read_video(path, start_s=start_s, **options)
    apart, decoded[:] = len(decoded), []
    read_clips(path, starts_s, **options)
    # Alone, each from its key frame; together, each group once, and a frame for each clip to find
    # out where its group begins.
    assert apart > 85 and len(decoded) <= 24 + 14 + len(starts_s) + 4


def test_damage_costs_the_clips_that_it_costs_alone(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, noisy(72), codec_options={"g": "24"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    starts_s = np.linspace(0, 2.9, 20).tolist()
    clips = assert_same(path, starts_s, fps=None, frames=5, cover=COVER)
    assert any(isinstance(clip, UserError) for clip in clips)
    assert not any(isinstance(clip, UserError) for clip in (clips[0], clips[1], clips[-1]))


def test_a_folder_gives_clips_of_a_file_together_as_it_gives_them_alone(tmp_path, decoded):
    encode(tmp_path / "a.mp4", noisy(48), codec_options={"g": "48"})
    encode(tmp_path / "b.mp4", noisy(24))
    options = {"require_captions": False, "seconds_per_clip": 0.25, "substitute": False}
    source = VideoFolderSource(tmp_path, **options)
    indices = [index for index in range(len(source)) if source.where(index) == "a.mp4"]
    assert len(indices) == 8
    rngs = [[np.random.default_rng(index) for index in indices] for _ in range(2)]
    wanted = [source.read(i, rng, 4, 16, 16) for i, rng in zip(indices, rngs[0], strict=True)]
    apart, decoded[:] = len(decoded), []
    got = source.read_together(indices, rngs[1], 4, 16, 16)
    assert len(decoded) < 70 < apart
    for one, other in zip(wanted, got, strict=True):
        assert isinstance(other, dict) and one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    # One that cannot be read is an error in its place.
    (tmp_path / "b.mp4").write_bytes(b"damaged")
    last = len(source) - 1
    errors = source.read_together([last - 1, last], rngs[0][:2], 4, 16, 16)
    assert all(isinstance(error, UserError) and "b.mp4" in str(error) for error in errors)
