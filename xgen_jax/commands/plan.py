"""Compile a run's train or sampling step for a TPU slice, on any CPU host: does it fit?

Needs libtpu (`pip install xgen_jax[plan]`), which has the TPU compiler and refuses a program that
exceeds a chip's memory. Two processes of a host that load libtpu need ALLOW_MULTIPLE_LIBTPU_LOAD=1
in their environment.
"""

import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.buckets import Bucket, Shape, shape_name
from xgen_jax.data.pipeline import micro_conditions
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoPlan
from xgen_jax.inference.sampling import VideoSampler
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.memory import OUT_OF_MEMORY, program_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh
from xgen_jax.runs.text_encoders import make_conditioner
from xgen_jax.training.compiled import abstract_arguments, jit_update
from xgen_jax.training.state import abstract_state, place
from xgen_jax.training.tasks.lora import LoRATask
from xgen_jax.training.tasks.vdit import VDiTTask, check_buckets
from xgen_jax.typing import Params

# Memory of a device that programs may use, in GiB (2^30 bytes) as in the TPU compiler's messages.
LIMITS_GIB = {
    "TPU v4": 15.25,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.75,
}


def slice_devices(topology: str) -> Sequence[Any]:
    """Return the devices of a TPU slice, without the hardware.

    Args:
      topology: generation and chips along each axis, e.g. "v5p:4x4x4".

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"cannot compile for the slice {topology!r} ({reason}); slices are written v5p:2x2x1, "
            "v5e:4x4, v6e:4x4, and need libtpu: pip install xgen_jax[plan]"
        ) from error


def compile_train_step(
    config: VDiTRun,
    topology: str,
    embedder: VidVAEConfig | REGENConfig,
    bucket: Bucket | None = None,
) -> dict[str, Any]:
    """Compile the train step of one bucket for a slice.

    Args:
      config: of the run; its mesh is laid over the slice.
      topology: see `slice_devices`.
      embedder: on whose latents the run trains.
      bucket: one of the run's; by default the one of most latent cells a batch.

    Returns:
      bucket, batch_size, topology, devices (number), device_kind, parameters (number), peak_bytes
      (of one device; None if the compiler refused and did not say), limit_bytes (None if unknown),
      fits, compile_s; and why, if it does not fit.

    Raises:
      UserError: no such slice, a bucket that the embedder cannot take or the mesh cannot split, no
        libtpu.
    """
    check_buckets(config, embedder.latent_shape)
    mesh = make_mesh(config.mesh, slice_devices(topology))
    bucket = bucket or largest_bucket(config, embedder)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if bucket.batch_size % shards:
        raise UserError(
            f"bucket {bucket.name}: a batch of {bucket.batch_size} over {shards} devices of "
            f"{topology}"
        )
    text = make_conditioner(config, np.dtype(config.loop.compute_dtype))
    task = VDiTTask.on_latents(config, embedder.latent_shape, text)
    row = {
        "latents": np.zeros(
            (1, *embedder.latent_shape(bucket.shape), embedder.latent_channels), np.float32
        ),
        "caption": [""],
        "micro_cond": micro_conditions(*bucket.shape, 8.0)[None],
        "text": np.zeros(
            (1, max(1, config.model.null_caption_tokens), config.model.text_width), np.float32
        ),
        "text_mask": np.ones((1, max(1, config.model.null_caption_tokens)), bool),
    }
    started = time.monotonic()
    with on_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        arrays, sample_id = abstract_arguments(
            task, task.batch_arrays(row), bucket, batch_sharding(mesh)
        )
        frozen = None
        if config.adapter:
            frozen = place(jax.eval_shape(task.init, key, arrays), mesh)
            task = LoRATask(base=task, lora=config.adapter, frozen=frozen)
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
    """Compile a sampling step for a slice: the program that `VideoSampler` runs.

    A batch is split over the devices, each with all parameters of the transformer in float32. The
    condition and the null caption are one batch of the network.

    Args:
      config: of the run.
      topology: see `slice_devices`.
      embedder: whose latents are sampled.
      shape: of a video of one segment, (frames, height, width) in pixels.
      clips: videos at once.
      dtype: of the computation.

    Returns:
      See `compile_train_step`; `bucket` is the shape of a video.

    Raises:
      UserError: no such slice, a shape that the embedder cannot take, a number of videos that
        cannot be split over the devices, no libtpu.
    """
    frames, height, width = shape
    latents = (*embedder.latent_shape(shape), embedder.latent_channels)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), slice_devices(topology))
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
    limit = LIMITS_GIB.get(device.device_kind)
    report = clips | {
        "topology": topology,
        "devices": mesh.size,
        "device_kind": device.device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "limit_bytes": None if limit is None else int(limit * 2**30),
    }
    try:
        peak, why = program_bytes(lowered.compile()), None
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        peak, why = named_bytes(str(error)), str(error).splitlines()[0]
    fits = why is None
    report |= {"peak_bytes": peak, "fits": fits, "compile_s": round(time.monotonic() - started, 1)}
    return report if fits else {**report, "why": why}


def largest_bucket(config: VDiTRun, embedder: VidVAEConfig | REGENConfig) -> Bucket:
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
