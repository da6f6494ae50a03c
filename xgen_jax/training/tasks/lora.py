"""LoRA's task wraps another task: its parameters are frozen, and an adapter of them is trained.

    loss(adapter) = the task's loss at W + alpha / rank * A B         (see `models.lora`)

Gradients, optimiser state, EMA and checkpoints are those of the adapter only.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xgen_jax.config.changes import differing_keys
from xgen_jax.config.runs import (
    HoldsTransformer,
    Run,
    VDiTRun,
    VDiTWeights,
    Weights,
    to_dict,
)
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import Batch, Pipeline
from xgen_jax.errors import UserError
from xgen_jax.files import refuse_differences
from xgen_jax.models.fingerprint import EXECUTION, fingerprint
from xgen_jax.models.lora import adapter_shapes, init_adapter, merge
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.runs.adapters import store_adapter
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.load import TRANSFORMER
from xgen_jax.training.tasks.base import Arrays, Metrics, Task, Work
from xgen_jax.typing import Array, Params, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRATask(Task):
    """Train {"lora": an adapter}.

    Attributes:
      base: the wrapped task, whose batches, networks and loss are used.
      lora: rank, scale and rules of the adapter.
      frozen: the base's parameters; shapes are enough if nothing is computed.
      fingerprint: of the base's parameters.
    """

    base: Task
    lora: LoRAConfig
    frozen: Params
    fingerprint: str = ""

    @classmethod
    def around(cls, base: Task, config: VDiTRun) -> "LoRATask":
        """Wrap the task of a run with `lora`: load the base's parameters and check them.

        Raises:
          UserError: no such base, one that has an adapter itself, or one of another network,
            embedder or text encoder than the run's.
        """
        lora = config.lora
        assert lora is not None and config.init_from is not None
        where, folder = f"init_from={config.init_from}", RunFolder(config.init_from)
        other = folder.expect(HoldsTransformer, TRANSFORMER)
        assert isinstance(other, (VDiTRun, VDiTWeights))  # what holds a transformer
        if other.adapter:
            raise UserError(
                f"{where} holds an adapter; make a base of it with launch/convert.py --kind=lora"
            )
        # Converted weights have no text encoder: any that fits is accepted.
        shared = [name for name in ("model", "text") if name in to_dict(other)]
        differing = differing_keys(*(_networks(each, shared) for each in (other, config)))
        refuse_differences(
            differing, f"{where} does not fit this run", "give the base's own model and text"
        )
        params = base.warm_start(config)
        assert params is not None
        if config.text.trained and "text" not in params:
            raise UserError(
                f"{where} holds no text encoder, and text.kind={config.text.kind!r} is trained "
                "along: give a vdit run"
            )
        adapter_shapes(lora, params)  # refuses a rule or a rank that does not fit
        mark = fingerprint(config.model, params)
        return cls(base=base, lora=lora, frozen=params, fingerprint=mark)

    def fingerprints(self) -> dict[str, str]:
        """Return fingerprints of the base, and of the frozen networks that the base itself uses."""
        return {**self.base.fingerprints(), "base": self.fingerprint}

    def check_mesh(self, mesh: Mapping[str, int], bucket: Bucket) -> None:
        """Check what the base does."""
        self.base.check_mesh(mesh, bucket)

    def batch_arrays(self, batch: Batch) -> Arrays:
        """Make the base's arrays."""
        return self.base.batch_arrays(batch)

    def prepare(self, arrays: Arrays) -> Arrays:
        """Prepare arrays as the base does."""
        return self.base.prepare(arrays)

    def abstract_batch(self, arrays: Arrays, bucket: Bucket) -> Arrays:
        """Return the shapes of the base's arrays."""
        return self.base.abstract_batch(arrays, bucket)

    def work(self, bucket: Bucket) -> Work:
        """Return the base's work: the adapter is merged into the kernels, and gradients pass
        through the whole network."""
        return self.base.work(bucket)

    def init(self, key: Array, arrays: Arrays) -> Params:
        """Initialise an adapter that changes nothing yet."""
        del arrays
        return {"lora": init_adapter(self.lora, self.frozen, key)}

    def loss(
        self,
        params: Params,
        arrays: Arrays,
        keys_B: Array,
        step: Array | np.int32,
        frozen: Params = None,
    ) -> tuple[Array, Metrics]:
        """Compute the base's loss with the adapter merged; no gradient reaches `frozen`."""
        return self.base.loss(self._merged(params, frozen), arrays, keys_B, step)

    def evaluate(
        self, params: Params, arrays: Arrays, keys_B: Array, frozen: Params = None
    ) -> Metrics:
        """Evaluate the base with the adapter merged."""
        return self.base.evaluate(self._merged(params, frozen), arrays, keys_B)

    def preview(self, params: Params, arrays: Arrays, batch: Batch) -> Video | None:
        """Make the base's preview with the adapter merged."""
        return self.base.preview(jax.jit(self._merged)(params, self.frozen), arrays, batch)

    @property
    def samples_prompts(self) -> bool:
        """Whether the base does."""
        return self.base.samples_prompts

    def generate(self, params: Params, arrays: Arrays, prompts: Sequence[str]) -> Iterator[Video]:
        """Yield the base's videos with the adapter merged."""
        return self.base.generate(jax.jit(self._merged)(params, self.frozen), arrays, prompts)

    def finish(self, run: RunFolder, params: Params, pipeline: Pipeline, trained: bool) -> None:
        """Write the adapter as a file of its own, next to the checkpoints."""
        store_adapter(run)

    def _merged(self, params: Params, frozen: Params) -> Params:
        return merge(frozen, params["lora"], self.lora.scale)


def _networks(config: Run | Weights, names: list[str]) -> dict[str, Any]:
    """Return parts of a configuration, without the keys that set how they are computed."""
    values = to_dict(config)
    return {name: {k: v for k, v in values[name].items() if k not in EXECUTION} for name in names}
