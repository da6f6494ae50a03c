"""What configurations choose of diffusion, by names and by numbers; jax is not loaded here.

The tables of what the names stand for are next to the code: `processes.PROCESSES`,
`samplers.SOLVERS`.
"""

import dataclasses

from xgen_jax.errors import UserError

PROCESS_NAMES = ("flow", "ddpm")
PREDICTIONS = ("x0", "eps", "v", "velocity")
# Of training times, see `diffusion.time.sample_times`.
DISTRIBUTIONS = ("uniform", "logit_normal")
# Of the frames that are a clip's condition, see `diffusion.frame_masks`.
KINDS = ("none", "quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail")
KINDS += ("image_random", "image_head", "image_tail", "image_head_tail")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMaskConfig:
    """Fractions of clips, which add up to 1, by the frames that are their condition.

    Attributes:
      none: no frame.
      quarter_random, quarter_head, quarter_tail, quarter_head_tail: 1 to a quarter of the frames:
        at a random place, at the head, at the tail, or as many at each end.
      image_random, image_head, image_tail, image_head_tail: a single frame there.
    """

    none: float = 1.0
    quarter_random: float = 0.0
    quarter_head: float = 0.0
    quarter_tail: float = 0.0
    quarter_head_tail: float = 0.0
    image_random: float = 0.0
    image_head: float = 0.0
    image_tail: float = 0.0
    image_head_tail: float = 0.0

    def __post_init__(self):
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1.0) > 1e-6:
            listed = ", ".join(
                f"{kind} {fraction}" for kind, fraction in zip(KINDS, self.fractions)
            )
            raise UserError(
                f"the fractions of frame masks must be 0 or more and add up to 1: {listed}"
            )

    @property
    def fractions(self) -> tuple[float, ...]:
        """Return the fractions in the order of `KINDS`."""
        return tuple(getattr(self, kind) for kind in KINDS)


OPEN_SORA = FrameMaskConfig(
    none=0.75,
    quarter_random=0.025,
    quarter_head=0.025,
    quarter_tail=0.025,
    quarter_head_tail=0.05,
    image_random=0.025,
    image_head=0.025,
    image_tail=0.025,
    image_head_tail=0.05,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Variants of guidance; the scale itself is an argument of `guided`.

    Attributes:
      channels: number of channels of the prediction, from the first, that are guided; the others
        are the conditional prediction's (Open-Sora 1.1 guides 3 of 4). None guides all. A learned
        variance is never guided.
      interval: times (from, to] that are guided (arXiv 2404.07724); outside, only the condition is
        evaluated, at half the cost.
      zero_star: scale the null prediction to fit the condition's best before guiding (arXiv
      2503.18886, section 3.1).
      zero_steps: number of first steps whose velocity is set to zero (section 3.2 there). For
        rectified flow.
    """

    channels: int | None = None
    interval: tuple[float, float] | None = None
    zero_star: bool = False
    zero_steps: int = 0

    def __post_init__(self):
        if self.channels is not None and self.channels < 1:
            raise UserError(f"guidance channels={self.channels} must be 1 or more, or None for all")
        if self.interval is not None and not 0.0 <= self.interval[0] < self.interval[1] <= 1.0:
            raise UserError(
                f"guidance interval={self.interval} must be two rising times within 0 .. 1"
            )
        if self.zero_steps < 0:
            raise UserError(f"zero_steps={self.zero_steps} must be 0 or more")

    def check(self, prediction: str) -> None:
        """Raise UserError for guidance that a process of this kind of prediction cannot do."""
        if self.zero_steps and prediction != "velocity":
            raise UserError(
                f"zero_steps={self.zero_steps} is for velocities, and this process predicts "
                f"{prediction}"
            )


PLAIN_GUIDANCE = GuidanceConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Options of the time grids that diffusers' schedulers make, under their names there.

    Attributes:
      steps_offset: added to each step of a `leading` spacing; 1 in Stable Diffusion's schedulers.
      set_alpha_to_one: the last step of a `ddim_` spacing ends on data; False ends on the noise
        level of step 0, as Stable Diffusion's do.
    """

    steps_offset: int = 0
    set_alpha_to_one: bool = True

    def __post_init__(self):
        if self.steps_offset < 0:
            raise UserError(f"steps_offset={self.steps_offset} must be 0 or more")


PLAIN_GRID = GridConfig()
