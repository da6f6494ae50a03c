"""A folder of videos: usable files, a report of others, reading as a function of (index, rng)."""

import hashlib
import json

import numpy as np
import pytest
from image_files import exif, jpeg, png, webp

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, LatentsConfig, VideoFolderConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError


def counting_video(frames, height=32, width=48):
    """Frame i is grey of level 8 i, so a decoded frame shows its own number."""
    return np.broadcast_to(
        (8 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, height, width, 3)
    )


def numbers(clip):
    return [round(float(frame.mean()) / 8) for frame in clip]


def make_folder(folder, names, captions=True, frames=24, fps=12):
    for name in names:
        write_video(folder / name, np.ascontiguousarray(counting_video(frames)), fps=fps)
    if captions:
        lines = [json.dumps({"file": name, "caption": f"caption of {name}"}) for name in names]
        (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def rng(seed=0):
    return np.random.default_rng(seed)


def test_reads_clips_with_captions(tmp_path):
    names = ["b.mp4", "a/x.webm", "a/deep/y.mp4", "c.GIF".lower()]
    source = VideoFolderSource(make_folder(tmp_path, names))
    assert len(source) == 4 and source.report() == ""
    captions = [source.read(i, rng(), 3, 16, 16)["caption"] for i in range(4)]
    assert captions == [f"caption of {name}" for name in sorted(names)]
    clip = source.read(0, rng(1), 5, 24, 20)["video"]
    assert clip.shape == (5, 24, 20, 3) and clip.dtype == np.uint8 and clip.flags.c_contiguous
    assert np.array_equal(clip, source.read(0, rng(1), 5, 24, 20)["video"])


def test_all_captions_are_known_at_once(tmp_path):
    make_folder(tmp_path, ["b.mp4", "a/x.webm"])
    source = VideoFolderSource(tmp_path)
    assert list(source.captions()) == [
        (str(tmp_path / name), f"caption of {name}") for name in ("a/x.webm", "b.mp4")
    ]
    (tmp_path / "captions.jsonl").unlink()
    captions = VideoFolderSource(tmp_path, require_captions=False).captions()
    assert [caption for _, caption in captions] == ["", ""]
    assert list(SyntheticSource().captions()) == []


def test_starts_cover_the_file_and_stay_inside(tmp_path):
    source = VideoFolderSource(make_folder(tmp_path, ["a.mp4"], frames=10))
    clips = [numbers(source.read(0, rng(seed), 7, 16, 16)["video"]) for seed in range(30)]
    assert {clip[0] for clip in clips} == {0, 1, 2, 3}
    assert all(clip == list(range(clip[0], clip[0] + 7)) for clip in clips)
    assert source.problems == {}


@pytest.mark.parametrize("fps,stride,step", [(None, 2, 2), (4, 1, 3), (12, 3, 3), (2, 2, 12)])
def test_rate_and_stride(tmp_path, fps, stride, step):
    source = VideoFolderSource(make_folder(tmp_path, ["a.mp4"], frames=28), fps=fps, stride=stride)
    for seed in range(5):
        clip = numbers(source.read(0, rng(seed), 3, 16, 16)["video"])
        assert clip == [clip[0], clip[0] + step, clip[0] + 2 * step]


def test_short_clips_hold_the_last_frame(tmp_path):
    source = VideoFolderSource(make_folder(tmp_path, ["a.mp4"], frames=4))
    assert numbers(source.read(0, rng(), 7, 16, 16)["video"]) == [0, 1, 2, 3, 3, 3, 3]
    source.read(0, rng(), 7, 16, 16)
    assert source.problems == {"shorter than a clip, last frame held": ["a.mp4"]}


def test_flip_mirrors_half_the_clips(tmp_path):
    ramp = np.broadcast_to(
        np.arange(0, 192, 4, dtype=np.uint8)[None, None, :, None], (4, 48, 48, 3)
    )
    write_video(tmp_path / "a.mp4", np.ascontiguousarray(ramp))
    for flip, ways in ((False, {False}), (True, {False, True})):
        source = VideoFolderSource(tmp_path, require_captions=False, flip=flip)
        clips = [source.read(0, rng(seed), 1, 48, 48)["video"][0] for seed in range(12)]
        assert {bool(clip[0, 0, 0] > clip[0, -1, 0]) for clip in clips} == ways


def test_problems_are_listed_and_not_fatal(tmp_path):
    make_folder(tmp_path, ["a.mp4", "b.mp4", "uncaptioned.mp4"])
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / ".hidden.mp4").write_text("skipped")
    lines = [
        json.dumps({"file": f, "caption": f"of {f}"}).encode()
        for f in ("a.mp4", "./b.mp4", "zero.mp4", "text.mp4")
    ]
    lines += [b'{"file": "gone.mp4", "caption": "x"}', b"{broken", b'{"file": "a.mp4"}', b"[1]"]
    lines += [
        b'{"file": "a.mp4", "caption": "\xff\xfe"}',
        b'{"file": "a.mp4", "caption": "again"}',
        b"",
    ]
    lines += [b'{"file": "../a.mp4", "caption": "outside"}']
    (tmp_path / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    source = VideoFolderSource(tmp_path)
    found = [{source.read(i, rng(seed), 2, 16, 16)["caption"] for seed in range(9)} for i in (0, 1)]
    assert len(source) == 2 and found == [{"of a.mp4", "again"}, {"of ./b.mp4"}]
    assert {kind: len(items) for kind, items in source.problems.items()} == {
        "unreadable video": 2,
        "caption without its video": 2,
        "video without a caption": 1,
        "broken line in captions.jsonl": 4,
    }
    for words in (
        "line 9: not UTF-8",
        "line 6: not JSON",
        "gone.mp4",
        "zero.mp4",
        "4 x broken line",
    ):
        assert words in source.report()
    loose = VideoFolderSource(tmp_path, require_captions=False)
    assert len(loose) == 3 and loose.read(2, rng(), 2, 16, 16)["caption"] == ""


def test_reports_are_short(tmp_path):
    make_folder(tmp_path, ["a.mp4"])
    with open(tmp_path / "captions.jsonl", "a") as file:
        file.writelines(f'{{"file": "gone{i}.mp4", "caption": "x"}}\n' for i in range(25))
    assert "and 15 more" in VideoFolderSource(tmp_path).report()


def test_folders_without_a_usable_video_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        VideoFolderSource(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no video"):
        VideoFolderSource(tmp_path)
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(UserError, match="a file, not a folder"):
        VideoFolderSource(tmp_path / "a.mp4")
    with pytest.raises(UserError, match="no captions.jsonl"):
        VideoFolderSource(tmp_path)
    with pytest.raises(UserError, match=r"(?s)no usable video.*1 x unreadable video.*a.mp4"):
        VideoFolderSource(tmp_path, require_captions=False)
    for wrong in ({"stride": 0}, {"fps": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            VideoFolderSource(tmp_path, **wrong)


def test_files_that_fail_later_have_the_same_substitute(tmp_path):
    make_folder(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    source = VideoFolderSource(tmp_path)
    fine = source.read(2, rng(3), 4, 16, 16)
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "b.mp4").unlink()
    for index in (0, 1, 2):
        clip = source.read(index, rng(3), 4, 16, 16)
        assert clip["caption"] == "caption of c.mp4" and np.array_equal(
            clip["video"], fine["video"]
        )
    assert len(source.problems["unreadable when decoded, replaced by the next"]) == 2
    strict = VideoFolderSource(make_folder(tmp_path / "more", ["d.mp4", "e.mp4"]), substitute=False)
    (tmp_path / "more" / "d.mp4").unlink()
    assert strict.read(1, rng(), 4, 16, 16)["caption"] == "caption of e.mp4"
    with pytest.raises(UserError, match="d.mp4"):
        strict.read(0, rng(), 4, 16, 16)
    (tmp_path / "c.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"(?s)every video .* failed.*c.mp4"):
        source.read(1, rng(), 4, 16, 16)


def test_fingerprint_follows_content_not_place(tmp_path):
    one = make_folder(tmp_path / "one", ["a.mp4", "b.mp4"])
    two = make_folder(tmp_path / "two", ["a.mp4", "b.mp4"])
    base = VideoFolderSource(one).fingerprint()
    assert VideoFolderSource(two).fingerprint() == base
    assert VideoFolderSource(one, fps=4).fingerprint() != base
    assert VideoFolderSource(one, stride=2).fingerprint() != base
    with open(two / "b.mp4", "ab") as file:
        file.write(b"\0" * 8)
    assert VideoFolderSource(two).fingerprint() != base
    text = (one / "captions.jsonl").read_text()
    (one / "captions.jsonl").write_text(text.replace("caption of", "picture of"))
    assert VideoFolderSource(one).fingerprint() != base


def test_a_fingerprint_is_what_earlier_releases_gave(tmp_path):
    make_folder(tmp_path, ["a.mp4"])
    size = (tmp_path / "a.mp4").stat().st_size
    rows = [["video_folder", 6, 2, False], [b"a.mp4".hex(), size, "caption of a.mp4"]]
    digest = hashlib.sha256("".join(json.dumps(row) for row in rows).encode()).hexdigest()
    assert VideoFolderSource(tmp_path, fps=6, stride=2).fingerprint() == digest


def test_a_configuration_makes_its_source(tmp_path):
    buckets = (Bucket(frames=1, height=16, width=16, batch_size=1),)
    make_folder(tmp_path, ["a.mp4"])
    folder = VideoFolderConfig(path=str(tmp_path), fps=6, held_out_fraction=0.1)
    source = make_source(DataConfig(source=folder, buckets=buckets))
    same = {"fps": 6, "seconds_per_clip": 4.0, "split": "train", "held_out_fraction": 0.1}
    assert source.fingerprint() == VideoFolderSource(tmp_path, **same).fingerprint()
    for config in (VideoFolderConfig(), LatentsConfig()):
        with pytest.raises(UserError, match="give --config.data.source.path=FOLDER"):
            make_source(DataConfig(source=config, buckets=buckets))
    with pytest.raises(UserError, match="holds no latents.*source.kind=video_folder"):
        make_source(DataConfig(source=LatentsConfig(path=str(tmp_path)), buckets=buckets))


def test_a_long_video_is_several_clips(tmp_path):
    make_folder(tmp_path, ["a.mp4", "b.mp4"], frames=4, fps=4)  # a second each
    make_folder(tmp_path, ["long.mp4"], frames=31, fps=4, captions=False)
    source = VideoFolderSource(tmp_path, require_captions=False, seconds_per_clip=2.0)
    assert len(source) == 1 + 1 + 3 and source.files == ["a.mp4", "b.mp4", "long.mp4"]
    assert [source.where(i) for i in range(5)] == ["a.mp4", "b.mp4", *["long.mp4"] * 3]
    starts = [
        {numbers(source.read(2 + clip, rng(seed), 2, 16, 16)["video"])[0] for seed in range(60)}
        for clip in range(3)
    ]
    # Thirty frames to begin with, a third of them for each clip.
    assert starts == [set(range(10)), set(range(10, 20)), set(range(20, 30))]
    assert [len(captions) for captions in zip(*source.captions())] == [3, 3]
    assert source.extents()[:, 0].tolist() == [4, 4, 31, 31, 31]
    with pytest.raises(IndexError):
        source.read(5, rng(), 2, 16, 16)
    with pytest.raises(UserError, match="seconds_per_clip must be above 0.*not 0"):
        VideoFolderSource(tmp_path, seconds_per_clip=0)


def held_out_files(folder, fraction=0.3):
    options = {"held_out_fraction": fraction, "require_captions": False}
    splits = {
        split: VideoFolderSource(folder, split=split, **options) for split in ("train", "held_out")
    }
    everything = VideoFolderSource(folder, **options)
    assert len(everything) == len(splits["train"]) + len(splits["held_out"])
    held_out = [everything.where(clip) for clip in everything.held_out_clips()]
    assert sorted(held_out) == splits["held_out"].files
    assert not set(held_out) & set(splits["train"].files)
    return set(held_out)


def test_what_is_held_out_depends_on_the_file_alone(tmp_path):
    names = [f"{number}.mp4" for number in range(20)]
    make_folder(tmp_path, names[:1], frames=3)
    for name in names[1:10]:
        (tmp_path / name).hardlink_to(tmp_path / names[0])
    before = held_out_files(tmp_path)
    for name in names[10:]:
        (tmp_path / name).hardlink_to(tmp_path / names[0])
    after = held_out_files(tmp_path)
    assert before == {name for name in after if name in names[:10]} and 0 < len(before) < 8
    with pytest.raises(UserError, match="none of the 20 files.*held_out_fraction=1e-09"):
        VideoFolderSource(
            tmp_path, split="held_out", held_out_fraction=1e-9, require_captions=False
        )
    with pytest.raises(UserError, match="below 1, not 1"):
        VideoFolderSource(tmp_path, held_out_fraction=1)
    with pytest.raises(UserError, match="split='test' is not known"):
        VideoFolderSource(tmp_path, split="test")


def test_a_long_video_gives_its_end(tmp_path):
    make_folder(tmp_path, ["a.mp4"], frames=31, fps=3, captions=False)
    options = {"require_captions": False, "held_out_fraction": 0.4, "seconds_per_clip": 2.0}
    seen = {}
    for split in ("train", "held_out"):
        source = VideoFolderSource(tmp_path, split=split, **options)
        seen[split] = {
            number
            for clip in range(len(source))
            for seed in range(40)
            for number in numbers(source.read(clip, rng(seed), 3, 16, 16)["video"])
        }
    # The border is at 6.2 of 10.33 s, before frame 19.
    assert seen == {"train": set(range(19)), "held_out": set(range(19, 31))}


def test_each_of_few_short_videos_gives_its_end(tmp_path):
    names = [f"{number}.mp4" for number in range(5)]
    make_folder(tmp_path, names, frames=16, fps=4, captions=False)  # 4 s each
    options = {"require_captions": False, "held_out_fraction": 0.05}
    digest = VideoFolderSource(tmp_path, split="train", **options).fingerprint()
    with pytest.raises(UserError, match="give --config.data.source.hold_out=ends"):
        VideoFolderSource(tmp_path, split="held_out", **options)
    seen = {}
    for split in ("train", "held_out"):
        source = VideoFolderSource(tmp_path, split=split, hold_out="ends", **options)
        assert source.files == names and source.fingerprint() != digest
        seen[split] = {
            number
            for clip in range(len(source))
            for seed in range(20)
            for number in numbers(source.read(clip, rng(seed), 2, 16, 16)["video"])
        }
    # A quarter of each, since 5% would be a single frame.
    assert seen == {"train": set(range(12)), "held_out": set(range(12, 16))}
    # Nor does a clip that is longer than its part show what is held out: it holds its last frame.
    for more in ({}, {"fps": 3}, {"stride": 3}, {"substitute": False}):
        source = VideoFolderSource(
            tmp_path, split="train", hold_out="ends", **(options | more), seconds_per_clip=1.0
        )
        assert len(source) == 15
        rngs = [rng(seed) for seed in range(3)]
        clips = [
            source.read(0, rng(0), 15, 16, 16),
            *source.read_together(range(3), rngs, 15, 16, 16),
        ]
        shown = {number for clip in clips for number in numbers(clip["video"])}
        assert all(len(clip["video"]) == 15 for clip in clips) and max(shown) < 12, (more, shown)
    long = VideoFolderSource(
        tmp_path, split="held_out", hold_out="ends", **options | {"held_out_fraction": 0.5}
    )
    assert long.extents()[:, 0].tolist() == [8] * 5
    nothing = VideoFolderSource(tmp_path, hold_out="ends", **options | {"held_out_fraction": 0.0})
    assert len(nothing.held_out_clips()) == 0 and len(nothing) == 5
    with pytest.raises(UserError, match="hold_out='tails' is not known"):
        VideoFolderSource(tmp_path, hold_out="tails")


def test_an_image_is_not_cut(tmp_path):
    make_folder(tmp_path, ["a.mp4"], frames=16, fps=4, captions=False)
    make_images(tmp_path, ["b.png"])
    options = {"require_captions": False, "held_out_fraction": 0.01, "images": True}
    source = VideoFolderSource(tmp_path, hold_out="ends", **options)
    assert len(source) == 3 and source.held_out_clips().tolist() == [1]


def test_folders_behind_links_are_searched_once(tmp_path):
    make_folder(tmp_path / "store", ["a.mp4"], captions=False)
    data = tmp_path / "data"
    data.mkdir()
    (data / "part1").symlink_to(tmp_path / "store")
    (data / "part2").symlink_to(tmp_path / "store")
    (data / "loop").symlink_to(data)
    (data / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    assert VideoFolderSource(data, require_captions=False).files == ["part1/a.mp4"]


def test_too_many_replaced_clips_end_the_run(tmp_path):
    make_folder(tmp_path, ["a.mp4", "b.mp4"], frames=3, captions=False)
    source = VideoFolderSource(tmp_path, require_captions=False)
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)of 100 clips .* were replaced.*b\.mp4"):
        for step in range(200):
            source.read(step % 2, rng(), 1, 16, 16)
    assert step == 99


def make_images(folder, names, height=24, width=40):
    """Make grey images of level 10 times their number; JPEG files are stored rotated."""
    for number, name in enumerate(names, 1):
        image = np.full((height, width, 3), 10 * number, np.uint8)
        data = (
            jpeg(np.rot90(image, 1), exif(6))
            if name.endswith("jpeg")
            else (webp if name.endswith("webp") else png)(image)
        )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with open(folder / "captions.jsonl", "a") as file:
        file.writelines(
            json.dumps({"file": name, "caption": f"caption of {name}"}) + "\n" for name in names
        )


def test_images_are_clips_of_one_frame(tmp_path):
    make_folder(tmp_path, ["b.mp4", "d.mp4"])
    make_images(tmp_path, ["a.png", "c/x.jpeg", "e.webp"])
    assert VideoFolderSource(tmp_path).files == ["b.mp4", "d.mp4"], "where no bucket has one frame"
    source = VideoFolderSource(tmp_path, fps=6, images=True)
    assert (
        source.files == ["a.png", "b.mp4", "c/x.jpeg", "d.mp4", "e.webp"] and source.report() == ""
    )
    image, video = (1, 24, 40), (12, 32, 48)  # two seconds
    assert source.extents().tolist() == [list(each) for each in (image, video, image, video, image)]
    for index, level in ((0, 10), (2, 20), (4, 30)):
        clip = source.read(index, rng(), 1, 16, 32)
        assert clip["video"].shape == (1, 16, 32, 3) and clip["fps"] == 120.0
        assert np.abs(clip["video"].astype(int) - level).max() <= 1
        assert clip["caption"] == f"caption of {source.files[index]}"
    assert source.read(1, rng(), 1, 16, 16)["fps"] == 6


def test_only_buckets_of_one_frame_have_images(tmp_path):
    make_folder(tmp_path, ["b.mp4", "d.mp4", "f.mp4"])
    make_images(tmp_path, ["a.png", "c.png", "e.png"], height=32, width=48)
    buckets = tuple(Bucket(frames=frames, height=32, width=48, batch_size=1) for frames in (1, 5))
    found = {}
    for fit in (True, False):
        folder = VideoFolderConfig(path=str(tmp_path), held_out_fraction=0.0)
        config = DataConfig(source=folder, fit=fit, buckets=buckets, num_threads=0)
        pipeline = Pipeline(make_source(config), config)
        found[fit] = {1: set(), 5: set()}
        for step in range(24):
            batch, frames = pipeline.batch(step), pipeline.bucket(step).frames
            found[fit][frames] |= set(batch["caption"])
            assert batch["micro_cond"][0, 3:].tolist() == [frames, 120.0 if frames == 1 else 12.0]
    images, videos = (
        {f"caption of {name}" for name in names} for names in (("a.png", "c.png", "e.png"), "bdf")
    )
    videos = {f"{caption}.mp4" for caption in videos}
    assert found[True] == {1: images, 5: videos}
    assert found[False] == {1: images | videos, 5: videos}


def test_broken_images_are_listed_and_left_out(tmp_path):
    make_folder(tmp_path, ["b.mp4"])
    make_images(tmp_path, ["a.png", "c.png", "d.png", "e.png"])
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:-30])
    source = VideoFolderSource(tmp_path, images=True)
    assert source.files == ["b.mp4", "d.png", "e.png"]
    assert len(source.problems["unreadable image"]) == 2
    # Found only when it is decoded: an image is replaced by an image.
    data = bytearray((tmp_path / "e.png").read_bytes())
    data[-30:-20] = bytes(10)
    (tmp_path / "e.png").write_bytes(data)
    assert source.read(2, rng(), 1, 16, 16)["caption"] == "caption of d.png"
    assert (
        "e.png: it is damaged"
        in source.problems["unreadable when decoded, replaced by the next"][0]
    )
    (tmp_path / "d.png").unlink()
    with pytest.raises(UserError, match=r"(?s)every image .* failed"):
        source.read(2, rng(), 1, 16, 16)
