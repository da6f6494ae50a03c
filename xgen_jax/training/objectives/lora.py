"""An objective with an adapter for its parameters: these are frozen, and the adapter is what is trained.

    loss(adapter) = the objective's loss at W + alpha / rank * A B         (see `models.lora`)

Gradients, optimiser state, average and checkpoints are the adapter's alone.
"""

import dataclasses

import optax

from xgen_jax.models.lora import LoRAConfig, init_adapter, merge
from xgen_jax.training.objectives.vdit import VDiTObjective
from xgen_jax.training.optimizer import OptimizerConfig, make_optimizer
from xgen_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAObjective:
    """Trains {"lora": an adapter}.

    Attributes:
      base: whose loss it is, of which batches, on which networks.
      frozen: the base's parameters, or their shapes where nothing is computed.
      fingerprint: of these.
    """

    base: VDiTObjective
    lora: LoRAConfig
    frozen: Params
    fingerprint: str = ""

    def __post_init__(self):
        for name in ("arrays", "prepare", "resized"):
            object.__setattr__(self, name, getattr(self.base, name))

    def fingerprints(self) -> dict[str, str]:
        """The base, and what it stands on itself."""
        return {**self.base.fingerprints(), "base": self.fingerprint}

    def init(self, key: Array, arrays) -> Params:
        """An adapter that moves nothing yet."""
        del arrays
        return {"lora": init_adapter(self.lora, self.frozen, key)}

    def averaged(self, params: Params) -> Params:
        """All of it: A and B each, as they are trained."""
        return params

    def optimizer(self, config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
        """One for A and B."""
        return make_optimizer(config, steps)

    def loss(self, params: Params, arrays, keys_B: Array, step: Array, frozen: Params = None):
        """The base's loss and metrics with the adapter at work; no gradient reaches `frozen`."""
        return self.base.loss(merge(frozen, params["lora"], self.lora.scale), arrays, keys_B, step)
