"""Bad files, wrong folders, full disks, and kills at any moment."""

import dataclasses
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
import numpy as np
import pyarrow.parquet
import pytest
from footage import Film, Scene
from small_curation import CONFIG, SIZE, film, hashes, index, run

from xgen_jax.commands.curate import CurateRequest
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError

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
    assert {row["source"] for row in index(tmp_path / "out")} == {"short.mp4", "long.mp4"}
    assert run(tmp_path / "videos", tmp_path / "new", small)["unused_videos"] == 1
    before = hashes(tmp_path / "new")
    run(tmp_path / "videos", tmp_path / "new", small, retry_errors=True)
    assert hashes(tmp_path / "new") == before


def test_videos_that_are_replaced_touched_or_gone_are_curated_as_they_are(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for seed in (30, 31):
        film(seed).write(videos / f"{seed}.mp4")

    def as_anew(name):
        """The clips and their contents, which are those of a curation from the beginning."""
        run(videos, out)
        run(videos, tmp_path / name)
        here, new = index(out), index(tmp_path / name)
        ids = [sorted((row["id"], row["source"]) for row in rows) for rows in (here, new)]
        assert ids[0] == ids[1]
        return {source for _, source in ids[0]}

    assert as_anew("first") == {"30.mp4", "31.mp4"}
    os.utime(videos / "31.mp4", (1, 1))
    assert as_anew("touched") == {"30.mp4", "31.mp4"}
    film(32).write(videos / "31.mp4")
    assert as_anew("replaced") == {"30.mp4", "31.mp4"}
    (videos / "31.mp4").unlink()
    assert as_anew("gone") == {"30.mp4"}


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


def children(pid, command="."):
    found = ["pgrep", "-P", str(pid), "-f", command]
    listed = subprocess.run(found, capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def kill(pid):
    """Whether it was there: a worker may end by itself after it was listed."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


KILL_S = {"inline": (1.5, 6.0), "ray": (3.0, 12.0)}  # after the start: at any moment of a run


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_kills_at_any_moment_end_with_the_same_bytes(curated, videos, tmp_path, engine):
    _, out = curated
    random = np.random.default_rng(0)
    flags = [f"--engine={engine}"]
    for attempt in range(4):
        with start(videos, tmp_path / "out", *flags) as process:
            try:
                process.communicate(timeout=float(random.uniform(*KILL_S[engine])))
            except subprocess.TimeoutExpired:
                victims = children(process.pid)
                if attempt % 2 and victims:  # a worker dies first
                    kill(int(random.choice(victims)))
                    time.sleep(0.3)
                process.kill()
                process.communicate()
    with start(videos, tmp_path / "out", *flags) as process:
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
            for pid in children(os.getpid(), "isolation"):
                time.sleep(0.2)
                if kill(pid):
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
