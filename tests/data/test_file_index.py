"""Headers of files are read once, and remembered between starts."""

import os
import sqlite3

import numpy as np
import pytest

from xgen_jax.data.file_index import list_files, probe_files
from xgen_jax.data.video import VideoInfo, probe
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError

SUFFIXES = (".mp4",)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "xgen_jax" / "files.sqlite"


@pytest.fixture
def folder(tmp_path):
    video = np.zeros((3, 16, 16, 3), np.uint8)
    for name in ("a.mp4", "sub/b.mp4", "c.MP4"):
        write_video(tmp_path / "data" / name.lower(), video)
    os.rename(tmp_path / "data" / "c.mp4", tmp_path / "data" / "c.MP4")
    (tmp_path / "data" / "broken.mp4").write_text("no video")
    return tmp_path / "data"


class CountedProbe:
    def __init__(self):
        self.read = []

    def __call__(self, path) -> VideoInfo:
        self.read.append(path.name)
        return probe(path)


def start(folder):
    counted = CountedProbe()
    files = list_files(folder, SUFFIXES)
    return dict(zip([f.name for f in files], probe_files(folder, files, counted))), counted.read


def test_only_what_changed_is_read_again(cache, folder):
    found, read = start(folder)
    assert sorted(read) == ["a.mp4", "b.mp4", "broken.mp4", "c.MP4"]
    assert list(found) == ["a.mp4", "broken.mp4", "c.MP4", "sub/b.mp4"]
    assert "damaged" in found["broken.mp4"] and found["a.mp4"] == probe(folder / "a.mp4")
    again, read = start(folder)
    assert again == found and cache.is_file()
    assert read == ["broken.mp4"], "the reason may be gone"
    write_video(folder / "a.mp4", np.zeros((5, 16, 32, 3), np.uint8))
    write_video(folder / "new.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    (folder / "sub" / "b.mp4").unlink()
    changed, read = start(folder)
    assert sorted(read) == ["a.mp4", "broken.mp4", "new.mp4"]
    assert changed["a.mp4"].width == 32 and "sub/b.mp4" not in changed


def test_a_change_of_the_same_size_is_seen(cache, folder):
    start(folder)
    about = os.stat(folder / "a.mp4")
    os.utime(folder / "a.mp4", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert start(folder)[1] == ["a.mp4", "broken.mp4"]


@pytest.mark.parametrize("wrong", ["cut off", "no database", "version"])
def test_an_index_that_cannot_be_used_is_made_again(cache, folder, wrong):
    found, _ = start(folder)
    if wrong == "cut off":
        cache.write_bytes(cache.read_bytes()[:5000])
    elif wrong == "no database":
        cache.write_text("hello" * 1000)
    else:
        with sqlite3.connect(cache) as table:
            table.execute("PRAGMA user_version = 99")
    again, read = start(folder)
    assert again == found and len(read) == 4
    assert start(folder)[1] == ["broken.mp4"]


def test_without_a_cache_every_start_reads(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert len(start(folder)[1]) == 4
    assert "read again at every start" in capsys.readouterr().err


def test_folders_that_cannot_be_listed_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_files(tmp_path / "gone", SUFFIXES)
    with pytest.raises(UserError, match="holds no video; looked for .mp4"):
        list_files(tmp_path, SUFFIXES)
