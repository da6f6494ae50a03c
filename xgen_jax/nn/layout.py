"""Where the parts of an activation lie: which mesh axes its dims lie over, by the names that
`parallel.sharding` gives, and the order of its dims in memory.

Without a mesh, or on one device, nothing is divided. An axis whose size does not divide a dim is
left out: the dim is then whole on the devices of that axis.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from xgen_jax.typing import Array

Names = Sequence[str | None]

# A video transformer's tokens (B, T, S, D): each device has some places, in all frames.
TOKENS = ("batch", "time", "space", "width")


def axis_size(name: str) -> int:
    """Return the number of devices that a dim of this name is divided among."""
    return math.prod(_mesh_shape().get(axis, 1) for axis in _axes(name))


def constrain(x: Array, names: Names) -> Array:
    """Shard each dim of x over the mesh axes of its name; None is for a dim that is whole."""
    return lax.with_sharding_constraint(x, _spec(x.shape, names)) if _mesh_shape() else x


def on_each_device(function: Callable, names: Sequence[Names], out_names: Names) -> Callable:
    """Return `function` of arrays, run by each device on its own part of them.

    The partitioner does not look inside: a loop over blocks of a sharded dim, or a kernel that it
    knows nothing of, gathers nothing there.

    Args:
      function: of arrays, to an array; every output element depends on the device's part alone.
      names: of the dims of each argument. Dims of one name have one size, or one that the mesh
        axes divide alike.
      out_names: of the dims of the result.
    """

    def call(*arrays: Any) -> Array:
        if not _mesh_shape():
            return function(*arrays)
        specs = tuple(_spec(x.shape, dims) for x, dims in zip(arrays, names, strict=True))
        out = _spec(jax.eval_shape(function, *arrays).shape, out_names)
        # Replicated arguments get the sum of their gradients over the devices that used them.
        mapped = jax.shard_map(function, in_specs=specs, out_specs=out, check_vma=False)
        return mapped(*arrays)

    return call


def row_major(x: Array) -> Array:
    """Keep an activation in the order of its dims in a TPU's memory; elsewhere give it back.

    With one video a device XLA is free to place the dim of videos, and takes the order that the
    gradients of kernels have: the video next to the channels, where tiles of eight rows hold one.
    Reductions and slices of that take several times as long as the convolutions, by the compiler's
    own estimate.
    """
    if target_device().platform != "tpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def target_device() -> Any:
    """Return a device like those that what is traced now is for, with a `platform` and a
    `device_kind`: of the mesh, else the default one."""
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def _mesh_shape() -> dict[str, int]:
    """Return the sizes of the current mesh's axes; {} without one, of one device or of no names."""
    mesh = jax.sharding.get_abstract_mesh()
    several = not mesh.empty and mesh.size > 1 and nn.get_logical_axis_rules()
    return dict(mesh.shape) if several else {}


def _axes(name: str | None) -> tuple[str, ...]:
    spec: Any = nn.logical_to_mesh_axes((name,))
    return () if spec[0] is None else (spec[0],) if isinstance(spec[0], str) else tuple(spec[0])


def _spec(shape: Sequence[int], names: Names) -> PartitionSpec:
    sizes, dims = _mesh_shape(), []
    for dim, name in zip(shape, names, strict=True):
        axes: tuple[str, ...] = ()
        for axis in _axes(name):
            if dim % math.prod(sizes[each] for each in (*axes, axis)) == 0:
                axes = (*axes, axis)
        dims.append(axes or None)
    return PartitionSpec(*dims)
