"""Text and noise to latents: sampling steps, segment after segment.

A video depends on its prompt, its seed and index, and its condition only: neither on the other
videos of its batch nor on the number of devices that the batch is split over.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.pipeline import micro_conditions
from xgen_jax.diffusion.config import PLAIN_GRID, GridConfig, GuidanceConfig
from xgen_jax.diffusion.frames import KnownFrames
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.guidance import guided
from xgen_jax.diffusion.process import Process
from xgen_jax.diffusion.samplers import (
    Steps,
    advance,
    begin,
    count_evaluations,
    key_noise,
    make_steps,
)
from xgen_jax.inference.request import VideoPlan
from xgen_jax.models.micro_conditions import MicroConditions
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.parallel.memory import program_bytes
from xgen_jax.parallel.sharding import BATCH, batch_sharding, on_mesh, tree_shardings
from xgen_jax.typing import Array, Params, Shape

# Streams of a video's key. The samplers use 0 and 1; each segment but the first has its own key.
_SEGMENT_NOISE, _DECODE_NOISE = 2, 3


class BatchRow(NamedTuple):
    """Prompt and noise of one video of a batch.

    Attributes:
      prompt: the text.
      seed: of the noise, 0 .. 2^32 - 1.
      index: number among videos of one seed; the noise is that of (seed, index).
    """

    prompt: str
    seed: int
    index: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Static arguments of the compiled functions.

    Everything else is an argument: another seed, guidance scale, grid of as many steps or frame
    rate compiles nothing. Without guidance (a scale of 1) the null caption is not evaluated.
    """

    model: VDiT
    process: Process
    sampler: str
    guidance: GuidanceConfig
    guided: bool
    shape: Shape  # latents (t, h, w, c) of a segment


@functools.partial(jax.jit, static_argnums=0)
def embed_prompts(text: TextConditioner, params: Params, arrays, index_B):
    """Return (tokens, mask) of the prompts, and of the null caption; `index_B` gives the batch."""
    return tuple(
        text.embed(params, arrays, jnp.full(index_B.shape, null)) for null in (False, True)
    )


@functools.partial(jax.jit, static_argnums=0)
def start_segment(program: Program, steps: Steps, seed_B, index_B, segment):
    """Return a key for each video of the batch, and the carry of the first step.

    `segment` is the number of the segment, or None for the first.
    """
    key_B = _video_keys(seed_B, index_B)
    if segment is not None:
        key_B = jax.vmap(
            lambda key: jax.random.fold_in(jax.random.fold_in(key, _SEGMENT_NOISE), segment)
        )(key_B)
    x = jax.vmap(lambda key: program.process.sample_prior(key, program.shape))(key_B)
    if not jax.sharding.get_abstract_mesh().empty:
        x = jax.lax.with_sharding_constraint(x, BATCH)
    return key_B, begin(x, steps, program.sampler)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def sampling_step(
    program: Program, carry, step: Steps, params, prompts, micro_cond, known, key_B, scale
):
    """Advance a batch by one step: the guided network, then the sampler's update.

    Args:
      program: static.
      carry: of `start_segment` or of the step before; donated.
      step: one step of `samplers.make_steps`.
      params: the transformer's.
      prompts: see `embed_prompts`.
      micro_cond: (5,), see `micro_cond`.
      known: frames that are given, or None.
      key_B: see `start_segment`.
      scale: guidance scale.

    Returns:
      The carry; its first element is x (B, t, h, w, c).
    """
    text, null = prompts

    def predict(x, time, condition, frame_mask_BT) -> Any:
        micro = None
        if program.model.config.micro_cond:
            micro = MicroConditions(*(jnp.full(x.shape[:1], value) for value in micro_cond))
        return program.model.apply(params, x, time, *condition, micro, frame_mask_BT)

    scale = scale if program.guided else None
    denoise = guided(predict, text, null, scale, program.process, program.guidance)
    noise = key_noise(key_B, program.shape)
    carry, _ = advance(denoise, carry, step, program.sampler, noise, known)
    return carry


@jax.jit
def decode_keys(seed_B: Array, index_B: Array) -> Array:
    """Return a key for each video, for the noise of a generative decoder."""
    keys = _video_keys(seed_B, index_B)
    return jax.vmap(lambda key: jax.random.fold_in(key, _DECODE_NOISE))(keys)


@functools.partial(jax.jit, static_argnums=1)
def known_head(latents: Array, count: int) -> KnownFrames:
    """Make the last `count` frames of a segment's latents known at the start of the next one."""
    known_T = jnp.arange(latents.shape[1]) < count
    known_BT = jnp.broadcast_to(known_T[None], latents.shape[:2])
    return KnownFrames(latents=jnp.roll(latents, count, axis=1), known_BT=known_BT)


def _differences(grid: GridConfig) -> dict[str, Any]:
    """Return the options of a grid that are not the defaults, which older files do not name."""
    plain = dataclasses.asdict(PLAIN_GRID)
    return {key: value for key, value in dataclasses.asdict(grid).items() if value != plain[key]}


class VideoSampler:
    """Samples the latents of batches of videos of one plan.

    Args:
      model: the transformer.
      text: its text conditioner, see `models.text`.
      config: of the run that trained them.
      plan: what is generated.
      batch_size: videos at once.
      mesh: devices that a batch is split over.

    Attributes:
      steps_per_batch: sampling steps of all segments.
      evaluations_per_step: of the network, the mean over the steps of a segment; one evaluation
        takes condition and null caption together.

    Raises:
      UserError: an unknown sampler, or a number of steps that its grid does not have.
    """

    def __init__(
        self,
        *,
        model: VDiT,
        text: TextConditioner,
        config: VDiTRun,
        plan: VideoPlan,
        batch_size: int,
        mesh: Mesh,
    ):
        self.text, self.plan, self.batch_size, self.mesh = text, plan, batch_size, mesh
        process = config.loss.make_process(config.model.learned_variance)
        ratio = float(config.loss.time_ratio(plan.height, plan.width, plan.segment_shape[0]))
        grid = make_grid(process, plan.steps, plan.spacing, ratio, plan.grid)
        self.steps = make_steps(plan.sampler, grid)
        self.steps_per_batch = len(grid.now.t) * plan.segments
        self.evaluations_per_step = count_evaluations(plan.sampler, self.steps) / len(grid.now.t)
        self.program = Program(
            model=model,
            process=process,
            sampler=plan.sampler,
            guidance=config.guidance,
            guided=plan.guidance_scale != 1,
            shape=plan.segment_shape,
        )
        self.micro_cond = micro_conditions(plan.segment_frames, plan.height, plan.width, plan.fps)
        self._scale = np.float32(plan.guidance_scale)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that latents depend on, besides prompts, noise, conditions and parameters."""
        plan, program = self.plan, self.program
        return {
            "frames": plan.frames,
            "size": [plan.height, plan.width],
            "fps": float(plan.fps),
            "segment_frames": plan.segment_frames,
            "overlap": plan.overlap,
            "steps": len(self.steps.now.t),
            "sampler": program.sampler,
            "spacing": plan.spacing,
            **_differences(plan.grid),
            "guidance_scale": float(self._scale),
            "negative_prompt": plan.negative_prompt,
            "guidance": [str(value) for value in dataclasses.astuple(program.guidance)],
            "compute_dtype": np.dtype(program.model.dtype).name,
        }

    def __call__(
        self,
        params: Params,
        batch: Sequence[BatchRow],
        known: KnownFrames | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Array]:
        """Sample a batch.

        Args:
          params: {"vdit", and what the text conditioner trained}, on the devices.
          batch: `batch_size` rows.
          known: latents that the videos begin with, see `known_head`.
          progress: called after every step, when it is done.

        Yields:
          Normalised latents (B, t, h, w, c) segment after segment, without the frames that the
          segment before it has.
        """
        if len(batch) != self.batch_size:
            raise ValueError(f"{len(batch)} rows for a batch of {self.batch_size}")
        arrays = self._on_devices(self.text.arrays([row.prompt for row in batch]))
        seed_B, index_B = self.seeds(batch)
        with on_mesh(self.mesh):
            prompts = embed_prompts(self.text, params, arrays, index_B)
            if self.plan.negative_prompt is not None:
                negative = [self.plan.negative_prompt] * self.batch_size
                arrays = self._on_devices(self.text.arrays(negative))
                prompts = prompts[0], embed_prompts(self.text, params, arrays, index_B)[0]
        remaining, overlap = self.plan.latent_frames, 0
        for segment in range(self.plan.segments):
            noise = seed_B, index_B, np.uint32(segment) if segment else None
            latents = self._segment(params["vdit"], prompts, noise, known, progress)
            new = latents[:, overlap : overlap + remaining]
            yield new
            remaining, overlap = remaining - new.shape[1], self.plan.overlap
            if remaining:
                with on_mesh(self.mesh):
                    known = known_head(latents, overlap)

    def seeds(self, batch: Sequence[BatchRow]) -> tuple[Array, Array]:
        """Return the seeds and indices (B,) of a batch, on the devices."""
        seeds, indices = zip(*((row.seed, row.index) for row in batch))
        return self._on_devices((np.asarray(seeds, np.uint32), np.asarray(indices, np.uint32)))

    def known_condition(self, latents: np.ndarray) -> KnownFrames:
        """Make latents (1, t, h, w, c) known at the start of every video of a batch."""
        count = latents.shape[1]
        # `known_head` takes them from the end of a segment.
        missing = self.plan.segment_shape[0] - count
        padded = np.pad(latents, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))
        with on_mesh(self.mesh):
            return known_head(self._on_devices(np.repeat(padded, self.batch_size, axis=0)), count)

    def lower_step(self, params: Params) -> jax.stages.Lowered:
        """Lower `sampling_step` for the mesh, from shapes alone.

        Args:
          params: {"vdit", and what the text conditioner trained}, arrays or shapes.
        """
        rows = jax.ShapeDtypeStruct((self.batch_size,), np.uint32)
        shared = functools.partial(_batch_shapes, len(self.program.shape) + 1, self.mesh)
        with on_mesh(self.mesh):
            start = functools.partial(start_segment, self.program, self.steps)
            key_B, carry = jax.eval_shape(start, rows, rows, None)
            embed = functools.partial(embed_prompts, self.text)
            prompts = jax.eval_shape(embed, params, self.null_captions(), rows)
            known = None
            if self.plan.segments > 1:
                known = jax.eval_shape(lambda x: known_head(x, self.plan.overlap), carry[0])
            return sampling_step.lower(
                self.program,
                shared(carry),
                self._step(0),
                _shapes(params["vdit"], tree_shardings(params["vdit"], self.mesh)),
                shared(prompts),
                self.micro_cond,
                shared(known),
                shared(key_B),
                self._scale,
            )

    def step_bytes(self, params: Params) -> int:
        """Return the bytes of a device that a step needs: compile it, compute nothing."""
        return program_bytes(self.lower_step(params).compile())

    def _segment(self, params, prompts, noise, known, progress) -> Array:
        with on_mesh(self.mesh):
            key_B, carry = start_segment(self.program, self.steps, *noise)
            for number in range(len(self.steps.now.t)):
                carry = sampling_step(
                    self.program,
                    carry,
                    self._step(number),
                    params,
                    prompts,
                    self.micro_cond,
                    known,
                    key_B,
                    self._scale,
                )
                if progress:
                    jax.block_until_ready(carry)
                    progress()
        return carry[0]

    def null_captions(self) -> dict[str, np.ndarray]:
        """Make the arrays of a batch of empty captions; stored embeddings need no encoder."""
        stored = {
            "caption": [""] * self.batch_size,
            "text": [np.zeros((0, self.text.width), np.float32)] * self.batch_size,
        }
        return self.text.batch_arrays(stored)

    def _step(self, number: int) -> Steps:
        return jax.tree.map(lambda a: a[number : number + 1], self.steps)

    def _on_devices(self, tree: Any) -> Any:
        """Put arrays of a batch on the devices, each with its part."""
        return jax.device_put(tree, batch_sharding(self.mesh))


def _video_keys(seed_B, index_B):
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        seed_B, index_B
    )


def _shapes(tree, shardings):
    return jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _batch_shapes(dims: int, mesh: Mesh, tree):
    """Return the shapes of a batch; arrays of more than `dims` dims have the others before it."""

    def sharding(a):  # the memory of a multi-step sampler is (order, B, ...)
        return NamedSharding(mesh, PartitionSpec(*[None] * (a.ndim - dims), *BATCH))

    return _shapes(tree, jax.tree.map(sharding, tree))
