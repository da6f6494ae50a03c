"""The terms of each family's loss, and their weights."""

import dataclasses
from typing import TYPE_CHECKING

from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.diffusion.config import DISTRIBUTIONS, PREDICTIONS, PROCESS_NAMES, FrameMaskConfig
from xgen_jax.errors import UserError, choose
from xgen_jax.models.regen_config import WINDOWS
from xgen_jax.models.vidvae_config import DiscriminatorConfig

# Names of types alone, and imports in functions: a mistake in a key is reported before jax loads.
if TYPE_CHECKING:
    from xgen_jax.diffusion.process import Process
    from xgen_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """What the discriminator is and how much it says.

    Attributes:
      weight: of the generator's adversarial loss; 0 for no discriminator at all.
      start_step: updates before the discriminator sets in, its training and its optimiser's
        schedule included.
      adaptive: whether the weight follows the ratio of the gradients at the last convolution.
      clamp: that ratio's upper bound.
      r1: weight of the penalty on the discriminator's gradient at real clips (arXiv 1801.04406,
        equation 9), here the mean over the values of a clip of the squared gradient of its summed
        logits; 0 for none. It costs a second derivative of the discriminator.
      discriminator: its sizes.
      optimizer: its own; it is clipped by itself, too.
    """

    weight: float = 0.0
    start_step: int = 0
    adaptive: bool = True
    clamp: float = 1e4
    r1: float = 0.0
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, warmup_steps=0, b1=0.5, b2=0.9)

    def __post_init__(self):
        for name in ("weight", "start_step", "clamp", "r1"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"loss.adversarial.{name} must be 0 or more, not {getattr(self, name)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAELossConfig:
    """Weights of the terms, each a mean over its values with video in [-1, 1]; LPIPS is a mean over
    frames.

    Attributes:
      l1, l2, gradient, chroma, lpips, kl: the weights; see `training.tasks.vidvae`.
      lpips_weights: safetensors of LPIPS with VGG16, as FILE or TRUNK,HEADS; needed unless `lpips`
        is 0.
      adversarial: off by default.
    """

    l1: float = 1.0
    l2: float = 0.0
    gradient: float = 0.0
    chroma: float = 0.0
    lpips: float = 1.0
    lpips_weights: str | None = None
    kl: float = 1e-6
    adversarial: AdversarialConfig = AdversarialConfig()

    def __post_init__(self):
        for name in ("l1", "l2", "gradient", "chroma", "lpips", "kl"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name} must be 0 or more, not {getattr(self, name)}")


WEIGHTINGS = ("uniform", "velocity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENLossConfig:
    """The decoder's diffusion loss, and the weights of further terms.

    Each term is a mean over values of video in [-1, 1].

    Attributes:
      process: `flow` or `ddpm`, see `diffusion.processes`; no variance is learned.
      prediction: `x0`, `eps` (the paper's; only with `ddpm`), `v` or `velocity`.
      weighting, weight_limit: `uniform`: the squared error of the prediction; `velocity`, for x0:
        that of the velocity it implies, at most `weight_limit` times the uniform one.
      time_distribution, time_shift: of training times, see `diffusion.time.sample_times`.
      one_step_fraction: fraction of chunks at exactly t = 1, where one-step decoding begins; 0 is
        the paper's.
      windows: frames that are denoised together: `chunk`, each chunk by itself; or `shifted`,
        windows of a chunk's length that begin up to half a chunk before or after it and are
        conditioned on both chunks, as in decoding across borders (`models.regen_windows`). Clips of
        one chunk are not shifted.
      kl: weight of KL(q(z|x) || N(0, 1)); at 0 (the paper names none) latents are the posterior's
        mean.
      motion: weight of the squared error of frame differences.
      gradient: weight of the absolute error of differences of neighbouring pixels.
      lpips: weight of LPIPS of the predicted x0, a mean over frames.
      lpips_weights: see `VidVAELossConfig`.
      consistency: weight of the distance between x0 predicted at t = 1 and at the training time.
    """

    process: str = "flow"
    prediction: str = "x0"
    weighting: str = "uniform"
    weight_limit: float = 25.0
    time_distribution: str = "uniform"
    time_shift: float = 1.0
    one_step_fraction: float = 0.0
    windows: str = "chunk"
    kl: float = 0.0
    motion: float = 0.0
    gradient: float = 0.0
    lpips: float = 0.0
    lpips_weights: str | None = None
    consistency: float = 0.0

    def __post_init__(self):
        if self.process == "flow" and self.prediction == "eps":
            raise UserError(
                "loss.prediction='eps' with loss.process='flow' cannot be decoded: at t = 1 eps "
                "does not determine the data. Choose 'x0' or 'velocity', or loss.process='ddpm'"
            )
        choose("process", self.process, PROCESS_NAMES)
        choose("prediction", self.prediction, PREDICTIONS)
        choose("loss.weighting", self.weighting, WEIGHTINGS)
        choose("loss.windows", self.windows, WINDOWS)
        choose("loss.time_distribution", self.time_distribution, DISTRIBUTIONS)
        for name in ("kl", "motion", "gradient", "lpips", "consistency"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.one_step_fraction <= 1:
            raise UserError(
                f"loss.one_step_fraction must be in [0, 1], not {self.one_step_fraction}"
            )
        if self.weighting == "velocity" and self.prediction != "x0":
            raise UserError(
                f"loss.weighting='velocity' is for prediction='x0', not {self.prediction!r}"
            )
        if self.weight_limit < 1:
            raise UserError(f"loss.weight_limit must be 1 or more, not {self.weight_limit}")

    def make_process(self) -> "Process":
        """Make the process that corrupts the frames, in training and in decoding.

        Raises:
          UserError: an unknown process or prediction.
        """
        from xgen_jax.diffusion.processes import make_process

        options = {"learned_variance": False} if self.process == "ddpm" else {}
        return make_process(self.process, prediction=self.prediction, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTLossConfig:
    """How clips are noised and captions dropped.

    Attributes:
      process: `flow` or `ddpm`, see `diffusion.processes`; the model's configuration says whether a
        variance is learned.
      cond_drop_prob: fraction of samples whose caption is replaced by the null caption.
      time_distribution: `uniform` or `logit_normal`.
      time_shift: see `diffusion.time.shift`; sampling uses the same.
      shift_by_size: multiply the shift by `diffusion.time.shift_ratio` of a clip's size and length.
      frame_masks: how often which frames of a clip are its condition.
    """

    process: str = "flow"
    cond_drop_prob: float = 0.1
    time_distribution: str = "logit_normal"
    time_shift: float = 1.0
    shift_by_size: bool = False
    frame_masks: FrameMaskConfig = FrameMaskConfig()

    def __post_init__(self):
        choose("process", self.process, PROCESS_NAMES)
        choose("loss.time_distribution", self.time_distribution, DISTRIBUTIONS)

    def make_process(self, learned_variance: bool = False) -> "Process":
        """Make the process; UserError for an unknown one, or one without a variance to learn."""
        from xgen_jax.diffusion.processes import make_process

        return make_process(self.process, learned_variance=learned_variance)

    def time_ratio(
        self, height_px: "float | Array", width_px: "float | Array", latent_frames: int
    ) -> "float | Array":
        """Return the ratio of `diffusion.time.shift` for a clip, in training and in sampling."""
        if not self.shift_by_size:
            return self.time_shift
        from xgen_jax.diffusion.time import shift_ratio

        return shift_ratio(height_px, width_px, latent_frames, scale=self.time_shift)
