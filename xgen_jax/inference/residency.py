"""Residency of several networks' parameters: on which devices, or on the host until needed.

Devices that share a batch share the parameters too. With offloading, transformer and decoder are on
the devices one after the other, never both.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence

import jax
from jax.sharding import Mesh

from xgen_jax.errors import UserError
from xgen_jax.inference.chunks import ChunkPlan
from xgen_jax.parallel.memory import GB, format_gb
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import device_bytes, tree_shardings
from xgen_jax.typing import Params


def sampling_mesh(
    batch_size: int, heads: int, devices: Sequence[jax.Device], fits: Callable[[Mesh], bool]
) -> Mesh:
    """Choose the devices for sampling: as many as divide the batch, which share the parameters.

    Where that is too much for a device, each part of the batch is sampled by several, which share
    its heads and channels: as few as are enough, if there are.

    Args:
      batch_size: videos at once.
      heads: of the transformer's attention.
      devices: of this process.
      fits: whether devices of a mesh have enough memory.
    """
    sharing = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    several = [n for n in range(1, len(devices) // sharing + 1) if heads % n == 0]
    meshes = (make_mesh(MeshConfig(fsdp=sharing, tensor=n), devices) for n in several)
    for mesh in meshes:
        if fits(mesh):
            break
    return mesh


def fits_devices(params: Params, mesh: Mesh, offload: bool) -> bool:
    """Return whether parameters take at most half of the devices' memory, where that is known.

    Args:
      params: by network.
      mesh: the devices.
      offload: see `Residency`.
    """
    limit = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return True
    embedder = device_bytes(params["embedder"], mesh)
    others = device_bytes(params, mesh) - embedder
    return (max(embedder, others) if offload else embedder + others) <= limit / 2


class Residency:
    """Put parameters on the devices of a mesh when they are needed.

    Args:
      params: parameters by network, on the host or on a device.
      mesh: the devices, see `parallel.sharding.tree_shardings`.
      offload: free a network's parameters on the devices after each use.
    """

    def __init__(self, params: Params, mesh: Mesh, offload: bool = False):
        self.params, self.mesh, self.offload = params, mesh, offload
        self._resident: Params = {}

    @property
    def resident(self) -> frozenset[str]:
        """Names of the networks whose parameters are on the devices now."""
        return frozenset(self._resident)

    @contextlib.contextmanager
    def on_devices(self, *names: str) -> Generator[Params]:
        """Give the parameters of some networks, {name: tree}, on the devices."""
        for name in names:
            if name not in self._resident:
                tree = self.params[name]
                self._resident[name] = jax.device_put(tree, tree_shardings(tree, self.mesh))
        try:
            yield {name: self._resident[name] for name in names}
        finally:
            if self.offload:
                for name in names:
                    self._resident.pop(name, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Decisions that keep generation within a memory budget.

    Attributes:
      offload: see `Residency`.
      decoder: chunks in which the decoder cuts a clip.
      embedder_budget_gb: memory of a device for the embedder, in GB (1e9 bytes), its parameters
        included; None for no limit.
    """

    offload: bool
    decoder: ChunkPlan
    embedder_budget_gb: float | None


def plan_memory(
    params: Params,
    mesh: Mesh,
    budget_gb: float | None,
    step_bytes: Callable[[], int],
    plan_decoder: Callable[[float | None], ChunkPlan],
    offload: bool = False,
) -> MemoryPlan:
    """Decide whether the decoder fits next to the transformer, and its memory.

    Args:
      params: parameters by network; "embedder" has the decoder.
      mesh: devices that share them.
      budget_gb: memory of a device, in GB (1e9 bytes), parameters included; None for no limit.
      step_bytes: () -> bytes of a device that a sampling step needs, parameters included.
      plan_decoder: budget in GB -> chunks of the decoder, see `plan_chunks`.
      offload: whether the user asks for offloading.

    Raises:
      UserError: a sampling step, or the decoder alone, does not fit.
    """
    if budget_gb is None:
        return MemoryPlan(offload=offload, decoder=plan_decoder(None), embedder_budget_gb=None)
    step = step_bytes()
    if step > budget_gb * GB:
        raise UserError(
            f"a sampling step takes {format_gb(step)} of a device, more than "
            f"memory_budget_gb={budget_gb:g}; allow more, or take a smaller batch_size, size or "
            "segment_frames"
        )
    embedder = device_bytes(params["embedder"], mesh)
    if not offload and step + embedder <= budget_gb * GB:
        left_gb = budget_gb - (device_bytes(params, mesh) - embedder) / GB
        with contextlib.suppress(UserError):  # a decoder that does not fit there may fit alone
            decoder = plan_decoder(left_gb)
            return MemoryPlan(offload=False, decoder=decoder, embedder_budget_gb=left_gb)
    return MemoryPlan(offload=True, decoder=plan_decoder(budget_gb), embedder_budget_gb=budget_gb)
