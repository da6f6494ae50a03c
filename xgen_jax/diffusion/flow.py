"""Rectified flow (arXiv 2209.03003; arXiv 2403.03206): a straight line from data to noise.

    x_t = (1 - t) x0 + t eps        t in [0, 1], 0 is data, 1 is noise
    velocity = dx_t/dt = eps - x0

so x0 = x_t - t velocity and eps = x_t + (1 - t) velocity.
"""

import dataclasses

import numpy as np

from xgen_jax.diffusion.config import PREDICTIONS
from xgen_jax.diffusion.process import Level, Process
from xgen_jax.diffusion.time import sample_times, time_grid
from xgen_jax.errors import UserError, choose
from xgen_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Process):
    """The process, see the module; its timestep is 1000 t."""

    prediction: str = "velocity"
    learned_variance: bool = False

    def __post_init__(self):
        choose("prediction", self.prediction, PREDICTIONS)
        if self.learned_variance:
            raise UserError(
                "rectified flow has no variance to learn; set learned_variance=False, "
                "or process='ddpm'"
            )

    def schedule(self, t: Array) -> tuple[Array, Array]:
        """Return (1 - t, t)."""
        return 1.0 - t, t

    def timestep(self, t: Array) -> Array:
        """Return 1000 t."""
        return 1000.0 * t

    def sample_times(self, key_B: Array, distribution: str, ratio: float | Array = 1.0) -> Array:
        """Sample training times, see `diffusion.time.sample_times`."""
        return sample_times(key_B, distribution, ratio)

    def levels(self, t: np.ndarray) -> Level:
        """Return the levels at times (n,), in float64."""
        t = np.asarray(t, np.float64)
        return Level(t, 1.0 - t, t, 1000.0 * t, np.arange(len(t)))

    def grid_times(self, steps: int, spacing: str | None = None, ratio: float = 1.0) -> np.ndarray:
        """Return sampling times, see `diffusion.time.time_grid`; the only spacing is `even`.

        `grids.FLOW_GRIDS` has others, whose timesteps are not always those of their times.
        """
        choose("spacing", spacing or "even", ("even",))
        return time_grid(steps, ratio)
