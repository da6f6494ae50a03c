"""Arrays over the devices of several processes: put there, ahead of their use or at it, fetched,
and whose part of a batch is which.

A process can read and write its own devices only: `jax.device_put` and `jax.device_get` are for
those.
"""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from xgen_jax.errors import UserError
from xgen_jax.parallel.sharding import batch_sharding
from xgen_jax.typing import AnyArray, Params

T = TypeVar("T")
R = TypeVar("R")


def put(tree: Params, shardings: Any) -> Params:
    """Put arrays that every process holds in full on the devices of all.

    Args:
      tree: of arrays, on the host or on a device of this process; PRNG keys among them.
      shardings: a sharding for all, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(leaf, sharding):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        # Other than device_put it does not compare the values of all processes; and it counts as a
        # transfer that nobody asked for.
        with jax.transfer_guard("allow"):
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def put_rows(tree: Params, sharding: jax.sharding.Sharding) -> Params:
    """Put a tree of this process's parts of arrays on the devices; see `batch_part`."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)  # one call for all: each costs a step its time
    with jax.transfer_guard("allow"):  # a part of a batch counts as one that nobody asked for
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


class Ahead(Iterator[tuple[T, R]]):
    """Items with what `put` returned of them, one ahead at most: one that has begun is read and put
    in a thread, another one where it is asked for. A context manager that ends the thread.

    An error of either is raised where that item is due. At the end it waits for the thread, so that
    what the items are read from can be closed.

    Args:
      items: to read.
      put: of each. If it computes on the devices, do not `begin`: programs that send between
        devices must be dispatched in the same order everywhere, so by one thread.
    """

    def __init__(self, items: Iterator[T], put: Callable[[T], R]):
        self._items, self._put = items, put
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "put")
        self._coming: concurrent.futures.Future[tuple[T, R]] | None = None

    def begin(self) -> None:
        """Begin with the next item, if that has not been done.

        The best time is before the caller waits for a device, without Python's interpreter.
        """
        if self._coming is None:
            self._coming = self._thread.submit(self._one)

    def __next__(self) -> tuple[T, R]:
        if self._coming is None:
            return self._one()
        coming, self._coming = self._coming, None
        return coming.result()

    def _one(self) -> tuple[T, R]:
        item = next(self._items)
        return item, self._put(item)

    def __enter__(self) -> "Ahead[T, R]":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._thread.shutdown(cancel_futures=True)


def put_batch(rows: np.ndarray, params: Params) -> AnyArray:
    """Put this process's part of a batch on the devices of some parameters; see `batch_part`.

    One process leaves it to the computation where it takes the batch.
    """
    if jax.process_count() == 1:
        return rows
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)


def fetch(tree: Params) -> Params:
    """Return arrays on the host, in full in every process; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Return (index, count): this process reads the index-th of `count` equal parts of a batch.

    Processes whose devices share the same clips, along `tensor` or `sequence`, read the same part.

    Raises:
      UserError: a mesh that leaves a process without devices, or without a part of its own.
    """
    if jax.process_count() == 1:
        return 0, 1
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = batch_sharding(mesh).addressable_devices_indices_map((shards,))
    own = sorted({(index or (slice(None),))[0].indices(shards)[0] for index in rows.values()})
    if not own:
        raise UserError(
            f"the mesh {dict(mesh.shape)} has {mesh.size} of {jax.device_count()} devices, and "
            f"none of process {jax.process_index()}: with several processes give a mesh of all "
            "devices, such as --config.mesh.fsdp=-1"
        )
    first, size = own[0], len(own)
    if own != list(range(first, first + size)) or first % size or shards % size:
        raise UserError(
            f"the mesh {dict(mesh.shape)} cuts a batch in {shards} parts, of which process "
            f"{jax.process_index()} has {own}: choose mesh.tensor x mesh.sequence so that it "
            f"divides the {jax.local_device_count()} devices of a process, or is a multiple of them"
        )
    return first // size, shards // size
