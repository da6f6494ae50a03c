"""Tasks, one module a family of networks. `TASKS` is the only dispatch on a run's family."""

from collections.abc import Mapping

from jax.sharding import Mesh

from xgen_jax.config.runs import Run
from xgen_jax.data.buckets import Bucket
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
      UserError: every mistake of the user; also a batch or a clip that the mesh cannot divide.
    """
    config.check()
    for bucket in config.data.buckets:
        check_batch(config, {} if mesh is None else mesh.shape, bucket)
    task = TASKS[choose("objective", config.objective, TASKS)].build(config, mesh, source)
    if mesh is not None:
        for bucket in config.data.buckets:
            check_clips(task, mesh.shape, bucket)
    return task


def check_batch(config: Run, mesh: Mapping[str, int], bucket: Bucket) -> None:
    """Raise UserError for a bucket whose batch cannot be divided equally: over the devices of a
    mesh, sizes by axis, or into the parts of `loop.accumulate`."""
    accumulate = config.loop.accumulate
    if bucket.batch_size % accumulate:
        raise UserError(
            f"bucket {bucket.name}: a batch of {bucket.batch_size} cannot be cut in "
            f"loop.accumulate={accumulate} equal parts"
        )
    data, fsdp = mesh.get("data", 1), mesh.get("fsdp", 1)
    parts = accumulate * data * fsdp
    if left := bucket.batch_size % parts:
        below = bucket.batch_size - left
        nearest = " or ".join(str(n) for n in (below, below + parts) if n)
        times = f" x loop.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"bucket {bucket.name}: a batch of {bucket.batch_size} cannot be split equally over "
            f"{data * fsdp} devices (mesh.data={data} x mesh.fsdp={fsdp}){times}; give a "
            f"batch_size of {nearest}, or other sizes as --config.mesh.data= and "
            "--config.mesh.fsdp="
        )


def check_clips(task: Task, mesh: Mapping[str, int], bucket: Bucket) -> None:
    """Raise UserError, with the bucket's name, for clips that a mesh cannot divide."""
    try:
        task.check_mesh(mesh, bucket)
    except UserError as error:
        raise UserError(f"bucket {bucket.name}: {error}") from error
