"""Decoding at another speed: a REGEN draws a chunk at any times, not at those of its frames alone.

At a speed s the frame j of the result is the moment p_j = j s of the clip, counted in its frames, and moves in chunk

    c = floor(p / (k + 1)),  clipped to the last,     at the time t = (p - c (k + 1)) / k

which is 0 and 1 at the chunk's first and last frame, and goes beyond 1 between the chunks. What is drawn together is
what `models.regen_decoding` draws together: the moments of a chunk, and those around a border, cross-faded by the
distance from it. A window with more moments than a chunk has frames is cut in interleaved ones, so that each looks like
what the decoder was trained on: at s = 1/2 one has the clip's own frames, and the other those in between.
"""

import functools
import math
import sys
from typing import NamedTuple

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.inference.memory import GB, program_bytes
from xgen_jax.models.embedder import REGENEmbedder
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.typing import Array, Params

SLOWEST, FASTEST = 1 / 64, 64.0
_TRAINED_BEYOND = 0.5  # frames after a chunk's last that are taken for granted


class Window(NamedTuple):
    """Moments that are drawn together.

    Attributes:
      index_F: which frames of the result they are.
      chunk_F: which chunk each belongs to: at most two, neighbours.
      times_F: in its chunk.
      positions_F: in the clip, in frames.
      weights_F: in the cross-fade; those of a moment in all windows add up to 1.
    """

    index_F: np.ndarray
    chunk_F: np.ndarray
    times_F: np.ndarray
    positions_F: np.ndarray
    weights_F: np.ndarray


def moments(frames: int, speed: float) -> np.ndarray:
    """The moments of a clip that a result at some speed shows, in frames: 0, speed, ... up to the last frame.

    Raises:
      UserError: a speed outside 1/64 .. 64.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise UserError(f"speed={speed:g} must be within 1/64 .. 64: 0.5 is twice as slow, 2 twice as fast")
    # Rounded: a moment that is a frame's must be exactly that.
    return np.round(np.arange(math.floor((frames - 1) / speed + 1e-9) + 1) * speed, 9)


def windows(config: REGENConfig, frames: int, positions: np.ndarray, straddle: bool) -> list[Window]:
    """What is drawn together of a clip of so many frames at evenly spaced moments, at most a frame apart.

    Args:
      config: of the network.
      frames: of the clip, whole chunks and an image at most.
      positions: see `moments`.
      straddle: whether there are windows across borders, see `models.regen_decoding`.
    """
    length, chunks = config.chunk_frames, frames // config.chunk_frames
    of = np.minimum(positions // length, chunks).astype(int)  # an image, if there is one, is the last
    last = chunks - 1 if frames % length == 0 else chunks
    of = np.minimum(of, last)
    within = positions - of * length
    times = np.where(of < chunks, within / config.ratio, 0.0)
    weights = np.clip(1 - np.abs(2 * (within + 0.5) / length - 1), 0, 1)
    # The straddling windows begin behind the middle of a chunk, and end with the middle of the next.
    border = np.ceil((positions - (length - 1) // 2) / length).astype(int) - 1
    crossed = (border >= 0) & (border < chunks - 1) & straddle
    weights = np.where(crossed, weights, 1.0)
    spacing = positions[1] - positions[0] if len(positions) > 1 else 1.0
    apart = max(1, math.ceil(1 / spacing - 1e-9))
    found = []

    def add(index, weights):
        for phase in range(apart):
            if len(part := index[phase::apart]):
                found.append(Window(part, of[part], times[part], positions[part], weights[part]))

    for chunk in range(last + 1):
        add(np.flatnonzero(of == chunk), weights)
    for number in range(chunks - 1 if straddle else 0):
        add(np.flatnonzero(border == number), 1 - weights)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _draw(embedder: REGENEmbedder, params: Params, latents_BNtHWC, chunk_F, times_F, positions_F, key):
    return embedder.decode_at(params, latents_BNtHWC, chunk_F, times_F, positions_F, key)


def decode_at_speed(
    embedder: REGENEmbedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    speed: float,
    memory_budget_gb: float | None = None,
    key: Array | None = None,
) -> np.ndarray:
    """Normalised latents of a clip -> video (B, F, H, W, 3), float32, about [-1, 1], at its `moments`.

    A moment that is one of the clip's frames comes out as `streaming.decode` has it. A clip that is to be faster is
    drawn at moments at most a frame apart, of which some are left out. Says so on stderr where moments lie farther
    beyond a chunk's last frame than half a frame: the decoder was not trained on them.

    Args:
      embedder, params: see `load_embedder`.
      latents_BTHWC: of whole chunks, and an image at most.
      speed: 1/64 .. 64; 0.5 is twice as slow.
      memory_budget_gb: what the device may use (1e9 bytes), parameters included.
      key: see `Embedder.decode_chunk`.

    Raises:
      UserError: a speed out of range; a budget in which a window does not fit.
    """
    config, latents = embedder.model.config, np.asarray(latents_BTHWC)
    frames, every = embedder.frames(latents.shape[1]), max(1, math.ceil(speed - 1e-9))
    moments(frames, speed)  # refuses what is out of range
    positions = moments(frames, speed / every)
    planned = windows(config, frames, positions, embedder.look_ahead > 0)
    beyond = max(float((window.times_F.max() - 1) * config.ratio) for window in planned)
    if beyond > _TRAINED_BEYOND + 1e-6:
        print(
            f"speed={speed:g} asks for moments up to {beyond:.3g} of a frame after a chunk's last; times beyond half a "
            "frame were not trained on, and may not come out well",
            file=sys.stderr,
        )
    batch, _, height, width, _ = latents.shape
    side = embedder.space_factor
    video = np.zeros((batch, len(positions), side * height, side * width, 3), np.float32)
    checked = set()
    for window in planned:
        first = int(window.chunk_F[0])
        here = latents[:, 2 * first : 2 * (int(window.chunk_F[-1]) + 1)]
        here = here.reshape(batch, -1, min(2, here.shape[1]), *here.shape[2:])
        arrays = (window.chunk_F - first, window.times_F.astype(np.float32), window.positions_F.astype(np.float32))
        if memory_budget_gb is not None and (here.shape, len(window.times_F)) not in checked:
            needed = program_bytes(_draw.lower(embedder, params, here, *arrays, key).compile()) / GB
            if needed > memory_budget_gb:
                raise UserError(
                    f"to draw {len(window.times_F)} frames at once takes {needed:.3g} GB, more than memory_budget_gb="
                    f"{memory_budget_gb:g}; allow more, or take a smaller size"
                )
            checked.add((here.shape, len(window.times_F)))
        drawn = np.asarray(_draw(embedder, params, here, *arrays, key))
        video[:, window.index_F] += window.weights_F.astype(np.float32)[None, :, None, None, None] * drawn
    return video[:, ::every]
