"""How REGEN draws frames: noise to video, a window of frames at a time (arXiv 2503.08665, section 3).

A frame's noise depends on its position in the clip alone, and what it is told on its chunk's latents and its time: a
frame may be drawn in any window. Drawn chunk after chunk, a clip jumps where one chunk's latents give way to the
next's. So a model that was trained on such windows draws two rows of them, of a chunk's length each: one with the
chunks (aligned), and one moved on by half a chunk (straddling), whose frames attend to both sides of a border,

    aligned     |----- 0 -----|----- 1 -----|----- 2 -----|
    straddling         |---- 0, 1 ----|---- 1, 2 ----|

    video(p) = w(p) aligned(p) + (1 - w(p)) straddling(p),        w(p) = 1 - |2 p / (k + 1) - 1|

p the time since the chunk began to the middle of the frame, in frames: w is 1 in the middle of a chunk, where the
straddling windows end, and goes to 0 at its borders. Before the first middle and after the last the aligned windows
have no other beside them, and an image is a window by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.process import Denoised, Level, Process
from xgen_jax.diffusion.samplers import make_steps, sample
from xgen_jax.models.regen import REGEN, Conditioning, frame_times
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.typing import Array, Params

SAMPLER = "ddim"  # draws no noise between steps; of rectified flow it is Euler's
_PER_FRAME = 1024  # positions between two frames that have noise of their own
# What windows are drawn, and trained on: the chunks alone, or those that straddle their borders as well.
WINDOWS = ("chunk", "moved")


def frame_noise(key: Array, positions_F: Array, height: int, width: int) -> Array:
    """Standard normal (F, H, W, 3) of frames at positions in a clip, counted in frames from its start; not negative."""
    numbers = jnp.round(jnp.asarray(positions_F, jnp.float32) * _PER_FRAME).astype(jnp.uint32)
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (height, width, 3)))(numbers)


def draw(
    model: REGEN, params: Params, process: Process, steps: int, conditioning: Conditioning, noise_BFHWC: Array
) -> Array:
    """Frames out of noise.

    Args:
      model, params, process: as they were trained.
      steps: network evaluations, 1 or more.
      conditioning: of the frames.
      noise_BFHWC: at t = 1.

    Returns:
      (B, F, H, W, 3), about [-1, 1].
    """
    grid = make_grid(process, steps)

    def denoise(x, level: Level, noised) -> Denoised:
        del noised
        time_B = jnp.full(x.shape[:1], level.network_time)
        output = model.apply(params, x, time_B, conditioning, method="denoise")
        return process.denoised(output, x, level)

    return sample(denoise, noise_BFHWC, make_steps(SAMPLER, grid), SAMPLER)


class Drawn(NamedTuple):
    """What decoding chunk after chunk carries on.

    Attributes:
      frames: () int32, frames of the chunks so far.
      z_B2HWC: the last chunk's latents.
      half_BFHWC: the last chunk's second half, drawn in its own window, and not given yet.
    """

    frames: Array
    z_B2HWC: Array
    half_BFHWC: Array


def aligned_weights(config: REGENConfig) -> np.ndarray:
    """w of a chunk's frames, (k + 1,); see the module."""
    p = np.arange(config.chunk_frames) + 0.5
    return (1 - np.abs(2 * p / config.chunk_frames - 1)).astype(np.float32)


def look_ahead(config: REGENConfig, windows: str) -> int:
    """Frames by which `decode_chunks` lags behind unless told that a chunk is the last: half a chunk, if any."""
    return config.chunk_frames // 2 if windows == "moved" else 0


def decode_chunks(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    z_BtHWC: Array,
    history: Drawn | None,
    last: bool,
    key_B: Array,
    windows: str,
) -> tuple[Array, Drawn]:
    """Latents of some whole chunks of a clip -> its next frames.

    However a clip is cut, its frames are the same: they depend on latents, keys and positions alone.

    Args:
      model, params, process, steps: see `draw`.
      z_BtHWC: as the encoder gives them, two latent frames a chunk; with `last` one more, an image's, and none at all
        are allowed as well.
      history: None at the start of a clip, then what the call before gave.
      last: the clip ends here: no frame is held back.
      key_B: of each clip's noise.
      windows: a name in `WINDOWS`, as it was trained.

    Returns:
      (video (B, F, H, W, 3), about [-1, 1], history).
    """
    config = model.config
    batch, length, side = z_BtHWC.shape[0], config.chunk_frames, config.space_factor
    n, tail = divmod(z_BtHWC.shape[1], 2)
    height, width = side * z_BtHWC.shape[2], side * z_BtHWC.shape[3]
    held = look_ahead(config, windows)
    if history is None:
        zero = jnp.zeros((batch, 2, *z_BtHWC.shape[2:]), z_BtHWC.dtype)
        history = Drawn(jnp.zeros((), jnp.int32), zero, jnp.zeros((batch, 0, height, width, 3)))
    start, before = history.frames, history.half_BFHWC.shape[1]  # frames of the chunk before, half of which wait

    def tell(z_BNtHWC, frames):
        """What is told of so many frames of each chunk: (B, N, F, h, w, D), or tokens beside it."""
        times_BF = jnp.broadcast_to(frame_times(config, frames)[None], (batch * z_BNtHWC.shape[1], frames))
        return model.apply(params, z_BNtHWC.reshape(-1, *z_BNtHWC.shape[2:]), times_BF, method="expand")

    def drawn(told, position):
        """Draws windows one behind the other in each clip, the first from a position on: (B, N F, H, W, 3)."""
        frames = told.added_BFHWD.shape[1]
        positions = position + jnp.arange(len(told.added_BFHWD) // batch * frames)
        noise = jax.vmap(lambda key: frame_noise(key, positions, height, width))(key_B)
        video = draw(model, params, process, steps, told, noise.reshape(-1, frames, height, width, 3))
        return video.reshape(batch, -1, height, width, 3)

    video = history.half_BFHWC
    if n:
        z = z_BtHWC[:, : 2 * n].reshape(batch, n, 2, *z_BtHWC.shape[2:])
        told = tell(z, length)
        video = jnp.concatenate([video, drawn(told, start)], axis=1)
        borders = n - (not before) if held else 0
        if borders:
            if before:  # the chunk before has its second half in the first window
                told = tell(jnp.concatenate([history.z_B2HWC[:, None], z], axis=1), length)
            first = length - held  # of the frames told, where the first straddling window begins
            frames = borders * length
            added = told.added_BFHWD.reshape(batch, -1, *told.added_BFHWD.shape[2:])[:, first : first + frames]
            straddling = drawn(
                Conditioning(added.reshape(batch * borders, length, *added.shape[2:])),
                start - before if before else first,
            )
            at = 0 if before else first
            weights = np.tile(np.roll(aligned_weights(config), held), borders)[None, :, None, None, None]
            blended = weights * video[:, at : at + frames] + (1 - weights) * straddling
            video = jnp.concatenate([video[:, :at], blended, video[:, at + frames :]], axis=1)
        history = Drawn(start + n * length, z[:, -1], video[:, video.shape[1] - held :])
    if not last:
        return video[:, : video.shape[1] - held], history
    if tail:
        image = drawn(tell(z_BtHWC[:, None, 2 * n :], 1), history.frames)
        video = jnp.concatenate([video, image], axis=1)
    return video, history._replace(frames=history.frames + tail)


class Moments(NamedTuple):
    """Times at which frames are drawn: each is told (1 - share) of what the first chunk and time say, share of the
    second; where the share is 0 the second does not matter.

    Attributes:
      chunks_2F: which of the chunks given.
      times_2F: in the chunk: 0 is its first frame, 1 its last; between and beyond SIREN goes on.
      share_F: 0 .. 1.
      positions_F: in the clip, in frames, for the noise; see `frame_noise`.
    """

    chunks_2F: Array
    times_2F: Array
    share_F: Array
    positions_F: Array


def decode_at(
    model: REGEN, params: Params, process: Process, steps: int, z_BNtHWC: Array, moments: Moments, key_B: Array
) -> Array:
    """Frames at any times of a chunk, or of neighbouring ones, drawn as one window.

    Args:
      model, params, process, steps: see `draw`.
      z_BNtHWC: latents of N chunks, two each: an image's stands for both. Where latents are tokens, those of one chunk
        or image.
      moments: of the frames; where latents are tokens, the first times alone count.
      key_B: of each clip's noise.

    Returns:
      (B, F, H, W, 3), about [-1, 1].
    """
    (batch, _, _, height, width, _), frames = z_BNtHWC.shape, len(moments.share_F)

    def tell(which):
        z = z_BNtHWC[:, moments.chunks_2F[which]].reshape(batch * frames, *z_BNtHWC.shape[2:])
        times = jnp.tile(moments.times_2F[which], batch)[:, None]
        added = model.apply(params, z, times, method="expand").added_BFHWD
        return added.reshape(batch, frames, *added.shape[2:])

    if model.config.conditioning == "content_aware":
        share = moments.share_F[None, :, None, None, None]
        told = Conditioning(((1 - share) * tell(0) + share * tell(1)).astype(model.dtype))
    else:
        times_BF = jnp.tile(moments.times_2F[0][None], (batch, 1))
        told = model.apply(params, z_BNtHWC[:, 0], times_BF, method="expand")
    side = model.config.space_factor
    noise = jax.vmap(lambda key: frame_noise(key, moments.positions_F, side * height, side * width))(key_B)
    return draw(model, params, process, steps, told, noise)
