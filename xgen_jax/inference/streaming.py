"""Encoding and decoding of clips of any length, chunk after chunk, in memory that does not grow
with the clip.

Every layer that mixes frames carries what it must remember, so a clip in chunks gives what the
whole clip gives: no overlap, no blending, no seams. A decoder that looks ahead gives its last
frames with the chunk after.
"""

import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.data.pixels import check_video, to_unit_range
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.parallel.memory import GB, largest_chunk, program_bytes
from xgen_jax.typing import Array, Params, Shape

CHUNK = 4  # latent frames at a time where nobody sets a budget


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def encode_chunk(embedder: Embedder, params: Params, video: Array, cache):
    """`Embedder.encode_chunk`, compiled; of uint8 or float video."""
    video = to_unit_range(video) if video.dtype == jnp.uint8 else video
    return embedder.encode_chunk(params, video, cache)


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)
def decode_chunk(
    embedder: Embedder,
    params: Params,
    latents: Array,
    cache,
    last: bool,
    key: Array | None = None,
):
    """`Embedder.decode_chunk`, compiled; another key compiles nothing."""
    return embedder.decode_chunk(params, latents, cache, last, key)


def encode_stream(
    embedder: Embedder, params: Params, chunks: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Encodes a clip that comes in chunks.

    Args:
      embedder, params: see `load_embedder`.
      chunks: uint8, or float in [-1, 1], (B, T, H, W, 3), of any lengths that add up to one that
        can be encoded. What does not fill an embedder's unit, a VidVAE's latent frame or a REGEN's
        chunk, waits for the chunk after; at the end of a REGEN's clip a single frame is an image.

    Yields:
      Normalised latents (B, t, h, w, c), float32, as soon as they are known; together those of the
      whole clip.

    Raises:
      UserError: a chunk of another size, batch or dtype than the first, pixels that are not finite
        or not in range, a clip of a length or size that the model cannot take, a model that depends
        on the whole clip.
    """
    cache, first, waiting, seen, done = None, None, None, 0, 0
    for chunk in chunks:
        chunk = np.asarray(chunk)
        check_video(chunk)
        if first is None:
            first = chunk
            embedder.latent_shape((1, *chunk.shape[2:4]))
        _check_alike(chunk, first)
        seen += chunk.shape[1]
        waiting = chunk if waiting is None else np.concatenate([waiting, chunk], axis=1)
        settled = embedder.frames(embedder.whole_latents(seen))
        if settled > done:
            latents, cache = encode_chunk(embedder, params, waiting[:, : settled - done], cache)
            waiting, done = waiting[:, settled - done :], settled
            yield np.asarray(latents)
    if first is None:
        raise UserError("the stream to encode holds no chunk")
    if waiting.shape[1]:
        embedder.latent_shape((seen, *first.shape[2:4]))  # tells the nearest lengths
        yield np.asarray(encode_chunk(embedder, params, waiting, cache)[0])


def decode_stream(
    embedder: Embedder,
    params: Params,
    chunks: Iterable[np.ndarray],
    sharding: jax.sharding.Sharding | None = None,
    key: Array | None = None,
) -> Iterator[np.ndarray]:
    """Decodes latents that come in chunks of any lengths.

    Args:
      embedder, params: see `load_embedder`.
      chunks: normalised latents (B, t, h, w, c). What does not fill an embedder's unit waits for
      the chunk after.
      sharding: of a chunk, where several devices share it.
      key: see `Embedder.decode_chunk`.

    Yields:
      Video (B, T, H, W, 3), float32, about [-1, 1]; it lags `embedder.look_ahead` frames behind
      what has come.

    Raises:
      UserError: as `encode_stream`.
    """
    cache, first, waiting = None, None, None
    for chunk in chunks:
        chunk = np.asarray(chunk)
        _check_latents(embedder, chunk)
        first = chunk if first is None else first
        _check_alike(chunk, first)
        waiting = chunk if waiting is None else np.concatenate([waiting, chunk], axis=1)
        ready = waiting.shape[1] // embedder.unit * embedder.unit
        if ready:
            ready, waiting = waiting[:, :ready], waiting[:, ready:]
            video, cache = decode_chunk(
                embedder, params, jax.device_put(ready, sharding), cache, False, key
            )
            yield np.asarray(video)
    if first is None or (cache is None and not waiting.shape[1]):
        raise UserError("the stream to decode holds no latents")
    if waiting.shape[1] or embedder.look_ahead:
        video, _ = decode_chunk(
            embedder, params, jax.device_put(waiting, sharding), cache, True, key
        )
        if video.shape[1]:
            yield np.asarray(video)


def encode(
    embedder: Embedder,
    params: Params,
    video_BTHWC: np.ndarray,
    memory_budget_gb: float | None = None,
) -> np.ndarray:
    """A clip -> its normalised latents (B, t, h, w, c), in chunks where the model can.

    Args:
      embedder, params: see `load_embedder`.
      video_BTHWC: uint8, or float in [-1, 1].
      memory_budget_gb: what the device may use (1e9 bytes), parameters included. Chunks are as long
        as it allows; where not even one latent frame fits, a model that can (see
        `VidVAEConfig.halo`) works on blocks of rows.

    Raises:
      UserError: video that the model cannot take; a budget in which nothing fits.
    """
    video_BTHWC = np.asarray(video_BTHWC)
    check_video(video_BTHWC)
    shape, s = embedder.latent_shape(video_BTHWC.shape), embedder.space_factor
    rows, n = plan(embedder, params, "encode", shape, video_BTHWC.dtype, memory_budget_gb)
    cuts = [embedder.frames(at) for at in (*range(0, shape[1], n), shape[1])]

    def encode_rows(block):
        if n == shape[1]:
            return np.asarray(encode_chunk(embedder, params, block, None)[0])
        chunks = (block[:, a:b] for a, b in zip(cuts, cuts[1:]))
        return np.concatenate(list(encode_stream(embedder, params, chunks)), axis=1)

    blocks = _row_blocks(shape[2], rows, embedder.halo)
    parts = [
        encode_rows(video_BTHWC[:, :, above * s : below * s])[:, :, first - above : last - above]
        for first, last, above, below in blocks
    ]
    return np.concatenate(parts, axis=2)


def decode(
    embedder: Embedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    memory_budget_gb: float | None = None,
    sharding: jax.sharding.Sharding | None = None,
    key: Array | None = None,
) -> np.ndarray:
    """Normalised latents -> video (B, T, H, W, 3), float32, about [-1, 1], in chunks where the
    model can.

    Arguments and errors as of `encode`; `sharding` and `key` as of `decode_stream`.
    """
    latents_BTHWC = np.asarray(latents_BTHWC)
    _check_latents(embedder, latents_BTHWC)
    shape, s = latents_BTHWC.shape, embedder.space_factor
    rows, n = plan(embedder, params, "decode", shape, latents_BTHWC.dtype, memory_budget_gb)

    def decode_rows(block):
        if n == shape[1]:
            return np.asarray(
                decode_chunk(embedder, params, jax.device_put(block, sharding), None, True, key)[0]
            )
        chunks = (block[:, at : at + n] for at in range(0, shape[1], n))
        return np.concatenate(list(decode_stream(embedder, params, chunks, sharding, key)), axis=1)

    blocks = _row_blocks(shape[2], rows, embedder.halo)
    parts = [
        decode_rows(latents_BTHWC[:, :, above:below])[
            :, :, (first - above) * s : (last - above) * s
        ]
        for first, last, above, below in blocks
    ]
    return np.concatenate(parts, axis=2)


def _row_blocks(height: int, rows: int, halo: int | None) -> Iterator[tuple[int, int, int, int]]:
    """(first, last, above, below) of each block of rows: first..last are kept of above..below,
    which are computed."""
    for first in range(0, height, rows):
        last = min(first + rows, height)
        yield first, last, max(0, first - (halo or 0)), min(height, last + (halo or 0))


def chunk_bytes(
    embedder: Embedder,
    params: Params,
    verb: str,
    latent_shape: Shape,
    dtype,
    chunk: int,
    whole: bool = False,
) -> int:
    """Bytes that XLA reports for one chunk in the middle of a clip, or for a clip that is one
    chunk.

    Args:
      embedder, params: parameters may be abstract.
      verb: `encode` or `decode`.
      latent_shape: (B, t, h, w, c) of the clip.
      dtype: of the video or the latents.
      chunk: latent frames, whole units unless it is the clip.
      whole: the chunk is the clip.
    """
    batch, _, h, w, c = latent_shape
    s, unit = embedder.space_factor, embedder.unit

    def of(n, frames):
        shape = (batch, frames, h * s, w * s, 3) if verb == "encode" else (batch, n, h, w, c)
        return jax.ShapeDtypeStruct(shape, dtype)

    def program(cache, x, last):
        if verb == "encode":
            return encode_chunk.lower(embedder, params, x, cache)
        return decode_chunk.lower(embedder, params, x, cache, last)

    if whole:
        return program_bytes(program(None, of(chunk, embedder.frames(chunk)), True).compile())
    # Two units, for a decoder that looks ahead remembers a frame only after the first.
    cache = program(None, of(2 * unit, embedder.frames(2 * unit)), False).out_info[1]
    frames = embedder.frames(unit + chunk) - embedder.frames(unit)
    return program_bytes(program(cache, of(chunk, frames), False).compile())


def plan(
    embedder: Embedder,
    params: Params,
    verb: str,
    latent_shape: Shape,
    dtype,
    memory_budget_gb: float | None,
) -> tuple[int, int]:
    """How a clip is cut: (latent rows of a block, latent frames of a chunk); without a budget all
    rows, `CHUNK` frames.

    A chunk is whole units, or the clip.

    Arguments as of `chunk_bytes`, errors as of `encode`.
    """
    _, frames, height, *_ = latent_shape
    unit, halo, what = embedder.unit, embedder.halo, f"to {verb} latents {latent_shape}"
    if memory_budget_gb is None:
        return height, frames if embedder.depends_on_whole_clip else min(frames, CHUNK)
    if memory_budget_gb <= 0:
        raise UserError(f"memory_budget_gb={memory_budget_gb} must be above 0")
    budget = memory_budget_gb * GB

    def refuse(needed: int, why: str):
        return UserError(
            f"{what} takes {needed / GB:.3g} GB, more than memory_budget_gb={memory_budget_gb:g}, {why}; allow more, "
            "take a smaller size, or put height or width on several devices"
        )

    if embedder.depends_on_whole_clip:
        needed = chunk_bytes(embedder, params, verb, latent_shape, dtype, frames, whole=True)
        if needed > budget:
            raise refuse(needed, f"and there are no chunks: {embedder.depends_on_whole_clip}")
        return height, frames

    def measure(units, rows=height):
        computed = max(below - above for _, _, above, below in _row_blocks(height, rows, halo))
        shape = (*latent_shape[:2], computed, *latent_shape[3:])
        return chunk_bytes(embedder, params, verb, shape, dtype, units * unit)

    if units := largest_chunk(measure, -(-frames // unit), budget):
        return height, min(units * unit, frames)
    if halo is None:
        least = "a latent frame" if unit == 1 else f"{unit} latent frames"
        why = f"even {least} at a time, and only a model with norm='rms' and no attention can be cut in space"
        raise refuse(measure(1), why)
    rows = height
    while rows > 1:
        rows = -(-rows // 2)
        if measure(1, rows) <= budget:
            return rows, 1
    raise refuse(
        measure(1, 1), f"even a latent frame and row at a time, with the {halo} rows around it"
    )


def _check_latents(embedder: Embedder, latents: np.ndarray) -> None:
    if latents.ndim != 5 or latents.shape[-1] != embedder.latent_channels:
        raise UserError(
            f"latents are (B, t, h, w, {embedder.latent_channels}), not {latents.shape}"
        )
    if not np.issubdtype(latents.dtype, np.floating) and latents.dtype != jnp.bfloat16:
        raise UserError(f"latents are floats, not {latents.dtype}")
    if not np.isfinite(latents).all():
        where = np.argwhere(~np.isfinite(latents))[0].tolist()
        raise UserError(
            f"latents have values that are not finite, the first at (batch, frame, y, x, channel) {where}"
        )


def _check_alike(chunk: np.ndarray, first: np.ndarray) -> None:
    def of(x):
        return x.shape[0], *x.shape[2:], str(x.dtype)

    if chunk.ndim != first.ndim or of(chunk) != of(first):
        raise UserError(
            f"a chunk {chunk.dtype} {chunk.shape} does not continue a stream that began with {first.dtype} "
            f"{first.shape}: batch, height, width, channels and dtype must stay the same"
        )
