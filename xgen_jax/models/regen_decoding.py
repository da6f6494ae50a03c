"""How REGEN draws frames: noise to video, a window of frames at a time (arXiv 2503.08665, section 3).

A frame's noise depends on its position in the clip alone, not on the window that it is drawn in: windows that share a
frame draw it out of the same noise.
"""

import jax
import jax.numpy as jnp

from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.process import Denoised, Level, Process
from xgen_jax.diffusion.samplers import make_steps, sample
from xgen_jax.models.regen import REGEN, Conditioning, frame_times
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.typing import Array, Params

SAMPLER = "ddim"  # draws no noise between steps; of rectified flow it is Euler's
_PER_FRAME = 1024  # positions between two frames that have noise of their own


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


def look_ahead(config: REGENConfig) -> int:
    """Frames by which `decode_chunks` lags behind unless told that a chunk is the last."""
    del config
    return 0


def decode_chunks(
    model: REGEN,
    params: Params,
    process: Process,
    steps: int,
    z_BtHWC: Array,
    history: Array | None,
    last: bool,
    key_B: Array,
) -> tuple[Array, Array]:
    """Latents of some whole chunks of a clip -> its next frames.

    However a clip is cut, its frames are the same: they depend on latents, keys and positions alone.

    Args:
      model, params, process, steps: see `draw`.
      z_BtHWC: as the encoder gives them, two latent frames a chunk; with `last` one more, an image's, and none at all
        are allowed as well.
      history: None at the start of a clip, then what the call before gave: here the number of frames drawn.
      last: the clip ends here: no frame is held back.
      key_B: of each clip's noise.

    Returns:
      (video (B, F, H, W, 3), about [-1, 1], history).
    """
    del last
    batch, length, side = z_BtHWC.shape[0], model.config.chunk_frames, model.config.space_factor
    chunks, tail = divmod(z_BtHWC.shape[1], 2)
    height, width = side * z_BtHWC.shape[2], side * z_BtHWC.shape[3]
    start = jnp.zeros((), jnp.int32) if history is None else history

    def window(z, at, frames):
        """`frames` frames of each of some chunks, (B, n, 2 or 1, ...), from position `at`."""
        n = z.shape[1]
        noise = jax.vmap(lambda key: frame_noise(key, at + jnp.arange(n * frames), height, width))(key_B)
        times = jnp.broadcast_to(frame_times(model.config, frames)[None], (batch * n, frames))
        told = model.apply(params, z.reshape(batch * n, *z.shape[2:]), times, method="expand")
        video = draw(model, params, process, steps, told, noise.reshape(batch * n, frames, height, width, 3))
        return video.reshape(batch, n * frames, height, width, 3)

    parts = [jnp.zeros((batch, 0, height, width, 3))]
    if chunks:
        z = z_BtHWC[:, : 2 * chunks]
        parts.append(window(z.reshape(batch, chunks, 2, *z.shape[2:]), start, length))
    if tail:
        parts.append(window(z_BtHWC[:, None, -1:], start + chunks * length, 1))
    return jnp.concatenate(parts, axis=1), start + chunks * length + tail
