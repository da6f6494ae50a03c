"""Runs that would train on noise are refused before the first step: parameters of another
embedder, captions that the text encoder cannot take, data of another kind than their path's."""

import dataclasses
import json

import numpy as np
import pytest

from xgen_jax.commands.train import train
from xgen_jax.config.runs import VDiTWeights, to_dict
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.warm_start import with_base_embedder
from xgen_jax.testing import VDIT, VIDVAE, tiny_run


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another embedder than that of the tiny runs, of the same shape."""
    folder = tmp_path_factory.mktemp("other") / "vidvae"
    train(tiny_run(VIDVAE, loop={"seed": 1}), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}], ids=["init_from", "lora"])
def test_parameters_of_another_embedder_are_refused(other, tiny_runs, tmp_path, lora):
    changes = {"init_from": str(tiny_runs / "vdit"), "lora": lora}
    foreign = tiny_run(VDIT, embedder=str(other), **changes)
    message = r"init_from=.*vdit was trained on the embedder [0-9a-f]{16}, and this run's embedder"
    with pytest.raises(UserError, match=message):
        train(foreign, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    own = tiny_run(VDIT, **changes)  # by default the base's
    assert train(own, tmp_path / "run")["step"] == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["embedder"] == str(tiny_runs / "vidvae")
    if lora is None:  # only the first step needs the base
        moved = dataclasses.replace(own, init_from=str(tmp_path / "gone"))
        values = {**config, "init_from": moved.init_from}
        (tmp_path / "run" / "config.json").write_text(json.dumps(values))
        assert train(moved, tmp_path / "run")["step"] == 2


def test_the_embedder_is_the_bases_or_has_to_be_named(tiny_runs, tmp_path):
    base, run = tiny_run(VDIT, init_from=str(tiny_runs / "vdit")), RunFolder(tmp_path / "run")
    assert with_base_embedder(base, run).embedder == str(tiny_runs / "vidvae")
    named = dataclasses.replace(base, embedder="other")
    assert with_base_embedder(named, run) is named
    with pytest.raises(UserError, match="needs an embedder: give --config.embedder=FOLDER"):
        tiny_run(VDIT)
    weights = VDiTWeights(kind="pixart", source="x", model=base.model, latent_channels=4)
    RunFolder(tmp_path / "weights").write_json("config.json", to_dict(weights))
    converted = dataclasses.replace(base, init_from=str(tmp_path / "weights"))
    with pytest.raises(UserError, match="converted weights, which know no embedder: give --config"):
        with_base_embedder(converted, run)


@pytest.fixture
def folder(tmp_path):
    """Two videos, one of them with a caption of 118 bytes."""
    videos = tmp_path / "videos"
    videos.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    captions = {"a.mp4": "a red circle", "b.mp4": "x" * 118}
    for name in captions:
        write_video(videos / name, frames)
    lines = (json.dumps({"file": f, "caption": caption}) for f, caption in captions.items())
    (videos / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return videos


def test_a_caption_that_is_too_long_is_refused_before_the_first_step(folder, tiny_runs, tmp_path):
    data = {"source": {"kind": "video_folder", "path": str(folder)}}
    config = tiny_run(VDIT, embedder=str(tiny_runs / "vidvae"), data=data)
    with pytest.raises(
        UserError, match=r"1 captions cannot.*\n  .*b\.mp4: .* 118 bytes.*at most 64"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
