"""Tar files of WebDataset: out of shards with the same bytes each time, in without harm."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from xgen_jax.curation import webdataset
from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.pack import Clip, is_held_out, write_shard
from xgen_jax.curation.shard_index import finish
from xgen_jax.curation.webdataset import export_tars, import_tars
from xgen_jax.data.shards import ShardReader
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of two videos each; the last video has no caption."""
    root = tmp_path_factory.mktemp("packed")
    config = PackConfig(tiers=(16, 32), held_out_fraction=0.4)
    for number in range(4):
        video = np.full((12, 32, 48, 3), 40 * number, np.uint8)
        write_video(root / f"{number}.mp4", video, 12)
    for shard in (0, 1):
        clips = [
            Clip(
                id=f"clip.{number}",
                path=str(root / f"{number}.mp4"),
                source=f"{number}.mp4",
                digest=f"{number}",
                start_s=0.0,
                end_s=1.0,
                height=32,
                width=48,
                captions=() if number == 3 else (f"caption {number} ☃", "another"),
                scores={"motion": 0.5, "text": float("nan")},
            )
            for number in (2 * shard, 2 * shard + 1)
        ]
        write_shard(root / "shards", shard, clips, config)
    finish(root / "shards", 2, config)
    return root / "shards"


def tar_with(path, members, **changes):
    """Write a tar of (name, contents) and of members given as they are."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in changes.get(name, {}).items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))


def test_shards_become_tars(shards, tmp_path):
    files = export_tars(shards, tmp_path / "a")
    again = export_tars(shards, tmp_path / "b")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    held_out = {number for number in range(4) if is_held_out(f"{number}", 0.4)}
    seen = set()
    reader = ShardReader(shards)
    for file in files:
        with tarfile.open(file) as tar:
            members = {member.name: member for member in tar}
            assert all(member.mtime == member.uid == 0 for member in members.values())
            for name in members:
                if not name.endswith(".mp4"):
                    continue
                about = json.loads(tar.extractfile(name.replace(".mp4", ".json")).read())
                number = int(about["id"][-1])
                seen.add(number)
                assert name == f"clip_{number}.mp4"
                assert file.name.startswith("held_out" if number in held_out else "train")
                assert (about["height"], about["width"]) == (32, 48)
                assert about["scores"] == {"motion": 0.5, "text": None}
                text = tar.extractfile(f"clip_{number}.txt").read().decode()
                assert text == ("" if number == 3 else f"caption {number} ☃")
                shard = number // 2
                row = reader.rows(shard)["id"].index(about["id"])
                stored = reader.record(shard, row, 32)[0]["media"]
                assert tar.extractfile(name).read() == stored
    assert seen == set(range(4))


def test_an_export_leaves_no_tar_of_the_one_before_and_none_of_others(shards, tmp_path):
    files = export_tars(shards, tmp_path / "tars")
    fewer = tmp_path / "fewer"
    shutil.copytree(shards, fewer)
    finish(fewer, 1, PackConfig(tiers=(16, 32), held_out_fraction=0.4))
    left = export_tars(fewer, tmp_path / "tars")
    assert set(left) < set(files) and sorted((tmp_path / "tars").glob("*.tar")) == sorted(left)
    (tmp_path / "tars" / "train-00077.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="has not written, train-00077.tar among them"):
        export_tars(shards, tmp_path / "tars")


def test_what_was_exported_is_imported(shards, tmp_path):
    files = export_tars(shards, tmp_path / "tars")
    counts = import_tars(files, tmp_path / "videos")
    assert counts == {"videos": 4, "captions": 3, "left_out": 2}
    before = {path: path.read_bytes() for path in (tmp_path / "videos").rglob("*.*")}
    assert import_tars(files, tmp_path / "videos") == counts
    assert {path: path.read_bytes() for path in (tmp_path / "videos").rglob("*.*")} == before
    captions = tmp_path / "videos" / "captions.jsonl"
    captions.write_text(captions.read_text().replace("caption", "CAPTION"))
    with pytest.raises(UserError, match="other captions than the tar files: remove it"):
        import_tars(files, tmp_path / "videos")
    captions.unlink()
    assert import_tars(files, tmp_path / "videos") == counts
    source = VideoFolderSource(tmp_path / "videos")
    assert len(source) == 3
    assert {source.caption(n, np.random.default_rng(0)) for n in range(3)} == {
        f"caption {number} ☃" for number in range(3)
    }


def test_captions_of_others(tmp_path):
    members = [
        ("a/1.mp4", b"1"),
        ("a/1.json", b'{"caption": "one"}'),
        ("a/1.txt", b"better\n one"),
        ("./2.webm", b"2"),
        ("2.json", b'{"captions": ["x", " y "], "text": "z"}'),
        ("3.mp4", b"3"),
        ("3.jpg", b"picture"),
        ("._3.mp4", b"of another system"),
        ("4.mp4", b"4"),
        ("4.json", b"[1, 2]"),
    ]
    tar_with(tmp_path / "x.tar", members)
    counts = import_tars([tmp_path / "x.tar"], tmp_path / "out")
    assert counts == {"videos": 4, "captions": 2, "left_out": 3}
    lines = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "x/2.webm", "caption": ["x", "y"]},
        {"file": "x/a/1.mp4", "caption": ["better one"]},
    ]
    assert (tmp_path / "out" / "x" / "a" / "1.mp4").read_bytes() == b"1"
    assert not list((tmp_path / "out").rglob("*.jpg")) + list((tmp_path / "out").rglob("._*"))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("../outside.mp4", {}),
        ("/tmp/outside.mp4", {}),
        ("a/../../outside.mp4", {}),
        ("a//b.mp4", {}),
        ("a\\..\\b.mp4", {}),
        ("a\n.mp4", {}),
        ("link.mp4", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard.mp4", {"type": tarfile.LNKTYPE, "linkname": "../outside.mp4"}),
        ("device.mp4", {"type": tarfile.CHRTYPE}),
        ("pipe.mp4", {"type": tarfile.FIFOTYPE}),
    ],
)
def test_what_could_do_harm_is_refused(tmp_path, name, changes):
    data = b"" if changes else b"x"
    tar_with(tmp_path / "x.tar", [("first.mp4", b"1"), (name, data)], **{name: changes})
    with pytest.raises(UserError, match="x.tar has a member") as error:
        import_tars([tmp_path / "x.tar"], tmp_path / "in" / "out")
    assert repr(name) in str(error.value)
    there = {path.name for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    assert there == {"x.tar", "first.mp4"}


def test_absurd_sizes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_VIDEO_BYTES", 100)
    tar_with(tmp_path / "x.tar", [("a.mp4", bytes(101))])
    with pytest.raises(UserError, match="a member 'a.mp4' of 101 bytes, above the limit of 100"):
        import_tars([tmp_path / "x.tar"], tmp_path / "out")
    tar_with(tmp_path / "y.tar", [("a.txt", bytes((1 << 20) + 1))])
    with pytest.raises(UserError, match="a member 'a.txt' of 1048577 bytes"):
        import_tars([tmp_path / "y.tar"], tmp_path / "out")
    # A header may say anything.
    with open(tmp_path / "z.tar", "wb") as file:
        member = tarfile.TarInfo("a.mp4")
        member.size = 1 << 50
        file.write(member.tobuf() + bytes(2048))
    with pytest.raises(UserError, match="a member 'a.mp4' of 1125899906842624 bytes"):
        import_tars([tmp_path / "z.tar"], tmp_path / "out")


def test_damage_is_named(tmp_path):
    tar_with(tmp_path / "x.tar", [("a.mp4", bytes(5000)), ("b.mp4", bytes(5000))])
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:8000])
    with pytest.raises(UserError, match="cut.tar: it is damaged or cut off"):
        import_tars([tmp_path / "cut.tar"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.mp4")] == ["a.mp4"]
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match="no.tar: it is damaged or cut off"):
        import_tars([tmp_path / "no.tar"], tmp_path / "out")
    with pytest.raises(UserError, match="there is no file .*missing.tar"):
        import_tars([tmp_path / "missing.tar"], tmp_path / "out")
    tar_with(tmp_path / "empty.tar", [("a.jpg", b"x")])
    with pytest.raises(UserError, match="empty.tar hold no video"):
        import_tars([tmp_path / "empty.tar"], tmp_path / "out")
    tar_with(tmp_path / "twice.tar", [("a.mp4", b"1"), ("a.webm", b"2")])
    with pytest.raises(UserError, match="twice.tar has two videos of the key 'a'"):
        import_tars([tmp_path / "twice.tar"], tmp_path / "out")
    tar_with(tmp_path / "json.tar", [("a.mp4", b"1"), ("a.json", b"{")])
    with pytest.raises(UserError, match="json.tar has a member 'a.json' that cannot be read"):
        import_tars([tmp_path / "json.tar"], tmp_path / "out")
