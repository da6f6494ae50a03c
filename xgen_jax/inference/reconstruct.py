"""A trained embedder as a callable: video in, its reconstruction out."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from xgen_jax.data.pixels import check_clip, to_uint8
from xgen_jax.errors import UserError, choose
from xgen_jax.inference.chunks import ChunkPlan, plan_chunks
from xgen_jax.inference.resample_time import BETWEEN, moments, stream_at_speed
from xgen_jax.inference.streaming import (
    chunk_lengths,
    decode,
    decode_on_mesh,
    decode_segments,
    decode_stream,
    encode,
    encode_stream,
    regroup,
)
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.regen_embedder import REGENEmbedder
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import replicated
from xgen_jax.runs.checkpoint import Step
from xgen_jax.runs.load import describe_embedder, load_embedder
from xgen_jax.typing import Array, Params, Shape, Video

STREAM_CHUNK = 16  # latent frames of a chunk of a stream at most; longer ones are not faster


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructor:
    """Encodes and decodes videos. Made by `load_reconstructor`, or `xgen_jax.load` of an embedder's
    run.

    Attributes:
      embedder, params: see `load_embedder`.
      memory_budget_gb: memory of a device, in GB (1e9 bytes), see `streaming.decode`.
      mesh: the devices that share the windows of a REGEN's clips, each with all parameters; None
        for the default device.
    """

    embedder: Embedder
    params: Params
    memory_budget_gb: float | None = None
    mesh: Mesh | None = None

    def __repr__(self) -> str:
        budget = "none" if self.memory_budget_gb is None else f"{self.memory_budget_gb:g} GB"
        return (
            f"Reconstructor of a {describe_embedder(self.embedder, self.params)}\n"
            f"  memory budget  {budget}\n"
            "  call           reconstructor(video, speed=1.0): uint8 (T, H, W, 3), both ways"
        )

    def __call__(
        self, video: Video, speed: float = 1.0, key: Array | None = None, between: str = BETWEEN[0]
    ) -> Video:
        """Reconstruct a video of any length and size.

        A size that the embedder cannot take is padded by repeating the last frame, row and column;
        the padding is cut off again.

        Args:
          video: uint8 (T, H, W, 3).
          speed: 0.5 is twice as slow, 2 twice as fast, at the same frames per second; for a REGEN
            only.
          key: of a generative decoder's noise; that of seed 0 by default.
          between: conditioning between frames at another speed; see `resample_time`.

        Returns:
          uint8 of the shape of `video`; at another speed as many frames as `moments` has.

        Raises:
          UserError: not a uint8 video, or one that does not fit the budget; a speed that the
            embedder cannot decode.
        """
        self.embedder.check_speed(speed)
        choose("between", between, BETWEEN)
        latents = self.encode(video)
        return np.concatenate(list(self.decode(latents, video.shape, speed, key, between)))

    def encode(self, video: Video) -> np.ndarray:
        """Encode a video, padded as a call pads it, to normalised latents (1, t, h, w, c).

        Raises:
          UserError: as a call.
        """
        check_clip(video)
        frames, height, width, _ = video.shape
        extra_t = self.embedder.padded_frames(frames) - frames
        extra_h, extra_w = -height % self.embedder.space_factor, -width % self.embedder.space_factor
        padded = np.pad(video, ((0, extra_t), (0, extra_h), (0, extra_w), (0, 0)), mode="edge")
        return encode(self.embedder, self.params, padded[None], self.memory_budget_gb)

    def decode(
        self,
        latents: np.ndarray,
        video_shape: Shape,
        speed: float = 1.0,
        key: Array | None = None,
        between: str = BETWEEN[0],
    ) -> Iterator[Video]:
        """Decode what `encode` returned, chunk after chunk; together they are what a call returns.

        Args:
          latents: (1, t, h, w, c).
          video_shape: (T, H, W, 3) of the video, to which the padding is cut off again.
          speed, key, between: as of a call.

        Yields:
          uint8 (T, H, W, 3).

        Raises:
          UserError: as a call.
        """
        embedder, params, budget = self.embedder, self.params, self.memory_budget_gb
        frames, height, width, _ = video_shape
        left = len(moments(frames, speed))
        if speed == 1.0:
            plan = self._plan_decoding(latents.shape, latents.dtype)
            if plan.frames < latents.shape[1]:
                chunks = self._decode_stream([latents], plan, key)
            elif self.mesh:
                chunks = decode_segments(
                    embedder, params, [latents], latents.shape, plan, self.mesh, key, uint8=True
                )
            else:
                chunks = iter([decode(embedder, params, latents, budget, key=key, uint8=True)])
        else:
            embedder.check_speed(speed)
            regen = cast(REGENEmbedder, embedder)  # any other has been refused
            chunks = map(
                to_uint8, stream_at_speed(regen, params, latents, speed, budget, key, between)
            )
        for chunk in chunks:
            out = chunk[0, :left, :height, :width]
            left -= len(out)
            if len(out):
                yield out

    def stream(
        self,
        chunks: Iterable[Video],
        key: Array | None = None,
        speed: float = 1.0,
        between: str = BETWEEN[0],
    ) -> Iterator[Video]:
        """Reconstruct a video that comes in chunks, in memory that does not grow with its length.

        An embedder that depends on the whole clip gets it whole. At another speed the latents of
        the whole video are kept: its frames, once encoded, are not.

        Args:
          chunks: uint8 (T, H, W, 3) of any lengths and one size.
          key, speed, between: as of a call.

        Yields:
          uint8 (T, H, W, 3), together equal to what a call with all of `chunks` gives; chunk by
          chunk, some frames behind the input, and at another speed after all of it.

        Raises:
          UserError: as a call; chunks of different sizes, or none.
        """
        embedder, params, chunks = self.embedder, self.params, iter(chunks)
        embedder.check_speed(speed)
        choose("between", between, BETWEEN)
        first = next(chunks, None)
        if first is None:
            raise UserError("the video to reconstruct holds no frame")
        chunks = itertools.chain([first], chunks)
        if embedder.depends_on_whole_clip:
            yield self(np.concatenate(list(chunks)), speed, key, between)
            return
        check_clip(first)
        height, width = first.shape[1:3]
        sides = tuple(side + -side % embedder.space_factor for side in (height, width))
        edges = (0, 0), (0, sides[0] - height), (0, sides[1] - width), (0, 0)
        seen = shown = 0

        def padded():
            nonlocal seen
            last = first
            for chunk in chunks:
                check_clip(chunk, "a chunk of the video")
                seen, last = seen + len(chunk), chunk
                yield np.pad(chunk, edges, mode="edge")[None]
            if missing := embedder.padded_frames(seen) - seen:
                yield np.pad(last[-1:], edges, mode="edge").repeat(missing, 0)[None]

        frames = embedder.frames(STREAM_CHUNK * embedder.unit)
        shape = embedder.latent_shape((1, frames, *sides, 3))
        budget = self.memory_budget_gb
        encoding = plan_chunks(embedder, params, "encode", shape, np.uint8, budget)
        video = regroup(padded(), chunk_lengths(embedder, encoding.frames))
        latents = encode_stream(embedder, params, video, encoding.rows)
        if speed == 1.0:
            decoding = self._plan_decoding(shape, np.float32)
            decoded = self._decode_stream(latents, decoding, key)
        else:
            # How a frame is conditioned depends on where the clip ends.
            whole = np.concatenate(list(latents), axis=1)
            regen = cast(REGENEmbedder, embedder)  # `check_speed` has refused any other
            at_speed = stream_at_speed(regen, params, whole, speed, budget, key, between)
            decoded = map(to_uint8, at_speed)
        for out in decoded:
            left = (seen if speed == 1.0 else len(moments(seen, speed))) - shown
            out = out[0, :left, :height, :width]
            shown += len(out)
            if len(out):
                yield out

    def _plan_decoding(self, latent_shape: Shape, dtype) -> ChunkPlan:
        """Return the chunks to decode: of a device's windows, for each device of the mesh."""
        plan = plan_chunks(
            self.embedder, self.params, "decode", latent_shape, dtype, self.memory_budget_gb
        )
        devices = self.mesh.size if self.mesh else 1
        return plan._replace(frames=min(plan.frames * devices, latent_shape[1]))

    def _decode_stream(
        self, latents: Iterable[np.ndarray], plan: ChunkPlan, key: Array | None
    ) -> Iterator[Video]:
        """Decode latents that come in parts of any lengths, a chunk of the plan at a time."""
        embedder, params = self.embedder, self.params
        parts = regroup(latents, itertools.repeat(plan.frames))
        if self.mesh:
            everywhere = replicated(self.mesh)
            return decode_on_mesh(embedder, params, parts, self.mesh, everywhere, key, uint8=True)
        return decode_stream(embedder, params, parts, None, key, plan.rows, uint8=True)


def load_reconstructor(
    path,
    memory_budget_gb: float | None = None,
    steps: int | None = None,
    checkpoint: Step = None,
) -> Reconstructor:
    """Load the run folder of an embedder.

    Where this process has several accelerators, all of them share the windows that a REGEN decodes.

    Args:
      path: the folder.
      memory_budget_gb: see `Reconstructor`.
      steps: evaluations of a generative decoder; by default the run's.
      checkpoint: its step, or one of `runs.checkpoint.CHOICES`; the newest by default.

    Raises:
      UserError: no such folder; steps for a decoder that is not generative, or that its process
        does not have.
    """
    embedder, params = load_embedder(path, require_statistics=False, step=checkpoint)
    if steps is not None:
        embedder = embedder.with_steps(steps)
    params, mesh = embedder.in_compute_dtype(params), None
    devices = jax.local_devices()
    if embedder.decodes_in_windows and len(devices) > 1 and devices[0].platform != "cpu":
        mesh = make_mesh(MeshConfig(data=len(devices), fsdp=1), devices)
        params = jax.device_put(params, replicated(mesh))
    return Reconstructor(
        embedder=embedder, params=params, memory_budget_gb=memory_budget_gb, mesh=mesh
    )
