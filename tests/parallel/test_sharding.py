"""Shardings of presets, tiny and large: those of the golden, with every sharded dim divisible.

After a wanted change of the rules, with XGEN_JAX_WRITE_GOLDENS=1 in the environment, this file
rewrites its golden.
"""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from xgen_jax.models.lora import adapter_shapes
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.models.regen import abstract_variables as abstract_regen
from xgen_jax.models.regen_config import PRESETS as REGEN_PRESETS
from xgen_jax.models.vdit import abstract_variables
from xgen_jax.models.vdit_config import PRESETS as VDIT_PRESETS
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS as VIDVAE_PRESETS
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import (
    RULES,
    batch_sharding,
    parameter_spec,
    path_name,
    replicated,
    tree_shardings,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "sharding_2x2x2x1.json"


def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def abstract_parameters(name):
    key = jax.eval_shape(lambda: jax.random.key(0))

    def of(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    if name == "vidvae_tiny":
        return jax.eval_shape(VidVAE(VIDVAE_PRESETS["tiny"]).init, key, of((2, 5, 16, 16, 3)))
    if name in ("regen_tiny", "regen_paper"):
        return abstract_regen(
            REGEN_PRESETS[{"regen_tiny": "tiny-8x", "regen_paper": "paper-32x"}[name]]
        )
    preset, channels = {
        "vdit_tiny": ("tiny", 8),
        "vdit_xl": ("VDiT-XL/2", 4),
        "vdit_3b": ("VDiT-3B/2", 4),
    }[name]
    return abstract_variables(VDIT_PRESETS[preset], channels)


@pytest.mark.parametrize(
    "name", ["vidvae_tiny", "regen_tiny", "regen_paper", "vdit_tiny", "vdit_xl", "vdit_3b"]
)
def test_specs_are_the_goldens_and_divide(name):
    parameters = abstract_parameters(name)
    shardings = tree_shardings(parameters, mesh())
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    specs = {}
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        sharding.shard_shape(leaf.shape)  # raises where a dim does not divide
        specs[path_name(path)] = {"shape": list(leaf.shape), "spec": list(sharding.spec)}
    goldens = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("XGEN_JAX_WRITE_GOLDENS"):
        goldens |= {name: specs}
        models = []
        for model, rows in sorted(goldens.items()):  # one line a parameter, for a diff to be read
            lines = ",\n".join(
                f"  {json.dumps(path)}: {json.dumps(row)}" for path, row in rows.items()
            )
            models.append(f" {json.dumps(model)}: {{\n{lines}\n }}")
        GOLDEN.write_text("{\n" + ",\n".join(models) + "\n}\n")
    assert specs == goldens[name]


def test_scanned_kernels_keep_their_layer_dim_whole():
    kernels = {}
    parameters = abstract_parameters("vdit_tiny")
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(parameters),
        jax.tree.leaves(tree_shardings(parameters, mesh())),
    ):
        if "blocks/" in path_name(path) and path_name(path).endswith("kernel"):
            kernels[path_name(path)] = (leaf.shape, tuple(sharding.spec))
    # Attention in space and time has qkv, proj; in text q, kv, proj; the MLP fc1, fc2.
    assert len(kernels) == 9
    for name, (shape, spec) in kernels.items():
        assert shape[0] == 4 and len(shape) == 3
        out_of_the_layer = name.endswith(("proj/kernel", "fc2/kernel"))
        assert spec == (
            (None, "tensor", "fsdp") if out_of_the_layer else (None, "fsdp", "tensor")
        ), name


@pytest.mark.parametrize(
    "name,shape,spec",
    [
        ("a/qkv/kernel", (128, 385), ("fsdp", None)),  # tensor does not divide 385
        ("a/qkv/kernel", (3, 128, 384), (None, "fsdp", "tensor")),
        ("a/fc2/kernel", (384, 128), ("tensor", "fsdp")),
        ("a/kernel", (3, 3, 64, 128), (None, None, None, "fsdp")),  # the largest dim
        ("a/kernel", (3, 3, 64, 129), (None, None, "fsdp", None)),  # the largest that divides
        ("a/kernel", (129, 129), ()),  # nothing divides
        ("a/qkv/kernel", (32, 96), ()),  # too small to gain from it
        ("a/seq/kernel", (128, 256), (None, "fsdp")),  # "seq" only ends like "q"
    ],
)
def test_one_parameter_goes_to_its_rule_or_to_the_default(name, shape, spec):
    assert parameter_spec(name, shape, mesh()) == PartitionSpec(*spec)


def test_every_rule_is_used():
    network = {"vdit": abstract_parameters("vdit_tiny")}
    trees = (network, adapter_shapes(LoRAConfig(), network))
    names = [
        path_name(path) for tree in trees for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    for pattern, _ in RULES:
        assert any(re.search(pattern, name) for name in names), pattern


def test_a_batch_is_split_over_data_and_fsdp_and_the_rest_is_copied():
    assert batch_sharding(mesh()).shard_shape((8, 3)) == (2, 3)
    assert replicated(mesh()).shard_shape((8, 3)) == (8, 3)
