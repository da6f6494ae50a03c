"""Shardings of every preset on meshes of 1 to 256 devices: those of the golden, whose dims all
divide.

After a wanted change of the rules, this rewrites the golden:

    XGEN_JAX_WRITE_GOLDENS=1 pytest -n 0 tests/parallel/test_sharding.py -m "slow or not slow"
"""

import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from xgen_jax.models.discriminator import Discriminator
from xgen_jax.models.lora import adapter_shapes
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.models.regen import abstract_variables as abstract_regen
from xgen_jax.models.regen_config import PRESETS as REGEN_PRESETS
from xgen_jax.models.t5 import PRESETS as T5_PRESETS
from xgen_jax.models.t5 import T5Encoder
from xgen_jax.models.vdit import abstract_variables
from xgen_jax.models.vdit_config import PRESETS as VDIT_PRESETS
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS as VIDVAE_PRESETS
from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from xgen_jax.parallel.sharding import (
    RULES,
    batch_sharding,
    parameter_spec,
    path_name,
    replicated,
    rules_of,
    tree_shardings,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "shardings.json"
# Sizes of data, fsdp, tensor, sequence by number of devices.
MESHES = {1: (1, 1, 1, 1), 8: (2, 2, 2, 1), 64: (1, 16, 2, 2), 256: (4, 64, 1, 1)}
PRESETS = {
    "vidvae": VIDVAE_PRESETS,
    "discriminator": {"default": DiscriminatorConfig()},
    "vdit": VDIT_PRESETS,
    "regen": REGEN_PRESETS,
    "t5": T5_PRESETS,
}
# The others differ in widths alone.
QUICK = {
    ("vidvae", "tiny"),
    ("vidvae", "paper"),
    ("vidvae", "osp-v1.1"),
    ("discriminator", "default"),
    ("vdit", "tiny"),
    ("vdit", "VDiT-XL/2"),
    ("vdit", "VDiT-5B/2"),
    ("regen", "tiny-8x"),
    ("regen", "paper-32x"),
    ("t5", "xxl"),
    ("t5", "umt5-xxl"),
}
LETTERS = {None: ".", "fsdp": "f", "tensor": "t"}


def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def abstract_parameters(family, preset):
    key, config = jax.eval_shape(lambda: jax.random.key(0)), PRESETS[family][preset]

    def of(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    match family:
        case "vidvae":
            side = 2 * config.space_factor
            video = of((1, 1 + config.time_factor, side, side, 3))
            return jax.eval_shape(VidVAE(config).init, key, video)
        case "discriminator":
            return jax.eval_shape(Discriminator(config).init, key, of((1, 5, 64, 64, 3)))
        case "vdit":
            return abstract_variables(config, 8 if preset == "tiny" else 4)
        case "regen":
            return abstract_regen(config)
        case _:
            return jax.eval_shape(T5Encoder(config).init, key, of((1, 4), jnp.int32))


def specs_of(parameters):
    """{path: "shape spec ..."}: the shape, then the spec on each of `MESHES`, or one if all are
    alike; a letter a dim, nothing for a replicated parameter."""
    leaves, columns = jax.tree_util.tree_leaves_with_path(parameters), []
    for sizes in MESHES.values():
        shardings = tree_shardings(parameters, AbstractMesh(sizes, AXES))
        column = []
        for (_, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
            sharding.shard_shape(leaf.shape)  # raises where a dim does not divide
            column.append("".join(LETTERS[axis] for axis in sharding.spec))
        columns.append(column)
    rows = {}
    for (path, leaf), *specs in zip(leaves, *columns, strict=True):
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        alike = specs[:1] if len(set(specs)) == 1 else specs
        rows[path_name(path)] = f"{shape} {' '.join(spec or '-' for spec in alike)}"
    return rows


@pytest.mark.parametrize(
    "family,preset",
    [
        pytest.param(family, name, marks=() if (family, name) in QUICK else pytest.mark.slow)
        for family, presets in PRESETS.items()
        for name in presets
    ],
)
def test_every_parameter_has_one_rule_and_the_goldens_spec(family, preset):
    rows, name = specs_of(abstract_parameters(family, preset)), f"{family} {preset}"
    for path in rows:
        assert len(rules_of(path)) == 1, f"{path}: {rules_of(path)}"
    if os.environ.get("XGEN_JAX_WRITE_GOLDENS"):
        goldens = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        goldens[name] = rows
        GOLDEN.write_text(json.dumps(goldens, indent=0, sort_keys=True) + "\n")
    assert rows == json.loads(GOLDEN.read_text())[name]


def test_scanned_kernels_keep_their_layer_dim_whole():
    kernels = {}
    parameters = abstract_parameters("vdit", "tiny")
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


def test_every_rule_is_used_and_no_two_are_for_one_path():
    network = {"vdit": abstract_parameters("vdit", "tiny")}
    trees = (network, adapter_shapes(LoRAConfig(), network))
    names = [
        path_name(path) for tree in trees for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    for pattern, _ in RULES:
        assert any(re.search(pattern, name) for name in names), pattern
    assert all(len(rules_of(name)) == 1 for name in names)


def test_the_smallest_parameter_that_is_sharded_can_be_chosen():
    kernel = {"a": {"qkv": {"kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32)}}}
    assert jax.tree.leaves(tree_shardings(kernel, mesh()))[0].spec == PartitionSpec()
    spec = jax.tree.leaves(tree_shardings(kernel, mesh(), smallest=1))[0].spec
    assert spec == PartitionSpec("fsdp", "tensor")


def test_a_batch_is_split_over_data_and_fsdp_and_the_rest_is_copied():
    assert batch_sharding(mesh()).shard_shape((8, 3)) == (2, 3)
    assert replicated(mesh()).shard_shape((8, 3)) == (8, 3)
