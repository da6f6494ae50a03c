"""Packing: small files that show what the video shows, in shards that a kill never spoils."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from xgen_jax import files
from xgen_jax.curation import pack
from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.encode import encode_clip
from xgen_jax.curation.pack import Clip, is_held_out, write_shard
from xgen_jax.curation.shard_index import finish
from xgen_jax.data.array_records import OpenRecords
from xgen_jax.data.shard_layout import stored_size, tiers_for, unpack
from xgen_jax.data.video import read_video
from xgen_jax.data.video_file import VideoBytes
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError

CONFIG = PackConfig(tiers=(32, 64), held_out_fraction=0.4, buckets="5x64x96,9x32x48")


def moving(seed=0, frames=48, height=64, width=96):
    """Smooth colours that move: what a codec keeps."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = [
        128 + 100 * np.sin(a * t + b * y + c * x) for a, b, c in rng.uniform(-0.2, 0.2, (3, 3))
    ]
    return np.stack(waves, -1).astype(np.uint8)


def psnr(one, other):
    return -10 * np.log10(np.mean((one.astype(float) - other) ** 2) / 255**2)


def decoded(data, **options):
    return read_video(VideoBytes("clip", data), **options)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of 2 s at 24 fps, 64x96, and one of 30x46."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"{number}.mp4", moving(number), 24)
    write_video(folder / "small.mp4", moving(9, height=30, width=46), 24)
    return folder


def clips(videos, names=("0", "1", "2", "small"), **changes):
    """Two clips of each video."""
    made = []
    for name in names:
        size = {"height": 30, "width": 46} if name == "small" else {"height": 64, "width": 96}
        for start_s in (0.0, 1.0):
            clip = Clip(
                id=f"{name}-{start_s:g}",
                path=str(videos / f"{name}.mp4"),
                source=f"{name}.mp4",
                digest=f"digest of {name}",
                start_s=start_s,
                end_s=start_s + 0.75,
                captions=(f"video {name}",),
                scores={"motion": 0.5 + start_s, "text": float("nan")},
                **size,
            )
            made.append(dataclasses.replace(clip, **changes))
    return made


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Counted:
    """`encode_clip`, with a list of what it was called for."""

    def __init__(self):
        self.calls = []

    def __call__(self, path, start_s, end_s, tiers, config):
        self.calls.append((pathlib.Path(path).stem, start_s, tuple(tiers)))
        return encode_clip(path, start_s, end_s, tiers, config)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_clip_has_the_same_bytes_each_time(tmp_path, seed):
    write_video(tmp_path / "a.mp4", moving(seed), 24)
    one, other = (encode_clip(tmp_path / "a.mp4", 0.25, 1.5, (32, 64), CONFIG) for _ in range(2))
    assert one.media == other.media and one.frames == 30 and one.fps == 24
    # Nor do they depend on which tiers are made together.
    assert encode_clip(tmp_path / "a.mp4", 0.25, 1.5, (32,), CONFIG).media[32] == one.media[32]


def test_a_clip_shows_what_the_video_shows(videos):
    config = dataclasses.replace(CONFIG, crf=6)  # the small picture has no pixel to spare
    encoded = encode_clip(videos / "0.mp4", 0.5, 1.25, (32, 64), config)
    truth, _ = read_video(videos / "0.mp4", start_s=0.5, frames=18)
    video, fps = decoded(encoded.media[64])
    assert video.shape == truth.shape == (18, 64, 96, 3) and fps == 24
    assert psnr(video, truth) > 35
    small, _ = decoded(encoded.media[32])
    truth, _ = read_video(videos / "0.mp4", start_s=0.5, frames=18, cover=(32, 48))
    assert small.shape == (18, 32, 48, 3) and psnr(small, truth) > 35


def test_a_file_has_short_groups_no_b_frames_and_tags(videos):
    config = dataclasses.replace(CONFIG, gop_s=0.25)
    data = encode_clip(videos / "0.mp4", 0.0, 2.0, (64,), config).media[64]
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.colorspace == stream.codec_context.color_range == 1
        assert stream.codec_context.color_primaries == stream.codec_context.color_trc == 1
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == list(
            range(0, 48, 6)
        )


def write_with_av(path, video, fps=24, *, ticks=None, rotation=0, bt601=False):
    """Write a video with frames at given multiples of 1/fps s, turned, or in BT.601."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "8"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if bt601:
            codec = stream.codec_context
            codec.colorspace = codec.color_primaries = codec.color_trc = 6
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if bt601:
                frame = frame.reformat(format="yuv420p", dst_colorspace="itu601")
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_turned_video_is_stored_upright(tmp_path):
    write_with_av(tmp_path / "a.mov", moving(3, 12), rotation=90)
    truth, _ = read_video(tmp_path / "a.mov")
    video, _ = decoded(encode_clip(tmp_path / "a.mov", 0, 0.5, (64,), CONFIG).media[64])
    assert video.shape == truth.shape == (12, 96, 64, 3) and psnr(video, truth) > 30


def test_colours_of_bt601_are_kept_and_tagged(tmp_path):
    """Saturated colours differ by tens of levels where the matrix is mistaken."""
    flat = np.zeros((12, 64, 96, 3), np.uint8)
    flat[:, :, :32], flat[:, :, 32:64], flat[:, :, 64:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
    )
    write_with_av(tmp_path / "601.mp4", flat, 24, bt601=True)
    truth, _ = read_video(tmp_path / "601.mp4")
    assert abs(truth[:, 16:48, 8:24].astype(int) - flat[:, 16:48, 8:24]).max() <= 4
    data = encode_clip(tmp_path / "601.mp4", 0, 0.5, (64,), CONFIG).media[64]
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].codec_context.colorspace == 6
    video, _ = decoded(data)
    for left in (8, 40, 72):
        part = (slice(None), slice(16, 48), slice(left, left + 16))
        assert abs(video[part].astype(int) - truth[part]).max() <= 4


def test_a_variable_rate_becomes_constant(tmp_path):
    """Each frame is as bright as its time in units of 0.1 s."""
    seconds = np.array([0.0, 0.1, 0.2, 0.5, 0.6, 1.0, 1.1, 1.2, 1.3, 1.9])
    video = np.repeat(20 + seconds * 100, 64 * 96 * 3).reshape(-1, 64, 96, 3).astype(np.uint8)
    ticks = np.rint(seconds * 10).astype(int).tolist()
    write_with_av(tmp_path / "a.mkv", video, 10, ticks=ticks)
    encoded = encode_clip(tmp_path / "a.mkv", 0.0, 1.9, (64,), CONFIG)
    shown, fps = decoded(encoded.media[64])
    times = np.arange(len(shown)) / fps
    assert len(shown) == encoded.frames and len(shown) / fps == pytest.approx(1.9, abs=1.5 / fps)
    on_display = seconds[np.searchsorted(seconds, times + 1e-3, side="right") - 1]
    assert abs(shown.mean((1, 2, 3)) - (20 + on_display * 100)).max() < 4


def test_a_fast_video_is_stored_at_a_whole_fraction_of_its_rate(tmp_path):
    video = np.repeat(np.arange(60) * 4, 64 * 96 * 3).reshape(60, 64, 96, 3).astype(np.uint8)
    write_video(tmp_path / "a.mp4", video, 60)
    for limit, fps in ((30.0, 30), (59.0, 30), (24.0, 20), (60.0, 60)):
        encoded = encode_clip(
            tmp_path / "a.mp4", 0.0, 1.0, (64,), dataclasses.replace(CONFIG, fps=limit)
        )
        shown, rate = decoded(encoded.media[64])
        assert rate == encoded.fps == fps and len(shown) == encoded.frames == fps
        assert abs(shown.mean((1, 2, 3)) - np.arange(0, 240, 240 // fps)).max() < 4


def test_a_clip_after_the_end_is_refused(videos):
    with pytest.raises(UserError, match="0.mp4 from 1.5 s to 3 s: it has 12 frames.* 36 were"):
        encode_clip(videos / "0.mp4", 1.5, 3.0, (64,), CONFIG)
    with pytest.raises(UserError, match="ends before"):
        encode_clip(videos / "0.mp4", 5.0, 6.0, (64,), CONFIG)
    with pytest.raises(UserError, match="before its start"):
        encode_clip(videos / "0.mp4", 1.0, 1.0, (64,), CONFIG)


def test_tiers_and_sizes():
    tiers = (256, 480, 720)
    assert tiers_for(1080, 1920, tiers) == [256, 480, 720]
    assert tiers_for(848, 480, tiers) == [256, 480]
    assert tiers_for(680, 1208, tiers) == [256, 480, 720]  # 0.89 of 720p's area
    assert tiers_for(120, 160, tiers) == [256]
    assert stored_size(1080, 1920, 720) == (720, 1280)
    assert stored_size(480, 854, 256) == (256, 456)
    assert stored_size(1920, 1080, 256) == (456, 256)
    assert stored_size(680, 1208, 720) == (680, 1208)
    assert stored_size(121, 161, 256) == (120, 160)


def test_a_shard(tmp_path, videos):
    encode = Counted()
    marker = write_shard(tmp_path, 3, clips(videos)[::-1], CONFIG, encode)
    held_out = [is_held_out(f"digest of {name}", 0.4) for name in ("0", "1", "2", "small")]
    assert 0 < sum(held_out) < 4
    splits = [row["split"] for row in marker["rows"]]
    assert splits == sorted(splits, reverse=True), "train, then held_out"
    ids = [row["id"] for row in marker["rows"]]
    assert ids == sorted(ids, key=lambda i: (is_held_out(f"digest of {i[:-2]}", 0.4), i))
    assert marker["counts"] == {"held_out": 2 * sum(held_out), "train": 8 - 2 * sum(held_out)}
    assert sorted(call for call in encode.calls if call[0] == "small") == [
        ("small", 0.0, (32,)),
        ("small", 1.0, (32,)),
    ]
    assert {call[2] for call in encode.calls if call[0] != "small"} == {(32, 64)}
    assert [marker["files"][tier]["count"] for tier in ("32", "64")] == [8, 6]
    records = OpenRecords(2)
    for row in marker["rows"]:
        for tier, place in row["records"].items():
            file = tmp_path / marker["files"][tier]["file"]
            record = unpack(records.read(file, place), "")
            name = row["source"].removesuffix(".mp4")
            assert record["id"] == row["id"] and record["captions"] == [f"video {name}"]
            assert record["scores"] == {"motion": 0.5 + row["start_s"], "text": None}
            video, fps = decoded(record["media"])
            assert video.shape[:3] == (record["frames"], record["height"], record["width"])
            assert min(video.shape[1:3]) == (30 if name == "small" else int(tier))
            assert fps == record["fps"] == 24 and record["frames"] == row["frames"] == 18
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".arrayrecord"}
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_is_encoded_twice(tmp_path, videos):
    first = write_shard(tmp_path, 0, clips(videos), CONFIG)
    before, encode = contents(tmp_path), Counted()

    def again(made, config=CONFIG):
        encode.calls.clear()
        marker = write_shard(tmp_path, 0, made, config, encode)
        assert marker["left_out"] == {}
        return marker

    assert again(clips(videos)) == first and not encode.calls
    assert contents(tmp_path) == before
    # Other captions: the files of the clips are copied.
    other = again(clips(videos, captions=("x", "y")))
    assert not encode.calls and len(list(tmp_path.iterdir())) == 3
    file = tmp_path / other["files"]["32"]["file"]
    record = unpack(OpenRecords(1).read(file, 0), "")
    old = first["rows"][0]
    assert record["captions"] == ["x", "y"] and record["id"] == old["id"]
    # As before: the same bytes as ever.
    again(clips(videos))
    assert not encode.calls and contents(tmp_path) == before
    # Another video, and one less.
    again(clips(videos, ("0", "1", "4")))
    assert [call[0] for call in encode.calls] == ["4", "4"]
    # A tier more costs that tier.
    again(clips(videos, ("0", "1", "4")), dataclasses.replace(CONFIG, tiers=(16, 32, 64)))
    assert {call[2] for call in encode.calls} == {(16,)}
    # A damaged file is made again.
    marker = json.loads((tmp_path / "shard-00000.json").read_text())
    (tmp_path / marker["files"]["64"]["file"]).write_bytes(b"")
    again(clips(videos, ("0", "1", "4")), dataclasses.replace(CONFIG, tiers=(16, 32, 64)))
    assert {call[2] for call in encode.calls} == {(64,)}
    again(clips(videos, ("0",)), dataclasses.replace(CONFIG, crf=30))
    assert len(encode.calls) == 2


def test_clips_that_cannot_be_encoded_are_left_out(tmp_path, videos):
    made = clips(videos, ("0", "1"))
    made[1] = dataclasses.replace(made[1], end_s=9.0)
    marker = write_shard(tmp_path, 0, made, CONFIG)
    assert list(marker["left_out"]) == [made[1].id] and len(marker["rows"]) == 3
    encode = Counted()
    assert write_shard(tmp_path, 0, made, CONFIG, encode) == marker and not encode.calls
    # Tried again under other limits, or when asked; the others are copied.
    for limits, errors_count in (("more", True), ("more", False)):
        again = write_shard(tmp_path, 0, made, CONFIG, encode, limits, errors_count)
        assert len(encode.calls) == 1 and again == {**marker, "limits": "more"}
        encode.calls.clear()
    assert "it has 24 frames there" in marker["left_out"][made[1].id]
    with pytest.raises(UserError, match="two clips with the id 0-0"):
        write_shard(tmp_path, 0, [made[0], made[0]], CONFIG)


def packed(folder, videos, config=CONFIG, names=(("0", "1"), (), ("2", "small", "3")), **changes):
    for number, some in enumerate(names):
        write_shard(folder, number, clips(videos, some, **changes), config)
    return finish(folder, len(names), config, {"kept": 0.5})


def test_the_index_and_the_manifest(tmp_path, videos):
    manifest = packed(tmp_path, videos)
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert sum(manifest["clips"].values()) == 10 and manifest["about"] == {"kept": 0.5}
    assert manifest["captioned"] == manifest["clips"] and len(manifest["shards"]) == 2
    assert manifest["buckets"] == {"5x64x96": 8, "9x32x48": 2}
    assert manifest["rates"]["train"] == {"24": manifest["clips"]["train"]}
    index = pq.ParquetFile(tmp_path / "index.parquet")
    assert index.num_row_groups == 2
    rows = index.read().to_pylist()
    assert {row["id"] for row in rows} == {clip.id for clip in clips(videos, "0123")} | {
        "small-0",
        "small-1",
    }
    small = next(row for row in rows if row["id"] == "small-1")
    assert (small["height"], small["width"], small["frames"]) == (30, 46, 18)
    assert small["record_64p"] == -1 and small["record_32p"] >= 0 and small["bucket"] == "9x32x48"
    assert small["motion"] == 1.5 and small["text"] is None and small["seconds"] == 0.75
    assert (small["start_s"], small["end_s"]) == (1.0, 1.75)
    assert files.file_sha256(tmp_path / "index.parquet") == manifest["index"]["sha256"]
    for shard in manifest["shards"]:
        for entry in shard["files"].values():
            assert files.file_sha256(tmp_path / entry["file"]) == entry["sha256"]


def test_what_is_not_whole_is_not_finished(tmp_path, videos):
    write_shard(tmp_path, 0, clips(videos, "0"), CONFIG)
    with pytest.raises(UserError, match="shard-00001.json is missing.*pack shard 1 first"):
        finish(tmp_path, 2, CONFIG)
    other = dataclasses.replace(CONFIG, crf=30)
    with pytest.raises(UserError, match="shard-00000.json was written with other settings"):
        finish(tmp_path, 1, other)
    write_shard(tmp_path, 1, [], CONFIG)
    assert sum(finish(tmp_path, 2, CONFIG)["clips"].values()) == 2
    with pytest.raises(UserError, match="not one clip was kept"):
        write_shard(tmp_path / "empty", 0, [], CONFIG)
        finish(tmp_path / "empty", 1, CONFIG)
    made = [dataclasses.replace(clip, scores={"fps": 1.0}) for clip in clips(videos, "0")]
    write_shard(tmp_path, 0, made, CONFIG)
    with pytest.raises(UserError, match="a score cannot be called 'fps'"):
        finish(tmp_path, 2, CONFIG)


def test_fewer_shards_leave_nothing_of_the_others(tmp_path, videos):
    packed(tmp_path / "a", videos, names=(("0",), ("1",), ("2",)))
    packed(tmp_path / "a", videos, names=(("0",), ("1",)))
    packed(tmp_path / "b", videos, names=(("0",), ("1",)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_changed_shard_takes_the_manifest_away(tmp_path, videos):
    packed(tmp_path, videos, names=(("0",),))
    write_shard(tmp_path, 0, clips(videos, "0"), CONFIG)
    assert (tmp_path / "manifest.json").exists()
    write_shard(tmp_path, 0, clips(videos, "0", captions=("x",)), CONFIG)
    assert not (tmp_path / "manifest.json").exists()


class Killed(BaseException):
    """What no handler of errors catches, as a kill."""


def test_a_kill_at_any_step_changes_nothing_in_the_end(tmp_path, videos, monkeypatch):
    """Each rename, and each step that puts a file on the disk, is once the last."""
    cache = {}

    def encode(*args):
        key = (*args[:3], *args[3], args[4].crf)
        if key not in cache:
            cache[key] = encode_clip(*args)
        return cache[key]

    def run(folder, config):
        for number, some in enumerate((("0",), ("small",))):
            made = clips(videos, some, captions=(str(config.crf),))
            write_shard(folder, number, made, config, encode)
        finish(folder, 2, config)

    changed = dataclasses.replace(CONFIG, crf=21)
    run(tmp_path / "first", CONFIG)
    run(tmp_path / "clean", changed)
    clean = contents(tmp_path / "clean")
    assert clean.keys() != contents(tmp_path / "first").keys()

    steps = killed = 0
    real_replace, real_sync = os.replace, files.to_disk

    def counted(real):
        def step(*args):
            nonlocal steps
            steps += 1
            if steps == killed:
                raise Killed
            return real(*args)

        return step

    monkeypatch.setattr(os, "replace", counted(real_replace))
    for module in (files, pack):
        monkeypatch.setattr(module, "to_disk", counted(real_sync))
    while True:
        folder = tmp_path / str(killed)
        shutil.copytree(tmp_path / "first", folder)
        steps, killed = 0, killed + 1
        try:
            run(folder, changed)
            break
        except Killed:
            # What a kill leaves that runs no code at all.
            (folder / ".index.0a1b2c3d.tmp.parquet").touch()
            (folder / ".shard-00001-32p-01234567.0a1b2c3d.tmp.arrayrecord").touch()
        steps = killed  # no step is the last one
        run(folder, changed)
        assert contents(folder) == clean, f"killed at step {killed}"
    assert killed > 20


def test_shapes_that_are_none_are_refused_before_anything_is_measured():
    with pytest.raises(UserError, match="17x240"):
        PackConfig(buckets="17x240")
