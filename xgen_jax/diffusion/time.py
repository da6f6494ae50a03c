"""Times in [0, 1] for training and sampling. One shift serves both (arXiv 2403.03206, section
5.3.2)."""

from typing import overload

import jax
import numpy as np

from xgen_jax.diffusion.config import DISTRIBUTIONS
from xgen_jax.errors import UserError, choose
from xgen_jax.typing import Array


@overload
def shift(t: np.ndarray, ratio: float) -> np.ndarray: ...
@overload
def shift(t: Array, ratio: float | Array) -> Array: ...
def shift(t, ratio):
    """Shift times towards noise: r t / (1 + (r - 1) t), the identity for r = 1."""
    return ratio * t / (1.0 + (ratio - 1.0) * t)


def shift_ratio(
    height_px: float | Array,
    width_px: float | Array,
    latent_frames: float | Array,
    *,
    scale: float = 1.0,
    base_pixels: float = 512.0 * 512.0,
    base_latent_frames: float = 1.0,
) -> float | Array:
    """Return the ratio of `shift` for a video: scale sqrt(area / base) sqrt(latent frames / base).

    A larger or longer video has the same content in more values, which are more alike: it takes
    more noise to hide it as well (arXiv 2403.03206, section 5.3.2; this form is Open-Sora 1.2's).
    Numbers or arrays.

    Args:
      height_px, width_px: of the video, before it is encoded.
      latent_frames: after it is encoded; 1 for an image.
      scale: the ratio at the base size.
      base_pixels, base_latent_frames: where the ratio is `scale`.
    """
    return (
        scale * ((height_px * width_px / base_pixels) * (latent_frames / base_latent_frames)) ** 0.5
    )


def sample_times(key_B: Array, distribution: str, ratio: float | Array = 1.0) -> Array:
    """Sample training times (B,), one for each key.

    Args:
      key_B: one key a sample, so that a sample's time does not depend on the batch around it.
      distribution: `uniform`, or `logit_normal` (location 0, scale 1; arXiv 2403.03206, section
      3.1).
      ratio: see `shift`; one for all or (B,).
    """
    choose("time_distribution", distribution, DISTRIBUTIONS)
    if distribution == "uniform":
        t_B = jax.vmap(jax.random.uniform)(key_B)
    else:
        t_B = jax.nn.sigmoid(jax.vmap(jax.random.normal)(key_B))
    return shift(t_B, ratio)


def time_grid(steps: int, ratio: float = 1.0) -> np.ndarray:
    """Return sampling times, float64 (steps + 1,), from 1 (noise) to 0 (data).

    They are evenly spaced before the shift.
    """
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    return shift(np.linspace(1.0, 0.0, steps + 1), ratio)
