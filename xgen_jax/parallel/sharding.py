"""Sharding as a table: parameter paths to specs, activation names to mesh axes.

A parameter goes to the first rule whose pattern is found in its path; a rule gives the spec of the
trailing dims. Without a rule it is sharded over `fsdp` along its largest divisible dim, and
replicated if it is small or nothing divides. Kernels of convolutions are sharded in memory only:
`nn.conv3d.gather_kernel` gathers them before they meet an activation that is sharded over height or
width.
"""

import contextlib
import re
from collections.abc import Generator

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xgen_jax.typing import Params

# (pattern over "a/b/c" paths, spec of the trailing dims). Column-parallel into a layer,
# row-parallel out of it.
RULES: tuple[tuple[str, tuple], ...] = (
    (r"(qkv|/q|kv|fc1)/kernel$", ("fsdp", "tensor")),
    (r"(proj|fc2)/kernel$", ("tensor", "fsdp")),
    # A (in, rank) and B (rank, out) of an adapter are sharded as the dims of the kernel they adapt.
    (r"(qkv|/q|kv|fc1)/kernel/a$", ("fsdp", None)),
    (r"(qkv|/q|kv|fc1)/kernel/b$", (None, "tensor")),
    (r"(proj|fc2)/kernel/a$", ("tensor", None)),
    (r"(proj|fc2)/kernel/b$", (None, "fsdp")),
)

# Activation names of `nn.with_logical_constraint`.
# `height` and `columns` are those of a video; `width` is that of features.
LOGICAL_AXES = (
    ("batch", ("data", "fsdp")),
    ("time", None),
    ("space", "sequence"),
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


def _axis_size(mesh: Mesh, axis) -> int:
    return 1 if axis is None else mesh.shape[axis]


def parameter_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return the spec of a parameter by its path name."""
    size = 1
    for dim in shape:
        size *= dim
    if size < SMALLEST_SHARDED:
        return PartitionSpec()
    for pattern, trailing in RULES:
        if re.search(pattern, name) and len(shape) >= len(trailing):
            dims = shape[len(shape) - len(trailing) :]
            axes = [
                axis if dim % _axis_size(mesh, axis) == 0 else None
                for axis, dim in zip(trailing, dims)
            ]
            return PartitionSpec(*[None] * (len(shape) - len(trailing)), *axes)
    divisible = [dim for dim in range(len(shape)) if shape[dim] % mesh.shape["fsdp"] == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda dim: shape[dim])
    return PartitionSpec(*["fsdp" if dim == largest else None for dim in range(len(shape))])


def tree_shardings(tree: Params, mesh: Mesh) -> Params:
    """Return a sharding for every leaf of a tree of arrays or shapes: parameters, EMA or optimiser
    state."""

    def one(path, leaf):
        return NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


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
