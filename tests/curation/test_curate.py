"""From a folder of videos to shards: what is kept and why, and other thresholds."""

import contextlib
import dataclasses
import shutil
import time

import numpy as np
import pytest
import tiny_clip
from chat_server import sentence, serve
from small_curation import CONFIG, hashes, index, run

from xgen_jax.curation.config import (
    AestheticsConfig,
    EndpointCaptions,
    FileCaptions,
    FunctionCaptions,
    NoCaptions,
)
from xgen_jax.curation.webdataset import export_tars
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.weights.safetensors import write_safetensors


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
    assert page.count("<script") == 1  # the viewer


def test_training_reads_the_shards(curated):
    _, out = curated
    source = ShardSource(out / "shards", require_captions=False)
    assert len(source) == len(index(out))
    for clip in range(len(source)):
        sample = source.read(clip, np.random.default_rng(clip), 9, 64, 64)
        assert sample["video"].shape == (9, 64, 64, 3) and sample["fps"] == pytest.approx(25)
    for split in ("train", "held_out"):  # which videos these are follows from the encoder's bytes
        clips = sum(shard[split] for shard in source.manifest["shards"])
        if clips:
            assert len(ShardSource(out, split=split, require_captions=False)) == clips
        else:
            with pytest.raises(UserError, match=f"none of the {len(source)} clips"):
                ShardSource(out, split=split, require_captions=False)


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
    # Of a clip after a dissolve no frame is seen: it has no feature, and resembles none.
    seldom = dataclasses.replace(config, aesthetics=dataclasses.replace(aesthetics, every_s=60.0))
    assert run(videos, out, seldom, dry_run=True)["clips"] == summary["clips"]


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
