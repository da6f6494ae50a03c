"""The windows of frames that REGEN's decoder samples together (arXiv 2503.08665, section 3).

The decoder attends within a window of about a chunk. A frame's conditioning depends only on its
chunk's latents and its time, so it can be sampled in any window. This module alone knows which
windows there are; decoding, training and resampling in time all ask it.

`windows="chunk"`: a window is a chunk. The clip then jumps at the borders of chunks: frames on
either side come of different latents and never attend to each other.

`windows="shifted"`: windows go from the middle of a chunk to the middle of the next. Frames before
the first middle and after the last come from the window of their own chunk. A single frame at the
end (an image) is a window by itself.

    chunks     |----- 0 -----|----- 1 -----|----- 2 -----|
    windows    |-- 0 --|
                     |----- 0, 1 ----|
                                   |---- 1, 2 ----|
                                                |- 2 -|

In a window across a border the conditioning fades from one chunk's latents to the next's, each
expanded at times beyond its own chunk (`border_times`):

    (1 - s) z_e(chunk i, t) + s z_e(chunk i + 1, t - (k + 1) / k)

s rises linearly from 0 to 1 around the border. Where two windows meet, in the middle of a chunk,
their frames have the same conditioning, but attend to different neighbours. There the windows
overlap by a few frames, and the samples are cross-faded (`border_weights`). docs/regen.md measures
what each part does to the seams.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.models.regen import REGEN, Conditioning
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.typing import AnyArray, Array, Params, Shape

# How frames between two frames of a clip are conditioned; see `own_times`.
BETWEEN = ("interpolated", "continuous")
# The content latent takes no part at time 0 exactly (see `models.regen`). In a window across a
# border the second chunk's first frame is an inner frame, so it is expanded just after 0.
_AFTER_ZERO = 1e-4
# About enough tokens to occupy a device, and the most windows that a stream waits for.
_BUSY_TOKENS, _MOST_WINDOWS = 8192, 16


class Window(NamedTuple):
    """Frames that are sampled together, and their conditioning

        (1 - mix) z_e(chunks[0], times[0]) + mix z_e(chunks[1], times[1])

    Attributes:
      frames_F: their numbers among the frames that are asked for.
      chunks_2F: the two chunks of each frame, counted from the first of the clip; equal or
        neighbours. An image at the end counts as a chunk.
      times_2F: in units of a chunk: 0 is its first frame, 1 its last; beyond them SIREN
        extrapolates.
      mix_F: weight of the second chunk, 0 .. 1.
      weights_F: weight of the window's sample of a frame, 0 .. 1; over all windows of a frame they
        add up to 1.
    """

    frames_F: AnyArray
    chunks_2F: AnyArray
    times_2F: AnyArray
    mix_F: AnyArray
    weights_F: AnyArray


def middle(config: REGENConfig) -> int:
    """The frame of a chunk at which windows across borders begin and end."""
    return config.chunk_frames - config.chunk_frames // 2


def overlap(config: REGENConfig) -> int:
    """Frames before the middle of a chunk, and as many after it, that both windows sample."""
    return max(1, config.ratio // 8)


def windows_at_once(config: REGENConfig, latent_shape: Shape) -> int:
    """Return how many windows to sample at once of each clip of latents (B, t, h, w, c): as many as
    occupy a device, 1 at the paper's size.

    More need more memory and gain nothing.
    """
    clips, _, height, width, _ = latent_shape
    tokens = clips * config.chunk_frames * math.prod(config.token_grid(height, width))
    return min(_MOST_WINDOWS, max(1, _BUSY_TOKENS // tokens))


def look_ahead(config: REGENConfig, windows: str) -> int:
    """Frames by which decoding chunk after chunk lags behind.

    They wait for the next chunk: half a chunk, and the overlap, where windows cross borders.
    """
    return config.chunk_frames // 2 + overlap(config) if windows == "shifted" else 0


def border_times(config: REGENConfig, positions_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how frames of a window across a border are conditioned.

    Args:
      config: of the network.
      positions_F: in frames, from the first frame of the first of the two chunks.

    Returns:
      (times_2F, mix_F) of `Window`, float32.
    """
    length = config.chunk_frames
    positions_F = np.asarray(positions_F, np.float64)
    times_2F = np.stack([positions_F, positions_F - length]) / config.ratio
    times_2F[1] = np.where(times_2F[1] == 0, _AFTER_ZERO, times_2F[1])
    mix_F = np.clip((positions_F + 0.5 - length) / (2 * (length // 2)) + 0.5, 0, 1)
    return times_2F.astype(np.float32), mix_F.astype(np.float32)


def border_weights(config: REGENConfig, positions_F: np.ndarray, first: int = 0) -> np.ndarray:
    """Return the cross-fade weights of the window across the border after chunk `first`.

    Args:
      config: of the network.
      positions_F: in frames, from the start of the clip.
      first: number of the chunk before the border.

    Returns:
      (F,), 0 outside the window; rises over the overlap with the window before, and falls over
      that with the window after.
    """
    inside_F = np.asarray(positions_F, np.float64) + 0.5
    inside_F = inside_F - (first * config.chunk_frames + middle(config))

    def rising(inside_F):
        return np.clip(inside_F / (2 * overlap(config)) + 0.5, 0, 1)

    return np.minimum(rising(inside_F), rising(config.chunk_frames - inside_F))


def border_window(config: REGENConfig, beyond: int = 0) -> Window:
    """Return the window across the border of two chunks, at the frames of the clip.

    Args:
      config: of the network.
      beyond: frames to add before the middle of the first chunk and after that of the second.
    """
    positions_F = np.arange(middle(config) - beyond, middle(config) + config.chunk_frames + beyond)
    times_2F, mix_F = border_times(config, positions_F)
    chunks_2F = np.broadcast_to([[0], [1]], times_2F.shape)
    return Window(positions_F, chunks_2F, times_2F, mix_F, border_weights(config, positions_F))


def own_times(
    config: REGENConfig, frames: int, positions_F: np.ndarray, between: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how frames are conditioned in the windows of their own chunks.

    `interpolated` mixes the conditioning of the clip's frames before and after a position, so that
    SIREN is asked for no time that it was not trained on, and the border of two chunks is passed as
    any two frames are. `continuous` is the paper's: one time in one chunk, which lies beyond 1
    between the last frame of a chunk and the first of the next. Where latents are tokens
    (`in_context`) two cannot be mixed, and all is continuous.

    Args:
      config: of the network.
      frames: of the clip, whole chunks and at most an image.
      positions_F: in frames, from the start of the clip.
      between: a name in `BETWEEN`.

    Returns:
      (chunks_2F, times_2F, mix_F) of `Window`.
    """
    length, last = config.chunk_frames, (frames - 1) // config.chunk_frames
    before_F = np.floor(positions_F).astype(int)
    if between == "interpolated" and config.conditioning == "content_aware":
        ends_2F = np.stack([before_F, np.minimum(before_F + 1, frames - 1)])
        chunks_2F = ends_2F // length
        times_2F = (ends_2F - chunks_2F * length) / config.ratio
        return chunks_2F, times_2F, positions_F - before_F
    chunks_F = np.minimum(before_F // length, last)
    times_F = (positions_F - chunks_F * length) / config.ratio
    return np.stack([chunks_F] * 2), np.stack([times_F] * 2), np.zeros(len(positions_F))


def plan_windows(
    config: REGENConfig, frames: int, windows: str, positions_F: np.ndarray, between: str
) -> list[Window]:
    """Return the windows in which a clip is sampled at evenly spaced positions.

    A window with more positions than a chunk has frames is cut in interleaved ones, so that each
    looks like those that the decoder was trained on: at half a frame's distance one has the clip's
    own frames, and another those in between.

    Args:
      config: of the network.
      frames: of the clip, whole chunks and at most an image.
      windows: a name in `WINDOWS`, as the decoder was trained.
      positions_F: in frames, from the start of the clip; rising by at most 1.
      between: a name in `BETWEEN`.
    """
    length, count = config.chunk_frames, len(positions_F)
    spacing = positions_F[1] - positions_F[0] if count > 1 else 1.0
    stride = max(1, math.ceil(1 / spacing - 1e-9))
    planned = []

    def add(chosen_F, chunks_2F, times_2F, mix_F, weights_F, before=0):
        for phase in range(stride):
            if len(part := chosen_F[phase::stride]):
                fields = (chunks_2F, times_2F, mix_F, weights_F)
                planned.append(Window(before + part, *(field[..., part] for field in fields)))

    across = []  # (border, first position of its window, weights from there): short in a long clip
    across_weights_F = np.zeros(count)
    for first in range(frames // length - 1 if windows == "shifted" else 0):
        begin = first * length + middle(config) - 0.5
        ends = begin - overlap(config), begin + length + overlap(config)
        low, high = np.searchsorted(positions_F, ends)
        weights_F = border_weights(config, positions_F[low:high], first)
        across_weights_F[low:high] += weights_F
        across.append((first, low, weights_F))
    own_weights_F = np.round(1.0 - across_weights_F, 9)
    own = own_times(config, frames, positions_F, between)
    chunk_F = np.floor(positions_F / length).astype(int)
    for chunk in range(chunk_F[-1] + 1):
        if own_weights_F[chunk_F == chunk].any():
            add(np.flatnonzero(chunk_F == chunk), *own, own_weights_F)
    for first, low, weights_F in across:
        here_F = positions_F[low : low + len(weights_F)]
        chunks_2F = np.broadcast_to([[first], [first + 1]], (2, len(here_F)))
        times = border_times(config, here_F - first * length)
        add(np.flatnonzero(weights_F), chunks_2F, *times, weights_F, before=low)
    return planned


def condition_chunks(
    model: REGEN, params: Params, z_BNtHWC: Array, times_F: AnyArray
) -> Conditioning:
    """Expand the latents of N chunks at the same times of each.

    Returns:
      The conditioning, the chunks folded into the batch: (B N, F, h, w, D).
    """
    folded = z_BNtHWC.reshape(-1, *z_BNtHWC.shape[2:])
    times_BF = jnp.broadcast_to(jnp.asarray(times_F)[None], (len(folded), len(times_F)))
    conditioning: Any = model.apply(params, folded, times_BF, method="expand")
    return conditioning


def condition_borders(model: REGEN, params: Params, z_BNtHWC: Array, beyond: int = 0) -> Array:
    """Condition the windows across the borders of N chunks.

    Args:
      model, params: the network.
      z_BNtHWC: latents of the chunks.
      beyond: see `border_window`.

    Returns:
      (B (N - 1), k + 1 + 2 beyond, h, w, D), in the clip's order.
    """
    window = border_window(model.config, beyond)
    mix: Any = window.mix_F[None, :, None, None, None]
    ends = zip((z_BNtHWC[:, :-1], z_BNtHWC[:, 1:]), window.times_2F)
    before, after = (condition_chunks(model, params, z, times).added_BFHWD for z, times in ends)
    return ((1 - mix) * before + mix * after).astype(before.dtype)


def condition_shifted(model: REGEN, params: Params, z_BNtHWC: Array, own_BFHWD: Array) -> Array:
    """Condition each frame of a clip as in windows across borders.

    Args:
      model, params: the network.
      z_BNtHWC: latents of the clip's chunks.
      own_BFHWD: the frames' conditioning in their own chunks, folded as by `condition_chunks`. It
        stays before the middle of the first chunk and after that of the last.

    Returns:
      (B, N (k + 1), h, w, D).
    """
    (batch, chunks), length = z_BNtHWC.shape[:2], model.config.chunk_frames
    own = own_BFHWD.reshape(batch, chunks * length, *own_BFHWD.shape[2:])
    across = condition_borders(model, params, z_BNtHWC)
    across = across.reshape(batch, (chunks - 1) * length, *own.shape[2:])
    begin = middle(model.config)
    end = begin + (chunks - 1) * length
    return jnp.concatenate([own[:, :begin], across, own[:, end:]], axis=1)


def shifted_starts(keys_N: Array, length: int) -> Array:
    """Sample where training windows of a chunk's length begin in a clip of N chunks.

    Each begins at most half a chunk before or after its chunk, and within the clip. One that begins
    with a chunk is that chunk's own window.

    Args:
      keys_N: a key a chunk.
      length: frames of a chunk.

    Returns:
      int (N,), in frames.
    """
    half, chunks = length // 2, len(keys_N)
    offsets_N = jax.vmap(lambda key: jax.random.randint(key, (), -half, half + 1))(keys_N)
    return jnp.clip(length * jnp.arange(chunks) + offsets_N, 0, length * (chunks - 1))
