"""The division of videos into shards is stable, and tables are read as they were written."""

import os

import pyarrow as pa
import pytest

from xgen_jax.curation.store import SourceShard, Table, divide
from xgen_jax.errors import UserError


def folder_of(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode(errors="surrogateescape"))
    return path


def names(shards):
    return {shard.number: [file.name for file in shard.files] for shard in shards}


def test_videos_are_divided_by_name_and_stay_in_their_shards(tmp_path):
    videos = folder_of(tmp_path / "in", "b.mp4", "a/c.mp4", "d.mkv", "notes.txt")
    out = tmp_path / "out"
    first = divide(videos, out, 2)
    assert names(first) == {0: ["a/c.mp4", "b.mp4"], 1: ["d.mkv"]}
    assert [file.path for file in first[1].files] == [str(videos / "d.mkv")]
    assert divide(videos, out, 2) == first
    folder_of(videos, "aa.mp4", "z.mp4")
    (videos / "b.mp4").unlink()
    again = divide(videos, out, 2)
    assert names(again) == {0: ["a/c.mp4"], 1: ["d.mkv"], 2: ["aa.mp4", "z.mp4"]}


def test_a_changed_video_makes_a_new_shard(tmp_path):
    videos, out = folder_of(tmp_path / "in", "a.mp4", "b.mp4"), tmp_path / "out"
    divide(videos, out, 8)
    (videos / "a.mp4").write_bytes(b"longer than before")
    assert names(divide(videos, out, 8)) == {0: ["b.mp4"], 1: ["a.mp4"]}


def test_names_that_are_not_unicode_are_kept(tmp_path):
    videos = folder_of(tmp_path / "in", "with space ü.mp4", os.fsdecode(b"bad\xff.mp4"))
    shards = divide(videos, tmp_path / "out", 8)
    assert names(shards) == {0: [r"bad\xff.mp4", "with space ü.mp4"]}
    assert all(os.path.exists(file.path) for file in shards[0].files)
    assert divide(videos, tmp_path / "out", 8) == shards


def test_another_folder_of_videos_or_something_else_is_refused(tmp_path):
    videos = folder_of(tmp_path / "in", "a.mp4")
    divide(videos, tmp_path / "out", 8)
    with pytest.raises(UserError, match="holds the curation of"):
        divide(folder_of(tmp_path / "other", "a.mp4"), tmp_path / "out", 8)
    with pytest.raises(UserError, match="not empty and holds no curation"):
        divide(videos, folder_of(tmp_path / "home", "letter.txt"), 8)
    with pytest.raises(UserError, match="no video"):
        divide(folder_of(tmp_path / "empty", "letter.txt"), tmp_path / "new", 8)


def test_tables_give_the_same_bytes_and_name_a_damaged_file(tmp_path):
    shard = SourceShard(3, ())
    one, two = Table(tmp_path / "one"), Table(tmp_path / "two")
    rows = pa.table({"x": pa.array([1.0, 2.0]), "name": ["a", "b"]})
    for table in (one, two):
        assert table.missing([shard]) == [shard]
        table.write(shard, rows)
        assert table.missing([shard]) == []
    assert one.path(shard).read_bytes() == two.path(shard).read_bytes()
    assert one.read(shard).equals(rows)
    one.path(shard).write_bytes(one.path(shard).read_bytes()[:-9])
    with pytest.raises(UserError, match=r"00003\.parquet cannot be read.*remove it"):
        one.read(shard)
