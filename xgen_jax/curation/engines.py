"""How the shards of a stage are worked on: one after another, with Ray, or over an array of jobs.

A task is a function of a shard that writes what it makes, whole or not at all, and returns a small
value. So an engine may run a task anywhere, twice, or kill it; what is missing is done again.
"""

import abc
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from xgen_jax.curation.store import SourceShard
from xgen_jax.errors import UserError, choose

T = TypeVar("T")
Done = tuple[SourceShard, T]

ENGINES = ("inline", "ray", "array")
# (index, count) of a job in an array: Slurm, Kubernetes' indexed jobs (GKE), Cloud Run and Batch.
_ARRAY_VARIABLES = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    ("CLOUD_RUN_TASK_INDEX", "CLOUD_RUN_TASK_COUNT"),
    ("BATCH_TASK_INDEX", "BATCH_TASK_COUNT"),
)
_RETRIES = 3  # of a Ray task whose process or machine died


class Engine(abc.ABC):
    """Runs a function of a shard over shards.

    Attributes:
      jobs: processes that work on the same curation.
      first: whether this one of them writes what all shards have in common.
    """

    jobs = 1
    first = True

    @property
    def alone(self) -> bool:
        """Whether no other process works on the same curation."""
        return self.jobs == 1

    def mine(self, shards: Sequence[SourceShard]) -> list[SourceShard]:
        """Return the shards that are this process's to work on."""
        return list(shards)

    def share(self, count: int) -> int:
        """Return this process's share of what all may spend."""
        return count

    @abc.abstractmethod
    def map(
        self, function: Callable[..., T], shards: Sequence[SourceShard], *arguments: Any
    ) -> Iterator[Done[T]]:
        """Yield (shard, `function(shard, *arguments)`) as they are done, in any order."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the engine holds."""


class Inline(Engine):
    """One shard after another, in this process."""

    def map(
        self, function: Callable[..., T], shards: Sequence[SourceShard], *arguments: Any
    ) -> Iterator[Done[T]]:
        """See `Engine.map`."""
        for shard in self.mine(shards):
            yield shard, function(shard, *arguments)

    def close(self) -> None:
        """Do nothing: it holds nothing."""


class Array(Inline):
    """This job's part of the shards, of an array of jobs that share the folder.

    Args:
      index, count: of this job, and of the jobs; None for what the scheduler's variables say.

    Raises:
      UserError: neither flags nor variables say it, or they contradict each other.
    """

    def __init__(self, index: int | None, count: int | None):
        if (index is None) != (count is None):
            raise UserError("give both --task_index and --task_count")
        if index is None or count is None:
            index, count = _from_environment(os.environ)
        if not 0 <= index < count:
            raise UserError(f"--task_index={index} must be in 0 .. {count - 1} (--task_count)")
        self.index, self.jobs, self.first = index, count, index == 0

    def mine(self, shards: Sequence[SourceShard]) -> list[SourceShard]:
        """See `Engine.mine`."""
        return [shard for shard in shards if shard.number % self.jobs == self.index]

    def share(self, count: int) -> int:
        """See `Engine.share`."""
        return count // self.jobs + (self.index < count % self.jobs)


def _from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    for index, count in _ARRAY_VARIABLES:
        if index in environment and count in environment:
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0)) if "SLURM" in index else 0
            return int(environment[index]) - first, int(environment[count])
    raise UserError(
        "--engine=array needs --task_index and --task_count; none of "
        f"{', '.join(index for index, _ in _ARRAY_VARIABLES)} is set"
    )


class Ray(Engine):
    """Ray tasks, on this machine or a cluster.

    Args:
      address: of a running cluster; None starts Ray on this machine.

    Raises:
      UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str | None):
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine=ray needs Ray: pip install 'xgen_jax[ray]'") from error
        self._ray = ray
        # Tasks import the package of this process.
        paths = [str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray_address={address}: no Ray cluster answers ({error})") from error

    def map(
        self, function: Callable[..., T], shards: Sequence[SourceShard], *arguments: Any
    ) -> Iterator[Done[T]]:
        """See `Engine.map`."""
        ray = self._ray
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(function)
        shared = [ray.put(argument) for argument in arguments]
        # Only as many as can run and a few, so that a driver with a million shards stays small.
        waiting = list(reversed(shards))
        most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        running: dict[Any, SourceShard] = {}
        while waiting or running:
            while waiting and len(running) < most:
                shard = waiting.pop()
                running[remote.remote(shard, *shared)] = shard
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                yield running.pop(reference), self._value(reference)

    def _value(self, reference: Any) -> Any:
        ray = self._ray
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.WorkerCrashedError as error:
            raise UserError(
                f"a Ray worker died {_RETRIES + 1} times at the same shard; run again, or with "
                "--engine=inline"
            ) from error

    def close(self) -> None:
        """Leave the cluster, or stop Ray where it was started here."""
        self._ray.shutdown()


def make_engine(
    name: str, task_index: int | None, task_count: int | None, ray_address: str | None
) -> Engine:
    """Make an engine by its name.

    Raises:
      UserError: another name, or an engine that cannot be used; see the classes.
    """
    choose("--engine", name, ENGINES)
    if name != "array" and (task_index is not None or task_count is not None):
        raise UserError(f"--task_index and --task_count are for --engine=array, not {name}")
    if name != "ray" and ray_address is not None:
        raise UserError(f"--ray_address is for --engine=ray, not {name}")
    if name == "inline":
        return Inline()
    return Array(task_index, task_count) if name == "array" else Ray(ray_address)
