"""Converted weights are a folder that every command takes, and that names its source."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import xgen_jax
from xgen_jax import convert, evaluate
from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.reconstruct import ReconstructRequest, reconstruct_file
from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config, to_dict
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.load import load_embedder
from xgen_jax.testing import warm_start
from xgen_jax.weights.safetensors import read_safetensors, write_safetensors

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden's random 2D autoencoder as a file, converted, and a video next to it."""
    root = tmp_path_factory.mktemp("converted")
    with np.load(GOLDENS / "sd_vae_inflation.npz") as file:
        tensors = {
            name.removeprefix("params/"): file[name]
            for name in file.files
            if name.startswith("params/")
        }
    write_safetensors(root / "sd.safetensors", tensors)
    clip = SyntheticSource(seed=0, split="train", num_clips=1).read(
        0, np.random.default_rng(0), 7, 20, 28
    )
    write_video(root / "clip.mp4", clip["video"], fps=8)
    convert(kind="sd-vae", source=str(root / "sd.safetensors"), out=str(root / "vae"))
    return root


def test_the_folder_describes_itself(folder):
    # The same again is accepted, and changes nothing.
    summary = convert(kind="sd-vae", source=str(folder / "sd.safetensors"), out=str(folder / "vae"))
    assert (summary["time_factor"], summary["space_factor"], summary["streams"]) == (4, 8, True)
    config = json.loads((folder / "vae" / "config.json").read_text())
    assert config["network"] == "vidvae"
    assert config["source"] == str(folder / "sd.safetensors")
    embedder, params = load_embedder(folder / "vae", require_statistics=False)
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params["model"]))
    assert summary["fingerprint"] == fingerprint(embedder.model.config, params["model"])


def test_it_reconstructs_a_video_file(folder):
    request = ReconstructRequest(
        embedder=folder / "vae", video=folder / "clip.mp4", out=folder / "both.mp4"
    )
    result = reconstruct_file(request)
    assert result["shape"] == [7, 20, 28, 3]
    both, _ = read_video(folder / "both.mp4")
    assert both.shape == (7, 20, 58, 3)
    # The file shows the model's result.
    video, _ = read_video(folder / "clip.mp4")
    assert xgen_jax.load(folder / "vae")(video).shape == video.shape


@pytest.mark.slow
def test_it_has_no_sizes_and_no_statistics_until_somebody_gives_them(folder):
    with pytest.raises(UserError, match="no sizes of their own: give --shapes"):
        evaluate("reconstruction", embedder=folder / "vae", out=folder / "evaluation")
    with pytest.raises(UserError, match="its weights were converted. launch/encode.py"):
        load_embedder(folder / "vae")
    request = EncodeRequest(
        embedder=str(folder / "vae"),
        data="synthetic",
        out=str(folder / "latents"),
        buckets="5x16x16",
        count=4,
    )
    encode_dataset(request)
    _, params = load_embedder(folder / "vae")
    assert (np.asarray(params["std"]) > 0).all() and not np.allclose(params["std"], 1)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"kind": None},
            "give --kind, one of sd-vae, osp-vae, stdit2, pixart, export, stdit2-export, lora",
        ),
        ({"source": None}, "give --source"),
        ({"kind": "vqgan"}, "kind='vqgan' is not known"),
        ({"source": "weights.ckpt"}, "there is no weights.ckpt"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(folder, changes, message):
    arguments = {
        "kind": "sd-vae",
        "source": str(folder / "sd.safetensors"),
        "out": str(folder / "other"),
    } | changes
    with pytest.raises(UserError, match=message):
        convert(**arguments)
    assert not (folder / "other").exists()


def test_converted_weights_are_not_trained_but_started_from(folder, tmp_path):
    with pytest.raises(UserError, match="converted weights are not a run.*init_from=FOLDER"):
        train(RunFolder(folder / "vae").config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_folder_is_not_overwritten(folder, tiny_runs):
    with pytest.raises(UserError, match="holds a run of another network"):
        convert(kind="sd-vae", source=str(folder / "sd.safetensors"), out=str(tiny_runs / "vidvae"))


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """The golden's random STDiT2 as a file, and its part of a PixArt-alpha; both converted."""
    root = tmp_path_factory.mktemp("transformers")
    with np.load(GOLDENS / "stdit2.npz") as file:
        tensors = {
            name.removeprefix("params/"): file[name]
            for name in file.files
            if name.startswith("params/")
        }
    write_safetensors(root / "stdit2.safetensors", tensors)
    shared = json.loads((GOLDENS / "stdit2.json").read_text())["pixart"]["shared"]
    write_safetensors(root / "pixart.safetensors", {name: tensors[name] for name in shared})
    for kind in ("stdit2", "pixart"):
        summary = convert(kind=kind, source=str(root / f"{kind}.safetensors"), out=str(root / kind))
        assert (summary["latent_channels"], summary["opensora_compat"]) == (4, kind == "stdit2")
        assert bool(summary["new_layers"]) == (kind == "pixart")
    return root


def test_a_transformers_folder_holds_what_the_file_does(transformers):
    config = RunFolder(transformers / "stdit2").config()
    assert (config.network, config.kind, config.model.width) == ("vdit", "stdit2", 144)
    params = RunFolder(transformers / "stdit2").checkpoints().restore_part(("ema", "vdit"))
    out = transformers / "exported.safetensors"
    arguments = {"kind": "stdit2-export", "source": str(transformers / "stdit2"), "out": str(out)}
    assert convert(**arguments)["fingerprint"] == fingerprint(config.model, params)
    wanted = read_safetensors(transformers / "stdit2.safetensors")
    exported = read_safetensors(out)
    assert exported.keys() == wanted.keys()
    for name in wanted.keys() - {"rope.freqs"}:
        np.testing.assert_array_equal(exported[name], wanted[name], err_msg=name)
    with pytest.raises(UserError, match="exists"):
        convert(**arguments)
    convert(**arguments, overwrite=True)


@pytest.mark.parametrize(
    "source,out,message",
    [
        ("pixart", "a.safetensors", "only a network with opensora_compat=True"),
        ("stdit2", "a.bin", "must be a file that ends with .safetensors"),
        ("missing", "a.safetensors", "there is no folder"),
    ],
)
def test_what_cannot_be_exported_is_refused(transformers, tmp_path, source, out, message):
    with pytest.raises(UserError, match=message):
        convert(kind="stdit2-export", source=str(transformers / source), out=str(tmp_path / out))


def test_a_converted_transformer_is_not_trained_but_started_from(transformers, tmp_path):
    with pytest.raises(
        UserError, match="train a vdit run that starts from them, with init_from=FOLDER"
    ):
        train(RunFolder(transformers / "pixart").config(), tmp_path / "run")
    with pytest.raises(
        UserError,
        match="holds a vdit network in converted weights; give a text-to-video model: a vdit run",
    ):
        xgen_jax.load(transformers / "pixart")
    with pytest.raises(
        UserError, match="holds a vdit network in converted weights; give an embedder"
    ):
        load_embedder(transformers / "pixart")


def test_a_run_starts_from_a_converted_transformer(transformers, tiny_runs):
    weights = RunFolder(transformers / "pixart").config()
    values = to_dict(RunFolder(tiny_runs / "vdit").config())
    text = {"kind": "bytes", "width": weights.model.text_width, "heads": 2}
    values |= {
        "model": dataclasses.asdict(weights.model),
        "text": text,
        "init_from": str(transformers / "pixart"),
    }
    values["loss"]["process"] = "ddpm"  # its network learns a variance
    start = warm_start(run_config(values))
    wanted = RunFolder(transformers / "pixart").checkpoints().restore_part(("ema", "vdit"))
    jax.tree.map(np.testing.assert_array_equal, start["vdit"], wanted)
    values["model"]["depth"] = 3
    with pytest.raises(
        UserError, match="has other parameters than the model.*\n.*model.depth: 2 -> 3"
    ):
        warm_start(run_config(values))


@pytest.mark.slow
def test_a_source_that_has_changed_is_not_taken_for_the_same(folder, tmp_path):
    source = tmp_path / "sd.safetensors"
    tensors = read_safetensors(folder / "sd.safetensors")
    arguments = {"kind": "sd-vae", "source": str(source), "out": str(tmp_path / "vae")}
    write_safetensors(source, tensors)
    first = convert(**arguments)
    source.unlink()
    write_safetensors(source, {name: 2 * tensor for name, tensor in tensors.items()})
    with pytest.raises(UserError, match="holds other weights .*replace them with --overwrite"):
        convert(**arguments)
    assert convert(**arguments, overwrite=True)["fingerprint"] != first["fingerprint"]
