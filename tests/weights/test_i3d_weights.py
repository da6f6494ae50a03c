"""An I3D's PyTorch file becomes a folder of ours, checked against the torch module."""

import json
import os
import pickle
import warnings
import zipfile

import jax
import numpy as np
import pytest
import tiny_i3d

from xgen_jax import convert
from xgen_jax.errors import UserError
from xgen_jax.files import file_sha256
from xgen_jax.weights.i3d import _branches, _capitals, assemble_i3d, convert_i3d, load_i3d
from xgen_jax.weights.torch_file import is_torchscript

STEM_KERNEL, STEM_NORM = "Conv3d_1a_7x7.conv3d.weight", "Conv3d_1a_7x7.bn"


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_state_dict_becomes_a_folder(tmp_path):
    source = tiny_i3d.write_source(tmp_path / "i3d.safetensors")
    summary = convert(kind="i3d", source=str(source), out=str(tmp_path / "i3d"))
    assert summary["classes"] == tiny_i3d.CLASSES and summary["checked"] == {}
    weights = load_i3d(tmp_path / "i3d")
    equal(weights.params, assemble_i3d(tiny_i3d.tensors(), {})[0].params)
    assert weights.source == "i3d.safetensors" and len(weights.sha256) == 64
    with pytest.raises(UserError, match="replace it with --overwrite"):
        convert(kind="i3d", source=str(source), out=str(tmp_path / "i3d"))
    convert(kind="i3d", source=str(source), out=str(tmp_path / "i3d"), overwrite=True)


def test_the_norm_is_folded_in():
    held = tiny_i3d.tensors()
    unit = assemble_i3d(held, {})[0].params["params"]["conv_1a"]
    scale = held[f"{STEM_NORM}.weight"] / np.sqrt(held[f"{STEM_NORM}.running_var"] + 1e-3)
    np.testing.assert_allclose(
        unit["kernel"], np.moveaxis(held[STEM_KERNEL], (0, 1), (4, 3)) * scale, rtol=1e-6
    )
    shift = held[f"{STEM_NORM}.bias"] - held[f"{STEM_NORM}.running_mean"] * scale
    np.testing.assert_allclose(unit["bias"], shift, rtol=1e-6, atol=1e-7)
    # Another epsilon of the torch module is another network.
    other = assemble_i3d(held, {}, epsilon=1e-5)[0].params["params"]["conv_1a"]
    assert np.abs(other["kernel"] - unit["kernel"]).max() > 1e-5
    # TensorFlow's original has no factor.
    plain = {n: x for n, x in held.items() if n != f"{STEM_NORM}.weight"}
    without = assemble_i3d(plain, {})[0].params["params"]["conv_1a"]
    np.testing.assert_allclose(
        without["kernel"] * held[f"{STEM_NORM}.weight"], unit["kernel"], rtol=1e-5, atol=1e-7
    )


def test_other_names_of_the_layers_are_known():
    held, names = tiny_i3d.tensors(), dict(zip(_capitals(), _branches()))

    def renamed(name):
        unit, _, leaf = name.rpartition(".")
        parent, _, last = unit.rpartition(".")
        theirs = names[f"{parent}.conv3d"].removesuffix(".conv3d")
        return f"{theirs}.{'batch3d' if last == 'bn' else last}.{leaf}"

    weights, ordered = assemble_i3d({renamed(name): x for name, x in held.items()}, {})
    assert not ordered
    equal(weights.params, assemble_i3d(held, {})[0].params)


def test_unknown_names_go_by_their_order_and_only_with_a_check(tmp_path):
    held = {f"net.{name}": x for name, x in tiny_i3d.tensors().items()}
    order = json.dumps(list(held))
    weights, ordered = assemble_i3d(held, {"order": order})
    assert ordered
    equal(weights.params, assemble_i3d(tiny_i3d.tensors(), {})[0].params)
    source = tiny_i3d.write_source(tmp_path / "a.safetensors", held, order=order)
    with pytest.raises(UserError, match="cannot be run to check"):
        convert_i3d(source, str(tmp_path / "i3d"))


def test_the_check_finds_the_padding_or_refuses(tmp_path):
    golden, held = tiny_i3d.GOLDEN, tiny_i3d.tensors()
    checks = {"check.11": golden["out/fixed/11"]}
    source = tiny_i3d.write_source(
        tmp_path / "a.safetensors", {**held, **checks}, epsilons="[0.001]"
    )
    summary = convert_i3d(source, str(tmp_path / "i3d"))
    assert summary["padding"] == "fixed" and max(summary["checked"].values()) < 1e-5
    assert load_i3d(tmp_path / "i3d").model.config.padding == "fixed"
    wrong = {"check.11": golden["out/same/11"] + 0.01}
    source = tiny_i3d.write_source(
        tmp_path / "b.safetensors", {**held, **wrong}, epsilons="[0.001]"
    )
    with pytest.raises(UserError, match="does not give the features of the torch module"):
        convert_i3d(source, str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_every_wrong_tensor_is_listed(tmp_path):
    held = tiny_i3d.tensors()
    held["Mixed_3b.b1b.conv3d.weight"] = held["Mixed_3b.b1b.conv3d.weight"][:, :-1]
    del held["Mixed_5c.b0.bn.running_mean"]
    held["extra"] = np.ones(3, np.float32)
    source = tiny_i3d.write_source(tmp_path / "a.safetensors", held)
    with pytest.raises(UserError, match="mis-shaped(?s:.*)Mixed_3b.b1b") as raised:
        convert_i3d(source, str(tmp_path / "i3d"))
    assert "extra (3,)" in str(raised.value)


def test_another_network_is_refused(tmp_path):
    source = tiny_i3d.write_source(tmp_path / "a.safetensors", {"w": np.ones(2, np.float32)})
    with pytest.raises(UserError, match="is no I3D: 0 convolutions in 3D, wanted 58"):
        convert_i3d(source, str(tmp_path / "i3d"))
    with pytest.raises(UserError, match="there is no file"):
        convert_i3d(tmp_path / "none.pt", str(tmp_path / "i3d"))
    with pytest.raises(UserError, match="there is no I3D in .*without one no FVD"):
        load_i3d(tmp_path)


def test_without_torch_it_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch, says the test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = tmp_path / "i3d_torchscript.pt"
    source.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="pip install torch") as raised:
        convert_i3d(source, str(tmp_path / "i3d"))
    assert f"torch_file.py {source} i3d.safetensors 16 11" in str(raised.value)


def test_a_torchscript_is_known_by_the_names_in_it(tmp_path):
    for name, names in {"a": ("x/constants.pkl", "x/code/a.py"), "b": ("x/data.pkl",)}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for held in names:
                archive.writestr(held, "")
    (tmp_path / "c").write_bytes(b"\x80\x02")
    assert [is_torchscript(tmp_path / name) for name in "abc"] == [True, False, False]


class Evil:
    def __reduce__(self):
        return os.system, ("touch EXECUTED",)


def test_with_torch_its_files_are_opened_in_another_process(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    import torch_i3d

    sizes = assemble_i3d(tiny_i3d.tensors(), {})[0].model.config
    net = torch_i3d.random_i3d(sizes.stem, sizes.blocks, sizes.classes, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the public file is of that time
        scripted = torch.jit.script(net)
    scripted.save(tmp_path / "i3d_torchscript.pt")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    for file in ("i3d_torchscript.pt", "state.pt"):
        summary = convert_i3d(tmp_path / file, str(tmp_path / f"{file}-i3d"))
        assert (summary["source"], summary["sha256"]) == (file, file_sha256(tmp_path / file))
        assert bool(summary["checked"]) == (file != "state.pt") and summary["padding"] == "same"
        assert not summary["checked"] or max(summary["checked"].values()) < 1e-5
        equal(
            load_i3d(tmp_path / f"{file}-i3d").params,
            assemble_i3d(tiny_i3d.tensors(), {})[0].params,
        )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(UserError, match="not read as TorchScript or a state dict"):
        convert_i3d(tmp_path / "evil.pt", str(tmp_path / "evil"))
    assert not (tmp_path / "EXECUTED").exists()


def test_the_check_finds_the_epsilon_that_a_file_does_not_hold(tmp_path):
    held = tiny_i3d.tensors()
    # A network of epsilon 0.001 is one of 0.00001 with other variances.
    for name in held:
        if name.endswith("running_var"):
            held[name] = held[name] + np.float32(1e-3 - 1e-5)
    check = {"check.11": tiny_i3d.GOLDEN["out/same/11"]}
    source = tiny_i3d.write_source(tmp_path / "a.safetensors", {**held, **check})
    summary = convert_i3d(source, str(tmp_path / "i3d"))
    assert summary["checked"]["11"] < 1e-5
    known = tiny_i3d.write_source(tmp_path / "b.safetensors", {**held, **check}, epsilons="[0.1]")
    with pytest.raises(UserError, match="does not give the features"):
        convert_i3d(known, str(tmp_path / "other"))
