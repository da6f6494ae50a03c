"""An exported model is the model: its folder loads as the run's does, and says what it is."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import yaml

import xgen_jax
from xgen_jax.commands.convert import ConvertRequest
from xgen_jax.config.runs import run_config, to_dict
from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.runs.exported import own_params, own_tensors
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.load import load_embedder, load_text_encoder, load_transformer
from xgen_jax.runs.stored import DamagedCheckpoint
from xgen_jax.testing import REGEN_MODEL, random_regen_params, warm_start, write_regen_run
from xgen_jax.weights.safetensors import read_safetensors, write_safetensors, write_sharded

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def export(source, out, **flags):
    return xgen_jax.convert(kind="export", source=str(source), out=str(out), **flags)


def assert_equal(one, other):
    assert len(jax.tree.leaves(one)) > 5
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def shapes(tiny_runs, tmp_path_factory):
    """The tiny text-to-video model, exported and alone in its folder."""
    out = tmp_path_factory.mktemp("exported") / "shapes"
    summary = export(tiny_runs / "vdit", out, licence="apache-2.0")
    assert summary["layout"] == "xgen_jax" and summary["step"] == 2
    return out


@pytest.fixture(scope="module")
def regen(tmp_path_factory):
    return write_regen_run(tmp_path_factory.mktemp("regen") / "run")


def test_one_folder_samples_as_the_run_does(tiny_runs, shapes, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(shapes, moved)
    (tmp_path / "embedder").mkdir()  # is not the model's
    monkeypatch.chdir(tmp_path)
    model, wanted = xgen_jax.load(moved), xgen_jax.load(tiny_runs / "vdit")
    assert (model.step, model.fps) == (wanted.step, wanted.fps)
    given = ("a red circle moving left",)
    np.testing.assert_array_equal(model(*given, seed=3), wanted(*given, seed=3))
    names = {str(path.relative_to(moved)) for path in moved.rglob("*.*")}
    assert names == {
        "README.md",
        "model_index.json",
        *(f"embedder/{name}" for name in ("config.json", "export.json", "model.safetensors")),
        "embedder/latent_statistics.json",
        *(f"transformer/{name}" for name in ("config.json", "export.json", "model.safetensors")),
        *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors")),
    }
    index = json.loads((moved / "model_index.json").read_text())
    assert index["transformer"] == ["xgen_jax", "VDiT"]
    assert index["embedder"] == ["xgen_jax", "VidVAE"]


def test_what_takes_a_run_takes_the_folder(tiny_runs, shapes):
    wanted = load_transformer(tiny_runs / "vdit")[1]
    assert wanted.keys() == {"vdit", "text"}
    assert_equal(load_transformer(shapes)[1], wanted)
    assert_equal(load_text_encoder(shapes)[1], load_text_encoder(tiny_runs / "vdit")[1])
    values = to_dict(RunFolder(tiny_runs / "vdit").config())
    start = warm_start(run_config(values | {"init_from": str(shapes)}))
    assert_equal(start, warm_start(run_config(values | {"init_from": str(tiny_runs / "vdit")})))
    embedder, params = load_embedder(shapes / "embedder")
    wanted, wanted_params = load_embedder(tiny_runs / "vidvae")
    assert embedder.fingerprint(params) == wanted.fingerprint(wanted_params)
    with pytest.raises(UserError, match="holds a vdit run; give an embedder"):
        load_embedder(shapes)
    with pytest.raises(UserError, match="is no run to go on with"):
        RunFolder(shapes).checkpoints().restore({})
    with pytest.raises(UserError, match="no checkpoint of step 1 in"):
        load_transformer(shapes, step=1)


def test_a_transformer_stays_tied_to_its_embedder(tiny_runs, shapes, tmp_path):
    other = tmp_path / "vidvae"
    shutil.copytree(tiny_runs / "vidvae", other)
    statistics = json.loads((other / "latent_statistics.json").read_text())
    statistics["mean"][0] += 1
    (other / "latent_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match="was trained on the embedder .*, and what is loaded now"):
        xgen_jax.load_text_to_video(shapes, embedder=str(other))
    with pytest.raises(UserError, match="was trained on the embedder .*, and what is loaded now"):
        export(tiny_runs / "vdit", tmp_path / "out", embedder=str(other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vidvae"]


def test_half_precision_leaves_the_embedder_as_it_is(tiny_runs, shapes, tmp_path):
    summary = export(tiny_runs / "vdit", tmp_path / "half", dtype="bfloat16")
    size = {
        name: [
            (root / name / "model.safetensors").stat().st_size
            for root in (shapes, tmp_path / "half")
        ]
        for name in ("transformer", "embedder")
    }
    assert size["transformer"][1] < 0.7 * size["transformer"][0]
    assert size["embedder"][0] == size["embedder"][1]
    model = xgen_jax.load(tmp_path / "half")
    full = load_transformer(shapes)[1]["vdit"]
    assert summary["fingerprint"] == fingerprint(model.config.model, model.networks.params["vdit"])
    close = jax.tree.map(
        lambda a, b: bool(np.allclose(a, b, rtol=2**-8)), model.networks.params["vdit"], full
    )
    assert all(jax.tree.leaves(close))


def test_values_that_have_changed_are_not_used(shapes, tmp_path):
    damaged = tmp_path / "shapes"
    shutil.copytree(shapes, damaged)
    file = damaged / "transformer" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="the values of vdit/.* are not those that were"):
        xgen_jax.load(damaged)
    file.write_bytes(data[:-8])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        xgen_jax.load(damaged)
    file.unlink()
    with pytest.raises(UserError, match="holds no .safetensors file"):
        xgen_jax.load(damaged)


def test_a_generative_decoder_keeps_its_statistics(regen, tmp_path):
    export(regen, tmp_path / "out")
    one, params = load_embedder(tmp_path / "out")
    other, wanted = load_embedder(regen)
    assert_equal(params, wanted)
    assert one == other
    (tmp_path / "out" / "latent_statistics.json").unlink()
    with pytest.raises(UserError, match="holds no latent_statistics.json"):
        load_embedder(tmp_path / "out")


@pytest.mark.parametrize(
    ("golden", "kind", "layout", "key"),
    [
        pytest.param(
            *("sd_vae_inflation", "sd-vae", "autoencoder_kl", "_class_name"),
            marks=pytest.mark.slow,
        ),
        ("stdit2", "stdit2", "stdit2", "model_type"),
    ],
)
def test_a_network_of_another_project_has_that_projects_layout(tmp_path, golden, kind, layout, key):
    with np.load(GOLDENS / f"{golden}.npz") as file:
        named = {name: file[name] for name in file.files if name.startswith("params/")}
    tensors = {name.removeprefix("params/"): value for name, value in named.items()}
    tensors.pop("rope.freqs", None)  # computed, and to the last bit another one
    write_safetensors(tmp_path / "source.safetensors", tensors)
    source = {"kind": kind, "source": str(tmp_path / "source.safetensors")}
    xgen_jax.convert(**source, out=str(tmp_path / "converted"))
    assert export(tmp_path / "converted", tmp_path / "out")["layout"] == layout
    assert key in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_equal(
        RunFolder(tmp_path / "out").ema_params(), RunFolder(tmp_path / "converted").ema_params()
    )
    # The other project's tensors again, and so is the network that they are converted to.
    written = read_safetensors(tmp_path / "out")
    np.testing.assert_equal({name: written[name] for name in tensors}, tensors)
    again = xgen_jax.convert(kind=kind, source=str(tmp_path / "out"), out=str(tmp_path / "again"))
    model, params = RunFolder(tmp_path / "out").config().model, RunFolder(tmp_path / "out")
    (tree,) = params.ema_params().values()
    assert again["fingerprint"] == fingerprint(model, tree)
    # Without its record it is the other project's, and the way to take it is named.
    (tmp_path / "out" / "export.json").unlink()
    with pytest.raises(UserError, match="of another project: .* launch/convert.py --kind=KIND"):
        RunFolder(tmp_path / "out").config()


def test_the_card_says_what_it_is_and_nothing_of_this_machine(tiny_runs, tmp_path):
    scores = tmp_path / "scores" / "captions"
    scores.mkdir(parents=True)
    figures = {"prompts": 8, "accuracy": {"all": 0.875}, "samples": [{"prompt": "x"}]}
    (scores / "captions.json").write_text(json.dumps(figures))
    (scores / "other.json").write_text("{}")
    about = {"licence": "cc-by-4.0", "evaluation": str(tmp_path / "scores")}
    export(tiny_runs / "vdit", tmp_path / "out", **about)
    text = (tmp_path / "out" / "README.md").read_text()
    _, header, body = text.split("---", 2)
    assert yaml.safe_load(header) == {
        "library_name": "xgen_jax",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-to-video",
        "tags": ["video", "jax", "vdit"],
    }
    assert "| captions | accuracy.all | 0.875 |" in body and 'xgen_jax.load("out")' in body
    assert "| data.buckets | `5x16x16x2` |" in body and "step 2 of its run" in body
    files = [path for path in (tmp_path / "out").rglob("*.*") if path.suffix != ".safetensors"]
    written = [path.read_text() for path in files]
    assert len(written) == 8 and not any(str(tiny_runs) in each for each in written)
    assert export(tiny_runs / "vdit", tmp_path / "out", **about)["layout"]  # the same again
    figures["accuracy"]["all"] = 1.0
    (scores / "captions.json").write_text(json.dumps(figures))
    for other in ({"licence": "mit"}, {"evaluation": about["evaluation"]}):
        with pytest.raises(UserError, match=f"card was written with another --{next(iter(other))}"):
            export(tiny_runs / "vdit", tmp_path / "out", **other)
    with pytest.raises(UserError, match="--evaluation=.* holds no figures"):
        export(tiny_runs / "vdit", tmp_path / "more", evaluation=str(tmp_path))


def test_a_folder_is_written_whole_and_never_over_something_else(regen, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(regen, out, licence="mit")
    before = (out / "README.md").stat().st_mtime_ns
    export(regen, out)  # the same again
    assert (out / "README.md").stat().st_mtime_ns == before
    with pytest.raises(
        UserError, match="holds another exported model .*replace it with --overwrite"
    ):
        export(regen, out, dtype="bfloat16")
    (out / ".git").mkdir()
    export(regen, out, dtype="bfloat16", overwrite=True)
    assert (out / ".git").is_dir()
    assert RunFolder(out).read_json("export.json")["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="is not empty and holds no exported model"):
        export(regen, regen, overwrite=True)
    monkeypatch.setattr("xgen_jax.runs.model_card.card", lambda about: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(regen, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    record = RunFolder(out).read_json("export.json")
    RunFolder(out).write_json("export.json", record | {"format": 2})
    with pytest.raises(UserError, match="exported by another release"):
        load_embedder(out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"kind": "sd-vae", "dtype": "bfloat16"}, "--dtype is for --kind=export"),
        ({"kind": "stdit2-export", "push": "hf://a/b"}, "--push is for --kind=export"),
        ({"private": True}, "--private is for --push"),
        ({"dtype": "float16"}, "dtype='float16' is not known.*bfloat16"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, regen, tmp_path):
    given = {"kind": "export", "source": str(regen), "out": str(tmp_path / "out")} | flags
    with pytest.raises(UserError, match=message):
        xgen_jax.convert(**dataclasses.asdict(ConvertRequest(**given)))
    assert not (tmp_path / "out").exists()


def test_large_models_are_written_in_several_files(tmp_path):
    params = random_regen_params(REGEN_MODEL)
    tensors = own_tensors(params)
    assert_equal(own_params(tensors), params)
    total = sum(tensor.nbytes for tensor in tensors.values())
    files = write_sharded(tmp_path, "model", tensors, shard_bytes=total // 3)
    assert len(files) in (4, 5) and files[-1].name == "model.safetensors.index.json"
    assert files[0].name == f"model-00001-of-{len(files) - 1:05d}.safetensors"
    assert json.loads(files[-1].read_text())["metadata"]["total_size"] == total
    assert all(file.stat().st_size < total // 3 + 20_000 for file in files)
    assert_equal(own_params(read_safetensors(tmp_path)), params)
