"""CLIP score by command, of a model and of the folders that other commands write."""

import json

import numpy as np
import pytest
import tiny_clip_text

from xgen_jax import evaluate
from xgen_jax.commands.suites.clip_score import prompts_of
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(tiny_clip_text.write(tmp_path_factory.mktemp("clip") / "whole"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos with captions."""
    folder = tmp_path_factory.mktemp("clips")
    for number, text in enumerate(["the cat and", "a"]):
        video = np.random.default_rng(number).integers(0, 256, (3, 32, 48, 3), np.uint8)
        write_video(folder / f"{number}.mp4", video, 8.0)
        (folder / f"{number}.txt").write_text(text)
    return folder


def test_a_folder_is_scored(clips, clip, tmp_path):
    summary = evaluate("clip_score", videos=str(clips), clip=clip, out=str(tmp_path))
    held = json.loads((tmp_path / "clip_score" / "clip_score.json").read_text())
    rows = held["samples"]
    assert [(row["prompt"], row["frames"]) for row in rows] == [("the cat and", 3), ("a", 3)]
    scores = [row["clip_score"] for row in rows]
    assert summary["clip_score"] == held["clip_score"] == pytest.approx(np.mean(scores))
    assert 0 <= min(scores) < max(scores) <= 100 and summary["prompts_cut"] == 0
    assert held["standard_error"] == pytest.approx(abs(scores[0] - scores[1]) / 2)


@pytest.mark.slow
def test_a_models_samples_are_scored(tiny_runs, clip, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a cat\nthe red circle\n")
    flags = {"model": str(tiny_runs / "vdit"), "clip": clip, "out": str(tmp_path)}
    with pytest.raises(UserError, match="give --prompts_file=FILE"):
        evaluate("clip_score", **flags)
    summary = evaluate("clip_score", **flags, prompts_file=str(tmp_path / "prompts.txt"))
    held = json.loads((tmp_path / "clip_score" / "clip_score.json").read_text())
    assert summary["videos"] == 2 and held["settings"]["steps"] == 2
    assert [row["file"] for row in held["samples"]] == ["000.mp4", "001.mp4"]
    assert (tmp_path / "clip_score" / "001.mp4").exists()
    prompts = {"prompts_file": str(tmp_path / "prompts.txt"), "count": 1}
    assert evaluate("clip_score", **flags, **prompts)["videos"] == 1
    assert "1 of 2 prompts are left out by --count=1" in capsys.readouterr().err


def test_prompts_are_found_where_commands_write_them(clips, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("00002.mp4", "a.mp4", "videos/b-0.mp4"):
        (tmp_path / name).touch()
    files = {
        "samples.json": {"settings": {}, "prompts": ["x", "y"]},
        "vbench.json": {"videos": [{"file": "b-0.mp4", "prompt": "b", "index": 0}]},
    }
    for name, held in files.items():
        (tmp_path / name).write_text(json.dumps(held))
        found = [(str(path.relative_to(tmp_path)), text) for path, text in prompts_of(tmp_path)]
        wanted = {"samples.json": ("00002.mp4", "y"), "vbench.json": ("videos/b-0.mp4", "b")}
        assert found == [wanted[name]]
        (tmp_path / name).unlink()
    (tmp_path / "samples.json").write_text(
        json.dumps({"samples": [{"file": "a.mp4", "prompt": "a"}]})
    )
    assert prompts_of(tmp_path) == [(tmp_path / "a.mp4", "a")]
    assert [text for _, text in prompts_of(clips)] == ["the cat and", "a"]
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(UserError, match="no video with a prompt"):
        prompts_of(tmp_path)


def test_flags_that_contradict_are_refused(clips, clip, tmp_path):
    with pytest.raises(UserError, match="one of --model=DIR and --videos=FOLDER"):
        evaluate("clip_score", clip=clip, out=str(tmp_path))
    with pytest.raises(UserError, match="give --clip"):
        evaluate("clip_score", videos=str(clips), out=str(tmp_path))
    for flag, value in {"steps": 2, "seed": 1, "restore": "best"}.items():
        with pytest.raises(UserError, match=f"--{flag} is for samples of a --model"):
            evaluate("clip_score", videos=str(clips), clip=clip, out=str(tmp_path), **{flag: value})
