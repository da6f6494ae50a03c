"""Sharding as a table: parameter paths to specs, activation names to mesh axes.

A parameter goes to the rule whose pattern is found in its path; a rule gives the spec of the
trailing dims. The last rule, `DEFAULT`, is for all other paths: `fsdp` along the largest dim that
it divides. Small parameters are replicated. Kernels of convolutions are sharded in memory only:
`nn.conv3d.gather_kernel` gathers them before they meet an activation that is sharded over height or
width.
"""

import contextlib
import math
import re
from collections.abc import Generator

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from xgen_jax.typing import Params

# (pattern over "a/b/c" paths, spec of the trailing dims). Column-parallel into a layer,
# row-parallel out of it. No two patterns are found in one path.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(qkv|/q|kv|fc1)/kernel$", ("fsdp", "tensor")),
    (r"(proj|fc2)/kernel$", ("tensor", "fsdp")),
    # A (in, rank) and B (rank, out) of an adapter are sharded as the dims of the kernel they adapt.
    (r"(qkv|/q|kv|fc1)/kernel/a$", ("fsdp", None)),
    (r"(qkv|/q|kv|fc1)/kernel/b$", (None, "tensor")),
    (r"(proj|fc2)/kernel/a$", ("tensor", None)),
    (r"(proj|fc2)/kernel/b$", (None, "fsdp")),
)
# The rule of all other paths.
DEFAULT = "fsdp along the largest dim that it divides"

# Names of activations' dims, see `nn.layout`.
# `height` and `columns` are those of a video; `width` is that of features.
LOGICAL_AXES = (
    ("batch", ("data", "fsdp")),
    ("time", None),
    ("frames", "sequence"),
    ("space", "sequence"),
    ("heads", "tensor"),
    ("exchanged_heads", ("tensor", "sequence")),
    ("height", "sequence"),
    ("columns", "tensor"),
    ("width", None),
)

BATCH = PartitionSpec(("data", "fsdp"))
# Values; sharding less than this costs more in collectives than it saves in memory.
SMALLEST_SHARDED = 2**14


def path_name(path) -> str:
    """Format a tree path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rules_of(name: str) -> list[str]:
    """Return the patterns of `RULES` found in a parameter's path, or [`DEFAULT`]: one of them."""
    return [pattern for pattern, _ in RULES if re.search(pattern, name)] or [DEFAULT]


def parameter_spec(
    name: str,
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    smallest: int | None = None,
) -> PartitionSpec:
    """Return the spec of a parameter.

    Args:
      name: its path, "a/b/c".
      shape: of the parameter.
      mesh: of devices, or of sizes alone.
      smallest: values; a parameter of fewer is replicated. SMALLEST_SHARDED by default.
    """
    if math.prod(shape) < (SMALLEST_SHARDED if smallest is None else smallest):
        return PartitionSpec()
    rule = rules_of(name)[0]
    trailing = dict(RULES).get(rule, ())
    if trailing and len(shape) >= len(trailing):
        dims = [*[None] * (len(shape) - len(trailing)), *trailing]
        return PartitionSpec(
            *(
                axis if axis and dim % mesh.shape[axis] == 0 else None
                for axis, dim in zip(dims, shape)
            )
        )
    divisible = [dim for dim in range(len(shape)) if shape[dim] % mesh.shape["fsdp"] == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda dim: shape[dim])
    return PartitionSpec(*["fsdp" if dim == largest else None for dim in range(len(shape))])


def tree_shardings(tree: Params, mesh: Mesh | AbstractMesh, smallest: int | None = None) -> Params:
    """Return a sharding for every leaf of a tree of arrays or shapes: parameters, EMA or optimiser
    state. `smallest` as of `parameter_spec`."""

    def one(path, leaf):
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh, smallest))

    return jax.tree_util.tree_map_with_path(one, tree)


def device_bytes(tree: Params, mesh: Mesh) -> int:
    """Return the bytes on one device of a tree of arrays or shapes that is sharded by the rules."""
    leaves, shardings = jax.tree.leaves(tree), jax.tree.leaves(tree_shardings(tree, mesh))
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(leaves, shardings, strict=True)
    )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Generator[None]:
    """Compile on the mesh inside the context: parameters by `RULES`, activations by
    `LOGICAL_AXES`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shard the leading dim over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def video_sharding(mesh: Mesh) -> NamedSharding:
    """Shard (B, T, H, W, C): the batch over `data` and `fsdp`, height over `sequence`, width over
    `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "sequence", "tensor"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicate an array on every device."""
    return NamedSharding(mesh, PartitionSpec())
