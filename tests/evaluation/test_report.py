"""The report page: its contents, its omissions, and that it loads nothing from the network."""

import json
import math
import os

import av
import numpy as np
import pytest
from html_page import Page

from xgen_jax.errors import UserError
from xgen_jax.evaluation import chart, report, report_style

EVIL = "<script>alert(\"x\")</script> a red circle & 'friends' src=https://evil.example/x"


def write_video(path, width=32, seed=0):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, 32, "yuv420p"
        for _ in range(3):
            image = np.repeat(
                np.repeat(rng.integers(0, 256, (4, width // 8, 3), np.uint8), 8, 0), 8, 1
            )
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                )
            )
        container.mux(stream.encode())


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(folder, steps=60):
    config = {
        "seed": 0,
        "model": {"width": 96, "note": "<b>bold</b>", "patch": [1, 2, 2]},
        "optimiser": {},
    }
    write_json(folder / "config.json", config)
    run = {
        "device": "CPU <2 cores>",
        "host": "lab",
        "parameters": 801_792,
        "wall_s": 245.0,
        "compile_s": 12.5,
    }
    write_json(folder / "run.json", {"versions": {"jax": "0.10.2", "xgen_jax": "0.1.0"}, **run})
    rows = [
        {"step": s, "time_s": 0.5 * s, "loss": 5 * math.exp(-s / 9), "steps_per_s": 2.0}
        for s in range(1, steps)
    ]
    rows[3] |= {"loss": None, "nonfinite": {"loss": "nan"}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_captions(folder, count=3):
    names = ("shape", "color")
    samples = []
    for index in range(count):
        write_video(folder / f"{index:03d}.mp4", seed=index)
        right = index != 1
        samples.append(
            {
                "file": f"{index:03d}.mp4",
                "prompt": EVIL if index == 0 else f"prompt {index}",
                "wanted": dict(zip(names, ("circle", "red"))),
                "read": dict(zip(names, ("circle" if right else "square", "red"))),
                "correct": {"shape": right, "color": True, "all": right},
            }
        )
    settings = {"steps": 10, "guidance_scale": 3.0, "sampler": "euler", "seed": 7}
    accuracy = {"all": 0.93, "shape": 0.97, "color": 1.0}
    write_json(
        folder / "captions.json",
        {"prompts": 200, "accuracy": accuracy, "settings": settings, "samples": samples},
    )


def write_reconstruction(folder):
    rows = [
        {"file": f"{i:03d}.mp4", "name": f"clip <{i}>", "psnr_db": 30.0 + i, "ssim": 0.95}
        for i in range(2)
    ]
    for index, row in enumerate(rows):
        write_video(folder / row["file"], width=64, seed=index)
    mean = {"psnr_db": 30.53, "ssim": 0.951, "mse": 0.0035, "sharpness": 0.876, "blockiness": 1.042}
    shapes = [{"shape": "9x32x32", "clips": 2, "mean": mean, "videos": rows}]
    write_json(folder / "reconstruction.json", {"shapes": shapes})


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "quick & <start>"
    for stage in ("vidvae", "vdit"):
        write_run(root / stage)
    write_captions(root / "evaluation" / "captions")
    write_reconstruction(root / "evaluation" / "reconstruction")
    write_json(root / "timings.json", {"train vidvae": 70.0, "train vdit": 230.0})
    return root


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
        "sharpness 0.88, blockiness 1.04",
        "shape: wanted circle, read square",
        "CPU <2 cores>",
        "model.width",
        "0.10.2",
        "clip <1>",
        "log scale",
    ):
        assert wanted in page.text, wanted
    assert "1 not finite, not shown" in page.text
    assert "--guidance_scale=3.0" in page.text and "bash launch/quickstart.sh" in page.text
    assert (
        len(page.all("video")) == 5 and len(page.all("svg")) == 4 and len(page.all("details")) == 2
    )
    assert page.text.count("✓ ") == 5 and page.text.count("✗ ") == 1
    assert not [name for name in os.listdir(root) if name.endswith(".tmp")]


def test_page_is_one_file_and_prompts_are_text(root):
    page = read(report.write_report(root))
    assert (
        not page.all("script")
        and not page.all("link")
        and not page.all("img")
        and not page.all("b")
    )
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attrs.get(name) or "data:").startswith("data:")
    assert EVIL in page.text
    assert all(
        {"autoplay", "loop", "muted", "playsinline"} <= set(attrs) for attrs in page.all("video")
    )
    style = report_style.STYLE
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in next(a["content"] for a in page.all("meta") if "http-equiv" in a)


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
        "timings.json": "No times were recorded.",
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
    (root / "secret.mp4").write_bytes(b"secret")
    path = root / "evaluation" / "captions" / "captions.json"
    captions = json.loads(path.read_text())
    captions["samples"][0]["file"] = "../../secret.mp4"
    captions["samples"][1]["file"] = "absent.mp4"
    write_json(path, captions)
    page = read(report.write_report(root))
    assert len(page.all("video")) == 3 and "absent.mp4 is not there" in page.text
    assert "../../secret.mp4 is not there" in page.text


def test_the_page_stops_growing(root, monkeypatch):
    monkeypatch.setattr(report, "MAX_SAMPLES", 2)
    monkeypatch.setattr(report, "MAX_IN_SIGHT", 1)
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
    svg = chart.line_chart(range(30), y, "a <label>")
    assert "nan" not in svg and "a &lt;label&gt;" in svg
    assert Page(svg).all("polyline")
