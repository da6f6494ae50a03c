"""Latents on disk: written exactly once, also after interruptions; read only if they are intact."""

import concurrent.futures
import dataclasses
import json
import resource

import ml_dtypes
import numpy as np
import pytest
from small_latents import LATENTS, SETTINGS, contents, sample, write

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, LatentsConfig, VideoFolderConfig
from xgen_jax.data.latent_shards import LatentReader, pack, unpack, verify
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.errors import UserError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, bool])
def test_a_record_comes_back_as_it_was(dtype):
    array = np.random.default_rng(0).standard_normal((2, 1, 3, 4)).astype(dtype)
    back = unpack(pack(7, {"latents": array, "caption": "Ein Hündchen"}))
    assert back["latents"].dtype == array.dtype
    np.testing.assert_array_equal(back.pop("latents"), array)
    assert back == {"index": 7, "caption": "Ein Hündchen"}


def test_every_clip_is_read_as_it_was_written(tmp_path):
    write(tmp_path / "whole", text=True)
    source = LatentSource(tmp_path / "whole")
    assert len(source) == 11
    for bucket, shape in (("5x8x8", (5, 8, 8)), ("1x8x8", (1, 8, 8))):
        for index in range(11):
            got, wanted = source.read(index, None, *shape), sample(bucket, index, text=True)
            assert got.keys() == wanted.keys()
            for name in got:
                np.testing.assert_array_equal(got[name], wanted[name])
    with pytest.raises(IndexError):
        source.read(11, None, 5, 8, 8)
    assert list(verify(tmp_path / "whole")) == []


@pytest.mark.parametrize("break_after", [0, 1, 4, 6, 8, 13, 21])
def test_a_run_that_broke_off_ends_with_the_same_bytes(tmp_path, break_after):
    assert write(tmp_path / "straight", bad={2}, text=True) == 22
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "broken", bad={2}, break_after=break_after, text=True)
    assert not list((tmp_path / "broken").rglob("*.tmp*"))
    with pytest.raises(UserError, match="encoding has not ended"):
        LatentSource(tmp_path / "broken")
    # A killed process leaves a half-written shard under its temporary name.
    (tmp_path / "broken" / "5x8x8").mkdir(exist_ok=True)
    stale = tmp_path / "broken" / "5x8x8" / ".shard-00002-of-00003.0123abcd.tmp.arrayrecord"
    if break_after <= 8:
        stale.write_bytes(b"half a shard")
    left = write(tmp_path / "broken", bad={2}, text=True)
    finished = {0: 0, 1: 0, 4: 4, 6: 4, 8: 8, 13: 11, 21: 19}[break_after]  # clips of whole shards
    assert left == 22 - finished
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")
    assert write(tmp_path / "broken", bad={2}, text=True) == 0


def test_a_shard_without_its_commit_marker_does_not_count(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "5x8x8" / "shard-00001-of-00003.json").unlink()
    (tmp_path / "1x8x8" / "shard-00002-of-00003.arrayrecord").write_bytes(b"cut off")
    assert write(tmp_path) == 4 + 3
    assert contents(tmp_path) == before


def test_another_encoding_in_the_folder_is_refused_and_touches_nothing(tmp_path):
    write(tmp_path / "latents")
    before = contents(tmp_path / "latents")
    with pytest.raises(
        UserError, match=r"otherwise.*\n  embedder: 'e+' -> 'f+'\n  shard_size: 4 -> 5\n"
    ):
        write(tmp_path / "latents", embedder="f" * 16, shard_size=5)
    assert contents(tmp_path / "latents") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no latents"):
        write(tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["a.txt"]
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "thesis" / "a.txt")


def test_clips_left_out_are_replaced_by_the_next(tmp_path):
    write(tmp_path, bad={0, 4, 5, 10})
    source = LatentSource(tmp_path)
    captions = [source.read(index, None, 5, 8, 8)["caption"] for index in range(11)]
    wanted = [1, 1, 2, 3, 6, 6, 6, 7, 8, 9, 1]
    assert captions == [f"clip {index} ☃" for index in wanted]
    with pytest.raises(UserError, match="not one clip of 5x8x8 could be read: no video 8"):
        write(tmp_path / "none", bad=set(range(11)))


def test_a_bucket_has_but_its_own_clips(tmp_path):
    members = {"5x8x8": np.array([1, 3, 4, 7, 8, 9]), "1x8x8": np.array([0, 10])}
    assert write(tmp_path / "straight", bad={3, 10}, members=members) == 8
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "broken", bad={3, 10}, break_after=5, members=members)
    assert write(tmp_path / "broken", bad={3, 10}, members=members) == 4
    assert contents(tmp_path / "broken") == contents(tmp_path / "straight")
    for bucket in members:
        for marker in (tmp_path / "straight" / bucket).glob("*.json"):
            assert set(json.loads(marker.read_text())["left_out"]) <= {"3", "10"}, (
                "files elsewhere do not matter"
            )
    source = LatentSource(tmp_path / "straight")
    five, one = (Bucket(frames=frames, height=8, width=8, batch_size=1) for frames in (5, 1))
    assert [clips.tolist() for clips in source.fit([five, one], 0)] == [[1, 4, 7, 8, 9], [0]]
    assert source.clips_for(five).tolist() == [1, 4, 7, 8, 9]
    read = [source.read(index, None, 5, 8, 8)["caption"] for index in range(11)]
    assert read == [f"clip {index} ☃" for index in (1, 1, 4, 4, 4, 7, 7, 7, 8, 9, 1)]
    np.testing.assert_array_equal(
        source.read(7, None, 5, 8, 8)["latents"], sample("5x8x8", 7)["latents"]
    )
    assert source.read(5, None, 1, 8, 8)["caption"] == "clip 0 ☃"


def test_a_bucket_whose_few_clips_are_all_broken_is_not_there(tmp_path):
    members = {"5x8x8": np.array([1, 3, 4]), "1x8x8": np.array([2])}
    write(tmp_path / "one", bad={2}, members=members)
    source = LatentSource(tmp_path / "one")
    assert [
        len(clips) for clips in source.fit([Bucket(frames=1, height=8, width=8, batch_size=1)], 0)
    ] == [0]
    assert source.bucket_names == ("5x8x8",)  # what can be read
    with pytest.raises(UserError, match="no latents of 1x8x8"):
        source.read(2, None, 1, 8, 8)
    with pytest.raises(UserError, match="not one clip of 1x8x8 could be read: no video 2"):
        write(tmp_path / "none", bad={1, 2, 3, 4}, members=members)


def test_other_members_and_a_damaged_list_of_them_are_refused(tmp_path):
    members = {"5x8x8": np.array([1, 3, 4])}
    write(tmp_path, members=members)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"encoded otherwise.*\n  members: "):
        write(tmp_path, members={"5x8x8": np.array([1, 3, 5])})
    assert contents(tmp_path) == before
    listed = tmp_path / "5x8x8" / "clips.npy"
    good = listed.read_bytes()
    for bad in (good[:-8], good[:-1] + b"\1", b""):
        listed.write_bytes(bad)
        with pytest.raises(UserError, match=r"clips.npy (is not what was written|cannot be read)"):
            LatentSource(tmp_path)
        assert "clips.npy" in next(verify(tmp_path))
    listed.unlink()
    with pytest.raises(UserError, match="clips.npy is missing"):
        LatentSource(tmp_path)
    assert write(tmp_path, members=members) == 0 and contents(tmp_path) == before


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        LatentSource(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no manifest.json: it holds no latents"):
        LatentSource(tmp_path)
    write(tmp_path / "latents")
    source = LatentSource(tmp_path / "latents")
    with pytest.raises(UserError, match=r"no latents of 9x8x8 .*it has 5x8x8, 1x8x8"):
        source.read(0, None, 9, 8, 8)
    manifest = tmp_path / "latents" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    with pytest.raises(
        UserError, match="of version 99, and this release reads versions 1, 2, 3; encode again"
    ):
        LatentSource(tmp_path / "latents")


def test_damage_is_found_and_the_file_named(tmp_path):
    write(tmp_path)
    shard = tmp_path / "5x8x8" / "shard-00001-of-00003.arrayrecord"
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    with pytest.raises(
        UserError, match=r"shard-00001-of-00003.arrayrecord has \d+ bytes instead of \d+"
    ):
        LatentSource(tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001-of-00003.arrayrecord is missing"):
        LatentSource(tmp_path)
    assert [line.split("/")[-1] for line in verify(tmp_path)] == [
        "shard-00001-of-00003.arrayrecord is missing"
    ]
    # Flipped bits do not change the size: the record's own checksum finds them when it is read,
    # `verify` before.
    shard.write_bytes(good[:200] + bytes(byte ^ 255 for byte in good[200:264]) + good[264:])
    source = LatentSource(tmp_path)
    assert "SHA-256 differs" in next(verify(tmp_path))
    with pytest.raises(
        UserError, match=r"record . of .*shard-00001-of-00003.arrayrecord cannot be read"
    ):
        for index in range(4, 8):
            source.read(index, None, 5, 8, 8)
    # Another shard in its place; files are padded, so the size is the same.
    shard.write_bytes((tmp_path / "5x8x8" / "shard-00000-of-00003.arrayrecord").read_bytes())
    with pytest.raises(UserError, match="is not clip 4"):
        LatentSource(tmp_path).read(4, None, 5, 8, 8)


def test_low_precision_is_read_as_float32(tmp_path):
    writer = LatentWriter(
        tmp_path, {**SETTINGS, "buckets": ["5x8x8"], "clips": 2, "dtype": "bfloat16"}
    )
    arrays = [sample("5x8x8", index)["latents"].astype(ml_dtypes.bfloat16) for index in range(2)]
    writer.write(
        "5x8x8", 0, [(i, {"latents": array, "caption": ""}) for i, array in enumerate(arrays)]
    )
    writer.finish()
    got = LatentSource(tmp_path).read(1, None, 5, 8, 8)["latents"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, arrays[1].astype(np.float32))


def test_many_threads_read_what_one_reads(tmp_path):
    write(tmp_path)
    source = LatentSource(tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        indices = [int(i) for i in np.random.default_rng(0).integers(0, 11, 500)]
        got = list(pool.map(lambda index: source.read(index, None, 5, 8, 8), indices))
    for index, clip in zip(indices, got):
        np.testing.assert_array_equal(clip["latents"], sample("5x8x8", index)["latents"])


def test_more_shards_than_may_be_open(tmp_path):
    write(tmp_path, shard_size=1)
    reader = LatentReader(tmp_path, open_shards=2)
    for index in (0, 5, 10, 3, 0, 7, 5):
        clip = reader.read("1x8x8", reader.place("1x8x8", index))
        np.testing.assert_array_equal(clip["latents"], sample("1x8x8", index)["latents"])
    assert reader.open_shards == 2


def test_the_system_is_asked_for_as_many_files_as_stay_open(tmp_path):
    write(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        LatentReader(tmp_path)
        raised, still = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert still == hard
    assert raised == 8192 if hard == resource.RLIM_INFINITY else raised == min(8192, hard)


def test_the_longest_caption_is_known_without_reading_all(tmp_path):
    # "☃" has three bytes, so that clip 10 is the longest, and first in 5x8x8.
    write(tmp_path / "all", text=True)
    (where, caption), *others = LatentSource(tmp_path / "all").captions()
    assert (where, caption, others) == (f"clip 10 of {tmp_path / 'all'}", "clip 10 ☃", [])
    manifest = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert manifest["longest_caption"] == {"bytes": 11, "clip": 10, "bucket": "5x8x8"}
    members = {"5x8x8": np.array([1, 3, 4, 7]), "1x8x8": np.array([0, 9, 10])}
    write(tmp_path / "some", bad={7, 10}, members=members)
    (where, caption), *_ = LatentSource(tmp_path / "some").captions()
    assert caption == "clip 1 ☃"


def test_latents_go_through_the_pipeline(tmp_path):
    write(tmp_path / "a", text=True)
    buckets = (
        Bucket(frames=5, height=8, width=8, batch_size=4),
        Bucket(frames=1, height=8, width=8, batch_size=2),
    )
    config = DataConfig(source=LatentsConfig(path=str(tmp_path / "a")), buckets=buckets)
    pipeline = Pipeline(make_source(config), config)
    with pipeline.iterate() as batches:
        for _ in range(6):
            step, batch = next(batches)
            bucket = pipeline.bucket(step)
            assert batch["latents"].shape == (bucket.batch_size, *LATENTS[f"{bucket.frames}x8x8"])
            assert [text.shape for text in batch["text"]] == [
                (1 + index % 4, 6) for index in batch["index"]
            ]
            assert batch["caption"] == [f"clip {index} ☃" for index in batch["index"]]
    without = Pipeline(make_source(config, text=False), config)
    assert "text" not in without.batch(0)
    assert without.fingerprint() == pipeline.fingerprint()
    # The folder may move; other bytes are another source.
    (tmp_path / "a").rename(tmp_path / "b")
    moved = LatentSource(tmp_path / "b")
    write(tmp_path / "c", bad={3}, text=True)
    there = dataclasses.replace(config, source=LatentsConfig(path=str(tmp_path / "b")))
    assert moved.fingerprint() == make_source(there).fingerprint()
    assert moved.fingerprint() != LatentSource(tmp_path / "c").fingerprint()
    with pytest.raises(UserError, match="holds latents.*give --config.data.source.kind=latents"):
        make_source(dataclasses.replace(config, source=VideoFolderConfig(path=str(tmp_path / "b"))))


def test_clips_of_more_shards_than_stay_open_come_once_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("xgen_jax.data.sources.latents.OPEN_FILES", 4)
    members = {"5x8x8": np.array([0, 1, 3, 4, 7, 8, 9, 10])}
    write(tmp_path, bad={3, 8}, members=members)
    five, one = (Bucket(frames=frames, height=8, width=8, batch_size=1) for frames in (5, 1))
    source = LatentSource(tmp_path)
    assert source.file_starts([one]) is None
    starts = source.file_starts([five, one])
    assert starts is not None and [each.tolist() for each in starts] == [[0, 7], [0, 4, 8]]
    config = DataConfig(
        source=LatentsConfig(path=str(tmp_path)), buckets=(five, one), fit=True, num_threads=0
    )
    pipeline = Pipeline(source, config)
    taken = {five: [], one: []}
    for step in range(30):
        taken[pipeline.bucket(step)] += pipeline.batch(step)["index"].tolist()
    assert sorted(taken[five][:6]) == [0, 1, 4, 7, 9, 10]
    assert sorted(taken[one][:9]) == [0, 1, 2, 4, 5, 6, 7, 9, 10]
