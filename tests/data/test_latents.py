"""Latents on disk: written exactly once, also after interruptions; read only if they are intact."""

import concurrent.futures
import dataclasses
import hashlib
import json
import resource

import ml_dtypes
import numpy as np
import pytest

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, LatentsConfig, VideoFolderConfig
from xgen_jax.data.latent_shards import LatentReader, pack, unpack, verify
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.errors import UserError
from xgen_jax.files import write_json

SETTINGS = {
    "embedder": "e" * 16,
    "buckets": ["5x8x8", "1x8x8"],
    "clips": 11,
    "shard_size": 4,
    "dtype": "float32",
}
LATENTS = {"5x8x8": (2, 2, 2, 3), "1x8x8": (1, 2, 2, 3)}


def sample(bucket, index, text=False):
    rng = np.random.default_rng((index, len(bucket), bucket.startswith("1")))
    out = {
        "latents": rng.standard_normal(LATENTS[bucket], np.float32),
        "caption": f"clip {index} ☃",
    }
    if text:
        out["text"] = rng.standard_normal((1 + index % 4, 6), np.float32)
    return out


def write(path, bad=(), break_after=None, text=False, members=None, **changes):
    """Write the missing shards; `bad` clips cannot be read; stop after `break_after` clips."""
    writer = LatentWriter(path, {**SETTINGS, **changes}, members)
    count = 0

    def samples(bucket, shard):
        nonlocal count
        for index in writer.clips(bucket, shard):
            if count == break_after:
                raise KeyboardInterrupt
            count += 1
            yield index, f"no video {index}" if index in bad else sample(bucket, index, text)

    for bucket in writer.settings["buckets"]:
        for shard in range(writer.shards(bucket)):
            if not writer.finished(bucket, shard):
                writer.write(bucket, shard, samples(bucket, shard))
    writer.finish()
    return count


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


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


def write_version(path, version, text):
    """Write a folder as the releases with that version of the layout did."""
    path.mkdir(exist_ok=True)
    (path / "settings.json").write_text(json.dumps({"version": 2, **SETTINGS}))
    writer = LatentWriter(path, SETTINGS)
    for bucket in SETTINGS["buckets"]:
        for shard in range(writer.shards(bucket)):
            clips = {index: sample(bucket, index, text) for index in writer.clips(bucket, shard)}
            if version == 1 and text:
                for clip in clips.values():
                    tokens = len(clip["text"])
                    clip["text"] = np.pad(clip["text"], ((0, 4 - tokens), (0, 0)))
                    clip["text_mask"] = np.arange(4) < tokens
            writer.write(bucket, shard, clips.items())
    writer.finish()
    for name in ("settings.json", "manifest.json"):
        values = json.loads((path / name).read_text())
        assert values["version"] == 2
        write_json(path / name, values | {"version": version})


@pytest.mark.parametrize("version", [1, 2])
def test_folders_of_older_versions_give_the_same_clips(tmp_path, version):
    write_version(tmp_path / "old", version, text=True)
    write(tmp_path / "new", text=True)
    assert not list((tmp_path / "old").rglob("text-*"))
    for text in (True, False):
        old, new = (LatentSource(tmp_path / name, text=text) for name in ("old", "new"))
        for index in range(11):
            one, other = old.read(index, None, 5, 8, 8), new.read(index, None, 5, 8, 8)
            assert one.keys() == other.keys() and ("text" in one) == text
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
    assert list(verify(tmp_path / "old")) == []
    # Text that a run does not need takes no bytes to read, and no file.
    for file in (tmp_path / "new").rglob("text-*"):
        file.unlink()
    assert (
        LatentSource(tmp_path / "new", text=False).read(3, None, 5, 8, 8)["caption"] == "clip 3 ☃"
    )
    with pytest.raises(
        UserError, match=r"text-00000-of-00003.arrayrecord is missing; encode again"
    ):
        LatentSource(tmp_path / "new")


def test_a_folder_of_version_2_stays_what_it_is_until_its_data_changes(tmp_path):
    write_version(tmp_path, 2, text=True)
    before = contents(tmp_path)
    assert write(tmp_path, text=True) == 0 and contents(tmp_path) == before
    # Another encoding is none the less refused.
    with pytest.raises(UserError, match=r"otherwise.*\n  embedder: "):
        write(tmp_path, text=True, embedder="f" * 16)
    # One that broke off is continued in the version that it has.
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "5x8x8" / "shard-00001-of-00003.json").unlink()
    assert write(tmp_path, text=True) == 4
    assert contents(tmp_path) == before


def test_clips_of_a_changed_folder_of_version_2_move_to_the_new_layout(tmp_path):
    def encode(path, names, settings=SETTINGS):
        """Encode clips by their names; return those that were not taken over."""
        settings = {**settings, "clips": len(names), "buckets": ["5x8x8"], "source": "files"}
        settings["source_fingerprint"] = ",".join(map(str, names))
        writer = LatentWriter(path, settings, identity=lambda clip: f"file {names[clip]}")
        new = []

        def clips(shard):
            for number in writer.clips("5x8x8", shard):
                mark = f"file {names[number]}"
                if writer.reusable("5x8x8", mark):
                    yield number, writer.reuse("5x8x8", mark) | {"identity": mark}
                else:
                    new.append(names[number])
                    yield number, sample("5x8x8", names[number], True) | {"identity": mark}

        for shard in range(writer.shards("5x8x8")):
            if not writer.finished("5x8x8", shard):
                writer.write("5x8x8", shard, clips(shard))
        writer.finish()
        return new

    tmp_path.joinpath("old").mkdir()
    older = {"version": 2, **SETTINGS, "clips": 5, "buckets": ["5x8x8"], "source": "files"}
    older["source_fingerprint"] = "0,1,2,3,4"
    (tmp_path / "old" / "settings.json").write_text(json.dumps(older))
    assert encode(tmp_path / "old", [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "old" / "manifest.json").read_text())["version"] == 2
    for _ in range(2):  # from version 2 to 3, and within 3
        names = [0, 2, 3, 4, 7] if not list((tmp_path / "old").rglob("text-*")) else [0, 2, 7, 8]
        assert encode(tmp_path / "old", names) == names[-1:]
        encode(tmp_path / f"new{len(names)}", names)
        assert contents(tmp_path / "old") == contents(tmp_path / f"new{len(names)}")


def test_text_has_files_of_its_own_without_padding(tmp_path):
    writer = LatentWriter(tmp_path, {**SETTINGS, "clips": 4, "text_length": 6})
    rows = [
        np.random.default_rng(n).standard_normal((n, 3)).astype(ml_dtypes.bfloat16)
        for n in range(4)
    ]
    for bucket in SETTINGS["buckets"]:
        records = ((index, sample(bucket, index) | {"text": rows[index]}) for index in range(4))
        writer.write(bucket, 0, records)
    writer.finish()
    source = LatentSource(tmp_path)
    for index, row in enumerate(rows):
        clip = source.read(index, None, 5, 8, 8)
        assert clip["text"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(clip["text"], row)
        # A run that embeds captions by itself gets none.
        alone = LatentSource(tmp_path, text=False).read(index, None, 5, 8, 8)
        assert alone.keys() == clip.keys() - {"text"}
        assert clip["latents"].dtype == np.float32
    assert len(pack(0, {"text": rows[1]})) + 2 * 3 * 2 == len(pack(0, {"text": rows[3]}))
    with pytest.raises(ValueError, match="some clips of .* have text, and some have none"):
        mixed = [(index, sample("5x8x8", index, text=index > 0)) for index in range(4)]
        writer.write("5x8x8", 0, mixed)


def test_damage_of_text_is_found_and_the_file_named(tmp_path):
    write(tmp_path, text=True)
    file = tmp_path / "5x8x8" / "text-00001-of-00003.arrayrecord"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(
        UserError, match=r"text-00001-of-00003.arrayrecord has \d+ bytes instead of"
    ):
        LatentSource(tmp_path)
    file.write_bytes(good[:200] + bytes(byte ^ 255 for byte in good[200:264]) + good[264:])
    assert "text-00001-of-00003.arrayrecord is not what was written" in next(verify(tmp_path))
    source = LatentSource(tmp_path)
    with pytest.raises(UserError, match=r"record . of .*text-00001-of-00003.* cannot be read"):
        for index in range(4, 8):
            source.read(index, None, 5, 8, 8)
    # A shard whose text was lost is written again, with the same bytes.
    file.unlink()
    assert write(tmp_path, text=True) == 4 and file.read_bytes() == good
    file.write_bytes((tmp_path / "5x8x8" / "text-00000-of-00003.arrayrecord").read_bytes())
    with pytest.raises(UserError, match=r"text-00001.* is not clip 4"):
        LatentSource(tmp_path).read(4, None, 5, 8, 8)


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


def test_a_folder_of_an_older_release_keeps_its_fingerprint(tmp_path):
    """Runs that were trained on it resume, even if it was encoded again, which does nothing."""
    write(tmp_path, break_after=None)
    for marker in tmp_path.glob("*x8x8/*.json"):
        entry = json.loads(marker.read_text())
        assert entry.pop("longest_caption") and entry.pop("rates")
        marker.write_text(json.dumps(entry))
    (tmp_path / "manifest.json").unlink()
    assert write(tmp_path) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest.keys() == {"version", *SETTINGS, "shards"}
    keys = {"file", "count", "bytes", "sha256", "left_out"}
    assert all(row.keys() == keys for rows in manifest["shards"].values() for row in rows)
    source = LatentSource(tmp_path)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    assert source.fingerprint() == digest and list(source.captions()) == []
    # Nor does it change with some shards written by this release.
    next(tmp_path.glob("5x8x8/*.json")).unlink()
    assert write(tmp_path) > 0
    assert LatentSource(tmp_path).fingerprint() == digest


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


@pytest.mark.parametrize("version", [2, 3])
def test_the_memory_of_a_clip_is_known_before_it_is_read(tmp_path, version):
    """About: latents as float32, and the mean of the text as it is stored."""
    settings = {**SETTINGS, "clips": 40, "shard_size": 40}
    if version == 2:
        (tmp_path / "settings.json").write_text(json.dumps({"version": 2, **settings}))
    writer, rng = LatentWriter(tmp_path, settings), np.random.default_rng(0)
    for bucket, shape in LATENTS.items():
        clips = [
            {
                "latents": rng.standard_normal(shape).astype(np.float16),
                "text": rng.standard_normal((index % 8, 4096), np.float32),
                "caption": "",
            }
            for index in range(40)
        ]
        writer.write(bucket, 0, enumerate(clips))
    writer.finish()
    for bucket in (Bucket(frames=frames, height=8, width=8, batch_size=1) for frames in (5, 1)):
        source = LatentSource(tmp_path)
        clips = [source.read(index, None, *bucket.shape) for index in range(40)]
        mean = np.mean([clip["latents"].nbytes + clip["text"].nbytes for clip in clips])
        assert 0.9 * mean < source.clip_bytes(bucket) < 1.2 * mean
        without = LatentSource(tmp_path, text=False)
        assert without.clip_bytes(bucket) == clips[0]["latents"].nbytes
