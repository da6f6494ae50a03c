"""Files that are read, files that are refused, and tables from names there to parameters here."""

import json
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.weights.safetensors import (
    assemble,
    kernel_from_torch,
    read_safetensors,
    write_safetensors,
)


def test_everything_is_read_as_float32(tmp_path):
    values = np.array([[1.5, -2.0, 0.0], [300.0, 1e-3, -7.0]])
    tensors = {
        "bf16": values.astype(jnp.bfloat16),
        "f16": values.astype(np.float16),
        "f32": values.astype(np.float32),
        "f64": values,
        "i64": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(3),
        "transposed": values.astype(np.float32).T,
    }
    read = read_safetensors(write_safetensors(tmp_path / "a.safetensors", tensors))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert type(read[name]) is np.ndarray and read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], np.asarray(tensor, np.float32))


def test_what_is_written_is_whole_and_not_over_another(tmp_path):
    path = write_safetensors(tmp_path / "new" / "a.safetensors", {"x": np.ones(2)})
    with pytest.raises(UserError, match="exists"):
        write_safetensors(path, {"x": np.zeros(2)})
    np.testing.assert_array_equal(read_safetensors(path)["x"], 1)
    write_safetensors(path, {"x": np.zeros(2)}, overwrite=True)
    np.testing.assert_array_equal(read_safetensors(path)["x"], 0)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    with pytest.raises(UserError, match="must end with .safetensors"):
        write_safetensors(tmp_path / "a.npz", {})


def write_pickle(path):
    path.write_bytes(pickle.dumps({"x": [1.0]}))
    return path


def write_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"x": [1.0]}))
    return path


@pytest.mark.parametrize("write", [write_pickle, write_zip])
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.safetensors", "a"])
def test_a_pickle_is_refused_under_any_name(write, name, tmp_path):
    with pytest.raises(
        UserError, match=rf"(?s){name} is a pickle.*runs whatever code.*save_file.*a.safetensors"
    ):
        read_safetensors(write(tmp_path / name))


def test_a_pickle_never_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "model.bin").write_bytes(pickle.dumps(Trap()))
    for path in (tmp_path / "model.bin", tmp_path):
        with pytest.raises(UserError, match="model.bin is a pickle"):
            read_safetensors(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [0x0280, 0x0480])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length, tmp_path):
    header = (
        json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        .encode()
        .ljust(length)
    )
    data = struct.pack("<Q", length) + header + struct.pack("<f", 2.5)
    assert data[:1] == b"\x80"
    (tmp_path / "a.safetensors").write_bytes(data)
    assert read_safetensors(tmp_path / "a.safetensors")["x"] == [2.5]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"more",
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"\xff" * 100,
        lambda data: data.replace(b"F32", b"Q99"),
        lambda data: data.replace(b"[2]", b"[3]"),
    ],
    ids=["short", "long", "header only", "empty", "noise", "dtype", "shape"],
)
def test_a_damaged_file_is_named(change, tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", {"x": np.ones(2, np.float32)})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="a.safetensors is not a whole safetensors file"):
        read_safetensors(path)


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(UserError, match=r"a.safetensors holds a dtype that is not read.*float8"):
        read_safetensors(tmp_path / "a.safetensors")


def test_folders_and_shards(tmp_path):
    with pytest.raises(UserError, match="there is no .*nowhere"):
        read_safetensors(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no .safetensors file"):
        read_safetensors(tmp_path)
    write_safetensors(tmp_path / "m-1.safetensors", {"a": np.ones(1)})
    assert list(read_safetensors(tmp_path)) == ["a"]
    write_safetensors(tmp_path / "m-2.safetensors", {"b": np.ones(2)})
    with pytest.raises(UserError, match=r"holds m-1.safetensors, m-2.safetensors; name the one"):
        read_safetensors(tmp_path)
    index = tmp_path / "m.safetensors.index.json"

    def use(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))

    use({"a": "m-1.safetensors", "b": "m-2.safetensors"})
    for path in (tmp_path, index):
        assert {name: x.shape for name, x in read_safetensors(path).items()} == {
            "a": (1,),
            "b": (2,),
        }
    use({"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-1.safetensors"})
    with pytest.raises(UserError, match=r"do not hold: b \(m-1.safetensors\), c \(m-1"):
        read_safetensors(tmp_path)
    use({"a": "m-1.safetensors", "b": "m-3.safetensors"})
    with pytest.raises(UserError, match="are not there: m-3.safetensors"):
        read_safetensors(tmp_path)
    use({"a": "../m-1.safetensors"})
    with pytest.raises(UserError, match="names files outside its folder"):
        read_safetensors(tmp_path)
    for text, message in {
        "{": "is not JSON .*; fetch it again",
        "[]": "holds a list, not a JSON object",
        '{"weight_map": [1]}': "not the index",
        '{"weight_map": {"a": 1}}': "not the index",
    }.items():
        index.write_text(text)
        with pytest.raises(UserError, match=message):
            read_safetensors(tmp_path)


TREE = {
    "params": {
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32)},
        "dense": {"kernel": jax.ShapeDtypeStruct((5, 6), jnp.bfloat16)},
        "qkv": jax.ShapeDtypeStruct((6,), jnp.float32),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
    }
}
SOURCES = {
    "params/conv/kernel": ("conv.weight", kernel_from_torch),
    "params/dense/kernel": ("dense.weight", kernel_from_torch),
    "params/qkv": (("q", "k", "v"), lambda *parts: np.concatenate(parts)),
    "params/scale": ((), lambda: np.float32(0.5)),
}


def foreign():
    rng = np.random.default_rng(0)
    tensors = {
        "conv.weight": rng.random((4, 2, 3, 3), np.float32),
        "dense.weight": rng.random((6, 5), np.float32),
    }
    return tensors | {name: np.full(2, place, np.float32) for place, name in enumerate("qkv")}


def test_tensors_go_where_the_table_says():
    tensors = foreign()
    params = assemble(TREE, SOURCES, {**tensors, "ema.step": np.zeros(1)}, ignored=["ema."])[
        "params"
    ]
    np.testing.assert_array_equal(
        params["conv"]["kernel"][1, 2, 0], tensors["conv.weight"][:, 0, 1, 2]
    )
    assert params["dense"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        params["dense"]["kernel"], tensors["dense.weight"].T.astype(jnp.bfloat16)
    )
    np.testing.assert_array_equal(params["qkv"], [0, 0, 1, 1, 2, 2])
    assert params["scale"] == 0.5 and params["scale"].shape == ()


def test_one_error_lists_all_wrong_tensors():
    tensors = foreign()
    del tensors["q"], tensors["v"]
    tensors |= {
        "conv.weight": np.zeros((4, 2), np.float32),
        "dense.weight": np.zeros((6, 7), np.float32),
        "stray": np.zeros((2, 2), np.float32),
        "k": np.array([np.inf, 0], np.float32),
    }
    with pytest.raises(UserError) as caught:
        assemble(TREE, SOURCES, tensors, origin="vae.safetensors")
    assert str(caught.value) == (
        "vae.safetensors does not fit this network\n"
        "missing, 2:\n"
        "  q, for params/qkv (6,)\n"
        "  v, for params/qkv (6,)\n"
        "extra, 1:\n"
        "  stray (2, 2)\n"
        "mis-shaped, 2:\n"
        "  conv.weight (4, 2): becomes (2, 4), wanted (3, 3, 2, 4) for params/conv/kernel\n"
        "  dense.weight (6, 7): becomes (7, 6), wanted (5, 6) for params/dense/kernel\n"
        "not finite, 1:\n"
        "  k"
    )
    tensors["conv.weight"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"conv.weight \(3,\): cannot be rearranged, wanted \(3, 3, 2, 4\)"
    ):
        assemble(TREE, SOURCES, tensors)


def test_a_table_that_misses_a_parameter_is_a_defect():
    with pytest.raises(KeyError, match="params/scale"):
        assemble(
            TREE,
            {path: source for path, source in SOURCES.items() if path != "params/scale"},
            foreign(),
        )
