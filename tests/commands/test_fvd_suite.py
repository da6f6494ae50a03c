"""FVD by command: a model's samples or a folder's videos, never without the network."""

import json
import shutil

import numpy as np
import pytest
import tiny_i3d

from xgen_jax import evaluate
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    return str(tiny_i3d.converted(tmp_path_factory.mktemp("weights") / "i3d"))


def write_folder(folder, seed, count=2, frames=10, side=16, fps=8.0):
    source = SyntheticSource(seed=seed, split="held_out", num_clips=count)
    for number in range(count):
        clip = source.read(number, None, frames, side, side)["video"]
        write_video(folder / f"{seed}-{number}.mp4", clip, fps)
    return str(folder)


def test_two_folders_are_compared(tmp_path, i3d, capsys):
    real, made = write_folder(tmp_path / "real", 1, side=24), write_folder(tmp_path / "made", 2)
    write_folder(tmp_path / "real", 3, count=1, frames=5)
    flags = {"i3d": i3d, "frames": 10, "out": str(tmp_path / "out")}
    summary = evaluate("fvd", videos=made, data=real, **flags)
    assert (summary["clips_real"], summary["clips_generated"], summary["frames"]) == (2, 2, 10)
    assert "1 of 3 clips" in capsys.readouterr().err
    held = json.loads((tmp_path / "out" / "fvd" / "fvd.json").read_text())
    assert held["fvd"] == summary["fvd"] > 1e-4 and held["fps"] == 8.0
    # Those of --data come at the size of --videos.
    assert held["size_real"] == held["size_generated"] == ["16x16"]
    with pytest.raises(UserError, match="2 clips or more of each set.*0 real and 0 generated"):
        evaluate("fvd", videos=made, data=real, **{**flags, "frames": 16})
    write_folder(tmp_path / "made", 4, count=1, side=24)
    with pytest.raises(UserError, match=r"several sizes \(16x16, 24x24\)"):
        evaluate("fvd", videos=made, data=real, **flags)


def test_without_what_it_needs_nothing_is_computed(tmp_path, tiny_runs, i3d):
    model, out = str(tiny_runs / "vdit"), str(tmp_path)
    with pytest.raises(UserError, match="computes nothing in its place: give --i3d=FOLDER"):
        evaluate("fvd", model=model, out=out)
    with pytest.raises(UserError, match="one of --model=DIR and --videos=FOLDER"):
        evaluate("fvd", i3d=i3d, out=out)
    with pytest.raises(UserError, match="give it"):
        evaluate("fvd", videos=out, i3d=i3d, out=out)
    with pytest.raises(UserError, match="--steps is for samples of a --model"):
        evaluate("fvd", videos=out, data=out, steps=3, i3d=i3d, out=out)
    with pytest.raises(UserError, match="samples 5: give --frames=N"):
        evaluate("fvd", model=model, i3d=i3d, out=out)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_a_models_samples_are_compared_with_the_clips_of_their_prompts(tmp_path, tiny_runs, i3d):
    flags = {"model": str(tiny_runs / "vdit"), "i3d": i3d, "out": str(tmp_path)}
    summary = evaluate("fvd", **flags, frames=13, count=3)
    assert (summary["clips_real"], summary["clips_generated"]) == (3, 3)
    held = json.loads((tmp_path / "fvd" / "fvd.json").read_text())
    assert np.isfinite(held["fvd"]) and held["data"] == "moving shapes, held out"
    assert held["settings"]["steps"] == 2 and (tmp_path / "fvd" / "002.mp4").exists()


def with_source(run, target, **source):
    """Copy a run whose configuration says that it was trained on another source."""
    shutil.copytree(run, target)
    config = json.loads((target / "config.json").read_text())
    config["data"]["source"] |= source
    (target / "config.json").write_text(json.dumps(config))
    return str(target)


@pytest.mark.slow
def test_a_run_on_outlines_is_compared_with_outlines(tmp_path, tiny_runs, i3d):
    flags = {"i3d": i3d, "frames": 13, "count": 3}
    results = {}
    for style in ("filled", "outline"):
        model = with_source(tiny_runs / "vdit", tmp_path / style / "vdit", style=style)
        summary = evaluate("fvd", model=model, out=str(tmp_path / style), **flags)
        results[style] = summary["fvd"]
    assert results["filled"] != results["outline"]
    data = {"kind": "latents", "path": "gone/latents", "split": "train"}
    moved = tmp_path / "moved" / "vdit"
    shutil.copytree(tiny_runs / "vdit", moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["source"] = data
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="latents in gone/latents, .*, or give --data=FOLDER"):
        evaluate("fvd", model=str(moved), out=str(tmp_path / "moved"), **flags)
