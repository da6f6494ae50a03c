"""The optimiser and its schedule."""

import dataclasses

from xgen_jax.errors import choose

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser, learning rate schedule and gradient clipping.

    Attributes:
      name: `adamw`, or `muon` (arXiv 2502.16982) on kernels with AdamW on all else.
      learning_rate: peak rate; for `muon` that of the kernels.
      adam_learning_rate: for `muon`, peak rate of all other parameters.
      schedule: after the warm-up `constant`, or `cosine` or `linear` down to zero at the run's last
        step.
      warmup_steps: steps in which the rate rises linearly from zero.
      b1, b2: decay of AdamW's first and second moments.
      weight_decay: of AdamW and Muon, decoupled from the gradient; 0 for none.
      clip_norm: global gradient norm, 0 for no clipping.
    """

    name: str = "adamw"
    learning_rate: float = 2e-5
    adam_learning_rate: float = 3e-3
    schedule: str = "constant"
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        choose("optimizer.name", self.name, OPTIMIZERS)
        choose("optimizer.schedule", self.schedule, SCHEDULES)
