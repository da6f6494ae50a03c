"""Adapters on disk: read back bit for bit, and only for their own base."""

import json

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.lora import adapter_shapes
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.weights.lora import read_adapter, write_adapter
from xgen_jax.weights.safetensors import read_metadata, read_safetensors, write_safetensors

CONFIG = LoRAConfig(rank=2, alpha=0.1, rules=(r"(fc1|proj)/kernel$",))
SHAPES = {"fc1": (3, 8, 16), "proj": (3, 16, 8), "qkv": (3, 8, 24)}
BASE = {
    "params": {
        "blocks": {
            name: {"kernel": jax.ShapeDtypeStruct(shape, np.float32)}
            for name, shape in SHAPES.items()
        }
    }
}
FC1 = "params/blocks/fc1/kernel"


@pytest.fixture
def adapter():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: rng.standard_normal(s.shape).astype(np.float32) * np.float32(1e-30),
        adapter_shapes(CONFIG, BASE),
    )


def test_what_is_written_is_read_bit_for_bit(adapter, tmp_path):
    path = write_adapter(tmp_path / "adapter.safetensors", adapter, CONFIG, "0123456789abcdef")
    for place in (path, tmp_path):
        config, read = read_adapter(place, BASE, "0123456789abcdef")
        assert config == CONFIG
        assert jax.tree.structure(read) == jax.tree.structure(adapter)
        jax.tree.map(
            lambda x, y: np.testing.assert_array_equal(x.view(np.uint32), y.view(np.uint32)),
            read,
            adapter,
        )
    again = write_adapter(tmp_path / "again.safetensors", read, config, "0123456789abcdef")
    assert read_safetensors(again).keys() == {
        f"params/blocks/{n}/kernel/{p}" for n in ("fc1", "proj") for p in "ab"
    }
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="exists; choose another name"):
        write_adapter(path, adapter, CONFIG, "0123456789abcdef")


def test_another_base_is_refused_with_both_fingerprints(adapter, tmp_path):
    path = write_adapter(tmp_path / "adapter.safetensors", adapter, CONFIG, "0123456789abcdef")
    with pytest.raises(
        UserError,
        match="is an adapter of the base 0123456789abcdef, and this model is fedcba98",
    ):
        read_adapter(path, BASE, "fedcba9876543210")


def test_tensors_that_do_not_fit_are_all_listed(adapter, tmp_path):
    path = write_adapter(tmp_path / "adapter.safetensors", adapter, CONFIG, "base")
    tensors = read_safetensors(path)
    del tensors[f"{FC1}/b"]
    tensors[f"{FC1}/a"] = tensors[f"{FC1}/a"][1:]
    tensors["params/blocks/qkv/kernel/a"] = np.zeros((3, 8, 2), np.float32)
    tensors["params/blocks/proj/kernel/b"][0, 0, 0] = np.nan
    write_safetensors(path, tensors, metadata=read_metadata(path), overwrite=True)
    with pytest.raises(UserError) as error:
        read_adapter(path, BASE, "base")
    for line in (
        rf"missing, 1:.*{FC1}/b",
        r"extra, 1:.*params/blocks/qkv/kernel/a \(3, 8, 2\)",
        rf"mis-shaped, 1:.*{FC1}/a \(2, 8, 2\): becomes \(2, 8, 2\), wanted \(3, 8, 2\)",
        r"not finite, 1:.*params/blocks/proj/kernel/b",
    ):
        error.match(f"(?s){line}")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"version": 2}, "has version 2 of xgen_jax.lora; this release reads 1"),
        ({"rank": "two"}, "metadata are damaged"),
        ({"rank": 2.5}, "metadata are damaged"),
        ({"rules": 3}, "metadata are damaged"),
        ({"alpha": -1}, "lora.alpha must be above 0"),
        ({"rules": ["fc9"]}, "finds none of 3 kernels"),
    ],
)
def test_metadata_that_cannot_be_right_are_refused(adapter, tmp_path, changes, message):
    path = write_adapter(tmp_path / "adapter.safetensors", adapter, CONFIG, "base")
    about = json.loads(read_metadata(path)["xgen_jax.lora"]) | changes
    metadata = {"xgen_jax.lora": json.dumps(about)}
    write_safetensors(path, read_safetensors(path), metadata=metadata, overwrite=True)
    with pytest.raises(UserError, match=message):
        read_adapter(path, BASE, "base")


@pytest.mark.parametrize(
    "metadata,message",
    [
        (None, "is not an adapter of xgen_jax"),
        ({"format": "pt"}, "is not an adapter of xgen_jax"),
        ({"xgen_jax.lora": "{"}, "metadata are damaged"),
        ({"xgen_jax.lora": "[]"}, "metadata are damaged"),
    ],
)
def test_a_file_of_something_else_is_refused(adapter, tmp_path, metadata, message):
    path = write_adapter(tmp_path / "adapter.safetensors", adapter, CONFIG, "base")
    write_safetensors(path, read_safetensors(path), metadata=metadata, overwrite=True)
    with pytest.raises(UserError, match=message):
        read_adapter(path, BASE, "base")
