"""From a folder of videos to shards: what is kept and why, bad files, kills, other thresholds."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import av
import cv2
import numpy as np
import pyarrow.parquet
import pytest
import tiny_clip
from chat_server import sentence, serve
from footage import Film, Join, Scene

from xgen_jax.commands.curate import CurateRequest, curate
from xgen_jax.curation.config import (
    AestheticsConfig,
    CurationConfig,
    EndpointCaptions,
    FileCaptions,
    FunctionCaptions,
    NoCaptions,
    PackConfig,
    ShotsConfig,
)
from xgen_jax.curation.webdataset import export_tars
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.weights.safetensors import write_safetensors

SIZE = (96, 160)
CONFIG = CurationConfig(
    shots=ShotsConfig(min_side=64),
    pack=PackConfig(tiers=(64, 96), buckets="9x64x64", held_out_fraction=0.5),
    videos_per_shard=2,
)


def film(seed, **changes):
    scene = {"seed": seed, "length_s": 2.0, "pan": 0.15, "discs": 1, "noise": 2.0}
    return Film([Scene(**(scene | changes))], size=SIZE)


def write_videos(folder):
    """Videos with one thing each; the reason why a clip is dropped is in its name."""
    folder.mkdir(parents=True)
    cuts = Film(
        [Scene(seed=10 + k, length_s=2.6, noise=2.0) for k in range(3)],
        [Join(), Join("dissolve", 0.6)],
        size=SIZE,
    )
    cuts.write(folder / "three shots ü.mp4")
    film(20).write(folder / "kept.mp4")
    film(20).write(folder / "duplicate.mp4", crf=34)  # of kept.mp4, at less quality
    film(21, pan=0.0, discs=0, noise=1.0).write(folder / "static.mp4")
    film(22, light=0.02, noise=0.0).write(folder / "odd.mp4")
    with_text(folder / "text.mp4", film(23))
    return folder


def with_text(path, clip):
    video = clip.video()
    for image in video:
        for row in (40, 80):
            cv2.putText(image, "BREAKING", (4, row), 0, 1.0, (255, 255, 255), 2, cv2.LINE_AA)
    write_video(path, video, clip.fps)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("curate") / "videos")


@pytest.fixture(scope="module")
def curated(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "out"
    return run(videos, out), out


def run(videos, out, config=CONFIG, **flags):
    return curate(CurateRequest(config=config, videos=str(videos), out=str(out), **flags))


def index(out):
    return pyarrow.parquet.read_table(out / "shards" / "index.parquet").to_pylist()


def hashes(out):
    """The bytes of what training reads."""
    files = sorted((out / "shards").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_clips_are_kept_and_dropped_for_their_reasons(curated):
    summary, out = curated
    kept = index(out)
    by_source = {}
    for row in kept:
        by_source.setdefault(row["source"], []).append((row["start_s"], row["end_s"]))
    assert summary["kept"] == summary["packed"] == len(kept)
    assert summary["videos"] == 6 and summary["unused_videos"] == 0
    assert {"kept.mp4", "three shots ü.mp4"} <= by_source.keys()
    assert not by_source.keys() & {"duplicate.mp4", "static.mp4", "text.mp4"}
    first, second, third = sorted(by_source["three shots ü.mp4"])
    assert first == (0.0, pytest.approx(2.35, abs=0.01))
    assert second[0] == pytest.approx(2.85, abs=0.01)
    assert second[1] <= 4.9 + 0.05 and third[0] >= 5.5 - 0.05  # the dissolve is left out
    page = (out / "report.html").read_text()
    assert "three shots ü.mp4" in page and "duplicate.mp4" in page
    assert "<script" not in page


def test_training_reads_the_shards(curated):
    _, out = curated
    source = ShardSource(out / "shards", require_captions=False)
    assert len(source) == len(index(out))
    for clip in range(len(source)):
        sample = source.read(clip, np.random.default_rng(clip), 9, 64, 64)
        assert sample["video"].shape == (9, 64, 64, 3) and sample["fps"] == pytest.approx(25)
    train, held_out = (
        ShardSource(out, split=split, require_captions=False) for split in ("train", "held_out")
    )
    assert len(train) + len(held_out) == len(source)


def test_a_second_run_changes_nothing_and_another_folder_is_the_same(curated, videos, tmp_path):
    summary, out = curated
    before, times = hashes(out), {p: p.stat().st_mtime_ns for p in (out / "measured").rglob("*")}
    again = run(videos, out)
    assert {**again, "wall_s": 0} == {**summary, "wall_s": 0}
    assert hashes(out) == before
    assert times == {p: p.stat().st_mtime_ns for p in (out / "measured").rglob("*")}
    moved = tmp_path / "moved"
    shutil.copytree(videos, moved)
    run(moved, tmp_path / "other")
    assert hashes(tmp_path / "other") == before


def test_other_thresholds_measure_nothing_again(curated, videos):
    summary, out = curated
    measured = sorted((out / "measured").rglob("*"))
    began = time.monotonic()
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, max_area=1.0))
    tried = run(videos, out, config, dry_run=True)
    assert tried["kept"] == summary["kept"] + 1
    assert "report" not in tried
    assert sorted((out / "measured").rglob("*")) == measured
    assert time.monotonic() - began < 5


def test_a_stage_that_measures_otherwise_is_measured_alone(curated, videos, tmp_path):
    _, out = curated
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    before = {path.name for path in (copy / "measured").iterdir()}
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, side=256))
    run(videos, copy, config, dry_run=True)
    new = {path.name for path in (copy / "measured").iterdir()} - before
    assert [name.split("-")[0] for name in new] == ["text"]


def test_jobs_of_an_array_do_what_one_process_does(curated, videos, tmp_path):
    _, out = curated
    flags = {"engine": "array", "task_count": 2}
    first = run(videos, tmp_path / "out", **flags, task_index=0)
    assert first["waiting"] == 1  # shard 1 of 3 is the other job's
    assert "waiting" in run(videos, tmp_path / "out", **flags, task_index=1)
    assert not (tmp_path / "out" / "shards" / "manifest.json").exists()
    assert "report" in run(videos, tmp_path / "out", **flags, task_index=0)
    # Only one of them writes what all have in common.
    assert run(videos, tmp_path / "out", **flags, task_index=1)["waiting"] == 0
    assert hashes(tmp_path / "out") == hashes(out)


def test_captions_of_files_and_of_a_function(curated, videos, tmp_path, monkeypatch):
    copy = tmp_path / "videos"
    shutil.copytree(videos, copy)
    (copy / "kept.txt").write_text("a disc moves over a plain of colours")
    captions = FileCaptions()
    of_files = dataclasses.replace(CONFIG, captions=captions)
    summary = run(copy, tmp_path / "files", of_files)
    rows = index(tmp_path / "files")
    assert [row["source"] for row in rows] == ["kept.mp4"] and summary["without_caption"] >= 3
    assert rows[0]["captions"] == ["a disc moves over a plain of colours"]
    (tmp_path / "my_captioner.py").write_text(
        "def brightness(frames, times_s):\n"
        "    return f'{len(frames)} frames of brightness {frames.mean():.0f}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    captions = FunctionCaptions(function="my_captioner:brightness", side=64)
    run(videos, tmp_path / "function", dataclasses.replace(CONFIG, captions=captions))
    rows = index(tmp_path / "function")
    assert len(rows) == len(index(curated[1]))
    assert all(row["captions"][0].startswith("4 frames of brightness") for row in rows)


def test_an_endpoint_captions_each_clip_once_and_within_its_budget(tmp_path):
    for number in range(4):
        video = np.zeros((48, 48, 64, 3), np.uint8)
        video[..., 1] = 8 * number + 4  # by which the server knows it
        write_video(tmp_path / "videos" / f"{number}.mp4", video, 24)
    with serve({1: ["500"], 2: ["garbage"]}) as server:
        captions = EndpointCaptions(url=server.url, model="seer", budget=3)
        config = dataclasses.replace(
            CONFIG,
            shots=dataclasses.replace(CONFIG.shots, min_side=48),
            motion=dataclasses.replace(CONFIG.motion, min_motion=0.0),
            quality=dataclasses.replace(CONFIG.quality, max_piqe=100.0),
            pack=dataclasses.replace(CONFIG.pack, tiers=(48,), buckets="9x48x48"),
            captions=captions,
        )
        with contextlib.suppress(UserError):  # none of them has a caption yet
            assert run(tmp_path / "videos", tmp_path / "out", config)["packed"] < 4
        assert len(server.seen) == 3
        config = dataclasses.replace(config, captions=dataclasses.replace(captions, budget=None))
        assert run(tmp_path / "videos", tmp_path / "out", config)["packed"] == 4
        rows = index(tmp_path / "out")
        assert {row["source"]: row["captions"] for row in rows} == {
            f"{number}.mp4": [sentence(number)] for number in range(4)
        }
        asked = len(server.seen)
        assert run(tmp_path / "videos", tmp_path / "out", config)["packed"] == 4
        assert len(server.seen) == asked  # nothing is paid for twice


def test_clip_features_compare_and_score(curated, videos, tmp_path):
    folder = tiny_clip.write(tmp_path / "clip")
    head = write_safetensors(
        tmp_path / "head.safetensors", tiny_clip.head_tensors(tiny_clip.head())
    )
    aesthetics = AestheticsConfig(clip_dir=str(folder), head=str(head), every_s=1.0, min_score=0)
    loose = dataclasses.replace(CONFIG.duplicates, similarity=-1.0)
    out = tmp_path / "out"
    shutil.copytree(curated[1], out)
    config = dataclasses.replace(CONFIG, aesthetics=aesthetics, duplicates=loose)
    summary = run(videos, out, config, dry_run=True)
    assert summary["kept"] <= 1  # all are similar: only the longest is left
    strict = dataclasses.replace(config, duplicates=CONFIG.duplicates)
    low = dataclasses.replace(strict, aesthetics=dataclasses.replace(aesthetics, min_score=1e9))
    assert run(videos, out, low, dry_run=True)["kept"] == 0
    assert len(list((out / "measured").glob("features-*"))) == 1


def test_tar_files_go_in_and_out(curated, tmp_path):
    _, out = curated
    tars = tmp_path / "tars"
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    export_tars(copy / "shards", tars)
    videos = tmp_path / "videos"
    config = dataclasses.replace(CONFIG, captions=NoCaptions())
    flags = {"import_tars": str(tars), "export_tars": str(tmp_path / "again")}
    summary = run(videos, tmp_path / "out", config, **flags)
    assert summary["videos"] == len(index(out)) and summary["packed"] > 0
    assert summary["tars"] == len(list((tmp_path / "again").glob("*.tar"))) > 0
    with pytest.raises(UserError, match="holds no tar file"):
        run(videos, tmp_path / "out", config, import_tars=str(videos))


# Files that are no good.


def bad_videos(folder):
    folder.mkdir()
    film(20).write(folder / "kept.mp4")
    good = (folder / "kept.mp4").read_bytes()
    shutil.copy(folder / "kept.mp4", folder / "same bytes.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "page.mkv").write_text("<html>not a video</html>")
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    noise = np.random.default_rng(1).bytes(2000)
    (folder / "damaged.mp4").write_bytes(good[:4000] + noise + good[6000:])
    with av.open(os.fspath(folder / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    one = Film([Scene(seed=5, length_s=0.04)], size=SIZE)
    one.write(folder / "one frame.mp4")
    tiny = Film([Scene(seed=6)], size=(36, 64))
    tiny.write(folder / "tiny.mp4")
    rates = Film([Scene(seed=7, length_s=3.0)], size=(98, 162), fps=8.0)
    rates.write(folder / "slow.mp4")
    random = np.random.default_rng(0)
    times = np.cumsum(random.uniform(0.02, 0.06, 60)) - 0.02
    variable = dataclasses.replace(film(24, length_s=times[-1] + 0.04), times_s=tuple(times))
    variable.write(folder / "variable rate.mkv")
    for name, seed, size, options in (
        ("ten bits.mp4", 40, SIZE, {"pix_fmt": "yuv420p10le"}),
        ("turned.mp4", 41, SIZE, {"rotation": 90}),
        ("odd.mkv", 42, (97, 163), {"codec": "ffv1", "pix_fmt": "yuv444p"}),
    ):
        written = dataclasses.replace(film(seed, length_s=1.6), size=size)
        write_otherwise(folder / name, written, **options)
    write_video(folder / "large.gif", film(43, length_s=0.4).video(), 25)
    large = bytearray((folder / "large.gif").read_bytes())
    large[6:10] = b"\x00\x40\x00\x40"  # 16384x16384
    (folder / "large.gif").write_bytes(large)
    return folder


def write_otherwise(path, clip, codec="libx264", pix_fmt="yuv420p", rotation=0):
    with av.open(os.fspath(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = clip.size
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for number, (_, image) in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def test_each_bad_file_is_named_with_its_reason_and_the_rest_goes_on(tmp_path):
    videos, out = bad_videos(tmp_path / "videos"), tmp_path / "out"
    summary = run(videos, out)
    rows = index(out)
    sources = {row["source"]: (row["height"], row["width"]) for row in rows}
    assert sources == {
        "kept.mp4": SIZE,
        "variable rate.mkv": SIZE,
        "ten bits.mp4": SIZE,
        "turned.mp4": SIZE[::-1],
        "odd.mkv": (96, 162),
    }
    assert summary["videos"] == 16 and summary["unused_videos"] == 10
    page = (out / "report.html").read_text()
    for file, reason in {
        "empty.mp4": "zero bytes",
        "noise.mp4": "damaged, truncated or not a video",
        "page.mkv": "damaged, truncated or not a video",
        "truncated.mp4": "truncated",
        "damaged.mp4": "damaged, truncated or not a video",
        "sound.mp4": "no video stream",
        "same bytes.mp4": "it has the same bytes as kept.mp4",
        "tiny.mp4": "36 pixels (--config.shots.min_side=64)",
        "large.gif": "the header gives no frame size",
        "slow.mp4": "8 frames a second (--config.shots.min_fps=12)",
    }.items():
        assert f"{file}" in page and reason in page, file


def test_limits_name_their_flag(tmp_path):
    (tmp_path / "videos").mkdir()
    film(20, length_s=4.0).write(tmp_path / "videos" / "a.mp4")
    limits = dataclasses.replace(CONFIG.limits, hours=0.001)
    with pytest.raises(UserError, match="no clip is kept; .*report.html shows why"):
        run(tmp_path / "videos", tmp_path / "out", dataclasses.replace(CONFIG, limits=limits))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "longer than 0.001 hours (--config.limits.hours)" in page


def test_errors_are_tried_again_under_other_limits_or_when_asked(tmp_path):
    (tmp_path / "videos").mkdir()
    film(20).write(tmp_path / "videos" / "short.mp4")
    film(21, length_s=4.0).write(tmp_path / "videos" / "long.mp4")
    limits = dataclasses.replace(CONFIG.limits, hours=0.001)
    small = dataclasses.replace(CONFIG, limits=limits)
    assert run(tmp_path / "videos", tmp_path / "out", small)["unused_videos"] == 1
    assert run(tmp_path / "videos", tmp_path / "out")["unused_videos"] == 0
    marks = sorted((tmp_path / "out" / "measured").rglob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in marks]
    run(tmp_path / "videos", tmp_path / "out", retry_errors=True)  # there are none
    assert [path.stat().st_mtime_ns for path in marks] == times
    assert run(tmp_path / "videos", tmp_path / "new", small)["unused_videos"] == 1
    before = hashes(tmp_path / "new")
    run(tmp_path / "videos", tmp_path / "new", small, retry_errors=True)
    assert hashes(tmp_path / "new") == before


def test_missing_packages_are_named_with_the_extra(monkeypatch):
    import xgen_jax
    from xgen_jax import curation

    monkeypatch.setattr(curation, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(
        UserError, match=r"needs no_such_package: pip install 'xgen_jax\[curation\]"
    ):
        xgen_jax.curate("videos", "out")


def test_folders_that_cannot_be_right_are_refused(videos, tmp_path):
    with pytest.raises(UserError, match="give --videos=DIR, --out=DIR"):
        CurateRequest()
    with pytest.raises(UserError, match="must not lie in each other"):
        run(videos, videos / "out")
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out" / "sources.json").exists()


def test_a_full_disk_ends_with_a_reason_and_the_next_run_goes_on(videos, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", full)
        with pytest.raises(UserError, match="No space left on device"):
            run(videos, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tmp*"))
    assert run(videos, tmp_path / "out", dry_run=True)["kept"] > 0


# Kills.


def start(videos, out, *flags):
    root = pathlib.Path(__file__).parents[2]
    command = [
        *(sys.executable, str(root / "launch" / "curate.py"), f"--videos={videos}", f"--out={out}"),
        *("--config.shots.min_side=64", "--config.pack.tiers=64,96", "--config.videos_per_shard=2"),
        *("--config.pack.buckets=9x64x64", "--config.pack.held_out_fraction=0.5", *flags),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )


def children(pid):
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


KILL_S = {"inline": (1.5, 6.0), "ray": (3.0, 12.0)}  # after the start: at any moment of a run


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_kills_at_any_moment_end_with_the_same_bytes(curated, videos, tmp_path, engine):
    _, out = curated
    random = np.random.default_rng(0)
    flags = [f"--engine={engine}"]
    for attempt in range(4):
        process = start(videos, tmp_path / "out", *flags)
        try:
            process.communicate(timeout=float(random.uniform(*KILL_S[engine])))
        except subprocess.TimeoutExpired:
            victims = children(process.pid)
            if attempt % 2 and victims:  # a worker dies first
                os.kill(int(random.choice(victims)), signal.SIGKILL)
                time.sleep(0.3)
            process.kill()
            process.communicate()
    process = start(videos, tmp_path / "out", *flags)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["packed"] == len(index(out))
    assert hashes(tmp_path / "out") == hashes(out)
    assert not list((tmp_path / "out").rglob("*.tmp*"))


def test_a_worker_that_is_killed_loses_nothing(curated, videos, tmp_path):
    stop = threading.Event()
    killed = []

    def kill_one():
        while not stop.is_set() and not killed:
            for pid in children(os.getpid()):
                command = pathlib.Path(f"/proc/{pid}/cmdline")
                if command.exists() and b"isolation" in command.read_bytes():
                    time.sleep(0.2)
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        run(videos, tmp_path / "out")
    finally:
        stop.set()
        thread.join()
    assert killed
    assert hashes(tmp_path / "out") == hashes(curated[1])
