"""The report page: its contents, its omissions, and that it loads nothing from the network."""

import base64
import json
import math
import os

import numpy as np
import pytest
from experiment_folder import EVIL, write_experiment, write_json, write_video
from html_page import Page, check_scripts

from xgen_jax.data.video import read_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation import chart, measures, report, vbench
from xgen_jax.evaluation import page as pages
from xgen_jax.evaluation.captions import read_attributes


@pytest.fixture
def root(tmp_path):
    return write_experiment(tmp_path / "quick & <start>")


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_page_says_what_the_runs_did(root):
    path = report.write_report(root)
    assert path == root / "report.html"
    page = read(path)
    for wanted in (
        "30.5 dB",
        "93%",
        "5 min 00 s",
        "of 200 prompts",
        "97.0%",
        "guidance scale 3.0",
        "801,792",
    ):
        assert wanted in page.text, wanted
    for wanted in (
        "sharpness 0.876",
        "blockiness 1.042",
        "is grain, not detail",
        "shape: wanted circle, read square",
        "CPU <2 cores>",
        "model.width",
        "0.10.2",
        "clip <1>",
        "log scale",
    ):
        assert wanted in page.flat, wanted
    assert "1 not finite, not shown" in page.text
    assert "--guidance_scale=3.0" in page.text and "bash launch/quickstart.sh" in page.flat
    # Three samples with their truth, one of them among those with something wrong, too; two
    # reconstructions.
    assert len(page.all("video")) == 10
    assert "1 of 3 samples have something wrong:" in page.flat
    assert "shape circle square 1" in page.flat  # wanted, read, how often
    assert len([svg for svg in page.all("svg") if svg.get("class") == "chart"]) == 5
    assert page.text.count("✓ ") == 6 and page.text.count("✗ ") == 2
    assert not [name for name in os.listdir(root) if name.endswith(".tmp")]


def test_page_is_one_file_and_prompts_are_text(root):
    page = read(report.write_report(root))
    assert not page.all("link") and not page.all("img") and not page.all("b")
    check_scripts(page)
    for _, attrs in page.tags:
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#"))
    assert EVIL in page.text
    assert all(
        {"autoplay", "loop", "muted", "playsinline"} <= set(attrs) for attrs in page.all("video")
    )


@pytest.mark.parametrize(
    "gone", ["vidvae", "vdit", "evaluation/captions", "evaluation/reconstruction", "timings.json"]
)
def test_a_missing_part_is_said(root, gone):
    os.rename(root / gone, root.parent / "gone")
    text = read(report.write_report(root)).text
    said = {
        "vidvae": "No metrics yet.",
        "vdit": "No metrics yet.",
        "evaluation/captions": "No captions evaluation yet.",
        "evaluation/reconstruction": "No reconstruction evaluation yet.",
        "timings.json": "of training",
    }
    assert said[gone] in text


def test_half_empty_files_do_not_break_the_page(tmp_path):
    write_json(tmp_path / "vdit" / "run.json", {"device": "cpu"})
    (tmp_path / "vdit" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    write_json(tmp_path / "evaluation" / "captions" / "captions.json", {"accuracy": {"all": None}})
    write_json(tmp_path / "evaluation" / "reconstruction" / "reconstruction.json", {"shapes": [{}]})
    page = read(report.write_report(tmp_path, tmp_path / "pages" / "index.html"))
    assert "fewer than two finite values" in page.text


def test_only_files_in_the_folder_of_the_json_are_embedded(root):
    write_video(root / "secret.mp4")
    (root / "evaluation" / "captions" / "002.mp4").write_bytes(b"not a video")
    path = root / "evaluation" / "captions" / "captions.json"
    captions = json.loads(path.read_text())
    captions["samples"][0]["file"] = "../../secret.mp4"
    captions["samples"][1]["file"] = "absent.mp4"
    write_json(path, captions)
    page = read(report.write_report(root))
    assert len(page.all("video")) == 2  # the reconstructions: no sample, and no truth without one
    for said in (
        "../../secret.mp4 is not there",
        "absent.mp4 is not there",
        "002.mp4 is not a video",
    ):
        assert said in page.text


def test_the_page_stops_growing(root, monkeypatch):
    monkeypatch.setattr(report, "MAX_SAMPLES", 2)
    monkeypatch.setattr(report, "IN_SIGHT", 1)
    page = read(report.write_report(root))
    assert "The first 2 of 3 samples, in the order" in page.text and "1 more samples" in page.text
    monkeypatch.setattr(report, "VIDEO_BUDGET", 10)
    page = read(report.write_report(root))
    assert "The first 0 of 3 samples" in page.text and not page.all("video")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report.write_report(tmp_path / "nothing")
    write_json(tmp_path / "timings.json", {"import": 1.0})
    with pytest.raises(UserError, match=r"holds no run.*vidvae/metrics.jsonl"):
        report.write_report(tmp_path)
    (tmp_path / "timings.json").write_text("{")
    with pytest.raises(UserError, match="timings.json is not JSON"):
        report.write_report(tmp_path)


def decoded(video, folder):
    path = folder / "decoded.mp4"
    path.write_bytes(base64.b64decode(video["src"].split(",")[1]))
    return read_video(path)


def test_the_truth_next_to_a_sample_is_what_its_prompt_says(root):
    path = root / "evaluation" / "captions" / "captions.json"
    captions = json.loads(path.read_text())
    wanted = {"shape": "triangle", "color": "cyan", "direction": "up", "size": "large"}
    captions["samples"][1]["correct"]["all"] = True  # none is shown twice
    captions["samples"][0]["wanted"] = wanted | {"background": "gray"}
    captions["samples"][1]["wanted"] = wanted  # any background: no one video is the truth
    captions["samples"][2]["wanted"] = wanted | {"background": "plaid"}
    write_json(path, captions)
    videos = read(report.write_report(root)).all("video")[:4]
    assert [video["aria-label"].endswith(": truth") for video in videos] == [True, *[False] * 3]
    truth, fps = decoded(videos[0], root)
    assert read_attributes(truth) == captions["samples"][0]["wanted"]
    sample, sample_fps = decoded(videos[1], root)
    assert truth.shape == sample.shape and fps == sample_fps
    assert videos[0]["data-frames"] == str(len(sample)) and float(videos[0]["data-fps"]) == fps


def test_the_head_says_when_where_and_by_which_code(root):
    page = read(report.write_report(root))
    assert "commit not recorded" in page.flat and "machine CPU <2 cores>; lab" in page.flat
    for stage in ("vidvae", "vdit"):
        path = root / stage / "run.json"
        facts = {"commit": "0123456789ab", "date": "2026-11-29T13:00:00+00:00"}
        write_json(path, json.loads(path.read_text()) | facts)
    page = read(report.write_report(root))
    assert "commit 0123456789ab machine" in page.flat and "trained 2026-11-29 13:00" in page.flat


def test_held_out_figures_are_drawn_with_those_of_training(root):
    rows = [{"step": s, "loss": 1 / s, "held_out_accuracy_all": 0.1 * s} for s in (1, 2, 3)]
    rows[1]["held_out_loss"], rows[2]["held_out_loss"] = 0.9, 0.8
    (root / "vdit" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = read(report.write_report(root))
    assert "accuracy of held-out captions" in page.text
    assert page.flat.count("training held out") == 1  # the legend of the loss


def test_scores_by_frame_are_drawn_with_the_borders_of_chunks(root):
    path = root / "evaluation" / "reconstruction" / "reconstruction.json"
    results = json.loads(path.read_text())
    (shape,) = results["shapes"]
    for row, worse in zip(shape["videos"], (0.0, 5.0)):
        row["psnr_db_frames"] = [40.0 - worse, None, 20.0 - worse]
    shape["by_frame"] = {"psnr_db": [37.5, 30.0, 17.5], "chunk_starts": [2]}
    shape |= {
        "seams": {"seam_ratio": 1.31},
        "sets": {"rfvd": {"value": 123.4}},
        "standard_error": {"psnr_db": 0.25},
    }
    shape |= {"notes": ["Sharpness 1.79 is <grain>."], "not_computed": {"ms_ssim": "too small"}}
    write_json(path, results)
    page = read(report.write_report(root))
    assert len([line for line in page.all("line") if line["class"] == "border"]) == 1
    assert "mean of all clips worst clip" in page.flat
    for said in (
        "seam ratio 1.310",
        "rFVD 123.4",
        "PSNR, dB 30.53 ± 0.25",
        "1.79 is <grain>.",
        "MS-SSIM was not computed: too small.",
        "a chunk begins",
    ):
        assert said in page.flat
    notes = [video["data-notes"] for video in page.all("video") if "data-notes" in video]
    assert json.loads(notes[1]) == ["35.0 dB", "–", "15.0 dB"]


@pytest.mark.parametrize("encoded", ["shapes", "films"])
def test_latents_of_moving_shapes_are_no_own_videos(root, encoded):
    source = {"kind": "synthetic"} if encoded == "shapes" else {"kind": "video", "path": "films"}
    for stage, of in (("vidvae", source), ("vdit", {"kind": "latents", "path": "latents"})):
        config = json.loads((root / stage / "config.json").read_text())
        write_json(root / stage / "config.json", {**config, "data": {"source": of}})
    flat = read(report.write_report(root)).flat
    assert ("bash launch/quickstart.sh" in flat) == (encoded == "shapes")


def test_scores_that_other_suites_left_are_shown(root):
    assert "CLIP score" not in read(report.write_report(root)).flat
    folder, scores = root / "evaluation", dict.fromkeys(vbench.DIMENSIONS, 0.5)
    counts = {"clips_real": 2048, "clips_generated": 2000, "frames": 16}
    notes = ["fewer than 2,048 clips"]
    facts = {"model": "runs/mine/vdit", "data": "films", "convention": "I3D logits", "notes": notes}
    clip = {"clip_score": 31.416, "standard_error": 0.25, "videos": 64, "clip": "ViT-B/32"}
    for name in ("fvd", "clip_score"):
        (folder / name).mkdir(parents=True)
    write_json(folder / "fvd" / "fvd.json", {"fvd": 123.45, **counts, **facts})
    write_json(folder / "clip_score" / "clip_score.json", {**clip, "convention": "100 cos"})
    del scores["color"]
    write_json(folder / "vbench_scores.json", {**vbench.summarize(scores), "convention": "means"})
    flat = read(report.write_report(root)).flat
    for wanted in (
        "FVD 123.5",
        "2,000 clips of runs/mine/vdit against 2,048 of films, 16 frames each",
        "fewer than 2,048 clips",
        "CLIP score 31.42 ± 0.25",
        "64 videos, by ViT-B/32",
        "xGen-VideoSyn-1 (paper) 0.714 0.947 0.655 0.523 0.709",
        "this model 0.500 0.500 – 0.500 –",
    ):
        assert wanted in flat, wanted


def test_every_figure_has_a_meaning():
    for name in (*measures.RECONSTRUCTION, "all", "time"):
        assert len(pages.macro("meaning", name)) > 80, name
    assert not pages.macro("meaning", "unknown").strip()


def test_ticks_are_round_numbers():
    assert chart.linear_ticks(0.0, 1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert chart.linear_ticks(13, 487) == [100, 200, 300, 400]
    assert chart.log_ticks(0.03, 2.0) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert chart.log_ticks(1e-6, 2.0) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
    assert [chart.short(value) for value in (0.05, 250, 5000, 2e6)] == ["0.05", "250", "5k", "2M"]


def test_running_mean_is_exact_at_the_start_and_averages_at_the_end():
    line = np.arange(20.0)
    mean = chart.running_mean(line, 4)
    np.testing.assert_allclose(mean[:16], line[:16], atol=1e-12)
    assert mean[-1] == pytest.approx(line[-5:].mean())


@pytest.mark.parametrize(
    "y", [[1.0] * 30, [0.0] * 30, [-1.0, 1.0] * 15, list(range(30)), [math.inf] + [3.0] * 29]
)
def test_any_curve_can_be_plotted(y):
    svg = pages.macro("chart", chart.line_chart({"run": (range(30), y)}, "a <label>"))
    assert "nan" not in svg and "a &lt;label&gt;" in svg
    assert Page(svg).all("polyline")
