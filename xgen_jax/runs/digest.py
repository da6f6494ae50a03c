"""Digests of arrays: 64 bits that tell whether what was read is what was written.

    m_i = mix(i)                           i: place of a value in the array, in C order
    a_i = mix(word of value i ^ m_i)       which changes with any bit of the value
    b_i = (a_i ^ a_i >> 15) * (m_i | 1)
    digest = sum_i a_i, sum_i b_i          both modulo 2^32

`mix` is the finaliser of MurmurHash3, a bijection of 32 bits, so one changed value always changes
the first sum. Sums of integers are the same in any order: a digest does not depend on how an array
is divided over devices and processes, and each process reads its own part only.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xgen_jax.parallel.sharding import path_name
from xgen_jax.typing import Array, Params

CHUNK = 1 << 15  # values at once on the host: what is between the operations stays in the cache


def tree_digests(tree: Params) -> dict[str, str]:
    """Return the digest of every array of a tree by its path, 16 hexadecimal digits.

    Arrays on accelerators, or of several processes, are read on their own devices, with a small
    program for each shape; all processes must call this then. Others are read on the host.

    Args:
      tree: of jax or numpy arrays of numbers or booleans, of at most 32 bits on accelerators.
    """
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    # All are dispatched before the first is waited for.
    words = {
        name: host_words(np.asarray(leaf)) if on_host(leaf) else device_words(leaf)
        for name, leaf in leaves.items()
    }
    return {name: "".join(f"{int(w):08x}" for w in pair) for name, pair in words.items()}


def host_words(array: np.ndarray) -> tuple[int, int]:
    """Return both sums of an array on the host."""
    flat = np.ascontiguousarray(array).reshape(-1)
    size = flat.dtype.itemsize
    words = flat.view(f"u{min(size, 4)}").reshape(-1)
    first = second = 0
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK].astype(np.uint32)
        place = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        a, b = _mixed(part, place)
        first += int(a.sum(dtype=np.uint64))
        second += int(b.sum(dtype=np.uint64))
    return first % 2**32, second % 2**32


def device_words(array: Array) -> Array:
    """Return both sums of an array, uint32 (2,), computed where it is."""
    placed = array.sharding
    # All processes need the sums.
    named = isinstance(placed, NamedSharding)
    return _sums(NamedSharding(placed.mesh, PartitionSpec()) if named else None)(array)


@functools.cache
def _sums(out: NamedSharding | None) -> Callable[[Array], Array]:
    return jax.jit(_array_sums, out_shardings=out)


def _array_sums(x: Array) -> Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    unsigned = jnp.dtype(f"u{x.dtype.itemsize}")
    words = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place + index * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.stack([sums.sum(dtype=jnp.uint32) for sums in _mixed(words, place)])


def _mixed(words: Any, place: Any) -> tuple[Any, Any]:
    """Return (a, b) of the module's formula for uint32 arrays of numpy or jax."""
    m = _mix(place)
    a = _mix(words ^ m)
    return a, (a ^ (a >> np.uint32(15))) * (m | np.uint32(1))


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def on_host(leaf: Any) -> bool:
    """Whether the host reads a leaf without copying it from an accelerator."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())
