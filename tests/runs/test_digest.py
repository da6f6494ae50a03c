"""Digests of arrays: any change shows, and no layout does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.runs.digest import CHUNK, device_words, host_words, tree_digests

RNG = np.random.default_rng(0)
ARRAYS = {
    "float32": RNG.standard_normal((8, 6), np.float32),
    "bfloat16": np.asarray(jnp.asarray(RNG.standard_normal((8, 2, 3)), jnp.bfloat16)),
    "int32": RNG.integers(-9, 9, (16,), np.int32),
    "bool": RNG.random((8, 3)) < 0.5,
    "scalar": np.float32(0.25),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_digest_is_the_same_on_the_host_on_a_device_and_divided(kind):
    array = ARRAYS[kind]
    wanted = host_words(array)
    assert tuple(map(int, device_words(jnp.asarray(array)))) == wanted
    if array.ndim:
        mesh = make_mesh(MeshConfig(data=2, fsdp=4))
        spread = jax.device_put(array, NamedSharding(mesh, PartitionSpec("fsdp")))
        assert spread.addressable_shards[0].data.shape[0] == array.shape[0] // 4
        assert tuple(map(int, device_words(spread))) == wanted
    assert tree_digests({"a": jnp.asarray(array)}) == {"a": "{:08x}{:08x}".format(*wanted)}


def test_every_flipped_bit_and_every_exchange_of_two_values_changes_it():
    array = RNG.standard_normal(CHUNK + 100).astype(np.float32)
    wanted = host_words(array)
    for place, bit in zip(RNG.integers(array.size, size=60), RNG.integers(32, size=60)):
        changed = array.copy()
        changed.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
        assert host_words(changed)[0] != wanted[0]
    for one, other in RNG.integers(array.size, size=(20, 2)):
        changed = array.copy()
        changed[[one, other]] = array[[other, one]]
        assert one == other or host_words(changed) != wanted


def test_zeros_of_another_length_have_another_digest():
    assert len({host_words(np.zeros(size, np.float32)) for size in range(1, 6)}) == 5
