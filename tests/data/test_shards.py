"""Shards of clips as a source: every clip once, at the right size, and damage by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from xgen_jax.curation import pack as packing
from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.encode import encode_clip
from xgen_jax.curation.pack import Clip, is_held_out, write_shard
from xgen_jax.curation.shard_index import finish
from xgen_jax.data import shards as reading
from xgen_jax.data.array_records import RecordWriter
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, ShardsConfig, VideoFolderConfig, nest_source
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.shards import ShardReader, verify
from xgen_jax.data.sources.factory import held_out_data, make_source
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError

CONFIG = PackConfig(tiers=(32, 64), held_out_fraction=0.4, crf=10)
VIDEOS, FRAMES = 8, 24


def gray(video, height, width):
    """Frames that show the number of the video in their upper half, their own in the lower."""
    frames = np.zeros((FRAMES, height, width, 3), np.uint8)
    frames[:, : height // 2] = 8 + 30 * video
    frames[:, height // 2 :] = (8 + 10 * np.arange(FRAMES))[:, None, None, None]
    return frames


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder of a curation: 8 videos of two clips of 12 frames in three shards; video 7 is of
    30x40, the others of 64x80. Video 6 has no caption."""
    root = tmp_path_factory.mktemp("curated")
    for number in range(VIDEOS):
        height, width = (30, 40) if number == 7 else (64, 80)
        write_video(root / f"{number}.mp4", gray(number, height, width), 12)
    for shard, numbers in enumerate(((0, 1, 2), (3, 4), (5, 6, 7))):
        clips = [
            Clip(
                id=f"{number}-{part}",
                path=str(root / f"{number}.mp4"),
                source=f"{number}.mp4",
                digest=f"{number}",
                start_s=float(part),
                end_s=part + 1.0,
                height=30 if number == 7 else 64,
                width=40 if number == 7 else 80,
                captions=() if number == 6 else (f"clip {number}", f"video number {number}"),
                scores={"motion": float(number)},
            )
            for number in numbers
            for part in (0, 1)
        ]
        write_shard(root / "shards", shard, clips, CONFIG)
    finish(root / "shards", 3, CONFIG)
    return root


HELD_OUT = [number for number in range(VIDEOS) if is_held_out(f"{number}", 0.4)]


def read(source, index, seed=0, shape=(3, 16, 20)):
    sample = source.read(index, np.random.default_rng((seed, index)), *shape)
    assert sample["video"].shape == (*shape, 3) and sample["video"].dtype == np.uint8
    return sample


def place(sample):
    """The number of the video, and those of the frames in it."""
    quarter = sample["video"].shape[1] // 4
    video = (sample["video"][:, :quarter].mean() - 8) / 30
    frames = (sample["video"][:, -quarter:].mean((1, 2, 3)) - 8) / 10
    assert abs(video - round(video)) < 0.2 and abs(frames - np.rint(frames)).max() < 0.3
    return round(video), np.rint(frames).astype(int).tolist()


def test_every_clip_once(packed):
    source = ShardSource(packed)
    assert len(source) == 16 and 0 < len(HELD_OUT) < VIDEOS
    seen = []
    for index in range(16):
        sample = read(source, index)
        video, frames = place(sample)
        start, part = frames[0], frames[0] // 12
        assert frames == [start, start + 1, start + 2]
        assert sample["fps"] == 12.0
        assert sample["caption"] in ("", f"clip {video}", f"video number {video}")
        assert (sample["caption"] == "") == (video == 6)
        assert source.where(index) == f"{video}.mp4 from {part}.00 s to {part + 1}.00 s"
        assert np.array_equal(sample["video"], read(source, index)["video"])
        seen.append((video, part))
    assert sorted(seen) == [(video, part) for video in range(VIDEOS) for part in (0, 1)]
    assert source.report() == "2 of 16 clips have no caption"
    assert source.rates() == {12.0: 16}


def test_starts_captions_and_mirrors_are_random(packed):
    source = ShardSource(packed, "train")
    samples = [read(source, 0, seed) for seed in range(60)]
    assert {place(sample)[1][0] % 12 for sample in samples} == set(range(10))
    assert len({sample["caption"] for sample in samples}) == 2
    for seed in (0, 1):
        rng = np.random.default_rng((seed, 0))
        assert source.caption(0, rng) == samples[seed]["caption"]


def test_a_short_clip_holds_its_last_frame(packed):
    sample = read(ShardSource(packed), 0, shape=(20, 16, 20))
    frames = place(sample)[1]
    first = frames[0] // 12 * 12
    assert frames == [*range(first, first + 12), *[first + 11] * 8]


def test_stride_and_rate(packed):
    source = ShardSource(packed, stride=2)
    assert np.diff(place(read(source, 0))[1]).tolist() == [2, 2] and source.rates() == {6.0: 16}
    assert ShardSource(packed, fps=4.0).rates() == {4.0: 16}
    assert source.extents()[:, 0].tolist() == [6] * 16
    for wrong in ({"fps": 0.0}, {"stride": 0}, {"split": "x"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            ShardSource(packed, **wrong)


def test_the_tier_is_the_smallest_that_covers(packed, monkeypatch):
    source = ShardSource(packed)
    read_tiers = []
    record = ShardReader.record

    def counted(self, shard, row, tier):
        read_tiers.append(tier)
        return record(self, shard, row, tier)

    monkeypatch.setattr(ShardReader, "record", counted)
    for shape, tier in (((1, 32, 40), 32), ((1, 40, 32), 64), ((1, 64, 80), 64), ((1, 99, 99), 64)):
        read_tiers.clear()
        for index in range(16):
            video, _ = place(read(source, index, shape=shape))
            assert read_tiers[-1] == (32 if video == 7 else tier)


def test_splits_share_no_video(packed):
    sources = {split: ShardSource(packed, split) for split in ("train", "held_out", "all")}
    videos = {
        split: [place(read(source, index))[0] for index in range(len(source))]
        for split, source in sources.items()
    }
    assert set(videos["held_out"]) == set(HELD_OUT)
    assert set(videos["train"]) == set(range(VIDEOS)) - set(HELD_OUT)
    assert sorted(videos["train"] + videos["held_out"]) == sorted(videos["all"])
    everything = sources["all"]
    marked = everything.held_out_clips()
    assert [videos["all"][index] for index in marked] == videos["held_out"]
    assert len(sources["train"].held_out_clips()) == 0
    extents = {split: source.extents().tolist() for split, source in sources.items()}
    assert [extents["all"][index] for index in marked] == extents["held_out"]
    by_video = [[12, 30, 40] if video == 7 else [12, 64, 80] for video in videos["train"]]
    assert extents["train"] == by_video
    assert len({source.fingerprint() for source in sources.values()}) == 3


def test_clips_go_to_the_buckets_that_they_fit(packed):
    source = ShardSource(packed)
    buckets = [
        Bucket(frames=5, height=64, width=80, batch_size=1),
        Bucket(frames=9, height=32, width=40, batch_size=1),
        Bucket(frames=13, height=32, width=40, batch_size=1),
    ]
    large, small, long = source.fit(buckets, 0)
    assert {place(read(source, index))[0] for index in small} == {7} and len(small) == 2
    assert sorted([*large, *small]) == list(range(16)) and len(long) == 0


def test_batches_do_not_depend_on_processes(packed):
    buckets = (
        Bucket(frames=3, height=16, width=20, batch_size=4),
        Bucket(frames=1, height=32, width=40, batch_size=2),
    )
    source = ShardsConfig(path=str(packed), split="all", flip=True)
    config = DataConfig(source=source, seed=3, buckets=buckets)
    whole = Pipeline(make_source(config), config)
    parts = [
        Pipeline(make_source(config), config, process_index=p, process_count=2) for p in (0, 1)
    ]
    assert {part.fingerprint() for part in parts} == {whole.fingerprint()}
    for step in range(8):
        batches = [part.batch(step) for part in parts]
        for name, values in whole.batch(step).items():
            assert np.array_equal(np.concatenate([batch[name] for batch in batches]), values), name
    with whole.iterate(5) as batches:
        step, batch = next(batches)
    assert step == 5 and np.array_equal(batch["video"], whole.batch(5)["video"])
    held_out, _ = held_out_data(dataclasses.replace(config, fit=True, buckets=buckets[:1]))
    assert len(held_out) == 2 * len(HELD_OUT)


def test_a_start_does_not_depend_on_the_number_of_clips(packed, monkeypatch):
    """Rows of the index are read with the first clip of a shard, and kept."""
    groups = []
    real = reading.pq.ParquetFile.read_row_group

    def counted(self, group, *args, **kwargs):
        groups.append(group)
        return real(self, group, *args, **kwargs)

    monkeypatch.setattr(reading.pq.ParquetFile, "read_row_group", counted)
    source = ShardSource(packed)
    source.rates(), source.fingerprint(), source.held_out_clips(), source.report()
    assert groups == []
    for index in (0, 1, 0, 15, 1):
        read(source, index)
    assert groups == [0, 2]
    # The caption to check before training is that of one clip.
    listed = list(source.captions())
    assert max(len(caption) for _, caption in listed) == len("video number 0") and len(listed) <= 4


def test_few_files_are_open(packed):
    reader = ShardReader(packed, open_files=2)
    for tier in (32, 64):
        for shard in range(3):
            assert reader.record(shard, 0, tier)[0]["id"] == reader.rows(shard)["id"][0]
    assert reader.open_files == 2


def test_equal_clips_have_equal_identities(packed, tmp_path):
    source = ShardSource(packed)
    identities = [source.identity(index) for index in range(16)]
    assert len(set(identities)) == 16
    shutil.copytree(packed / "shards", tmp_path / "moved")
    moved = ShardSource(tmp_path / "moved")
    assert [moved.identity(index) for index in range(16)] == identities
    assert moved.fingerprint() == source.fingerprint()
    assert ShardSource(packed, fps=6.0).identity(0) != identities[0]
    assert ShardSource(packed, fps=6.0).fingerprint() != source.fingerprint()


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed / "shards", tmp_path / "shards")
    return tmp_path / "shards"


def test_files_that_are_not_what_was_written_are_named(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    assert list(verify(copy)) == []
    file = copy / manifest["shards"][1]["files"]["64"]["file"]
    data = file.read_bytes()
    file.write_bytes(data[:1000])
    with pytest.raises(
        UserError, match=f"{file} has 1000 bytes instead of {len(data)}: it was cut"
    ):
        ShardSource(copy)
    file.unlink()
    with pytest.raises(UserError, match=f"{file} is missing; pack again"):
        ShardSource(copy)
    assert list(verify(copy)) == [f"{file} is missing"]
    middle = data.index(b"mdat") + 20
    file.write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])
    source = ShardSource(copy)
    with pytest.raises(UserError, match=f"record . of {file} cannot be read"):
        for index in range(16):
            read(source, index, shape=(1, 64, 80))
    assert list(verify(copy)) == [f"{file} is not what was written: its SHA-256 differs"]
    file.write_bytes(data)
    index = copy / "index.parquet"
    damaged = index.read_bytes()
    index.write_bytes(bytes(len(damaged)))
    with pytest.raises(UserError, match=f"{index} cannot be read"):
        ShardSource(copy)
    index.unlink()
    with pytest.raises(UserError, match=f"{index} is missing"):
        ShardSource(copy)


def test_a_record_of_another_clip_is_refused(copy):
    """A file of the right size, as after a mistake in copying."""
    manifest = json.loads((copy / "manifest.json").read_text())
    first = ShardReader(copy)
    records = [first.record(1, row, 64)[0] for row in range(4)]
    file = copy / manifest["shards"][1]["files"]["64"]["file"]
    with RecordWriter(file, file) as writer:
        for record in records[::-1]:
            writer.write(packing.pack(record))
    assert file.stat().st_size == manifest["shards"][1]["files"]["64"]["bytes"]
    with pytest.raises(UserError, match=f"record 0 of {file} is not of clip"):
        ShardReader(copy).record(1, 0, 64)


def test_folders_that_hold_none(packed, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        ShardSource(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no shards of clips"):
        ShardSource(tmp_path)
    shutil.copytree(packed / "shards", tmp_path / "shards")
    (tmp_path / "shards" / "manifest.json").unlink()
    with pytest.raises(UserError, match="shards holds no manifest.json: curation has not ended"):
        ShardSource(tmp_path)
    manifest = json.loads((packed / "shards" / "manifest.json").read_text())
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps({**manifest, "version": 9}))
    with pytest.raises(UserError, match="is of version 9, and this release reads version 1"):
        ShardSource(tmp_path)


def test_what_cannot_be_trained_on_is_refused(packed, tmp_path):
    everything = dataclasses.replace(CONFIG, held_out_fraction=0.0)
    clip = Clip(
        id="a",
        path=str(packed / "0.mp4"),
        source="0.mp4",
        digest="0",
        start_s=0.0,
        end_s=1.0,
        height=64,
        width=80,
    )
    write_shard(tmp_path, 0, [clip], everything, encode_clip)
    finish(tmp_path, 1, everything)
    with pytest.raises(UserError, match="none of the 1 clips.*split 'held_out'.*evaluate_every=0"):
        ShardSource(tmp_path, "held_out", require_captions=False)
    with pytest.raises(UserError, match="no clip in .* has a caption.*require_captions=False"):
        ShardSource(tmp_path)
    assert read(ShardSource(tmp_path, require_captions=False), 0)["caption"] == ""


def test_a_path_alone_decides(packed):
    buckets = (Bucket(frames=3, height=16, width=20, batch_size=2),)
    for path in (packed, packed / "shards"):
        data = {"source": {"kind": "synthetic", "path": str(path), "num_clips": 3, "flip": True}}
        assert nest_source(data)["source"] == {"kind": "shards", "path": str(path), "flip": True}
        made = make_source(DataConfig(source=ShardsConfig(path=str(path)), buckets=buckets))
        assert isinstance(made, ShardSource) and made.path == packed / "shards"
        with pytest.raises(UserError, match="holds shards of clips.*source.kind=shards"):
            make_source(DataConfig(source=VideoFolderConfig(path=str(path)), buckets=buckets))


def test_clips_of_more_shards_than_stay_open_come_once_an_epoch(packed, monkeypatch):
    source = ShardSource(packed)
    bucket = Bucket(frames=3, height=16, width=20, batch_size=2)
    assert source.file_starts([bucket]) is None  # three shards of two tiers
    monkeypatch.setattr("xgen_jax.data.sources.shards.OPEN_FILES", 5)
    starts = source.file_starts([bucket, bucket])
    assert starts is not None and [each.tolist() for each in starts] == [[0, 6, 10]] * 2
    config = DataConfig(source=ShardsConfig(path=str(packed)), buckets=(bucket,), num_threads=0)
    pipeline = Pipeline(source, config)
    taken = [index for step in range(8) for index in pipeline.batch(step)["index"].tolist()]
    assert sorted(taken) == list(range(16))
