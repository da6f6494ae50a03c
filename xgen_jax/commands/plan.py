"""Will it fit? The very train step of a run, or its denoising step, compiled on any CPU host for an
absent TPU slice.

Needs libtpu (`pip install xgen_jax[plan]`), which holds TPU's compiler and refuses a program that
exceeds a chip's memory. What decides is the peak, not the sum of temporaries. Two processes of a
host that load libtpu need ALLOW_MULTIPLE_LIBTPU_LOAD=1 in their environment.
"""

import functools
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.buckets import Bucket, Shape, shape_name
from xgen_jax.data.pipeline import micro_conditions
from xgen_jax.diffusion.guidance import guided
from xgen_jax.errors import UserError
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import MicroConditions
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.memory import OUT_OF_MEMORY, peak_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh, replicated
from xgen_jax.runs.text_encoders import make_conditioner
from xgen_jax.training.compiled import abstract_arrays
from xgen_jax.training.fit import abstract_state, check_buckets, make_vdit_objective, placed
from xgen_jax.training.state import make_update
from xgen_jax.training.tasks.lora import LoRAObjective
from xgen_jax.typing import Params

# GiB a device that programs may use, as TPU's compiler has it.
LIMITS_GIB = {
    "TPU v4": 15.25,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.75,
}


def slice_devices(topology: str) -> Sequence[Any]:
    """The devices of a TPU slice, "v5p:4x4x4": generation and chips along each axis.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the slice {topology!r} cannot be compiled for ({reason}); slices are written v5p:2x2x1, v5e:4x4, "
            "v6e:4x4, and need libtpu: pip install xgen_jax[plan]"
        ) from error


def compile_train_step(
    config: VDiTRun,
    topology: str,
    embedder: VidVAEConfig | REGENConfig,
    bucket: Bucket | None = None,
) -> dict[str, Any]:
    """Compiles the train step of one bucket for a slice.

    Args:
      config: of the run; its mesh is laid over the slice.
      topology: see `slice_devices`.
      embedder: of whose latents it trains.
      bucket: one of the run's; by default the one of most latent cells a batch.

    Returns:
      bucket, devices, device_kind, parameters, peak_bytes (of one device; None where the compiler
      refused and did not say), limit_bytes (None where not known), fits, compile_s, and why where
      it does not fit.

    Raises:
      UserError: no such slice, a bucket that the embedder cannot take or the mesh cannot share, no
      libtpu.
    """
    check_buckets(config, embedder.latent_shape)
    mesh = make_mesh(config.mesh, slice_devices(topology))
    bucket = bucket or largest_bucket(config, embedder)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if bucket.batch_size % shards:
        raise UserError(
            f"bucket {bucket.name}: a batch of {bucket.batch_size} over {shards} devices of {topology}"
        )
    text = make_conditioner(config, np.dtype(config.loop.compute_dtype))
    objective = make_vdit_objective(config, embedder.latent_shape, text)
    row = {
        "latents": np.zeros(
            (1, *embedder.latent_shape(bucket.shape), embedder.latent_channels), np.float32
        ),
        "caption": [""],
        "clip": micro_conditions(*bucket.shape, 8.0)[None],
        "text": np.zeros(
            (1, getattr(config.text, "length", 1), config.model.text_width), np.float32
        ),
        "text_mask": np.ones((1, getattr(config.text, "length", 1)), bool),
    }
    started = time.monotonic()
    with on_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        arrays, sample_id = abstract_arrays(
            objective, objective.arrays(row), bucket, batch_sharding(mesh)
        )
        frozen = None
        if config.lora:
            frozen = placed(jax.eval_shape(objective.init, key, arrays), mesh)
            objective = LoRAObjective(base=objective, lora=config.lora, frozen=frozen)
        optimizer = objective.optimizer(config.optimizer, config.loop.steps)
        state, shardings = abstract_state(objective, optimizer, mesh, key, arrays)
        update = jax.jit(
            make_update(
                objective,
                optimizer,
                config.loop.seed,
                config.loop.ema_decay,
                config.loop.accumulate,
            ),
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
        )
        lowered = update.lower(state, arrays, sample_id, frozen)
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
    """Compiles one guided forward of sampling for a slice: the condition and the null in one batch.

    Clips are shared by all devices of the slice, each with the whole parameters in float32, as
    sampling has it.

    Args:
      config: of the run.
      topology: see `slice_devices`.
      embedder: whose latents are drawn.
      shape: of a clip, (frames, height, width) in pixels.
      clips: drawn at once.
      dtype: what is computed in.

    Returns:
      See `compile_train_step`; `bucket` is the clip's shape.

    Raises:
      UserError: no such slice, a shape that the embedder cannot take, clips that the devices cannot
      share, no libtpu.
    """
    latent_shape = (*embedder.latent_shape(shape), embedder.latent_channels)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), slice_devices(topology))
    if clips < 1 or clips % mesh.size:
        raise UserError(f"clips={clips} cannot be shared by the {mesh.size} devices of {topology}")
    model = VDiT(config.model, np.dtype(dtype))
    process = config.loss.make_process(config.model.learned_variance)
    level = jax.tree.map(lambda a: np.float32(a[-1]), process.levels(np.ones(1)))
    conditions = micro_conditions(*shape, config.sample_fps)

    def predict(params, x, time_B, tokens, frame_mask_BT=None):
        told = MicroConditions(*(jnp.full(x.shape[:1], each) for each in conditions))
        return model.apply(
            params, x, time_B, *tokens, told if config.model.micro_cond else None, frame_mask_BT
        )

    def step(params, x, tokens, null):
        forward = functools.partial(predict, params)
        return guided(forward, tokens, null, config.guidance_scale, process, config.guidance)(
            x, level, None
        )

    def init(key):
        time_B = jnp.zeros(1)
        told = MicroConditions(*jnp.ones((5, 1))) if config.model.micro_cond else None
        first, text, mask = (jnp.zeros((1, *a.shape[1:]), a.dtype) for a in (x, *tokens))
        return model.init(key, first, time_B, text, mask, told)

    def rows(shape, dtype):
        return jax.ShapeDtypeStruct((clips, *shape), dtype, sharding=batch_sharding(mesh))

    length = getattr(config.text, "length", 1)
    x = rows(latent_shape, np.float32)
    tokens = rows((length, config.model.text_width), model.dtype), rows((length,), bool)
    started = time.monotonic()
    with on_mesh(mesh):
        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
            jax.eval_shape(lambda: init(jax.random.key(0))),
        )
        lowered = jax.jit(step).lower(params, x, tokens, tokens)
        return _report(
            lowered,
            mesh,
            topology,
            started,
            {"bucket": shape_name(shape), "batch_size": clips},
            params,
        )


def _report(
    lowered, mesh, topology: str, started: float, clips: dict[str, Any], params: Params
) -> dict[str, Any]:
    """What came of compiling; see `compile_train_step`."""
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
        peak, why = peak_bytes(lowered.compile()), None
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        peak, why = named_bytes(str(error)), str(error).splitlines()[0]
    fits = why is None
    report |= {"peak_bytes": peak, "fits": fits, "compile_s": round(time.monotonic() - started, 1)}
    return report if fits else {**report, "why": why}


def largest_bucket(config: VDiTRun, embedder: VidVAEConfig | REGENConfig) -> Bucket:
    """The bucket of most latent cells a batch, among those that train; of equal ones that of the
    longest clips."""

    def cells(bucket):
        return bucket.batch_size * int(np.prod(embedder.latent_shape(bucket.shape))), bucket.frames

    return max((bucket for bucket in config.data.buckets if bucket.keep), key=cells)


def named_bytes(message: str) -> int | None:
    """The need that the compiler's refusal names, "Used 16.51G of 15.75G hbm"; None where it names
    none."""
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT])", message)
    return (
        int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]])
        if found
        else None
    )
