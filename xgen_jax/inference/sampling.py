"""Batches of clips, drawn: text and noise, step after step to latents, piece after piece, and on to
pixels in chunks.

A clip depends on its prompt, its seed, its row and its condition alone: neither on the clips that
are drawn with it nor on the number of devices, which share a batch.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.pipeline import micro_conditions
from xgen_jax.data.pixels import to_uint8
from xgen_jax.diffusion.frames import KnownFrames
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.guidance import GuidanceConfig, guided
from xgen_jax.diffusion.process import Process
from xgen_jax.diffusion.samplers import Steps, advance, begin, key_noise, make_steps
from xgen_jax.errors import UserError
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.request import ClipPlan
from xgen_jax.inference.streaming import decode, decode_stream, encode
from xgen_jax.inference.streaming import plan as plan_chunks
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import MicroConditions
from xgen_jax.parallel.memory import GB, program_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import BATCH, batch_sharding, on_mesh, tree_shardings
from xgen_jax.typing import Array, Params, Shape, Video

# Streams of a clip's key beside the samplers' 0 and 1: below the first each piece but the first has
# its own.
_PIECE_NOISE, _DECODE_NOISE = 2, 3
_TOKENS = 8192  # about as many at once as keep a device busy
_MOST = 16  # clips a device at once, where nobody says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Program:
    """What is compiled for; all else is an argument: another seed, scale, grid or number of steps
    compiles nothing."""

    model: VDiT
    process: Process
    sampler: str
    guidance: GuidanceConfig
    shape: Shape  # latents (t, h, w, c) of a piece


@functools.partial(jax.jit, static_argnums=0)
def _embed(text, params, arrays, rows_B):
    """(tokens, mask) of the prompts, and of the null caption."""
    return tuple(text.embed(params, arrays, jnp.full(rows_B.shape, null)) for null in (False, True))


def _clip_keys(seeds_B, rows_B):
    return jax.vmap(lambda seed, row: jax.random.fold_in(jax.random.key(seed), row))(
        seeds_B, rows_B
    )


@jax.jit
def _decode_keys(seeds_B, rows_B):
    """A key for each clip, of what a generative decoder draws."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _DECODE_NOISE))(_clip_keys(seeds_B, rows_B))


@functools.partial(jax.jit, static_argnums=0)
def _start(program: _Program, steps, seeds_B, rows_B, piece):
    """A key for each clip of a piece, and what its first step begins with."""
    key_B = _clip_keys(seeds_B, rows_B)
    if piece is not None:
        key_B = jax.vmap(
            lambda key: jax.random.fold_in(jax.random.fold_in(key, _PIECE_NOISE), piece)
        )(key_B)
    x = jax.vmap(lambda key: program.process.sample_prior(key, program.shape))(key_B)
    if not jax.sharding.get_abstract_mesh().empty:
        x = jax.lax.with_sharding_constraint(x, BATCH)
    return key_B, begin(x, steps, program.sampler)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _advance(program: _Program, carry, here, params, tokens, clip, frames, key_B, scale):
    """One step."""
    text, null = tokens

    def predict(x, time, condition, frame_mask):
        conditions = program.model.config.micro_cond
        told = (
            MicroConditions(*(jnp.full(x.shape[:1], each) for each in clip)) if conditions else None
        )
        return program.model.apply(params, x, time, *condition, told, frame_mask)

    denoise = guided(predict, text, null, scale, program.process, program.guidance)
    return advance(denoise, carry, here, program.sampler, key_noise(key_B, program.shape), frames)[
        0
    ]


@functools.partial(jax.jit, static_argnums=1)
def _known(latents, count: int):
    """The last frames of a piece's latents, known at the head of the next."""
    known_T = jnp.arange(latents.shape[1]) < count
    known_BT = jnp.broadcast_to(known_T[None], latents.shape[:2])
    return KnownFrames(latents=jnp.roll(latents, count, axis=1), known_BT=known_BT)


class Drawer:
    """Draws batches of clips of one plan.

    Args:
      model, text, embedder: see `TextToVideo`.
      params: theirs, on the host or on a device.
      config: of the run that trained them.
      plan: what is to be drawn.
      batch_size: clips at once; this process's devices share them, as many devices as divide them.
      steps, guidance_scale, sampler: None takes the run's.
      offload: keep parameters on the host, and on the devices only those that are at work:
      transformer, then decoder.
      memory_budget_gb: what a device may use, parameters included: it sets the chunks that are
        decoded, and turns on `offload` where both do not fit at once.

    Attributes:
      steps: that drawing a batch takes, all pieces together.
      offload: as it was decided.

    Raises:
      UserError: an unknown sampler, steps that its grid does not have, a budget in which nothing
      fits.
    """

    def __init__(
        self,
        *,
        model: VDiT,
        text: TextConditioner,
        embedder: Embedder,
        params: Params,
        config: VDiTRun,
        plan: ClipPlan,
        batch_size: int,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        offload: bool = False,
        memory_budget_gb: float | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be 1 or more")
        process = config.loss.make_process(config.model.learned_variance)
        sampler = sampler or config.sampler
        ratio = config.loss.time_ratio(plan.height, plan.width, plan.piece_shape[0])
        grid = make_grid(process, steps or config.sample_steps, config.sample_spacing, ratio)
        self._grid = make_steps(sampler, grid)
        self._length = len(grid.now.t)
        self.plan, self.batch_size, self.steps = plan, batch_size, self._length * plan.pieces
        self._program = _Program(
            model=model,
            process=process,
            sampler=sampler,
            guidance=config.guidance,
            shape=plan.piece_shape,
        )
        self._scale = np.float32(
            config.guidance_scale if guidance_scale is None else guidance_scale
        )
        self._clip = micro_conditions(plan.piece_frames, plan.height, plan.width, plan.fps)
        self._text, self._embedder = text, embedder
        devices = jax.local_devices()
        shared = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
        self._mesh = make_mesh(MeshConfig(data=shared, fsdp=1), devices)
        self._params, self._resident = params, {}
        self.offload, self._decode_budget_gb = offload, memory_budget_gb
        if memory_budget_gb is not None:
            self._decide(memory_budget_gb)

    @property
    def settings(self) -> dict[str, Any]:
        """What a clip depends on beside its prompt, its noise, its condition and the parameters, as
        JSON has it."""
        plan, model = self.plan, self._program.model
        return {
            "frames": plan.frames,
            "size": [plan.height, plan.width],
            "fps": float(plan.fps),
            "piece_frames": plan.piece_frames,
            "overlap": plan.overlap,
            "steps": self._length,
            "sampler": self._program.sampler,
            "guidance_scale": float(self._scale),
            "guidance": [str(value) for value in dataclasses.astuple(self._program.guidance)],
            "compute_dtype": np.dtype(model.dtype).name,
            **self._embedder.settings,
        }

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        rows: Sequence[int] | None = None,
        condition: Video | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Video]:
        """Draws a batch.

        Args:
          prompts: `batch_size` of them.
          seeds: of each clip's noise.
          rows: a second number of each clip's noise, 0 by default.
          condition: what each clip begins with, uint8 (T, H, W, 3); see `conditions.fit_condition`.
          progress: called after every step, when it is done.

        Yields:
          The clips from their beginning, chunk after chunk, uint8 (B, T, H, W, 3).
        """
        latents = self.latents(prompts, seeds, rows, condition, progress)
        if self.offload:
            latents = iter(
                list(map(np.asarray, latents))
            )  # the transformer is gone when the decoder comes
        with on_mesh(self._mesh):
            key_B = _decode_keys(*self._noise(seeds, rows))
        with self._on_devices("embedder") as params:
            yield from map(to_uint8, self._decode(params["embedder"], latents, key_B))

    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        rows: Sequence[int] | None = None,
        condition: Video | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Array]:
        """The normalised latents of a batch, (B, t, h, w, c), piece after piece, each without what
        the one before had.

        Arguments as of a call.
        """
        if len(prompts) != self.batch_size:
            raise ValueError(f"{len(prompts)} prompts for a batch of {self.batch_size}")
        frames = None if condition is None else self._known_condition(condition)
        arrays = self._shared(self._text.arrays(list(prompts)))
        seeds, rows = self._noise(seeds, rows)
        names = [name for name in self._params if name != "embedder"]
        left, had = self.plan.latent_frames, 0
        with self._on_devices(*names) as params:
            with on_mesh(self._mesh):
                tokens = _embed(self._text, params, arrays, rows)
            for piece in range(self.plan.pieces):
                drawn = self._piece(params["vdit"], tokens, seeds, rows, piece, frames, progress)
                yield drawn[:, had : had + left]
                left, had = left - (drawn.shape[1] - had), self.plan.overlap
                if left > 0:
                    with on_mesh(self._mesh):
                        frames = _known(drawn, self.plan.overlap)

    def _piece(self, params, tokens, seeds, rows, piece, frames, progress) -> Array:
        with on_mesh(self._mesh):
            key_B, carry = _start(
                self._program, self._grid, seeds, rows, np.uint32(piece) if piece else None
            )
            for step in range(self._length):
                carry = _advance(
                    self._program,
                    carry,
                    _one(self._grid, step),
                    params,
                    tokens,
                    self._clip,
                    frames,
                    key_B,
                    self._scale,
                )
                if progress:
                    jax.block_until_ready(carry)
                    progress()
        return carry[0]

    def _known_condition(self, condition: Video) -> KnownFrames:
        video = fit_condition(condition, self.plan, self._embedder)
        with self._on_devices("embedder") as params, on_mesh(self._mesh):
            latents = encode(
                self._embedder, params["embedder"], video[None], self._decode_budget_gb
            )
            # At the end, from where `_known` takes them.
            missing = self.plan.piece_shape[0] - latents.shape[1]
            padded = np.pad(latents, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))
            return _known(
                self._shared(np.repeat(padded, self.batch_size, axis=0)), latents.shape[1]
            )

    def _noise(self, seeds: Sequence[int], rows: Sequence[int] | None) -> tuple[Array, Array]:
        """Both numbers of each clip's noise, on the devices."""
        rows = [0] * len(seeds) if rows is None else rows
        return self._shared((np.asarray(seeds, np.uint32), np.asarray(rows, np.uint32)))

    def _decode(
        self, params: Params, latents: Iterator[Array], key_B: Array
    ) -> Iterator[np.ndarray]:
        rows, chunk = self._decode_plan(params)
        sharding = batch_sharding(self._mesh)
        if (
            rows < self.plan.piece_shape[1] or chunk == self.plan.latent_frames
        ):  # all at once, or blocks of rows, each of all frames
            whole = np.concatenate(list(map(np.asarray, latents)), axis=1)
            with on_mesh(self._mesh):
                yield decode(self._embedder, params, whole, self._decode_budget_gb, sharding, key_B)
            return
        stream = decode_stream(self._embedder, params, _chunks(latents, chunk), sharding, key_B)
        while True:
            with on_mesh(self._mesh):
                video = next(stream, None)
            if video is None:
                return
            yield video

    def _shared(self, tree: Any) -> Any:
        """Arrays of a batch on the devices, each with its part."""
        return jax.device_put(tree, batch_sharding(self._mesh))

    @contextlib.contextmanager
    def _on_devices(self, *names: str) -> Iterator[Params]:
        """The parameters of some networks on the devices; they stay there, unless `offload` says
        otherwise."""
        placed = {}
        for name in names:
            if name not in self._resident:
                tree = self._params[name]
                self._resident[name] = jax.device_put(tree, tree_shardings(tree, self._mesh))
            placed[name] = self._resident[name]
        try:
            yield placed
        finally:
            if self.offload:
                for name in names:
                    self._resident.pop(name, None)

    def _decide(self, budget_gb: float) -> None:
        """Sets `offload` and what is left for the decoder, by what XLA reports of a step and of a
        chunk."""
        drawing = self._step_bytes() / GB
        if drawing > budget_gb:
            raise UserError(
                f"a step of {self.batch_size // self._mesh.size} clip(s) of {self.plan.piece_frames} frames takes "
                f"{drawing:.3g} GB a device, more than memory_budget_gb={budget_gb:g}; allow more, or take a smaller "
                "batch_size, size or piece_frames"
            )
        others = (
            _bytes({name: tree for name, tree in self._params.items() if name != "embedder"}) / GB
        )
        self.offload = self.offload or drawing + _bytes(self._params["embedder"]) / GB > budget_gb
        if not self.offload:
            try:
                self._decode_budget_gb = budget_gb - others
                self._decode_plan(self._params["embedder"])
                return
            except UserError:  # beside the transformer the decoder does not fit
                self.offload = True
        self._decode_budget_gb = budget_gb
        self._decode_plan(self._params["embedder"])

    def _decode_plan(self, params: Params) -> tuple[int, int]:
        shape = (
            self.batch_size // self._mesh.size,
            self.plan.latent_frames,
            *self.plan.piece_shape[1:],
        )
        return plan_chunks(
            self._embedder, params, "decode", shape, np.float32, self._decode_budget_gb
        )

    def _step_bytes(self) -> int:
        """Of a step on one device: the compiler is asked, nothing is computed."""

        def of(tree):
            return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), tree)

        clips = self.batch_size // self._mesh.size
        rows = jax.ShapeDtypeStruct((clips,), np.uint32)
        networks = of({name: tree for name, tree in self._params.items() if name != "embedder"})
        key_B, carry = jax.eval_shape(
            functools.partial(_start, self._program), of(self._grid), rows, rows, None
        )
        captions = of(self._text.arrays([""] * clips))  # the empty caption needs no encoder
        tokens = jax.eval_shape(functools.partial(_embed, self._text), networks, captions, rows)
        frames = (
            jax.eval_shape(lambda x: _known(x, self.plan.overlap), carry[0])
            if self.plan.pieces > 1
            else None
        )
        lowered = _advance.lower(
            self._program,
            carry,
            _one(self._grid, 0),
            networks["vdit"],
            tokens,
            self._clip,
            frames,
            key_B,
            self._scale,
        )
        return program_bytes(lowered.compile())


def default_batch_size(plan: ClipPlan, patch: int) -> int:
    """How many clips keep this process's devices busy, 16 a device at most."""
    return min(_MOST, max(1, _TOKENS // plan.tokens(patch))) * len(jax.local_devices())


def _one(steps: Steps, index: int) -> Steps:
    return jax.tree.map(lambda a: a[index : index + 1], steps)


def _chunks(latents: Iterator[Array], size: int) -> Iterator[np.ndarray]:
    """Pieces of any lengths -> chunks of one length, and a rest."""
    waiting = None
    for piece in latents:
        piece = np.asarray(piece)
        waiting = piece if waiting is None else np.concatenate([waiting, piece], axis=1)
        while waiting.shape[1] >= size:
            yield waiting[:, :size]
            waiting = waiting[:, size:]
    if waiting is not None and waiting.shape[1]:
        yield waiting


def _bytes(tree: Params) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
