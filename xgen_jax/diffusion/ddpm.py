"""Denoising diffusion with a learned variance (arXiv 2006.11239; arXiv 2102.09672), as Open-Sora
1.1 trains its STDiT2.

    abar_i = prod_{j <= i} (1 - beta_j)
    x_t    = sqrt(abar_i) x0 + sqrt(1 - abar_i) eps,    t = (i + 1) / N

t = 0 is data, t = 1 the last of the N steps. The network predicts eps, and with it a number v in
[-1, 1] that places the log variance of the reverse step between its two bounds (arXiv 2102.09672,
equation 15):

    log variance = (1 + v) / 2 log beta_i + (1 - v) / 2 log posterior variance_i
    loss         = | eps' - eps |^2 + VLB(v), the mean in the VLB detached

All tables are computed in float64 and rounded last. Open-Sora's own code computes them in float32,
which puts its posterior mean at step 0 off by 1.7e-4 and its VLB there by up to 1e-2 bits; that is
not reproduced.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.diffusion import grids
from xgen_jax.diffusion.config import PREDICTIONS
from xgen_jax.diffusion.process import Level, Process, per_sample
from xgen_jax.diffusion.time import sample_times
from xgen_jax.errors import UserError, choose
from xgen_jax.typing import Array

BETAS = ("linear", "scaled_linear")
LOSSES = ("mse", "mse+vb", "mse+rescaled_vb", "vb")
_TINY = 1e-30  # in place of abar = 0, where its logarithm is wanted


class Tables(NamedTuple):
    """Tables of a chain of N steps; float64 (N,), entry i belongs to step i."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    alphas_cumprod_next: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray

    @property
    def log_betas(self) -> np.ndarray:
        """Return the upper bound of the log variance."""
        return np.log(self.betas)

    @property
    def sqrt_recipm1_alphas_cumprod(self) -> np.ndarray:
        """Return sigma / alpha of each step."""
        return np.sqrt(1.0 / self.alphas_cumprod - 1.0)


def make_tables(betas: np.ndarray) -> Tables:
    """Return the tables of a chain with these betas (N,)."""
    betas = np.asarray(betas, np.float64)
    abar = np.cumprod(1.0 - betas)
    prev = np.append(1.0, abar[:-1])
    variance = betas * (1.0 - prev) / (1.0 - abar)
    # The variance of step 0 is 0, which has no logarithm: step 1's is used instead.
    clipped = np.log(np.append(variance[1], variance[1:])) if len(betas) > 1 else np.log(betas)
    return Tables(
        betas,
        abar,
        prev,
        np.append(abar[1:], 0.0),
        variance,
        clipped,
        betas * np.sqrt(prev) / (1.0 - abar),
        (1.0 - prev) * np.sqrt(1.0 - betas) / (1.0 - abar),
    )


def respaced_betas(alphas_cumprod: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the betas (n,) of a chain that visits only some steps of another.

    Args:
      alphas_cumprod: (N,) of the full chain.
      steps: those to visit, ascending.
    """
    kept = np.asarray(alphas_cumprod, np.float64)[steps]
    return 1.0 - kept / np.append(1.0, kept[:-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(Process):
    """The process, see the module.

    Attributes:
      num_steps: N.
      betas: `linear` between the ends, or `scaled_linear`: linear between their roots, squared.
      beta_start, beta_end: the ends for 1000 steps; other counts scale them by 1000 / N.
      zero_snr: stretch the chain so that its last step is noise alone (arXiv 2305.08891, algorithm
        1). Needs prediction="v" or "x0": eps does not determine x0 there.
      loss: `mse`; `mse+vb` with the VLB in bits per dimension (Open-Sora's); `mse+rescaled_vb`, VLB
        times N / 1000; `vb`, only VLB times N. Without a learned variance it is always `mse`.
    """

    num_steps: int = 1000
    betas: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_snr: bool = False
    prediction: str = "eps"
    learned_variance: bool = True
    loss: str = "mse+vb"

    def __post_init__(self):
        for name, known in (("betas", BETAS), ("prediction", PREDICTIONS), ("loss", LOSSES)):
            choose(name, getattr(self, name), known)
        if self.num_steps < 2:
            raise UserError(f"num_steps={self.num_steps} must be 2 or more")
        scale = 1000 / self.num_steps
        if not 0 < self.beta_start * scale <= self.beta_end * scale < 1:
            raise UserError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end}, times {scale:g} for "
                f"{self.num_steps} steps, must rise within 0 .. 1"
            )
        if self.zero_snr and self.prediction == "eps":
            raise UserError(
                "zero_snr needs prediction 'v' or 'x0': "
                "where all is noise, eps does not determine x0"
            )

    @property
    def tables(self) -> Tables:
        """Return the tables of all N steps."""
        return _tables(
            dataclasses.replace(self, prediction="v", learned_variance=False, loss="mse")
        )

    def schedule(self, t: Array) -> tuple[Array, Array]:
        """Return (sqrt(abar), sqrt(1 - abar)).

        Between steps log abar is linear in t; abar = 1 at t = 0.
        """
        log_abar = jnp.interp(
            t * self.num_steps, np.arange(self.num_steps + 1), jnp.asarray(self._log_abar())
        )
        return jnp.exp(0.5 * log_abar), jnp.sqrt(-jnp.expm1(log_abar))

    def _log_abar(self):
        return np.append(0.0, np.log(np.maximum(self.tables.alphas_cumprod, _TINY)))

    def step_of(self, t: Array) -> Array:
        """Return the steps, int32 in 0 .. N - 1, nearest to times in [0, 1]."""
        return jnp.clip(jnp.round(t * self.num_steps).astype(jnp.int32) - 1, 0, self.num_steps - 1)

    def timestep(self, t: Array) -> Array:
        """Return the step, rounded: the network was trained at whole steps."""
        return jnp.clip(jnp.round(t * self.num_steps) - 1, 0, self.num_steps - 1)

    def sample_times(self, key_B: Array, distribution: str, ratio: float | Array = 1.0) -> Array:
        """Sample training times, see `diffusion.time.sample_times`, rounded up to whole steps.

        The DDPM papers' distribution is `uniform`.
        """
        t_B = sample_times(key_B, distribution, ratio)
        return (
            jnp.clip(jnp.floor(t_B * self.num_steps), 0, self.num_steps - 1) + 1
        ) / self.num_steps

    def levels(self, t: np.ndarray) -> Level:
        """Return the levels at times (n,), in float64; those of whole steps are the tables'."""
        t = np.asarray(t, np.float64)
        place = t * self.num_steps
        whole = np.round(place).astype(int)
        exact = np.append(1.0, self.tables.alphas_cumprod)[whole]
        between = np.exp(np.interp(place, np.arange(self.num_steps + 1), self._log_abar()))
        abar = np.where(np.abs(place - whole) < 1e-6, exact, between)
        step = np.clip(whole - 1, 0, self.num_steps - 1)
        return Level(
            t, np.sqrt(abar), np.sqrt(1.0 - abar), step.astype(np.float64), np.arange(len(t))
        )

    def grid_times(self, steps: int, spacing: str | None = None, ratio: float = 1.0) -> np.ndarray:
        """Return the times (steps + 1,) of the visited steps, and 0; see `Process.grid_times`.

        The spacings are `grids.SPACINGS`. The default `trailing` begins with the last step and
        comes down to data by an even stride. `respaced`, Open-Sora's, visits step 0 as well: after
        a stride of tens of steps that is a jump in log(alpha / sigma) at which DPM-Solver++(2M) and
        UniPC diverge. (24 steps leave normal data of deviation 0.4 wider by 23%, and narrower by 5%
        with `trailing`.)
        """
        visited = grids.spaced_steps(self.num_steps, steps, spacing or "trailing", ratio)
        return np.append((visited + 1) / self.num_steps, 0.0)

    def losses(self, output: Array, x0: Array, eps: Array, t_B: Array) -> dict[str, Array]:
        """Return {"loss", "mse", and for a learned variance "vb" in bits}, each (B, T).

        See `Process.losses`.
        """
        losses = super().losses(output, x0, eps, t_B)
        if not self.learned_variance or self.loss == "mse":
            return losses
        vb_BT = self._variational_bound(output, x0, eps, t_B)
        match self.loss:
            case "mse+vb":
                loss_BT = losses["mse"] + vb_BT
            case "mse+rescaled_vb":
                loss_BT = losses["mse"] + vb_BT * (self.num_steps / 1000)
            case _:
                loss_BT = vb_BT * self.num_steps
        return {"loss": loss_BT, "mse": losses["mse"], "vb": vb_BT}

    def _variational_bound(self, output, x0, eps, t_B):
        """Return the variational bound in bits per dimension, (B, T).

        It is the KL divergence from the true reverse step; at step 0 the negative log likelihood of
        8-bit data.
        """
        prediction, variance = self.split(output)
        assert variance is not None
        tables, i_B = self.tables, self.step_of(t_B)

        def at(table):
            return per_sample(jnp.asarray(table)[i_B], x0)

        alpha, sigma = (
            jnp.sqrt(at(tables.alphas_cumprod)),
            jnp.sqrt(at(1.0 - tables.alphas_cumprod)),
        )
        # The MSE trains the mean. Both means have x_t in common: they differ by x0 only.
        prediction = prediction if self.loss == "vb" else jax.lax.stop_gradient(prediction)
        error_x0 = self._x0_error(prediction, x0, eps, alpha, sigma)
        error = at(tables.posterior_mean_coef1) * error_x0
        true_log_variance = at(tables.posterior_log_variance_clipped)
        log_variance = learned_log_variance(variance, at(tables.log_betas), true_log_variance)
        gap = true_log_variance - log_variance
        kl = 0.5 * (-1.0 - gap + jnp.exp(gap) + jnp.square(error) * jnp.exp(-log_variance))
        nll = -_log_likelihood_8_bit(x0, error, 0.5 * log_variance)
        return jnp.where(per_sample(i_B, x0) == 0, nll, kl).mean((2, 3, 4)) / math.log(2.0)

    def _x0_error(self, prediction, x0, eps, alpha, sigma):
        """Return x0 minus the predicted x0, without cancellation between the means."""
        match self.prediction:
            case "x0":
                return x0 - prediction
            case "eps":
                return sigma / alpha * (prediction - eps)
            case "v":
                return sigma * (prediction - (alpha * eps - sigma * x0))
            case _:
                return sigma / (alpha + sigma) * (prediction - (eps - x0))


def learned_log_variance(variance: Array, upper: Array, lower: Array) -> Array:
    """Interpolate the log variance by v in [-1, 1] (arXiv 2102.09672, equation 15)."""
    fraction = (variance + 1.0) / 2.0
    return fraction * upper + (1.0 - fraction) * lower


def _log_likelihood_8_bit(x0, error, log_std):
    """Return the log probability of 8-bit x0 in [-1, 1] under a normal around x0 - error."""
    inverse = jnp.exp(-log_std)
    above = _normal_cdf(inverse * (error + 1.0 / 255.0))
    below = _normal_cdf(inverse * (error - 1.0 / 255.0))
    inside = jnp.log(jnp.maximum(above - below, 1e-12))
    at_start = jnp.log(jnp.maximum(above, 1e-12))
    at_end = jnp.log(jnp.maximum(1.0 - below, 1e-12))
    return jnp.where(x0 < -0.999, at_start, jnp.where(x0 > 0.999, at_end, inside))


def _normal_cdf(x):
    """Approximate the CDF by tanh, as the reference implementations do."""
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


@functools.lru_cache(maxsize=32)
def _tables(process: DDPM) -> Tables:
    scale = 1000 / process.num_steps
    ends = process.beta_start * scale, process.beta_end * scale
    if process.betas == "linear":
        betas = np.linspace(*ends, process.num_steps)
    else:
        betas = np.linspace(ends[0] ** 0.5, ends[1] ** 0.5, process.num_steps) ** 2
    if process.zero_snr:
        root = np.sqrt(np.cumprod(1.0 - betas))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        betas = 1.0 - (root / np.append(1.0, root[:-1])) ** 2
    return make_tables(betas)
