"""Tasks, one module a family of networks. `TASKS` is the only dispatch on a run's family."""

from jax.sharding import Mesh

from xgen_jax.config.runs import Run
from xgen_jax.data.sources.base import Source
from xgen_jax.errors import UserError, choose
from xgen_jax.training.tasks.base import Task, TaskFamily
from xgen_jax.training.tasks.regen import REGENTask
from xgen_jax.training.tasks.vdit import VDiTTask
from xgen_jax.training.tasks.vidvae import VidVAETask

TASKS: dict[str, TaskFamily] = {"vidvae": VidVAETask, "regen": REGENTask, "vdit": VDiTTask}


def build_task(config: Run, mesh: Mesh | None, source: Source) -> Task:
    """Build the task of a run; see `TaskFamily.build`.

    Raises:
      UserError: every mistake of the user; also a batch that cannot be divided.
    """
    config.check()
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    for bucket in config.data.buckets:
        if bucket.batch_size % config.loop.accumulate:
            raise UserError(
                f"a batch of {bucket.batch_size} cannot be cut in "
                f"loop.accumulate={config.loop.accumulate} equal parts"
            )
        if bucket.batch_size % shards:
            raise UserError(
                f"bucket {bucket.name}: a batch of {bucket.batch_size} cannot be split equally "
                f"over {shards} devices (mesh.data x mesh.fsdp)"
            )
    return TASKS[choose("objective", config.objective, TASKS)].build(config, mesh, source)
