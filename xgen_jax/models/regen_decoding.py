"""REGEN's decoder: from noise to video, a window of frames at a time (arXiv 2503.08665, section 3).

All frames of a clip are sampled from the same noise, whatever their window: the video does not
flicker then. `models.regen_windows` says which frames are sampled together. Given the latents,
windows are independent: those of a call are one batch of the network, which devices share.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.process import Denoised, Level, Process
from xgen_jax.diffusion.samplers import make_steps, sample
from xgen_jax.models.regen import REGEN, Conditioning, frame_times
from xgen_jax.models.regen_windows import (
    Window,
    border_window,
    condition_borders,
    condition_chunks,
    middle,
    overlap,
)
from xgen_jax.nn.layout import axis_size
from xgen_jax.typing import Array, Params

SAMPLER = "ddim"  # draws no noise between steps; on rectified flow it is Euler's method


def frame_noise(key_B: Array, frames: int, height: int, width: int) -> Array:
    """Return standard normal noise (B, F, H, W, 3), the same for all frames of a clip."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (1, height, width, 3)))(key_B)
    return jnp.broadcast_to(noise, (len(key_B), frames, height, width, 3))


def sample_frames(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    conditioning: Conditioning,
    noise_BFHWC: Array,
) -> Array:
    """Sample the frames of a window.

    Args:
      model, params, process: as they were trained.
      steps: network evaluations, 1 or more.
      conditioning: of the frames.
      noise_BFHWC: at t = 1.

    Returns:
      (B, F, H, W, 3), about [-1, 1]; exactly within where eps is predicted.
    """
    grid = make_grid(process, steps)
    # Near t = 1 a small error of eps is a large one of x0, which pixels bound.
    clip = 1.0 if process.prediction == "eps" else None

    def denoise(x, level: Level, frame_mask) -> Denoised:
        del frame_mask
        time_B = jnp.full(x.shape[:1], level.timestep)
        output: Any = model.apply(params, x, time_B, conditioning, method="denoise")
        return process.denoised(output, x, level, clip)

    return sample(denoise, noise_BFHWC, make_steps(SAMPLER, grid), SAMPLER)


def decode_chunks(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    z_BtHWC: Array,
    cache: tuple[Array, Array] | None,
    last: bool,
    key_B: Array,
    windows: str,
) -> tuple[Array, tuple[Array, Array]]:
    """Decode the next whole chunks of a clip, all their windows at once.

    A clip's frames do not depend on how it is cut into calls, only on its latents and its key. On a
    mesh the devices of the batch share clips and windows; they need not divide them.

    Args:
      model, params, process, steps: see `sample_frames`.
      z_BtHWC: as the encoder gives them, two latent frames a chunk. With `last` there may be one
        more, of an image, or none at all.
      cache: None at the start of a clip, then what the call before returned: the last chunk's
        latents, if any, and its samples of the frames where the next window overlaps.
      last: whether the clip ends here; otherwise the last `look_ahead` frames come with the next
        call.
      key_B: of each clip's noise.
      windows: a name in `regen_config.WINDOWS`, as the decoder was trained.

    Returns:
      (video (B, F, H, W, 3), about [-1, 1], cache).
    """
    config = model.config
    batch, length, side = z_BtHWC.shape[0], config.chunk_frames, config.space_factor
    n, tail = divmod(z_BtHWC.shape[1], 2)
    height, width = side * z_BtHWC.shape[2], side * z_BtHWC.shape[3]
    z = z_BtHWC[:, : 2 * n].reshape(batch, n, 2, *z_BtHWC.shape[2:])
    none = jnp.zeros((batch, 0, height, width, 3))
    is_start = cache is None
    before, shared = (z[:, :0], none) if is_start else cache

    def sample_windows(conditioning):
        """Sample windows of each clip, (B N, F, ...), and join them: (B, N F, H, W, 3)."""
        count, frames = len(conditioning.added_BFHWD) // batch, conditioning.added_BFHWD.shape[1]
        clip_of = np.repeat(np.arange(batch), count)
        if idle := -len(clip_of) % axis_size("batch"):  # devices that repeat the last window
            taken = [*range(len(clip_of)), *[len(clip_of) - 1] * idle]
            clip_of = clip_of[taken]
            conditioning = jax.tree.map(lambda x: x[np.array(taken)], conditioning)
        noise = frame_noise(key_B[clip_of], frames, height, width)
        video = sample_frames(model, params, process, steps, conditioning, noise)
        return video[: batch * count].reshape(batch, count * frames, height, width, 3)

    def own(z_BNtHWC, frames=length):
        """Sample chunks in their own windows."""
        times_F = frame_times(config, frames)
        return sample_windows(condition_chunks(model, params, z_BNtHWC, times_F))

    joined, parts = jnp.concatenate([before, z], axis=1), [none]
    if windows == "chunk" or (is_start and last and n == 1):
        parts += [own(z)] if n else []
    elif joined.shape[1]:
        beyond = overlap(config)
        shared_frames = 2 * beyond  # that two windows sample
        rising = border_window(config, beyond).weights_F[:shared_frames]
        rising = rising[None, :, None, None, None].astype(np.float32)

        def append(window, shared):
            """Append a window's frames, all but those that the next window samples as well.

            These are returned; `shared` are those of the window before.
            """
            parts.append((1 - rising) * shared + rising * window[:, :shared_frames])
            parts.append(window[:, shared_frames:length])
            return window[:, length:]

        begin = middle(config) - beyond  # where the first window across a border begins
        ends = [joined[:, :1]] * is_start + [joined[:, -1:]] * last
        at_ends = jnp.split(own(jnp.concatenate(ends, axis=1)), len(ends), axis=1) if ends else []
        if is_start:
            first = at_ends[0]
            parts.append(first[:, :begin])
            shared = first[:, begin : begin + shared_frames]
        if joined.shape[1] > 1:
            across = Conditioning(condition_borders(model, params, joined, beyond))
            for window in jnp.split(sample_windows(across), joined.shape[1] - 1, axis=1):
                shared = append(window, shared)
        if last:
            append(at_ends[-1][:, begin:], shared)
    if last and tail:
        parts.append(own(z_BtHWC[:, None, 2 * n :], 1))
    return jnp.concatenate(parts, axis=1), (joined[:, -1:], shared)


def decode_at(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    z_BNtHWC: Array,
    window: Window,
    key_B: Array,
) -> Array:
    """Decode the frames of one window, at any times.

    Args:
      model, params, process, steps: see `sample_frames`.
      z_BNtHWC: latents of N chunks, two each; an image's stands for both. Where latents are tokens
        (`in_context`), those of one chunk or image.
      window: its chunks count from the first of these; where latents are tokens, only the first
        row of its times is used.
      key_B: of each clip's noise.

    Returns:
      (B, F, H, W, 3), about [-1, 1].
    """
    (batch, _, _, height, width, _), frames = z_BNtHWC.shape, len(window.mix_F)

    def expand(chunks_F, times_F) -> Array:
        """Expand a chunk of its own for each frame: (B, F, h, w, D)."""
        z = z_BNtHWC[:, chunks_F].reshape(batch * frames, *z_BNtHWC.shape[2:])
        times = jnp.tile(times_F, batch)[:, None]
        conditioning: Any = model.apply(params, z, times, method="expand")
        added = conditioning.added_BFHWD
        return added.reshape(batch, frames, *added.shape[2:])

    if model.config.conditioning == "content_aware":
        mix: Any = window.mix_F[None, :, None, None, None]
        before, after = (expand(window.chunks_2F[i], window.times_2F[i]) for i in range(2))
        conditioning = Conditioning(((1 - mix) * before + mix * after).astype(model.dtype))
    else:
        times_BF = jnp.tile(window.times_2F[0][None], (batch, 1))
        expanded: Any = model.apply(params, z_BNtHWC[:, 0], times_BF, method="expand")
        conditioning = expanded
    side = model.config.space_factor
    noise = frame_noise(key_B, frames, side * height, side * width)
    return sample_frames(model, params, process, steps, conditioning, noise)
