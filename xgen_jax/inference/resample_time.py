"""Decode at another speed: a REGEN samples a chunk at any times, not only at those of its frames.

At speed s, frame j of the result lies at position p_j = j s of the clip, counted in its frames. Its
conditioning is

    interpolated   (1 - f) z_e(frame i) + f z_e(frame i + 1),     i = floor(p), f = p - i
    continuous     z_e of chunk c = floor(p / (k + 1)) at time t = (p - c (k + 1)) / k

with z_e the expanded latents (`models.regen`). `models.regen_windows` groups positions that are
sampled together, and handles windows across the borders of chunks.
"""

import functools
import math
import sys
from collections.abc import Iterator

import jax
import numpy as np

from xgen_jax.errors import UserError, choose
from xgen_jax.models.regen_embedder import REGENEmbedder
from xgen_jax.models.regen_windows import BETWEEN, Window, own_times, plan_windows
from xgen_jax.parallel.memory import GB, format_gb, program_bytes
from xgen_jax.typing import Array, Params

SLOWEST, FASTEST = 1 / 64, 64.0
_TRAINED_BEYOND = 0.5  # frames after a chunk's last; farther ones give a warning


def moments(frames: int, speed: float) -> np.ndarray:
    """Return the positions in a clip, in frames, that a result at some speed shows.

    They are 0, speed, 2 speed, ... up to the last frame.

    Raises:
      UserError: a speed outside 1/64 .. 64.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise UserError(
            f"speed={speed:g} must be within 1/64 .. 64: 0.5 is twice as slow, 2 twice as fast"
        )
    # Rounded: the moment of a frame must be exactly that.
    return np.round(np.arange(math.floor((frames - 1) / speed + 1e-9) + 1) * speed, 9)


@functools.partial(jax.jit, static_argnums=0)
def sample_window(
    embedder: REGENEmbedder, params: Params, latents_BNtHWC: Array, window: Window, key: Array
) -> Array:
    """Sample one window: run `REGENEmbedder.decode_at` compiled."""
    return embedder.decode_at(params, latents_BNtHWC, window, key)


def decode_at_speed(
    embedder: REGENEmbedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    speed: float,
    memory_budget_gb: float | None = None,
    key: Array | None = None,
    between: str = BETWEEN[0],
) -> np.ndarray:
    """Decode normalised latents of a clip at another speed: `stream_at_speed`, in one array.

    Returns:
      Video (B, F, H, W, 3), float32, about [-1, 1], at the positions that `moments` gives.
    """
    chunks = stream_at_speed(embedder, params, latents_BTHWC, speed, memory_budget_gb, key, between)
    return np.concatenate(list(chunks), axis=1)


def stream_at_speed(
    embedder: REGENEmbedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    speed: float,
    memory_budget_gb: float | None = None,
    key: Array | None = None,
    between: str = BETWEEN[0],
) -> Iterator[np.ndarray]:
    """Decode normalised latents of a clip at another speed, window by window.

    In memory are the latents, and the frames of the windows that overlap.

    A position that is one of the clip's frames comes out as `streaming.decode` gives it. A faster
    result is sampled at positions at most a frame apart, of which some are left out. Times farther
    beyond a chunk's last frame than half a frame, which `between="continuous"` can ask for, give a
    warning on stderr: the decoder was not trained on them.

    Args:
      embedder, params: see `load_embedder`.
      latents_BTHWC: of whole chunks, and at most an image.
      speed: 1/64 .. 64; 0.5 is twice as slow.
      memory_budget_gb: memory of the device (1e9 bytes), parameters included.
      key: see `Embedder.decode_chunk`.
      between: a name in `BETWEEN`; see the module.

    Yields:
      Video (B, F, H, W, 3), float32, about [-1, 1]; together at the positions that `moments` gives.

    Raises:
      UserError: a speed out of range, an unknown `between`; a budget in which a window does not
        fit.
    """
    config, latents = embedder.model.config, np.asarray(latents_BTHWC)
    frames, every = embedder.frames(latents.shape[1]), max(1, math.ceil(speed - 1e-9))
    moments(frames, speed)  # refuses what is out of range
    positions_F = moments(frames, speed / every)
    choose("between", between, BETWEEN)
    _warn_of_untrained_times(embedder, frames, positions_F, between, speed)
    if latents.shape[1] % 2 and config.conditioning == "content_aware":
        # An image is expanded as a first frame is.
        latents = np.concatenate([latents, latents[:, -1:]], axis=1)
    batch, _, height, width, _ = latents.shape
    side = embedder.space_factor
    size, fits = (side * height, side * width, 3), set()
    planned = plan_windows(config, frames, embedder.windows, positions_F, between)
    planned.sort(key=lambda window: window.frames_F[0])
    # Frames from number `done` on, as far as windows have reached; those before the first frame of
    # the next window are whole.
    held, done = np.zeros((batch, 0, *size), np.float32), 0
    following = [int(window.frames_F[0]) for window in planned[1:]] + [len(positions_F)]
    for window, following_frame in zip(planned, following):
        first, last = int(window.chunks_2F.min()), int(window.chunks_2F.max())
        here = latents[:, 2 * first : 2 * (last + 1)]
        here = here.reshape(batch, last + 1 - first, -1, *here.shape[2:])
        chunks_2F = (window.chunks_2F - first).astype(np.int32)
        fields = (np.asarray(field, np.float32) for field in window[2:])
        asked = Window(window.frames_F, chunks_2F, *fields)
        arguments = (embedder, params, here, asked, key)
        if memory_budget_gb is not None and (here.shape, len(window.frames_F)) not in fits:
            needed = program_bytes(sample_window.lower(*arguments).compile())
            if needed > memory_budget_gb * GB:
                raise UserError(
                    f"to sample {len(window.frames_F)} frames at once takes {format_gb(needed)}, "
                    f"more than memory_budget_gb={memory_budget_gb:g}; allow more, or take a "
                    "smaller size"
                )
            fits.add((here.shape, len(window.frames_F)))
        weights = asked.weights_F[None, :, None, None, None]
        if (more := int(window.frames_F[-1]) + 1 - done - held.shape[1]) > 0:
            held = np.concatenate([held, np.zeros((batch, more, *size), np.float32)], axis=1)
        held[:, window.frames_F - done] += weights * np.asarray(sample_window(*arguments))
        whole, held = np.split(held, [following_frame - done], axis=1)
        whole, done = whole[:, -done % every :: every], following_frame
        if whole.shape[1]:
            yield whole


def _warn_of_untrained_times(
    embedder: REGENEmbedder, frames: int, positions_F: np.ndarray, between: str, speed: float
) -> None:
    # Only windows of one chunk: those across borders were trained on later times.
    config = embedder.model.config
    _, times_2F, _ = own_times(config, frames, positions_F, between)
    beyond = float((times_2F.max() - 1) * config.ratio)
    if beyond > _TRAINED_BEYOND + 1e-6:
        print(
            f"speed={speed:g} asks for moments up to {beyond:.3g} of a frame after a chunk's last; "
            "times beyond half a frame were not trained on, and may not come out well",
            file=sys.stderr,
        )
