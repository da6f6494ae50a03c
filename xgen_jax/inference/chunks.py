"""Chunks of a clip: compiled programs, the memory they need, and plans for a memory budget."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xgen_jax.data.pixels import to_unit_range
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.parallel.memory import GB, format_gb, largest_chunk, program_bytes
from xgen_jax.typing import Array, Params, Shape


class ChunkPlan(NamedTuple):
    """Sizes in which a clip is cut.

    Attributes:
      rows: latent rows of a block.
      frames: latent frames of a chunk, whole units of the embedder or the clip.
    """

    rows: int
    frames: int


@functools.partial(jax.jit, static_argnums=0)
def encode_clips(embedder: Embedder, params: Params, video: Array) -> Array:
    """Run `Embedder.encode` compiled, on whole clips of uint8."""
    return embedder.encode(params, to_unit_range(video))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def encode_chunk(embedder: Embedder, params: Params, video: Array, cache):
    """Run `Embedder.encode_chunk` compiled, on uint8 or float video; `cache` is donated."""
    video = to_unit_range(video) if video.dtype == jnp.uint8 else video
    return embedder.encode_chunk(params, video, cache)


@functools.partial(jax.jit, static_argnums=(0, 4, 6), donate_argnums=3)
def decode_chunk(
    embedder: Embedder,
    params: Params,
    latents: Array,
    cache,
    last: bool,
    key: Array | None = None,
    uint8: bool = False,
):
    """Run `Embedder.decode_chunk` compiled, to float32 or to uint8; `cache` is donated, another key
    compiles nothing."""
    video, cache = embedder.decode_chunk(params, latents, cache, last, key)
    return (round_to_uint8(video) if uint8 else video), cache


def round_to_uint8(video: Array) -> Array:
    """Convert [-1, 1] to uint8 on the device, a quarter of the bytes to fetch; the values are those
    of `pixels.to_uint8`."""
    video = jnp.clip(video.astype(jnp.float32), -1.0, 1.0)
    return jnp.rint((video + 1.0) * 127.5).astype(jnp.uint8)


def row_blocks(height: int, rows: int, halo: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first, last, above, below) of each block: rows above..below are computed, of which
    first..last are kept."""
    for first in range(0, height, rows):
        last = min(first + rows, height)
        yield first, last, max(0, first - (halo or 0)), min(height, last + (halo or 0))


def lower_chunk(
    embedder: Embedder,
    params: Params,
    verb: str,
    latent_shape: Shape,
    dtype,
    chunk: int,
    whole: bool = False,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[jax.stages.Lowered, Any]:
    """Lower the program of a chunk in the middle of a clip, or of a clip of one chunk.

    Args:
      embedder, params: see `load_embedder`; parameters may be shapes.
      verb: `encode` or `decode`.
      latent_shape: (B, t, h, w, c) of the clip.
      dtype: of the video or the latents.
      chunk: latent frames of the chunk, whole units unless it is the clip.
      whole: the chunk is the clip.
      sharding: of the clips and what is kept of them, if they are split over devices.

    Returns:
      The program, and the shapes of what it takes besides the parameters: the chunk and the cache.
    """
    batch, _, h, w, c = latent_shape
    s, unit = embedder.space_factor, embedder.unit

    def of(n, frames):
        shape = (batch, frames, h * s, w * s, 3) if verb == "encode" else (batch, n, h, w, c)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def program(cache, x, last):
        if verb == "encode":
            return encode_chunk.lower(embedder, params, x, cache)
        return decode_chunk.lower(embedder, params, x, cache, last)

    if whole:
        x = of(chunk, embedder.frames(chunk))
        return program(None, x, True), (x, None)
    # Two units: a decoder that looks ahead has a frame in its cache only after the first.
    cache = program(None, of(2 * unit, embedder.frames(2 * unit)), False).out_info[1]
    cache = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), cache
    )
    x = of(chunk, embedder.frames(unit + chunk) - embedder.frames(unit))
    return program(cache, x, False), (x, cache)


def chunk_bytes(
    embedder: Embedder,
    params: Params,
    verb: str,
    latent_shape: Shape,
    dtype,
    chunk: int,
    whole: bool = False,
) -> int:
    """Return the bytes that a chunk needs; arguments are those of `lower_chunk`.

    A decoder gives float32 here. With frames as uint8 the same bytes hold those of four chunks: the
    one that is computed and the one that waits to be fetched, see `streaming.decode_stream`.
    """
    lowered, _ = lower_chunk(embedder, params, verb, latent_shape, dtype, chunk, whole)
    return program_bytes(lowered.compile())


def plan_chunks(
    embedder: Embedder,
    params: Params,
    verb: str,
    latent_shape: Shape,
    dtype,
    memory_budget_gb: float | None,
) -> ChunkPlan:
    """Decide how a clip is cut; without a budget, all rows and the embedder's `default_chunk`.

    Arguments are those of `chunk_bytes`, errors those of `encode`.
    """
    _, frames, height, *_ = latent_shape
    unit, halo, what = embedder.unit, embedder.halo, f"to {verb} latents {latent_shape}"
    if memory_budget_gb is None:
        chunk = frames if embedder.depends_on_whole_clip else embedder.default_chunk(latent_shape)
        return ChunkPlan(height, min(frames, chunk))
    if memory_budget_gb <= 0:
        raise UserError(f"memory_budget_gb={memory_budget_gb} must be above 0")
    budget = memory_budget_gb * GB

    def refuse(needed: int, why: str):
        return UserError(
            f"{what} takes {format_gb(needed)}, more than memory_budget_gb={memory_budget_gb:g}, "
            f"{why}; allow more, take a smaller size, or put height or width on several devices"
        )

    if embedder.depends_on_whole_clip:
        needed = chunk_bytes(embedder, params, verb, latent_shape, dtype, frames, whole=True)
        if needed > budget:
            raise refuse(needed, f"and there are no chunks: {embedder.depends_on_whole_clip}")
        return ChunkPlan(height, frames)

    def measure(units, rows=height):
        computed = max(below - above for _, _, above, below in row_blocks(height, rows, halo))
        shape = (*latent_shape[:2], computed, *latent_shape[3:])
        return chunk_bytes(embedder, params, verb, shape, dtype, units * unit)

    if units := largest_chunk(measure, -(-frames // unit), budget):
        return ChunkPlan(height, min(units * unit, frames))
    if halo is None:
        least = "a latent frame" if unit == 1 else f"{unit} latent frames"
        why = (
            f"even {least} at a time, and only a model with norm='rms' and no attention can be "
            "cut in space"
        )
        raise refuse(measure(1), why)
    rows = height
    while rows > 1:
        rows = -(-rows // 2)
        if measure(1, rows) <= budget:
            return ChunkPlan(rows, 1)
    raise refuse(
        measure(1, 1), f"even a latent frame and row at a time, with the {halo} rows around it"
    )
