"""How REGEN draws frames: noise to video, a window of frames at a time (arXiv 2503.08665, section
3).

All frames of a clip are drawn out of the same noise: what the decoder makes of it does not flicker
then. What a frame is told depends on its chunk's latents and its time: it may be drawn in any
window. Drawn chunk after chunk, a clip jumps where one chunk's latents give way to the next's. So a
model that was trained on such windows draws frames in those that go from the middle of a chunk to
the middle of the next, and only what lies before the first middle and behind the last in the window
of its chunk; an image is a window by itself.

    chunks     |----- 0 -----|----- 1 -----|----- 2 -----|
    windows    |-- 0 --|
                     |----- 0, 1 ----|
                                   |---- 1, 2 ----|
                                                |- 2 -|

In a window across a border what a frame is told goes from the one chunk's latents to the other's,
each expanded at times beyond its own (`crossing`),

    (1 - s) z_e(chunk i, t) + s z_e(chunk i + 1, t - (k + 1) / k)

with s going from 0 to 1 about the border, linearly. In the middle of a chunk, where two windows
meet, both are told the same of the frames, but attend to others beside them: there they overlap by
a few frames and are cross-faded. docs/regen.md has what each part does to the seams.
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
# The first frame of a chunk within a clip, of which the content latent is told as of the frames
# around it: at time 0 itself it is not (see `models.regen`).
_AFTER_ZERO = 1e-4
# What windows are drawn, and trained on: the chunks alone, or those that straddle their borders as
# well.
WINDOWS = ("chunk", "moved")


def frame_noise(key_B: Array, frames: int, height: int, width: int) -> Array:
    """Standard normal (B, F, H, W, 3), one draw a clip: the same for all its frames, in whatever
    window."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (1, height, width, 3)))(key_B)
    return jnp.broadcast_to(noise, (len(key_B), frames, height, width, 3))


def crossing(config: REGENConfig, positions_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What frames of a straddling window are told.

    Args:
      config: of the network.
      positions_F: in frames, from the first chunk's first.

    Returns:
      The times (2, F) at which the first and the second chunk are expanded, and the second's share
      (F,) in 0 .. 1.
    """
    length = config.chunk_frames
    positions_F = np.asarray(positions_F, np.float64)
    times_2F = np.stack([positions_F, positions_F - length]) / config.ratio
    times_2F[1] = np.where(times_2F[1] == 0, _AFTER_ZERO, times_2F[1])
    share_F = np.clip((positions_F + 0.5 - length) / (2 * (length // 2)) + 0.5, 0, 1)
    return times_2F.astype(np.float32), share_F.astype(np.float32)


def overlap(config: REGENConfig) -> int:
    """Frames before the middle of a chunk, and as many behind it, that both of the windows that
    meet there draw."""
    return max(1, config.ratio // 8)


def weight(config: REGENConfig, inside_F: np.ndarray) -> np.ndarray:
    """Of a straddling window's frames beside the other's, in 0 .. 1.

    Args:
      config: of the network.
      inside_F: how far behind the middle of the chunk a frame's own middle lies, in frames; before
      it is negative.
    """
    return np.clip(np.asarray(inside_F, np.float64) / (2 * overlap(config)) + 0.5, 0, 1)


def tell(model: REGEN, params: Params, z_BNtHWC: Array, times_F: Array) -> Conditioning:
    """What is told of frames at the same times of each of N chunks, the chunks folded into the
    batch: (B N, F, ...)."""
    folded = z_BNtHWC.reshape(-1, *z_BNtHWC.shape[2:])
    times_BF = jnp.broadcast_to(jnp.asarray(times_F)[None], (len(folded), len(times_F)))
    return model.apply(params, folded, times_BF, method="expand")


def tell_across(model: REGEN, params: Params, z_BNtHWC: Array, beyond: int = 0) -> Array:
    """What frames are told from the middle of each of N chunks to that of the next, and so many
    before and behind: (B (N - 1), k + 1 + 2 beyond, h, w, D).
    """
    length = model.config.chunk_frames
    middle = length - length // 2
    times_2F, share_F = crossing(model.config, np.arange(middle - beyond, middle + length + beyond))
    share = share_F[None, :, None, None, None]
    ends = ((z_BNtHWC[:, :-1], times_2F[0]), (z_BNtHWC[:, 1:], times_2F[1]))
    before, after = (tell(model, params, z, times_F).added_BFHWD for z, times_F in ends)
    return ((1 - share) * before + share * after).astype(before.dtype)


def draw(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    conditioning: Conditioning,
    noise_BFHWC: Array,
) -> Array:
    """Frames out of noise.

    Args:
      model, params, process: as they were trained.
      steps: network evaluations, 1 or more.
      conditioning: of the frames.
      noise_BFHWC: at t = 1.

    Returns:
      (B, F, H, W, 3), about [-1, 1]; not beyond where eps is predicted.
    """
    grid = make_grid(process, steps)
    # Near t = 1 a small error of eps is a large one of x0, which pixels bound.
    clip = 1.0 if process.prediction == "eps" else None

    def denoise(x, level: Level, noised) -> Denoised:
        del noised
        time_B = jnp.full(x.shape[:1], level.network_time)
        output = model.apply(params, x, time_B, conditioning, method="denoise")
        return process.denoised(output, x, level, clip)

    return sample(denoise, noise_BFHWC, make_steps(SAMPLER, grid), SAMPLER)


def look_ahead(config: REGENConfig, windows: str) -> int:
    """Frames by which `decode_chunks` lags behind unless told that a chunk is the last: half a
    chunk and the frames that the next window draws as well, if any.
    """
    return config.chunk_frames // 2 + overlap(config) if windows == "moved" else 0


def decode_chunks(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    z_BtHWC: Array,
    history: tuple[Array, Array] | None,
    last: bool,
    key_B: Array,
    windows: str,
) -> tuple[Array, tuple[Array, Array]]:
    """Latents of some whole chunks of a clip -> its next frames.

    However a clip is cut, its frames are the same: they depend on latents and keys alone.

    Args:
      model, params, process, steps: see `draw`.
      z_BtHWC: as the encoder gives them, two latent frames a chunk; with `last` one more, an
        image's, and none at all are allowed as well.
      history: None at the start of a clip, then what the call before gave: the last chunk's
        latents, if any, and what its window drew of the frames that the next draws as well.
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
    z = z_BtHWC[:, : 2 * n].reshape(batch, n, 2, *z_BtHWC.shape[2:])
    none = jnp.zeros((batch, 0, height, width, 3))
    is_start = history is None
    before, shared = (z[:, :0], none) if is_start else history

    def drawn(told):
        """Draws windows one behind the other in each clip: (B, N F, H, W, 3)."""
        count, frames = len(told.added_BFHWD) // batch, told.added_BFHWD.shape[1]
        noise = frame_noise(key_B[np.repeat(np.arange(batch), count)], frames, height, width)
        video = draw(model, params, process, steps, told, noise)
        return video.reshape(batch, count * frames, height, width, 3)

    def own(z_BNtHWC, frames=length):
        """Frames drawn in the windows of their chunks."""
        return drawn(tell(model, params, z_BNtHWC, frame_times(config, frames)))

    joined, parts = jnp.concatenate([before, z], axis=1), [none]
    if windows == "chunk" or (is_start and last and n == 1):
        parts += [own(z)] if n else []
    elif joined.shape[1]:
        beyond = overlap(config)
        middle = length - length // 2
        rising = weight(config, np.arange(-beyond, beyond) + 0.5)[None, :, None, None, None].astype(
            np.float32
        )

        def goes_on(window):
            """Appends a window, up to what the next draws as well; returns that."""
            parts.append((1 - rising) * shared + rising * window[:, : 2 * beyond])
            parts.append(window[:, 2 * beyond : length])
            return window[:, length:]

        if is_start:
            first = own(z[:, :1])
            parts.append(first[:, : middle - beyond])
            shared = first[:, middle - beyond : middle + beyond]
        if joined.shape[1] > 1:
            across = drawn(Conditioning(tell_across(model, params, joined, beyond)))
            for window in jnp.split(across, joined.shape[1] - 1, axis=1):
                shared = goes_on(window)
        if last:
            goes_on(own(joined[:, -1:])[:, middle - beyond :])
    if last and tail:
        parts.append(own(z_BtHWC[:, None, 2 * n :], 1))
    return jnp.concatenate(parts, axis=1), (joined[:, -1:], shared)


class Moments(NamedTuple):
    """Times at which frames are drawn: each is told (1 - share) of what the first chunk and time
    say, share of the second; where the share is 0 the second does not matter.

    Attributes:
      chunks_2F: which of the chunks given.
      times_2F: in the chunk: 0 is its first frame, 1 its last; between and beyond SIREN goes on.
      share_F: 0 .. 1.
    """

    chunks_2F: Array
    times_2F: Array
    share_F: Array


def decode_at(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    z_BNtHWC: Array,
    moments: Moments,
    key_B: Array,
) -> Array:
    """Frames at any times of a chunk, or of neighbouring ones, drawn as one window.

    Args:
      model, params, process, steps: see `draw`.
      z_BNtHWC: latents of N chunks, two each: an image's stands for both. Where latents are tokens,
        those of one chunk or image.
      moments: of the frames; where latents are tokens, the first times alone count.
      key_B: of each clip's noise.

    Returns:
      (B, F, H, W, 3), about [-1, 1].
    """
    (batch, _, _, height, width, _), frames = z_BNtHWC.shape, len(moments.share_F)

    def tell_of(which):
        z = z_BNtHWC[:, moments.chunks_2F[which]].reshape(batch * frames, *z_BNtHWC.shape[2:])
        times = jnp.tile(moments.times_2F[which], batch)[:, None]
        added = model.apply(params, z, times, method="expand").added_BFHWD
        return added.reshape(batch, frames, *added.shape[2:])

    if model.config.conditioning == "content_aware":
        share = moments.share_F[None, :, None, None, None]
        told = Conditioning(((1 - share) * tell_of(0) + share * tell_of(1)).astype(model.dtype))
    else:
        times_BF = jnp.tile(moments.times_2F[0][None], (batch, 1))
        told = model.apply(params, z_BNtHWC[:, 0], times_BF, method="expand")
    side = model.config.space_factor
    return draw(
        model, params, process, steps, told, frame_noise(key_B, frames, side * height, side * width)
    )
