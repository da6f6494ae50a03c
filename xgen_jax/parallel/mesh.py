"""The device mesh. Axes are always `data, fsdp, tensor, sequence`; an axis of size 1 costs
nothing."""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from xgen_jax.errors import UserError

if TYPE_CHECKING:  # configurations take `MeshConfig`, and jax takes most of a second to load
    from jax.sharding import Mesh

AXES = ("data", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Number of devices along each axis.

    At most one size may be -1, "all that are left"; without one, the first devices are used.

    Attributes:
      data: devices that share a batch, each with all parameters.
      fsdp: devices that share a batch, and each parameter.
      tensor: devices that share the channels and heads of a transformer's kernels, and the columns
        of a clip.
      sequence: devices that share the rows of a clip, and a transformer's tokens: all of them, but
        in attention itself, where they share heads or frames. It must divide these equally.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    sequence: int = 1


def make_mesh(config: MeshConfig, devices=None) -> "Mesh":
    """Make the mesh of a configuration from `devices`, by default all.

    Raises:
      UserError: sizes that the number of devices cannot fill.
    """
    import jax
    from jax.sharding import AxisType, Mesh

    devices = jax.devices() if devices is None else list(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    given = " ".join(f"--config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes))
    free = [axis for axis, size in zip(AXES, sizes) if size == -1]
    known = math.prod(size for size in sizes if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh sizes must be positive, at most one -1; got {given}")
    if known > len(devices):
        raise UserError(
            f"the mesh {given} has {known} devices, and there are {len(devices)}: make it smaller"
        )
    if free and len(devices) % known:
        raise UserError(
            f"the mesh {given} leaves parts of {len(devices)} devices to {free[0]}: the other "
            f"sizes are {known} devices together, which must divide {len(devices)}"
        )
    if free:
        sizes[AXES.index(free[0])] = len(devices) // known
    grid = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
