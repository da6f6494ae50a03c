"""Encode and decode clips of any length in chunks, in memory that does not grow with it.

Every layer that mixes frames carries a cache from chunk to chunk, so a clip in chunks gives what
the whole clip gives: no overlap, no blending, no seams. A decoder that looks ahead gives its last
frames with the next chunk.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xgen_jax.data.pixels import check_video
from xgen_jax.errors import UserError
from xgen_jax.inference.chunks import (
    ChunkPlan,
    decode_chunk,
    encode_chunk,
    plan_chunks,
    row_blocks,
)
from xgen_jax.models.embedder import Embedder
from xgen_jax.parallel.sharding import batch_sharding, on_mesh, replicated
from xgen_jax.typing import AnyArray, Array, Params, Shape


def encode_stream(
    embedder: Embedder,
    params: Params,
    chunks: Iterable[np.ndarray],
    rows: int | None = None,
) -> Iterator[np.ndarray]:
    """Encode a clip that comes in chunks.

    Args:
      embedder, params: see `load_embedder`.
      chunks: uint8, or float in [-1, 1], (B, T, H, W, 3), of any lengths whose sum can be encoded.
        Frames that do not fill a unit of the embedder (a VidVAE's latent frame, a REGEN's chunk)
        wait for the next chunk; at the end of a REGEN's clip a single frame is an image.
      rows: latent rows at a time, see `plan_chunks`; all by default.

    Yields:
      Normalised latents (B, t, h, w, c), float32, as soon as they are known; concatenated they are
      those of the whole clip.

    Raises:
      UserError: a chunk of another size, batch or dtype than the first, pixels that are not finite
        or not in range, a clip of a length or size that the model cannot take, a model that depends
        on the whole clip.
    """
    first, waiting, encode_rows, seen, done = None, None, None, 0, 0
    for chunk in chunks:
        chunk = np.asarray(chunk)
        check_video(chunk)
        if first is None:
            first = chunk
            height = embedder.latent_shape((1, *chunk.shape[2:4]))[1]
            encode_rows = _Rows(
                lambda video, cache: encode_chunk(embedder, params, video, cache),
                row_blocks(height, rows or height, embedder.halo),
                embedder.space_factor,
                1,
            )
        _check_alike(chunk, first)
        seen += chunk.shape[1]
        waiting = chunk if waiting is None else np.concatenate([waiting, chunk], axis=1)
        whole = embedder.frames(embedder.whole_latents(seen))
        if whole > done:
            assert encode_rows is not None
            latents = encode_rows(waiting[:, : whole - done])
            waiting, done = waiting[:, whole - done :], whole
            yield np.asarray(latents)
    if first is None or waiting is None or encode_rows is None:
        raise UserError("the stream to encode holds no chunk")
    if waiting.shape[1]:
        embedder.latent_shape((seen, *first.shape[2:4]))  # its error names the nearest lengths
        yield np.asarray(encode_rows(waiting))


def decode_stream(
    embedder: Embedder,
    params: Params,
    chunks: Iterable[np.ndarray],
    sharding: jax.sharding.Sharding | None = None,
    key: Array | None = None,
    rows: int | None = None,
    uint8: bool = False,
) -> Iterator[np.ndarray]:
    """Decode latents that come in chunks of any lengths.

    Args:
      embedder, params: see `load_embedder`.
      chunks: normalised latents (B, t, h, w, c). Latent frames that do not fill a unit of the
        embedder wait for the next chunk.
      sharding: of a chunk, if it is split over several devices.
      key: see `Embedder.decode_chunk`.
      rows: latent rows at a time, see `plan_chunks`; all by default.
      uint8: give frames as they are written to files, rounded on the device. The device then works
        on a chunk while the caller has the one before: each is fetched when the next has been
        dispatched, and so comes one chunk later.

    Yields:
      Video (B, T, H, W, 3), float32, about [-1, 1], or uint8; it is `embedder.look_ahead` frames
      behind the latents.

    Raises:
      UserError: see `encode_stream`.
    """
    decoded = _dispatched(embedder, params, chunks, sharding, key, rows, uint8)
    yield from _fetched_late(decoded) if uint8 else map(np.asarray, decoded)


def _dispatched(
    embedder: Embedder,
    params: Params,
    chunks: Iterable[np.ndarray],
    sharding: jax.sharding.Sharding | None,
    key: Array | None,
    rows: int | None,
    uint8: bool,
) -> Iterator[AnyArray]:
    """Yield the video of `decode_stream` as arrays of the device, which may not be ready yet."""
    first, waiting, decode_rows, last = None, None, None, False

    def run(latents, cache):
        latents = jax.device_put(latents, sharding)
        return decode_chunk(embedder, params, latents, cache, last, key, uint8)

    for chunk in chunks:
        chunk = np.asarray(chunk)
        _check_latents(embedder, chunk)
        if first is None:
            first, height = chunk, chunk.shape[2]
            blocks = row_blocks(height, rows or height, embedder.halo)
            decode_rows = _Rows(run, blocks, 1, embedder.space_factor)
        _check_alike(chunk, first)
        waiting = chunk if waiting is None else np.concatenate([waiting, chunk], axis=1)
        ready = waiting.shape[1] // embedder.unit * embedder.unit
        if ready:
            assert decode_rows is not None
            ready, waiting = waiting[:, :ready], waiting[:, ready:]
            yield decode_rows(ready)
    if waiting is None or decode_rows is None or not (decode_rows.began or waiting.shape[1]):
        raise UserError("the stream to decode holds no latents")
    if waiting.shape[1] or embedder.look_ahead:
        last = True
        video = decode_rows(waiting)
        if video.shape[1]:
            yield video


def _fetched_late(arrays: Iterable[AnyArray]) -> Iterator[np.ndarray]:
    """Fetch each array after the next has been dispatched, so that the device never waits."""
    waiting: AnyArray | None = None
    for array in arrays:
        if isinstance(array, jax.Array):
            array.copy_to_host_async()  # as soon as it is ready
        ready, waiting = waiting, array
        if ready is not None:
            yield np.asarray(ready)
    if waiting is not None:
        yield np.asarray(waiting)


def encode(
    embedder: Embedder,
    params: Params,
    video_BTHWC: np.ndarray,
    memory_budget_gb: float | None = None,
) -> np.ndarray:
    """Encode a clip, in chunks if the model can.

    Args:
      embedder, params: see `load_embedder`.
      video_BTHWC: uint8, or float in [-1, 1].
      memory_budget_gb: memory of the device, in GB (1e9 bytes), parameters included. Chunks are as
        long as it allows; if not even one latent frame fits, a model that can (see
        `VidVAEConfig.halo`) works on blocks of rows.

    Returns:
      Normalised latents (B, t, h, w, c), float32.

    Raises:
      UserError: video that the model cannot take; a budget in which nothing fits.
    """
    video_BTHWC = np.asarray(video_BTHWC)
    check_video(video_BTHWC)
    shape, s = embedder.latent_shape(video_BTHWC.shape), embedder.space_factor
    rows, n = plan_chunks(embedder, params, "encode", shape, video_BTHWC.dtype, memory_budget_gb)
    if n < shape[1]:
        chunks = regroup([video_BTHWC], chunk_lengths(embedder, n))
        return np.concatenate(list(encode_stream(embedder, params, chunks, rows)), axis=1)
    blocks = row_blocks(shape[2], rows, embedder.halo)

    def run(video, _):
        return encode_chunk(embedder, params, video, None)[0], None

    return np.asarray(_Rows(run, blocks, s, 1)(video_BTHWC))


def decode(
    embedder: Embedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    memory_budget_gb: float | None = None,
    sharding: jax.sharding.Sharding | None = None,
    key: Array | None = None,
    uint8: bool = False,
) -> np.ndarray:
    """Decode normalised latents (B, t, h, w, c), in chunks if the model can.

    Arguments and errors are those of `encode`; `sharding`, `key` and `uint8` those of
    `decode_stream`.

    Returns:
      Video (B, T, H, W, 3), float32, about [-1, 1], or uint8.
    """
    latents_BTHWC = np.asarray(latents_BTHWC)
    _check_latents(embedder, latents_BTHWC)
    plan = plan_chunks(
        embedder, params, "decode", latents_BTHWC.shape, latents_BTHWC.dtype, memory_budget_gb
    )
    return _decode_planned(embedder, params, latents_BTHWC, plan, sharding, key, uint8)


def decode_segments(
    embedder: Embedder,
    params: Params,
    segments: Iterable[AnyArray],
    latent_shape: Shape,
    plan: ChunkPlan,
    mesh: Mesh,
    key: Array | None = None,
    uint8: bool = False,
) -> Iterator[np.ndarray]:
    """Decode latents that a sampler yields segment after segment, on a mesh.

    Args:
      embedder, params: see `load_embedder`.
      segments: normalised latents (B, t, h, w, c) of any lengths.
      latent_shape: (B, t, h, w, c) of the whole batch.
      plan: see `plan_chunks`; of the part of a batch that one device has.
      mesh: the devices that the batch is split over. Clips that they do not divide are on all of
        them, which is of use where they share a clip: see `Embedder.decodes_in_windows`.
      key: see `Embedder.decode_chunk`.
      uint8: see `decode_stream`.

    Yields:
      Video (B, T, H, W, 3), float32, about [-1, 1], or uint8, chunk after chunk.
    """
    sharing = mesh.shape["data"] * mesh.shape["fsdp"]
    sharding = replicated(mesh) if latent_shape[0] % sharing else batch_sharding(mesh)
    if plan.rows < latent_shape[2] or plan.frames == latent_shape[1]:
        # Every block of rows has all frames.
        whole = np.concatenate(list(map(np.asarray, segments)), axis=1)
        with on_mesh(mesh):
            video = _decode_planned(embedder, params, whole, plan, sharding, key, uint8)
        yield video
        return
    chunks = regroup(segments, itertools.repeat(plan.frames))
    yield from decode_on_mesh(embedder, params, chunks, mesh, sharding, key, uint8)


def decode_on_mesh(
    embedder: Embedder,
    params: Params,
    chunks: Iterable[np.ndarray],
    mesh: Mesh,
    sharding: jax.sharding.Sharding,
    key: Array | None = None,
    uint8: bool = False,
) -> Iterator[np.ndarray]:
    """Decode as `decode_stream`, with a mesh on which the programs are compiled."""
    stream = decode_stream(embedder, params, chunks, sharding, key, uint8=uint8)
    while True:
        with on_mesh(mesh):  # entered for each chunk: the caller has its own mesh in between
            video = next(stream, None)
        if video is None:
            return
        yield video


def _decode_planned(
    embedder: Embedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    plan: ChunkPlan,
    sharding: jax.sharding.Sharding | None,
    key: Array | None,
    uint8: bool,
) -> np.ndarray:
    (rows, n), shape, s = plan, latents_BTHWC.shape, embedder.space_factor

    if n < shape[1]:
        chunks = regroup([latents_BTHWC], itertools.repeat(n))
        stream = decode_stream(embedder, params, chunks, sharding, key, rows, uint8)
        return np.concatenate(list(stream), axis=1)

    def run(latents, _):
        latents = jax.device_put(latents, sharding)
        return decode_chunk(embedder, params, latents, None, True, key, uint8)[0], None

    return np.asarray(_Rows(run, row_blocks(shape[2], rows, embedder.halo), 1, s)(latents_BTHWC))


class _Rows:
    """Runs a chunk in blocks of rows, one after another, each with its own cache.

    Args:
      run: (chunk, cache) -> (result, cache).
      blocks: see `row_blocks`.
      before, after: rows of the chunk and of the result in one latent row.
    """

    def __init__(self, run: Callable[..., tuple[Any, Any]], blocks, before: int, after: int):
        self._run, self._blocks = run, list(blocks)
        self._before, self._after = before, after
        self._caches: list[Any] = [None] * len(self._blocks)
        self.began = False

    def __call__(self, chunk: np.ndarray) -> AnyArray:
        """Return the result of all rows; a chunk continues the one before. That of a single block
        is on the device, and may not be ready yet."""
        self.began, parts, s = True, [], self._after
        if len(self._blocks) == 1:
            out, self._caches[0] = self._run(chunk, self._caches[0])
            return out
        for i, (first, last, above, below) in enumerate(self._blocks):
            block = chunk[:, :, above * self._before : below * self._before]
            out, cache = self._run(block, self._caches[i])
            self._caches[i] = jax.device_get(cache)  # the device has room for that of one block
            parts.append(np.asarray(out)[:, :, (first - above) * s : (last - above) * s])
        return np.concatenate(parts, axis=2)


def chunk_lengths(embedder: Embedder, latent_frames: int) -> Iterator[int]:
    """Yield the frames of the chunks of a clip that have `latent_frames` each, without end."""
    for n in itertools.count(latent_frames, latent_frames):
        yield embedder.frames(n) - embedder.frames(n - latent_frames)


def regroup(segments: Iterable[AnyArray], lengths: Iterable[int]) -> Iterator[np.ndarray]:
    """Regroup segments (B, T, ...) of any lengths in chunks of `lengths` frames, and a rest."""
    lengths, waiting = iter(lengths), None
    length = next(lengths)
    for segment in segments:
        segment = np.asarray(segment)
        if waiting is not None:
            _check_alike(segment, waiting)
        waiting = segment if waiting is None else np.concatenate([waiting, segment], axis=1)
        while waiting.shape[1] >= length:
            yield waiting[:, :length]
            waiting, length = waiting[:, length:], next(lengths)
    if waiting is not None and waiting.shape[1]:
        yield waiting


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
            "latents have values that are not finite, the first at (batch, frame, y, x, channel) "
            f"{where}"
        )


def _check_alike(chunk: np.ndarray, first: np.ndarray) -> None:
    def of(x):
        return x.shape[0], *x.shape[2:], str(x.dtype)

    if chunk.ndim != first.ndim or of(chunk) != of(first):
        raise UserError(
            f"a chunk {chunk.dtype} {chunk.shape} does not continue a stream that began with "
            f"{first.dtype} {first.shape}: batch, height, width, channels and dtype must stay the "
            "same"
        )
