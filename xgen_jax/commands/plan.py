"""Compile a run's train or sampling step for a TPU slice or a GPU, on any CPU host: does it fit?

For a TPU this needs libtpu (`pip install xgen_jax[plan]`), which has the TPU compiler and refuses a
program that exceeds a chip's memory. Two processes of a host that load libtpu need
ALLOW_MULTIPLE_LIBTPU_LOAD=1 in their environment. For a GPU it needs CUDA's wheels
(`xgen_jax[gpu]`); that compiler refuses nothing, and kernels are not tuned without the device, so
that the workspace of a convolution may be larger there.
"""

import re
import time
from typing import Any

import jax
import numpy as np

from xgen_jax.config.runs import HoldsEmbedder, Run, VDiTRun
from xgen_jax.data.buckets import Bucket, Shape, shape_name
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoPlan
from xgen_jax.inference.sampling import VideoSampler
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.devices import COMPILER_OPTIONS, memory_limit, named_devices
from xgen_jax.parallel.memory import OUT_OF_MEMORY, program_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh
from xgen_jax.runs.text_encoders import make_conditioner
from xgen_jax.training.compiled import abstract_arguments, jit_update
from xgen_jax.training.state import abstract_state, place
from xgen_jax.training.tasks import TASKS
from xgen_jax.typing import Params


def compile_train_step(
    config: Run,
    topology: str,
    embedder: VidVAEConfig | REGENConfig | None = None,
    bucket: Bucket | None = None,
) -> dict[str, Any]:
    """Compile the train step of one bucket.

    Args:
      config: of the run; its mesh is laid over the devices.
      topology: see `parallel.devices.named_devices`.
      embedder: on whose latents a transformer trains; not for a run that trains one.
      bucket: one of the run's; by default the one of most latent cells a batch.

    Returns:
      bucket, batch_size, topology, devices (number), device_kind, parameters (number), peak_bytes
      (of one device; None if the compiler refused and did not say), limit_bytes (None if unknown),
      fits, compile_s; and why, if it does not fit.

    Raises:
      UserError: no such devices, a bucket that the embedder cannot take or the mesh cannot split,
        no compiler.
    """
    mesh = make_mesh(config.mesh, named_devices(topology))
    if isinstance(config, HoldsEmbedder):
        embedder = config.model
    if embedder is None:
        raise UserError(f"a {config.objective} run trains on latents: give the embedder of them")
    bucket = bucket or largest_bucket(config, embedder)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if bucket.batch_size % shards:
        raise UserError(
            f"bucket {bucket.name}: a batch of {bucket.batch_size} over {shards} devices of "
            f"{topology}"
        )
    started = time.monotonic()
    with on_mesh(mesh):
        task, batch = TASKS[config.objective].abstract(config, embedder, bucket)
        arrays, sample_id = abstract_arguments(
            task, task.batch_arrays(batch), bucket, batch_sharding(mesh)
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        frozen = place(task.frozen, mesh)
        optimizer = task.optimizer(config.optimizer, config.loop.steps)
        state, shardings = abstract_state(task, optimizer, mesh, key, arrays)
        update = jit_update(task, optimizer, config.loop, mesh, shardings)
        lowered = update.lower(state, arrays, sample_id, frozen, state.step)
        clips = {"bucket": bucket.name, "batch_size": bucket.batch_size}
        return _report(lowered, mesh, topology, started, clips, state.params)


def compile_denoise_step(
    config: VDiTRun,
    topology: str,
    embedder: VidVAEConfig | REGENConfig,
    shape: Shape,
    clips: int,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Compile a sampling step for named devices: the program that `VideoSampler` runs.

    A batch is split over the devices, each with all parameters of the transformer in float32. The
    condition and the null caption are one batch of the network.

    Args:
      config: of the run.
      topology: see `compile_train_step`.
      embedder: whose latents are sampled.
      shape: of a video of one segment, (frames, height, width) in pixels.
      clips: videos at once.
      dtype: of the computation.

    Returns:
      See `compile_train_step`; `bucket` is the shape of a video.

    Raises:
      UserError: no such devices, a shape that the embedder cannot take, a number of videos that
        cannot be split over the devices, no compiler.
    """
    frames, height, width = shape
    latents = (*embedder.latent_shape(shape), embedder.latent_channels)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), named_devices(topology))
    if clips < 1 or clips % mesh.size:
        raise UserError(f"clips={clips} cannot be split over the {mesh.size} devices of {topology}")
    text = make_conditioner(config, np.dtype(dtype))
    plan = VideoPlan(
        frames=frames,
        height=height,
        width=width,
        fps=config.fps,
        latent_frames=latents[0],
        segment_frames=frames,
        segment_shape=latents,
        overlap=latents[0],
        steps=config.sample_steps,
        guidance_scale=config.guidance_scale,
        sampler=config.sampler,
    )
    sampler = VideoSampler(
        model=VDiT(config.model, np.dtype(dtype)),
        text=text,
        config=config,
        plan=plan,
        batch_size=clips,
        mesh=mesh,
    )
    params = {
        "vdit": abstract_variables(config.model, embedder.latent_channels),
        **jax.eval_shape(text.init, jax.random.key(0), sampler.null_captions()),
    }
    started = time.monotonic()
    lowered = sampler.lower_step(params)
    videos = {"bucket": shape_name(shape), "batch_size": clips}
    return _report(lowered, mesh, topology, started, videos, params["vdit"])


def _report(
    lowered, mesh, topology: str, started: float, clips: dict[str, Any], params: Params
) -> dict[str, Any]:
    """Compile, and return what `compile_train_step` does."""
    device = mesh.devices.flat[0]
    limit, options = memory_limit(device), COMPILER_OPTIONS.get(device.platform)
    report = clips | {
        "topology": topology,
        "devices": mesh.size,
        "device_kind": device.device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "limit_bytes": limit,
    }
    try:
        peak, why = program_bytes(lowered.compile(options)), None
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        peak, why = named_bytes(str(error)), str(error).splitlines()[0]
    if why is None and peak is not None and limit is not None and peak > limit:
        why = f"it needs {peak / 2**30:.2f} GiB, and programs may use {limit / 2**30:.2f} GiB"
    fits = why is None
    report |= {"peak_bytes": peak, "fits": fits, "compile_s": round(time.monotonic() - started, 1)}
    return report if fits else {**report, "why": why}


def largest_bucket(config: Run, embedder: VidVAEConfig | REGENConfig) -> Bucket:
    """Return the trained bucket with most latent cells a batch; of equal ones, that of the longest
    clips."""

    def cells(bucket):
        return bucket.batch_size * int(np.prod(embedder.latent_shape(bucket.shape))), bucket.frames

    return max((bucket for bucket in config.data.buckets if bucket.keep_prob), key=cells)


def named_bytes(message: str) -> int | None:
    """Read the bytes needed from a compiler's refusal, "Used 16.51G of 15.75G hbm", in GiB; None if
    there are none."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT])", message)
    return (
        int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]])
        if found
        else None
    )
