"""The prompt suite is sampled as VBench expects it, in any number of runs; results are read."""

import json

import pytest

from xgen_jax import evaluate
from xgen_jax.errors import UserError

SUITE = [
    {"prompt_en": "a red circle.", "dimension": ["color", "scene"]},
    {"prompt_en": "left/right", "dimension": ["human_action"]},
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(SUITE))
    return str(path)


def test_a_run_goes_on_where_it_stopped(tiny_runs, tmp_path, prompts, capsys):
    flags = {"model": str(tiny_runs / "vdit"), "prompts_json": prompts}
    summary = evaluate("vbench_export", **flags, out=str(tmp_path / "a"))
    assert (summary["prompts"], summary["generated"], summary["kept"]) == (2, 10, 0)
    assert "5 videos could not be named by their prompts" in capsys.readouterr().err
    folder = tmp_path / "a" / "videos"
    names = {f"a red circle.-{index}.mp4" for index in range(5)}
    assert {path.name for path in folder.iterdir()} > names and len(list(folder.iterdir())) == 10
    record = json.loads((tmp_path / "a" / "vbench.json").read_text())
    assert [video["seed"] for video in record["videos"]] == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]
    assert len({(folder / name).read_bytes() for name in names}) == 5
    lines = (tmp_path / "a" / "renamed.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["prompt"] == "left/right" and len(lines) == 5
    # One dimension first, another one then, and a video that was lost: the same bytes.
    for dimensions in (["human_action"], ["scene"]):
        evaluate("vbench_export", **flags, out=str(tmp_path / "b"), dimensions=dimensions)
    (tmp_path / "b" / "videos" / "a red circle.-2.mp4").unlink()
    again = evaluate("vbench_export", **flags, out=str(tmp_path / "b"))
    assert (again["generated"], again["kept"]) == (1, 9)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "videos" / path.name).read_bytes()
    assert json.loads((tmp_path / "b" / "vbench.json").read_text()) == record
    with pytest.raises(UserError, match="other settings(?s:.*)seed: 0 -> 7"):
        evaluate("vbench_export", **flags, out=str(tmp_path / "b"), seed=7)
    (tmp_path / "b" / "vbench.json").unlink()
    with pytest.raises(UserError, match="unknown settings"):
        evaluate("vbench_export", **flags, out=str(tmp_path / "b"))


def test_a_dimension_without_a_prompt_is_refused(tiny_runs, tmp_path, prompts):
    flags = {"model": str(tiny_runs / "vdit"), "prompts_json": prompts, "out": str(tmp_path)}
    with pytest.raises(UserError, match="no prompt for object_class"):
        evaluate("vbench_export", **flags, dimensions=["object_class"])
    with pytest.raises(UserError, match="dimensions='colour' is not known"):
        evaluate("vbench_export", **flags, dimensions=["colour"])
    with pytest.raises(UserError, match="must be below 2\\^32"):
        evaluate("vbench_export", **flags, seed=2**32 - 30)


def test_results_become_the_papers_groups(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"spatial_relationship": [0.25, []]}))
    summary = evaluate(
        "vbench_import", results=str(tmp_path / "r.json"), out=str(tmp_path / "scores")
    )
    held = json.loads((tmp_path / "scores" / "vbench_scores.json").read_text())
    assert held["groups"]["spatial"] == summary["groups"]["spatial"] == 0.25
    assert held["total"] is None and "color" in held["missing"]["total"]
    text = (tmp_path / "scores" / "vbench_scores.md").read_text()
    assert "| this model | – | – | – | 0.250 | – |" in text
