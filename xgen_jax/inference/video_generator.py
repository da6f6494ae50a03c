"""Batches of videos of one plan: from text and noise to latents, from latents to pixels."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.batches import padded_rows
from xgen_jax.diffusion.frames import KnownFrames
from xgen_jax.errors import UserError
from xgen_jax.inference.chunks import plan_chunks
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.request import (
    VideoPlan,
)
from xgen_jax.inference.residency import Residency, fits_devices, plan_memory, sampling_mesh
from xgen_jax.inference.sampling import BatchRow, VideoSampler, decode_keys
from xgen_jax.inference.streaming import decode_segments, encode
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.parallel.memory import GB
from xgen_jax.parallel.sharding import on_mesh
from xgen_jax.runs.load import (
    count_parameters,
    describe_embedder,
)
from xgen_jax.typing import AnyArray, Array, Params, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks and parameters of a text-to-video model.

    Attributes:
      model: the transformer.
      text: the text conditioner, see `models.text`.
      embedder: of the latents that the transformer works on.
      params: {"vdit", "embedder", and what the text conditioner trained}, on the host or a device.
    """

    model: VDiT
    text: TextConditioner
    embedder: Embedder
    params: Params

    def __repr__(self) -> str:
        vdit, config = count_parameters(self.params["vdit"]), self.model.config
        others = {n: t for n, t in self.params.items() if n not in ("vdit", "embedder")}
        trained = f", {count_parameters(others):,} parameters" if others else ""
        return (
            f"  transformer  width {config.width}, depth {config.depth}, {vdit:,} parameters\n"
            f"  text         {type(self.text).__name__}, width {self.text.width}{trained}\n"
            f"  embedder     {describe_embedder(self.embedder, self.params['embedder'])}"
        )


class VideoGenerator:
    """Generates batches of videos of one plan: text and noise to latents, latents to pixels.

    Args:
      networks: see `Networks`.
      config: of the run that trained them.
      plan: of the videos.
      batch_size: videos at once; a batch is split over as many devices of this process as divide
        it, which share the parameters; see `sampling_mesh`.
      offload: hold parameters on the host, and on the devices either the transformer's or the
        decoder's.
      memory_budget_gb: memory of a device, in GB (1e9 bytes), parameters included. It sets the
        chunks that are decoded, and turns `offload` on if both networks do not fit.

    Attributes:
      sampler: the part that samples latents.
      residency: where the parameters are.

    Raises:
      UserError: an unknown sampler, steps that its grid does not have, a budget in which nothing
        fits.
    """

    def __init__(
        self,
        networks: Networks,
        config: VDiTRun,
        plan: VideoPlan,
        batch_size: int,
        offload: bool = False,
        memory_budget_gb: float | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be 1 or more")
        self.plan, self.batch_size, self._embedder = plan, batch_size, networks.embedder
        sampled_with = _without_embedder(networks.params)

        def sampler_on(mesh: Mesh) -> VideoSampler:
            return VideoSampler(
                model=networks.model,
                text=networks.text,
                config=config,
                plan=plan,
                batch_size=batch_size,
                mesh=mesh,
            )

        @functools.cache
        def step_bytes(mesh: Mesh) -> int:
            return sampler_on(mesh).step_bytes(sampled_with)

        def fits(mesh: Mesh) -> bool:
            if memory_budget_gb is None:
                return fits_devices(networks.params, mesh, offload)
            return step_bytes(mesh) <= memory_budget_gb * GB

        heads = networks.model.config.heads
        self.mesh = sampling_mesh(batch_size, heads, jax.local_devices(), fits)
        self.sampler = sampler_on(self.mesh)
        self._memory = plan_memory(
            networks.params,
            self.mesh,
            memory_budget_gb,
            lambda: step_bytes(self.mesh),
            lambda budget_gb: plan_chunks(
                networks.embedder,
                networks.params["embedder"],
                "decode",
                (batch_size // self.mesh.shape["fsdp"], *self._latent_shape[1:]),
                np.float32,
                budget_gb,
            ),
            offload,
        )
        self.residency = Residency(networks.params, self.mesh, self._memory.offload)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"VideoGenerator of {self.batch_size} videos at once on {self.mesh.size} devices\n"
            f"  video        {plan.frames}x{plan.height}x{plan.width} at {plan.fps:g} fps\n"
            f"  sampling     {plan.sampler}, {plan.steps} steps, guidance {plan.guidance_scale:g}\n"
            f"  offload      {self.residency.offload}"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that videos depend on, besides prompts, noise, conditions and parameters."""
        return {**self.sampler.settings, **self._embedder.settings}

    def __call__(
        self,
        batch: Sequence[BatchRow | None],
        condition: Video | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Video]:
        """Generate a batch.

        Args:
          batch: up to `batch_size` rows; None is an empty row, whose video is to be ignored.
          condition: start of each video, uint8 (T, H, W, 3), see `fit_condition`.
          progress: called after every sampling step, when it is done.

        Yields:
          The videos from their beginning, chunk after chunk, uint8 (B, T, H, W, 3).
        """
        rows = padded_rows(batch, self.batch_size)
        latents: Iterator[AnyArray] = self.latents(rows, condition, progress)
        if self.residency.offload:  # the transformer must be freed before the decoder is loaded
            latents = iter(list(map(np.asarray, latents)))
        yield from self.decode(rows, latents)

    def decode(self, batch: Sequence[BatchRow], latents: Iterable[AnyArray]) -> Iterator[Video]:
        """Decode what `latents` yields for the same full batch; yields what a call yields."""
        with on_mesh(self.mesh):
            key_B = decode_keys(*self.sampler.seeds(batch))
        with self.residency.on_devices("embedder") as params:
            chunks = decode_segments(
                self._embedder,
                params["embedder"],
                latents,
                self._latent_shape,
                self._memory.decoder,
                self.mesh,
                key_B,
                uint8=True,
            )
            yield from chunks

    def latents(
        self,
        batch: Sequence[BatchRow],
        condition: Video | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Array]:
        """Sample the latents of a full batch, see `VideoSampler`; arguments are those of a call."""
        known = None if condition is None else self._known(condition)
        with self.residency.on_devices(*_without_embedder(self.residency.params)) as params:
            yield from self.sampler(params, batch, known, progress)

    def _known(self, condition: Video) -> KnownFrames:
        video = fit_condition(condition, self.plan, self._embedder)
        with self.residency.on_devices("embedder") as params, on_mesh(self.mesh):
            latents = encode(
                self._embedder, params["embedder"], video[None], self._memory.embedder_budget_gb
            )
        return self.sampler.known_condition(latents)

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        """Return (B, t, h, w, c) of whole videos."""
        return (self.batch_size, self.plan.latent_frames, *self.plan.segment_shape[1:])


def _without_embedder(params: Params) -> Params:
    return {name: tree for name, tree in params.items() if name != "embedder"}
