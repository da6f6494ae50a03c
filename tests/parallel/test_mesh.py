"""Meshes from sizes, on the eight devices of the test machine."""

import jax
import pytest

from xgen_jax.errors import UserError
from xgen_jax.parallel.mesh import AXES, MeshConfig, make_mesh


@pytest.mark.parametrize(
    "sizes,shape",
    [
        ({}, (1, 8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2, 1)),
        ({"data": -1, "fsdp": 1}, (8, 1, 1, 1)),
        ({"fsdp": 1}, (1, 1, 1, 1)),
        ({"data": 3, "fsdp": 2}, (3, 2, 1, 1)),
    ],
)
def test_devices_are_laid_out_as_asked(sizes, shape):
    mesh = make_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert mesh.devices.ravel().tolist() == jax.devices()[: mesh.size]


@pytest.mark.parametrize(
    "sizes,message",
    [
        ({"data": -1}, "at most one -1"),
        ({"data": 0}, "must be positive"),
        ({"tensor": -2}, "must be positive"),
        (
            {"data": 3},
            "leaves parts of 8 devices to fsdp: .* 3 devices together, which must divide 8",
        ),
        ({"data": 9, "fsdp": 1}, "--config.mesh.data=9 .* has 9 devices, and there are 8"),
        ({"data": 16}, "has 16 devices, and there are 8"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**sizes))
