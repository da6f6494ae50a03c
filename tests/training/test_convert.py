"""Converted weights are an embedder's folder: every command takes it, and it says of itself where it comes from."""

import json
import pathlib

import jax
import numpy as np
import pytest

import xgen_jax
from xgen_jax.data.synthetic import SyntheticSource
from xgen_jax.data.video import read_video, write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.suites import reconstruct_file, reconstruction_suite
from xgen_jax.inference.encode import encode_dataset
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.training.convert import convert
from xgen_jax.training.loop import train
from xgen_jax.training.run_folder import RunFolder, load_embedder
from xgen_jax.weights.safetensors import write_safetensors

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden's random 2D autoencoder as a file, converted, and a video beside it."""
    root = tmp_path_factory.mktemp("converted")
    with np.load(GOLDENS / "sd_vae_inflation.npz") as file:
        tensors = {name.removeprefix("params/"): file[name] for name in file.files if name.startswith("params/")}
    write_safetensors(root / "sd.safetensors", tensors)
    clip = SyntheticSource(seed=0, split="train", num_clips=1).read(0, np.random.default_rng(0), 7, 20, 28)
    write_video(root / "clip.mp4", clip["video"], fps=8)
    convert(kind="sd-vae", source=str(root / "sd.safetensors"), out=str(root / "vae"))
    return root


def test_the_folder_describes_itself(folder):
    # The same again is no error, and no other folder.
    summary = convert(kind="sd-vae", source=str(folder / "sd.safetensors"), out=str(folder / "vae"))
    assert (summary["time_factor"], summary["space_factor"], summary["streams"]) == (4, 8, True)
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert config["objective"] == "vidvae_weights"
    assert config["source"] == str(folder / "sd.safetensors")
    embedder, params = load_embedder(folder / "vae", require_statistics=False)
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params["model"]))
    assert summary["fingerprint"] == fingerprint(embedder.model.config, params["model"])


def test_it_reconstructs_a_video_file(folder):
    result = reconstruct_file(embedder=folder / "vae", video=folder / "clip.mp4", out=folder / "both.mp4")
    assert result["shape"] == [7, 20, 28, 3]
    both, _ = read_video(folder / "both.mp4")
    assert both.shape == (7, 20, 58, 3)
    # What the file shows is what the model gives.
    video, _ = read_video(folder / "clip.mp4")
    assert xgen_jax.load(folder / "vae")(video).shape == video.shape


def test_it_has_no_sizes_and_no_statistics_until_somebody_gives_them(folder):
    with pytest.raises(UserError, match="no sizes of their own: give --shapes"):
        reconstruction_suite(embedder=folder / "vae", out=folder / "evaluation")
    with pytest.raises(UserError, match="its weights were converted. launch/encode.py"):
        load_embedder(folder / "vae")
    encode_dataset(
        embedder=str(folder / "vae"), data="synthetic", out=str(folder / "latents"), buckets="5x16x16", count=4
    )
    _, params = load_embedder(folder / "vae")
    assert (np.asarray(params["std"]) > 0).all() and not np.allclose(params["std"], 1)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"kind": None}, "give --kind, one of sd-vae, osp-vae"),
        ({"source": None}, "give --source"),
        ({"kind": "vqgan"}, "kind 'vqgan' is not known"),
        ({"source": "weights.ckpt"}, "there is no weights.ckpt"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(folder, changes, message):
    arguments = {"kind": "sd-vae", "source": str(folder / "sd.safetensors"), "out": str(folder / "other")} | changes
    with pytest.raises(UserError, match=message):
        convert(**arguments)
    assert not (folder / "other").exists()


def test_converted_weights_are_not_trained_but_started_from(folder, tmp_path):
    with pytest.raises(UserError, match="converted weights are no run.*init_from=FOLDER"):
        train(RunFolder(folder / "vae").config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_folder_is_not_overwritten(folder, tiny_runs):
    with pytest.raises(UserError, match="holds a run with another configuration"):
        convert(kind="sd-vae", source=str(folder / "sd.safetensors"), out=str(tiny_runs / "vidvae"))
