"""Decoding at another speed: a REGEN draws a chunk at any times, not at those of its frames alone.

At a speed s the frame j of the result is the moment p_j = j s of the clip, counted in its frames.
It is told

    interpolated   (1 - f) z_e(frame i) + f z_e(frame i + 1),     i = floor(p), f = p - i
    continuous     z_e of chunk c = floor(p / (k + 1)) at the time t = (p - c (k + 1)) / k

by `between`, with z_e the latents as expanded (`models.regen`). The first asks SIREN for no time
that it was not trained on, and goes from one chunk to the next as from frame to frame; the second
is the paper's continuous coordinate (arXiv 2503.08665, section 3), which goes beyond 1 between the
chunks. What is drawn together is what `models.regen_decoding` draws together: the moments of a
chunk, and, of a model trained on such windows, those across a border, told of both chunks,
continuously, as `crossing` has it. A window with more moments than a chunk has frames is cut in
interleaved ones, so that each looks like what the decoder was trained on: at s = 1/2 one has the
clip's own frames, and the other those in between.
"""

import functools
import math
import sys
from typing import NamedTuple

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.models.embedder import REGENEmbedder
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.regen_decoding import Moments, crossing, weight
from xgen_jax.parallel.memory import GB, program_bytes
from xgen_jax.typing import Array, Params

BETWEEN = ("interpolated", "continuous")
SLOWEST, FASTEST = 1 / 64, 64.0
_TRAINED_BEYOND = 0.5  # frames after a chunk's last that are taken for granted


class Window(NamedTuple):
    """Moments that are drawn together.

    Attributes:
      index_F: which frames of the result they are.
      moments: with chunks counted from the clip's first; at most two of them, neighbours.
      weights_F: 0 .. 1, beside those of other windows of the same moment.
    """

    index_F: np.ndarray
    moments: Moments
    weights_F: np.ndarray


def moments(frames: int, speed: float) -> np.ndarray:
    """The moments of a clip that a result at some speed shows, in frames: 0, speed, ... up to the
    last frame.

    Raises:
      UserError: a speed outside 1/64 .. 64.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise UserError(
            f"speed={speed:g} must be within 1/64 .. 64: 0.5 is twice as slow, 2 twice as fast"
        )
    # Rounded: a moment that is a frame's must be exactly that.
    return np.round(np.arange(math.floor((frames - 1) / speed + 1e-9) + 1) * speed, 9)


def told(config: REGENConfig, frames: int, positions: np.ndarray, between: str) -> Moments:
    """What moments of a clip of so many frames are told; see the module."""
    length, last = config.chunk_frames, (frames - 1) // config.chunk_frames
    at = np.floor(positions).astype(int)
    if between == "interpolated" and config.conditioning == "content_aware":
        ends = np.stack([at, np.minimum(at + 1, frames - 1)])
        chunks = ends // length
        return Moments(chunks, (ends - chunks * length) / config.ratio, positions - at)
    chunks = np.minimum(at // length, last)
    times = (positions - chunks * length) / config.ratio
    return Moments(np.stack([chunks, chunks]), np.stack([times, times]), np.zeros(len(positions)))


def windows(
    config: REGENConfig, frames: int, positions: np.ndarray, straddle: bool, between: str
) -> list[Window]:
    """What is drawn together of a clip of so many frames at evenly spaced moments, at most a frame
    apart.

    Args:
      config: of the network.
      frames: of the clip, whole chunks and an image at most.
      positions: see `moments`.
      straddle: whether there are windows across borders, see `models.regen_decoding`.
      between: one of `BETWEEN`.
    """
    length, chunks = config.chunk_frames, frames // config.chunk_frames
    of = np.floor(positions / length).astype(int)  # an image, if there is one, is the last
    across = []  # the weights of the windows that go from the middle of a chunk to that of the next
    for number in range(chunks - 1 if straddle else 0):
        inside = positions + 0.5 - (number * length + length - length // 2)
        across.append(np.minimum(weight(config, inside), weight(config, length - inside)))
    alone = np.round(1.0 - sum(across, np.zeros(len(positions))), 9)
    spacing = positions[1] - positions[0] if len(positions) > 1 else 1.0
    apart = max(1, math.ceil(1 / spacing - 1e-9))
    every, found = told(config, frames, positions, between), []

    def add(index, every, weights):
        for phase in range(apart):
            if len(part := index[phase::apart]):
                found.append(
                    Window(part, Moments(*(field[..., part] for field in every)), weights[part])
                )

    for chunk in range(of[-1] + 1):
        if alone[of == chunk].any():
            add(np.flatnonzero(of == chunk), every, alone)
    for number, weights in enumerate(across):
        both = np.broadcast_to([[number], [number + 1]], (2, len(positions)))
        add(
            np.flatnonzero(weights),
            Moments(both, *crossing(config, positions - number * length)),
            weights,
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _draw(embedder: REGENEmbedder, params: Params, latents_BNtHWC, moments: Moments, key):
    return embedder.decode_at(params, latents_BNtHWC, moments, key)


def decode_at_speed(
    embedder: REGENEmbedder,
    params: Params,
    latents_BTHWC: np.ndarray,
    speed: float,
    memory_budget_gb: float | None = None,
    key: Array | None = None,
    between: str = BETWEEN[0],
) -> np.ndarray:
    """Normalised latents of a clip -> video (B, F, H, W, 3), float32, about [-1, 1], at its
    `moments`.

    A moment that is one of the clip's frames comes out as `streaming.decode` has it. A clip that is
    to be faster is drawn at moments at most a frame apart, of which some are left out. With
    `between="continuous"` it says so on stderr where times lie farther beyond a chunk's last frame
    than half a frame: the decoder was not trained on them.

    Args:
      embedder, params: see `load_embedder`.
      latents_BTHWC: of whole chunks, and an image at most.
      speed: 1/64 .. 64; 0.5 is twice as slow.
      memory_budget_gb: what the device may use (1e9 bytes), parameters included.
      key: see `Embedder.decode_chunk`.
      between: one of `BETWEEN`; see the module.

    Raises:
      UserError: a speed out of range, an unknown `between`; a budget in which a window does not
      fit.
    """
    config, latents = embedder.model.config, np.asarray(latents_BTHWC)
    frames, every = embedder.frames(latents.shape[1]), max(1, math.ceil(speed - 1e-9))
    moments(frames, speed)  # refuses what is out of range
    positions = moments(frames, speed / every)
    if between not in BETWEEN:
        raise UserError(f"between={between!r} is not known; choose one of {', '.join(BETWEEN)}")
    planned = windows(config, frames, positions, embedder.look_ahead > 0, between)
    # Of a chunk's own window: the others' were trained on times beyond.
    beyond = float((told(config, frames, positions, between).times_2F.max() - 1) * config.ratio)
    if beyond > _TRAINED_BEYOND + 1e-6:
        print(
            f"speed={speed:g} asks for moments up to {beyond:.3g} of a frame after a chunk's last; times beyond half a "
            "frame were not trained on, and may not come out well",
            file=sys.stderr,
        )
    if latents.shape[1] % 2 and config.conditioning == "content_aware":
        latents = np.concatenate(
            [latents, latents[:, -1:]], axis=1
        )  # an image is expanded as a first frame is
    batch, _, height, width, _ = latents.shape
    side = embedder.space_factor
    video = np.zeros((batch, len(positions), side * height, side * width, 3), np.float32)
    checked = set()
    for window in planned:
        first, last = int(window.moments.chunks_2F.min()), int(window.moments.chunks_2F.max())
        here = latents[:, 2 * first : 2 * (last + 1)]
        here = here.reshape(batch, last + 1 - first, -1, *here.shape[2:])
        chunks = (window.moments.chunks_2F - first).astype(np.int32)
        asked = Moments(chunks, *(field.astype(np.float32) for field in window.moments[1:]))
        if memory_budget_gb is not None and (here.shape, len(window.index_F)) not in checked:
            needed = program_bytes(_draw.lower(embedder, params, here, asked, key).compile()) / GB
            if needed > memory_budget_gb:
                raise UserError(
                    f"to draw {len(window.index_F)} frames at once takes {needed:.3g} GB, more than memory_budget_gb="
                    f"{memory_budget_gb:g}; allow more, or take a smaller size"
                )
            checked.add((here.shape, len(window.index_F)))
        drawn = np.asarray(_draw(embedder, params, here, asked, key))
        video[:, window.index_F] += (
            window.weights_F.astype(np.float32)[None, :, None, None, None] * drawn
        )
    return video[:, ::every]
