"""How REGEN draws frames: noise to video, a window of frames at a time (arXiv 2503.08665, section 3).

A frame's noise depends on its position in the clip alone, not on the window that it is drawn in: windows that share a
frame draw it out of the same noise.
"""

import jax
import jax.numpy as jnp

from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.process import Denoised, Level, Process
from xgen_jax.diffusion.samplers import make_steps, sample
from xgen_jax.models.regen import REGEN, Conditioning
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
