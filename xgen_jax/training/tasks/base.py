"""The protocol of the training loop: a task is what a run trains.

A task holds the networks of a run and their loss, and knows nothing of steps, checkpoints or the
optimiser's state. A new family of networks is a model file, a configuration class, a task and a
line in `training.tasks.TASKS`.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import Run
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import Batch, Pipeline
from xgen_jax.data.sources.base import Source
from xgen_jax.parallel.arrays import put_rows
from xgen_jax.runs.folder import RunFolder
from xgen_jax.training.optimizer import make_optimizer
from xgen_jax.typing import Array, Params, Video

Arrays = dict[str, Any]  # (nested) arrays of a batch, samples along the first dimension
Metrics = dict[str, Array]  # float32 scalars by name


class Work(NamedTuple):
    """What a training step of a bucket does, on all devices together.

    Attributes:
      unit: of `count`, "tokens" that a transformer works on or "frames" of an embedder.
      count: of a batch.
      cells: positions of the batch that the network works on: tokens, or pixels. The step with most
        of them is taken for the one that needs most memory.
      flops: useful operations, see `models.flops`; None of an embedder without a formula.
    """

    unit: str
    count: int
    cells: int
    flops: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """The networks of a run, their loss, and what is computed before and after it.

    Parameters are a dict of sub-trees by name, e.g. {"vdit": ..., "text": ...}.

    Attributes:
      frozen: parameters that `loss` reads and nothing trains. They are an argument of the compiled
        step: closed over, they would be constants of every program.
    """

    frozen: Params = None

    def fingerprints(self) -> dict[str, str]:
        """Return fingerprints of the frozen networks by name; a run is resumed with the same."""
        return {}

    @abc.abstractmethod
    def batch_arrays(self, batch: Batch) -> Arrays:
        """Make, on the host, the arrays of a batch that the device needs; see `batches_compute`."""

    def check_mesh(self, mesh: Mapping[str, int], bucket: Bucket) -> None:
        """Raise UserError for a mesh, sizes by axis, whose devices cannot share a bucket's clips.

        Its batch has been checked.
        """
        del mesh, bucket

    def prepare(self, arrays: Arrays) -> Arrays:
        """Compute, on the device, the part of the step that needs frozen networks only."""
        return arrays

    def put(self, batch: Batch, sharding: NamedSharding) -> tuple[Arrays, Array]:
        """Put this process's part of a batch on the devices: (arrays, sample ids)."""
        arrays = {**self.batch_arrays(batch), "sample_id": batch["sample_id"].astype(np.uint32)}
        arrays = put_rows(arrays, sharding)
        return arrays, arrays.pop("sample_id")

    def for_step(self, arrays: Arrays, sharding: NamedSharding) -> Arrays:
        """`prepare` arrays that were `put`, as a compiled step takes them."""

        def placed(array: Array) -> Array:
            # A compiled step takes its arguments with these shardings only.
            return array if array.sharding == sharding else jax.device_put(array, sharding)

        return jax.tree.map(placed, self.prepare(arrays))

    def to_device(self, batch: Batch, sharding: NamedSharding) -> tuple[Arrays, Array]:
        """Put a batch on the devices and prepare it: (prepared arrays, sample ids)."""
        arrays, sample_id = self.put(batch, sharding)
        return self.for_step(arrays, sharding), sample_id

    @property
    def batches_compute(self) -> bool:
        """Whether `batch_arrays` runs a network on the devices: then `put` must be called where
        steps are dispatched, and not next to them in a thread; see `Ahead`."""
        return False

    @abc.abstractmethod
    def abstract_batch(self, arrays: Arrays, bucket: Bucket) -> Arrays:
        """Return the shapes of the prepared arrays of a bucket, given those of any other."""

    @abc.abstractmethod
    def work(self, bucket: Bucket) -> Work:
        """Return what a training step of a bucket does, `prepare` included."""

    @abc.abstractmethod
    def init(self, key: Array, arrays: Arrays) -> Params:
        """Initialise the trained parameters for prepared arrays of any bucket."""

    def warm_start(self, config: Any) -> Params | None:
        """Load the sub-trees, on the host, that replace the initial ones; None for none.

        Raises:
          UserError: `config.init_from` holds another network.
        """
        del config
        return None

    @abc.abstractmethod
    def loss(
        self,
        params: Params,
        arrays: Arrays,
        keys_B: Array,
        step: Array | np.int32,
        frozen: Params = None,
    ) -> tuple[Array, Metrics]:
        """Compute the scalar loss of a batch, a mean over its samples, and metrics.

        Args:
          params: all that is trained.
          arrays: prepared.
          keys_B: one PRNG key a sample, so that a sample's noise depends on seed, step and sample
            alone, neither on the batch nor on the number of devices.
          step: updates made so far, int32.
          frozen: the task's `frozen`.
        """

    def may_grow(self, name: str) -> bool:
        """Return whether an array of the state, by its path, may get more rows when a run goes on
        with a changed configuration; the new ones are those of a new run."""
        del name
        return False

    def ema_params(self, params: Params) -> Params:
        """Select the sub-trees that have an exponential moving average (EMA); only it is used after
        training."""
        return params

    def optimizer(self, config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
        """Make the optimiser for a run of `steps`."""
        return make_optimizer(config, steps)

    def evaluate(
        self, params: Params, arrays: Arrays, keys_B: Array, frozen: Params = None
    ) -> Metrics:
        """Compute the loss and the figures of a held-out batch.

        Args:
          params: EMA parameters.
          arrays, keys_B, frozen: see `loss`.
        """
        loss, metrics = self.loss(params, arrays, keys_B, np.int32(0), frozen)
        return {"loss": loss, **metrics}

    def preview(self, params: Params, arrays: Arrays, batch: Batch) -> Video | None:
        """Make a video to look at, uint8 (T, H, W, 3): reconstructions or samples; None for none.

        Args:
          params: EMA parameters.
          arrays: a prepared held-out batch.
          batch: the same batch on the host.
        """
        del params, arrays, batch
        return None

    @property
    def samples_prompts(self) -> bool:
        """Whether `generate` makes videos of any prompt, with what the task has loaded."""
        return False

    def generate(self, params: Params, arrays: Arrays, prompts: Sequence[str]) -> Iterator[Video]:
        """Yield a video for each prompt, uint8 (T, H, W, 3), with the run's defaults of sampling
        and the same noise in every call.

        Args:
          params: EMA parameters.
          arrays: a prepared held-out batch, whose size and micro-conditions the videos get; as many
            are sampled at once as it has clips.
          prompts: one or more.
        """
        del params, arrays, prompts
        raise NotImplementedError(f"{type(self).__name__} samples no prompts")

    def finish(self, run: RunFolder, params: Params, pipeline: Pipeline, trained: bool) -> None:
        """Write the results of a finished run besides its checkpoints.

        Args:
          run: its folder, with the last checkpoint in it.
          params: EMA parameters.
          pipeline: of the clips trained on.
          trained: False if the run had ended before, so that existing results may stay.
        """
        del run, params, pipeline, trained


class TaskFamily(Protocol):
    """What `training.tasks.TASKS` holds: a task's class, which builds itself for a run.

    Attributes:
      config_class: the configuration class of the family's runs.
    """

    @property
    def config_class(self) -> type[Run]: ...

    def build(self, config: Any, mesh: Mesh | None, source: Source) -> Task:
        """Load the frozen networks and check the configuration against them and the data.

        Args:
          config: of `config_class`.
          mesh: where frozen networks are put; None leaves them on the default device.
          source: the clips that will be trained on.

        Raises:
          UserError: every mistake of the user, before anything is trained or written.
        """
        ...

    def abstract(self, config: Any, embedder: Any, bucket: Bucket) -> tuple[Task, Batch]:
        """Make a run's task and a batch of one clip from shapes alone, to compile its step.

        Nothing is loaded: frozen parameters are shapes.

        Args:
          config: of `config_class`.
          embedder: configuration of the network on whose latents a transformer trains; None for
            others.
          bucket: of the clip.

        Raises:
          UserError: a bucket that the networks cannot take.
        """
        ...


def resize_batch(arrays: Arrays, bucket: Bucket) -> Arrays:
    """Return the shapes of arrays with another bucket's batch size."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((bucket.batch_size, *x.shape[1:]), x.dtype), arrays
    )
