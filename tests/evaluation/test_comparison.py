"""The page that compares runs: its columns, what they have in common, and what differs."""

import json
import shutil

import pytest
from experiment_folder import write_experiment, write_json
from html_page import Page, check_scripts

from xgen_jax.commands.evaluate import evaluate
from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.errors import UserError
from xgen_jax.evaluation.comparison import write_comparison


def change(path, **values):
    write_json(path, json.loads(path.read_text()) | values)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two experiments, and a single run."""
    folder = tmp_path_factory.mktemp("experiments")
    first = write_experiment(folder / "a" / "quick & <start>")
    second = folder / "b" / "quick & <start>"
    shutil.copytree(first, second)
    captions = json.loads((second / "evaluation" / "captions" / "captions.json").read_text())
    captions["accuracy"]["all"] = 0.5
    captions["settings"]["steps"] = 99
    captions["samples"][2]["prompt"] = "only here"
    write_json(second / "evaluation" / "captions" / "captions.json", captions)
    config = json.loads((second / "vdit" / "config.json").read_text())
    config["model"]["width"] = 128
    write_json(second / "vdit" / "config.json", config | {"objective": "vdit"})
    change(second / "vdit" / "run.json", command="python launch/train.py --secret=<b>")
    shutil.copytree(second / "vdit", folder / "alone")
    return first, second, folder / "alone"


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_figures_curves_and_videos_stand_side_by_side(roots, tmp_path):
    path, names = write_comparison(roots[:2], tmp_path / "page.html")
    page = read(path)
    check_scripts(page)
    assert names == ["a/quick & <start>", "b/quick & <start>"]
    assert "93.0% 89% to 96% 50.0% 43% to 57%" in page.flat  # both with their intervals
    best = [attrs for tag, attrs in page.tags if tag == "td" and attrs.get("class") == "best"]
    assert len(best) == 1  # all else is equal
    assert "2 prompts that all runs have; 2 others are left out" in page.flat
    assert "2 clips that all runs have." in page.flat
    assert len(page.all("video")) == 2 * 3 + 2 * 2  # one truth and two samples; reconstructions
    assert "a/quick & <start> ✗ shape" in page.flat and "b/quick & <start> ✓" in page.flat
    assert "The settings of sampling differ between runs: steps 10, 99." in page.flat
    charts = [svg for svg in page.all("svg") if svg.get("class") == "chart"]
    assert len(charts) == 4  # loss and speed, of two stages
    lines = [line["class"] for line in page.all("polyline")]
    assert lines.count("smooth s0") == lines.count("smooth s1") == 2 * len(charts)  # and legends


def test_only_what_differs_of_the_configurations_is_listed(roots, tmp_path):
    page = read(write_comparison(roots[:2], tmp_path / "page.html")[0])
    assert "model.width 96 128" in page.flat and "model.patch" not in page.text
    assert "The same in all runs." in page.flat  # the autoencoders
    assert "python launch/train.py --secret=<b>" in page.flat and not page.all("b")


def test_a_single_run_can_be_compared(roots, tmp_path):
    page = read(write_comparison(roots[1:], tmp_path / "page.html")[0])
    assert "No prompts that all runs have" in page.flat
    assert "Only quick & <start> has one." in page.flat  # a configuration of the autoencoder
    lines = [line["class"] for line in page.all("polyline")]
    # Of the autoencoder there is one run, of the transformer two: the first keeps its colour.
    assert lines.count("smooth s0") == 2 * 4 and lines.count("smooth s1") == 2 * 2
    assert "Text-to-video transformer (VDiT)" in page.text and "time of all stages" in page.text


def test_nothing_is_the_best_where_other_clips_were_scored(roots, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(roots[0], other)
    path = other / "evaluation" / "reconstruction" / "reconstruction.json"
    for clips, best in ((2, 1), (99, 0)):
        results = json.loads(path.read_text())
        results["shapes"][0] |= {"clips": clips}
        results["shapes"][0]["mean"]["psnr_db"] = 40.0
        write_json(path, results)
        page = read(write_comparison([roots[0], other], tmp_path / "page.html")[0])
        assert len([1 for attrs in page.all("td") if attrs.get("class") == "best"]) == best
        said = "The clips of reconstruction differ between runs: clips 2, 99."
        assert (said in page.flat) is (best == 0)


def test_what_cannot_be_compared_is_refused(roots, tmp_path):
    for wrong, message in (
        (roots[:1], "1 runs cannot be compared: give --runs=DIR,DIR,... with 2 to 6"),
        ([*roots, *roots, roots[0]], "7 runs cannot"),
        ((roots[0], roots[0]), "2 times: give it once"),
        ((roots[0], tmp_path), "holds no run"),
    ):
        with pytest.raises(UserError, match=message):
            write_comparison(wrong, tmp_path / "page.html")
    with pytest.raises(UserError, match="give --runs"):
        EvaluateRequest(suite="compare", out="a")


def test_the_suite_names_the_page(roots, tmp_path):
    runs = [str(root) for root in roots[:2]]
    result = evaluate(EvaluateRequest(suite="compare", runs=runs, out=str(tmp_path / "out")))
    assert result["report"] == str(tmp_path / "out" / "comparison.html")
    page = read(tmp_path / "out" / "comparison.html")
    assert f"--out={tmp_path / 'out'}" in page.text
