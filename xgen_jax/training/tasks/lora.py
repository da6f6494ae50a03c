"""An objective with an adapter for its parameters: these are frozen, and the adapter is what is
trained.

    loss(adapter) = the objective's loss at W + alpha / rank * A B         (see `models.lora`)

Gradients, optimiser state, average and checkpoints are the adapter's alone.
"""

import dataclasses
from typing import Any

import optax

from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import RunConfig, VDiTRun, differing_keys
from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import EXECUTION, fingerprint
from xgen_jax.models.lora import LoRAConfig, adapter_shapes, init_adapter, merge
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.warm_start import starting_params
from xgen_jax.training.optimizer import make_optimizer
from xgen_jax.training.tasks.vdit import VDiTObjective
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


def adapted(config: VDiTRun, objective: VDiTObjective) -> LoRAObjective:
    """The objective of a run with `lora`, its base loaded.

    Raises:
      UserError: no such base, one that has an adapter itself, or one of another network or text
      encoder than the run's.
    """
    where, other = f"init_from={config.init_from}", RunFolder(config.init_from).config()
    if getattr(other, "lora", None):
        raise UserError(
            f"{where} holds an adapter; make a base of it with launch/convert.py --kind=lora"
        )
    # Converted weights have no text encoder: any will do that fits.
    parts = [part for part in ("model", "text") if hasattr(other, part)]
    if differing := differing_keys(_parts(other, parts), _parts(config, parts)):
        listed = "\n  ".join(differing)
        raise UserError(f"{where} is no base for this run (there -> here):\n  {listed}")
    base = starting_params(config)
    if config.text.trained and "text" not in base:
        raise UserError(
            f"{where} holds no text encoder, and text.kind='bytes' is trained along: give a vdit run"
        )
    adapter_shapes(
        config.lora, base
    )  # a rule or a rank that does not fit is told before anything is made
    return LoRAObjective(
        base=objective, lora=config.lora, frozen=base, fingerprint=fingerprint(config.model, base)
    )


def _parts(config: RunConfig, names: list[str]) -> dict[str, Any]:
    """Parts of a configuration, but how they are computed."""
    parts = {name: dataclasses.asdict(getattr(config, name)) for name in names}
    return {
        name: {k: v for k, v in part.items() if k not in EXECUTION} for name, part in parts.items()
    }
