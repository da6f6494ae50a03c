"""The interface of a diffusion process: a path from data to noise, and four verbs.

    x_t = alpha(t) x0 + sigma(t) eps        t in [0, 1], 0 is data, 1 is noise

A process defines alpha and sigma (`schedule`), samples noise (`sample_prior`), adds it (`corrupt`)
and converts one kind of prediction to another (`convert`). x_t and any one of these determine the
others:

    x0    eps    v = alpha eps - sigma x0 (arXiv 2202.00512)    velocity = eps - x0

It also defines the interface to its network: the `timestep` the network gets, the kind of its
prediction, whether a variance comes with it, and the losses of its output per frame.
"""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion.config import PREDICTIONS
from xgen_jax.errors import choose
from xgen_jax.typing import AnyArray, Array, Shape

# Streams of noise while sampling: a solver's own, and that which frames are noised with again.
STEP_NOISE, FRAME_NOISE = 0, 1


class Level(NamedTuple):
    """Times of a process, as solvers and networks need them; scalars, or arrays, an entry a time.

    Attributes:
      t: in [0, 1].
      alpha, sigma: of x_t = alpha x0 + sigma eps.
      timestep: the network's input, in 0 .. 1000.
      step: the index of a sampling step that starts here, counted from the first.
    """

    t: AnyArray
    alpha: AnyArray
    sigma: AnyArray
    timestep: AnyArray
    step: AnyArray


class Denoised(NamedTuple):
    """A network's prediction at (x_t, t), converted from whichever kind it has.

    Attributes:
      x0, eps: as x_t in shape, with x_t = alpha x0 + sigma eps.
      variance: learned place of the log variance between its bounds, in [-1, 1] (see `DDPM`), or
        None.
    """

    x0: Array
    eps: Array
    variance: Array | None = None


def per_sample(t_B: Array, x: Array) -> Array:
    """Append dimensions of 1 to (B,) or (B, T), up to the rank of x."""
    return jnp.reshape(t_B, t_B.shape + (1,) * (x.ndim - t_B.ndim))


def convert(
    value: Array, x_t: Array, alpha: Array, sigma: Array, source: str, target: str
) -> Array:
    """Convert a prediction of one kind to another at the same x_t = alpha x0 + sigma eps.

    Args:
      value: the prediction, in the shape of x_t.
      x_t: the corrupted batch.
      alpha, sigma: of its rank, or scalars; x0 from eps needs alpha > 0, eps from x0 needs
        sigma > 0.
      source, target: names in `PREDICTIONS`.
    """
    for name in (source, target):
        choose("prediction", name, PREDICTIONS)
    if source == target:
        return value
    x0, eps = _both(value, x_t, alpha, sigma, source)
    return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[target]


def _both(value, x_t, alpha, sigma, source):
    """Return (x0, eps) from a prediction of any kind."""
    match source:
        case "x0":
            return value, (x_t - alpha * value) / sigma
        case "eps":
            return (x_t - sigma * value) / alpha, value
        case "v":
            norm = alpha * alpha + sigma * sigma
            return (alpha * x_t - sigma * value) / norm, (sigma * x_t + alpha * value) / norm
        case _:
            return (x_t - sigma * value) / (alpha + sigma), (x_t + alpha * value) / (alpha + sigma)


def frame_mean(values_BT: Array, frame_mask_BT: Array | None = None) -> Array:
    """Average over the noised frames of each sample, (B, T) -> (B,).

    Args:
      values_BT: a number a frame.
      frame_mask_BT: True for a noised frame; None for all. A sample without one gives 0, not 0 / 0.
    """
    if frame_mask_BT is None:
        return values_BT.mean(1)
    return jnp.where(frame_mask_BT, values_BT, 0).sum(1) / jnp.maximum(frame_mask_BT.sum(1), 1)


class Process(abc.ABC):
    """A path from data to noise; a frozen dataclass, so that it can be static to `jax.jit`.

    Attributes:
      prediction: kind of the network's prediction, a name in `PREDICTIONS`.
      learned_variance: whether the network's output is [prediction | variance] along the channels.
    """

    @property
    @abc.abstractmethod
    def prediction(self) -> str: ...

    @property
    @abc.abstractmethod
    def learned_variance(self) -> bool: ...

    @abc.abstractmethod
    def schedule(self, t: Array) -> tuple[Array, Array]:
        """Return (alpha, sigma) at times in [0, 1], of any shape."""

    @abc.abstractmethod
    def timestep(self, t: Array) -> Array:
        """Return the network's input, in 0 .. 1000, at times in [0, 1]."""

    @abc.abstractmethod
    def sample_times(self, key_B: Array, distribution: str, ratio: float | Array = 1.0) -> Array:
        """Sample training times (B,); see `diffusion.time.sample_times`."""

    @abc.abstractmethod
    def levels(self, t: np.ndarray) -> Level:
        """Return the levels at times (n,), on the host in float64, for sampling grids."""

    @abc.abstractmethod
    def grid_times(self, steps: int, spacing: str | None = None, ratio: float = 1.0) -> np.ndarray:
        """Return sampling times (steps + 1,) from noise down to data.

        Args:
          steps: 1 or more.
          spacing: a name that the process knows; None for its default.
          ratio: see `diffusion.time.shift`.

        Raises:
          UserError: too few steps or too many, or an unknown spacing.
        """

    def corrupt(
        self,
        x0: Array,
        eps: Array,
        t_B: Array,
        frame_mask_BT: Array | None = None,
        condition_time: float = 0.0,
    ) -> Array:
        """Return x_t of a batch (B, T, ...) at times (B,).

        Args:
          x0, eps: data and standard normal noise.
          t_B: times.
          frame_mask_BT: True for a noised frame, False for a condition; None noises all.
          condition_time: time of condition frames: 0 is clean. (Open-Sora 1.1 trains them with the
            noise of DDPM's step 0, which is 1 / 1000.)
        """
        if frame_mask_BT is not None:
            t_B = jnp.where(frame_mask_BT, t_B[:, None], condition_time)
        alpha, sigma = self.schedule(per_sample(t_B, x0))
        return alpha * x0 + sigma * eps

    def convert(self, value: Array, x_t: Array, t_B: Array, source: str, target: str) -> Array:
        """Convert predictions at times (B,); see the function `convert`."""
        return convert(value, x_t, *self.schedule(per_sample(t_B, x_t)), source, target)

    def sample_prior(self, key: Array, shape: Shape) -> Array:
        """Sample x_t at t = 1: standard normal noise."""
        return jax.random.normal(key, shape)

    def split(self, output: Array) -> tuple[Array, Array | None]:
        """Split a network's output into (prediction, variance or None)."""
        if not self.learned_variance:
            return output, None
        prediction, variance = jnp.split(output, 2, axis=-1)
        return prediction, variance

    def denoised(
        self, output: Array, x_t: Array, level: Level, clip: float | None = None
    ) -> Denoised:
        """Convert a network's output at (x_t, level) to x0 and eps.

        Args:
          output: (B, ..., C), or (B, ..., 2C) where a variance is learned.
          x_t: (B, ..., C).
          level: of scalars.
          clip: bound of |x0|, or None; eps follows from the clipped x0.
        """
        prediction, variance = self.split(output)
        x0, eps = _both(prediction, x_t, level.alpha, level.sigma, self.prediction)
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
            eps = (x_t - level.alpha * x0) / level.sigma
        return Denoised(x0, eps, variance)

    def losses(self, output: Array, x0: Array, eps: Array, t_B: Array) -> dict[str, Array]:
        """Return the training losses, a number a frame.

        Args:
          output: of the network, (B, T, H, W, C), or 2C channels where a variance is learned.
          x0, eps: (B, T, H, W, C).
          t_B: times.

        Returns:
          {"loss": (B, T), and its parts by name}; `frame_mean` averages each to (B,).
        """
        alpha, sigma = self.schedule(per_sample(t_B, x0))
        targets = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "velocity": eps - x0}
        mse_BT = jnp.square(self.split(output)[0] - targets[self.prediction]).mean((2, 3, 4))
        return {"loss": mse_BT, "mse": mse_BT}
