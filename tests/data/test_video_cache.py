"""Videos kept in memory: the clips that reading the file gives, or none."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest
from test_video_file import encode, ramp

from xgen_jax.data import video_cache
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video import VideoReader, probe, read_video
from xgen_jax.data.video_cache import VideoCache
from xgen_jax.errors import UserError

COVER = (24, 20)
# Files with pictures out of order, sound, two frames a second, a rotation; and a variable rate.
FILES = {
    "b-frames.mp4": {"codec_options": {"g": "12", "bf": "2", "b": "2M"}},
    "open.ts": {"sound_s": 3},
    "index.avi": {"fps": 12, "codec": "mpeg4", "codec_options": {"g": "7"}},
    "slow.flv": {"fps": 2},
    "turned.mov": {"rotation": 90},
    "variable.mkv": {"ticks": np.cumsum([1, 1, 1, 9] * 6)},
}


def decoded(cache, path, **options):
    """What the cache gives once it has decoded the file."""
    cache.read(path, **options)
    cache.wait()
    return cache.read(path, **options)


def noisy(frames):
    return np.random.default_rng(0).integers(0, 255, (frames, 48, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fps", [None, 7.5])
def test_a_clip_is_that_of_the_file_to_the_bit(tmp_path, name, fps):
    path = tmp_path / name
    encode(path, noisy(24), **FILES[name])
    info = probe(path)
    cache = VideoCache([info], 10**9)
    for start_s in np.linspace(0, info.duration_s, 12, endpoint=False):
        options = {"fps": fps, "start_s": float(start_s), "frames": 5, "cover": COVER}
        kept = decoded(cache, path, **options)
        np.testing.assert_array_equal(kept, read_video(path, **options)[0])


def test_a_video_is_decoded_once_by_all_threads(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.mp4", []
    encode(path, ramp(24))

    class Counted(VideoReader):
        def __init__(self, *args, **kwargs):
            opened.append(kwargs["cover"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(video_cache, "VideoReader", Counted)
    cache = VideoCache([probe(path)], 10**9)

    def read(cover):
        return cache.read(path, fps=None, start_s=0.5, frames=5, cover=cover)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [COVER, (8, 8)] * 8))  # nothing waits: what is there is taken
        cache.wait()
        clips = list(pool.map(read, [COVER, (8, 8)] * 4))
    assert sorted(opened) == [(8, 8), COVER]
    for clip in clips[2:]:
        np.testing.assert_array_equal(clip, clips[0] if clip.shape == clips[0].shape else clips[1])


def test_nothing_is_kept_of_videos_that_do_not_fit(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, ramp(24))
    size = 24 * 24 * 32 * 3  # 64x48 covers 20x24 at 32x24
    options = {"fps": None, "start_s": 0.0, "frames": 5, "cover": COVER}
    assert VideoCache([probe(path)], size - 1).read(path, **options) is None
    cache = VideoCache([probe(path)], size)
    assert decoded(cache, path, **options) is not None
    # Of many videos only as many are looked at as fit.
    looked = (probe(path) for _ in iter(int, 1))
    assert VideoCache(looked, 3 * size).read(path, **options) is None
    # The room is taken.
    assert cache.read(path, **{**options, "cover": (8, 8)}) is None
    assert cache.read(path, **options) is not None


def test_the_file_decides_about_damage_and_starts_after_the_end(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, noisy(48), codec_options={"g": "12", "b": "2M"})
    info, options = probe(path), {"fps": None, "frames": 5, "cover": COVER}
    assert decoded(VideoCache([info], 10**9), path, start_s=9.0, **options) is None
    whole, half = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(whole[:half] + bytes(half // 2) + whole[half + half // 2 :])
    with pytest.raises(UserError):
        read_video(path)
    cache = VideoCache([info], 10**9)
    assert decoded(cache, path, start_s=0.0, **options) is None
    assert len(read_video(path, start_s=0.0, **options)[0]) == 5


def test_what_a_header_hides_is_not_kept(tmp_path, monkeypatch):
    path, options = tmp_path / "a.mp4", {"fps": None, "start_s": 0.0, "frames": 5, "cover": COVER}
    encode(path, ramp(24))
    short = dataclasses.replace(probe(path), frames=2)
    assert decoded(VideoCache([short], 4 * 24 * 32 * 3), path, **options) is None
    # Nor is a video without times of its own, which are others when it is read from within.
    timed = VideoReader.timed

    def repaired(reader):
        reader.repaired = True
        return timed(reader)

    monkeypatch.setattr(VideoReader, "timed", repaired)
    assert decoded(VideoCache([probe(path)], 10**9), path, **options) is None


def test_a_folder_gives_the_same_clips_with_and_without_memory(tmp_path):
    for name in ("a.mp4", "b.mkv"):
        encode(tmp_path / name, noisy(60), fps=12)
    options = {"require_captions": False, "flip": True, "stride": 2, "seconds_per_clip": 2.0}
    kept, read = (VideoFolderSource(tmp_path, memory_gb=gb, **options) for gb in (1.0, 0.0))
    assert len(kept) == 4 and kept.fingerprint() == read.fingerprint()
    for index in range(4):
        for seed in range(3):
            clips = (
                source.read(index, np.random.default_rng(seed), 5, 24, 20)["video"]
                for source in (kept, read)
            )
            np.testing.assert_array_equal(*clips)
    with pytest.raises(UserError, match="memory_gb must be 0 or more, not -1"):
        VideoFolderSource(tmp_path, memory_gb=-1.0)


def test_a_file_that_no_decoder_takes_stops_no_other(tmp_path, monkeypatch):
    """Whatever it raises; the clip is read from the file then, which says what is wrong."""
    paths = [tmp_path / "bad.mp4", tmp_path / "good.mp4"]
    for path in paths:
        encode(path, ramp(24))
    cache, timed = VideoCache([probe(path) for path in paths], 10**9), VideoReader.timed

    def failing(self):
        if str(self.path).endswith("bad.mp4"):
            raise RuntimeError("of a library")
        return timed(self)

    monkeypatch.setattr(VideoReader, "timed", failing)
    options = {"fps": None, "start_s": 0.0, "frames": 5, "cover": COVER}
    for path in paths:
        cache.read(path, **options)
    cache.wait()
    assert cache.read(paths[0], **options) is None
    assert cache.read(paths[1], **options).shape == (
        5,
        *read_video(paths[1], **options)[0].shape[1:],
    )
