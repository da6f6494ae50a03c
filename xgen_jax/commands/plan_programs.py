"""The programs that a plan compiles, lowered from shapes for devices that need not be there: those
of the train, sample, encode and decode commands."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.config.runs import HoldsEmbedder, Run, VDiTRun
from xgen_jax.data.buckets import Bucket, Shape
from xgen_jax.errors import UserError, choose
from xgen_jax.inference.chunks import encode_clips, lower_chunk, plan_chunks
from xgen_jax.inference.request import VideoRequest, plan_video
from xgen_jax.inference.sampling import VideoSampler
from xgen_jax.models import flops, regen_config, vidvae_config
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_embedder import REGENEmbedder
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.parallel.sharding import batch_sharding, on_mesh, replicated, tree_shardings
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.hub import is_address
from xgen_jax.runs.text_encoders import make_conditioner
from xgen_jax.training.compiled import abstract_arguments, jit_update
from xgen_jax.training.state import abstract_state, place
from xgen_jax.training.tasks import TASKS, check_batch, check_clips
from xgen_jax.typing import Params

EMBEDDERS = vidvae_config.PRESETS | regen_config.PRESETS
# The presets that this project's configurations train in these folders, or in those that they begin
# from; a VDiT is planned on them before they exist.
PRESET_OF = {
    "runs/vidvae": "paper",
    "runs/regen32": "paper-32x",
    "runs/gpu/vidvae": "base",
    "runs/gpu/vdit": "base",
    "runs/quickstart/vidvae": "tiny",
    "runs/quickstart/vdit": "tiny",
    "runs/quickstart/regen": "tiny-8x",
}
ENCODE_BATCH = 16  # clips at once, as of the encode command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program, lowered, and what its plan needs to know.

    Attributes:
      lowered: not yet compiled.
      mesh: its devices.
      shape: (frames, height, width) of a clip, in pixels.
      batch_size: clips at once, of all devices together.
      parameters: values of the network that is trained, or runs.
      resident: bytes on a device by class, of what lives outside the program's own temporaries.
      rewritten: the classes that a run of the program reads and writes; others are only read.
      flops: of one run on all devices together, by formula; the mean where runs differ.
      runs: of the program, for the steps of a run or for one batch of videos.
      dtype: of the computation.
    """

    lowered: jax.stages.Lowered
    mesh: Mesh
    shape: Shape
    batch_size: int
    parameters: int
    resident: dict[str, int]
    rewritten: tuple[str, ...]
    flops: float
    runs: int
    dtype: str


def find_embedder(config: Run, given: str | None, dtype: Any = np.float32) -> tuple[Embedder, str]:
    """Return the embedder of a configuration, and where it comes from.

    Args:
      config: of the run: of an embedder itself, or of a transformer.
      given: a run folder or the name of a preset, for a transformer; by default the folder in the
        configuration if it exists, or the preset that is trained there by this project's own.
      dtype: to compute in.

    Raises:
      UserError: neither a preset nor a folder.
    """
    if isinstance(config, HoldsEmbedder):
        if given:
            raise UserError(f"--embedder is for a vdit run; this one trains a {config.family}")
        return config.make_embedder(dtype), f"the {config.family} that is trained"
    named = config.embedder or config.init_from or "" if isinstance(config, VDiTRun) else ""
    where = given or named
    if os.path.isdir(where) or is_address(where):
        folder = RunFolder(where)
        other = folder.config()
        if isinstance(other, VDiTRun) and not given:
            there = folder.resolve_sibling(other.embedder)
            return find_embedder(dataclasses.replace(other, embedder=there), None, dtype)
        return folder.expect(HoldsEmbedder, "an embedder").make_embedder(dtype), f"that in {where}"
    if not given and where not in PRESET_OF:
        raise UserError(
            f"the latents of the embedder {where!r} are not known: give --embedder=FOLDER, or a "
            f"preset: {', '.join(EMBEDDERS)}"
        )
    name = choose("--embedder", given or PRESET_OF[where], EMBEDDERS)
    return _preset(name, dtype), f"the preset {name}"


def _preset(name: str, dtype: Any) -> Embedder:
    config = EMBEDDERS[name]
    if isinstance(config, regen_config.REGENConfig):
        loss = REGENLossConfig(windows="shifted")
        return REGENEmbedder(
            model=REGEN(config, dtype), process=loss.make_process(), windows=loss.windows
        )
    return VidVAEEmbedder(model=VidVAE(config, dtype))


def train_program(config: Run, embedder: Embedder, mesh: Mesh, bucket: Bucket) -> Program:
    """Lower the train step of one bucket: `training.compiled.jit_update` on the run's state."""
    check_batch(config, mesh.shape, bucket)
    with on_mesh(mesh):
        task, batch = TASKS[config.objective].abstract(config, embedder.model.config, bucket)
        check_clips(task, mesh.shape, bucket)
        arrays, sample_id = abstract_arguments(
            task, task.batch_arrays(batch), bucket, batch_sharding(mesh)
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        frozen = place(task.frozen, mesh)
        optimizer = task.optimizer(config.optimizer, config.loop.steps)
        state, shardings = abstract_state(task, optimizer, mesh, key, arrays)
        update = jit_update(task, optimizer, config.loop, mesh, shardings)
        lowered = update.lower(state, arrays, sample_id, frozen, state.step)
    resident = {
        "parameters": bytes_of_a_device(state.params),
        "ema": bytes_of_a_device(state.ema),
        "optimizer": bytes_of_a_device(state.opt_state),
        "frozen": bytes_of_a_device(frozen),
        "batch": bytes_of_a_device(arrays),
    }
    return Program(
        lowered=lowered,
        mesh=mesh,
        shape=bucket.shape,
        batch_size=bucket.batch_size,
        parameters=_count(state.params),
        resident=resident,
        rewritten=("parameters", "ema", "optimizer"),
        flops=_known(embedder, task.work(bucket).flops),
        runs=config.loop.steps,
        dtype=config.loop.compute_dtype,
    )


def sample_program(
    config: Run, embedder: Embedder, mesh: Mesh, batch_size: int, request: VideoRequest
) -> Program:
    """Lower a sampling step: that of `VideoSampler`, on devices that share the parameters.

    The condition and the null caption are one batch of the network.
    """
    if not isinstance(config, VDiTRun):
        raise UserError(f"--what=sample is for a vdit run; this one trains a {config.family}")
    _check_batch(batch_size, mesh)
    dtype = np.dtype(config.loop.compute_dtype)
    video = plan_video(config, embedder, request)
    text = make_conditioner(config, dtype)
    sampler = VideoSampler(
        model=VDiT(config.model, dtype),
        text=text,
        config=config,
        plan=video,
        batch_size=batch_size,
        mesh=mesh,
    )
    params = {
        "vdit": abstract_variables(config.model, embedder.latent_channels),
        **jax.eval_shape(text.init, jax.random.key(0), sampler.null_captions()),
    }
    clips = batch_size * (2 if sampler.program.guided else 1)
    shape = embedder.latent_shape((clips, video.segment_frames, video.height, video.width, 3))
    latents = 4 * int(np.prod(video.segment_shape)) * batch_size // mesh.size
    shardings = tree_shardings(params["vdit"], mesh)
    return Program(
        lowered=sampler.lower_step(params),
        mesh=mesh,
        shape=(video.frames, video.height, video.width),
        batch_size=batch_size,
        parameters=_count(params["vdit"]),
        resident={
            "parameters": bytes_of_a_device(_placed(params["vdit"], shardings)),
            "batch": latents,
        },
        rewritten=("batch",),
        flops=sampler.evaluations_per_step * flops.vdit_flops(config.model, shape, text.tokens),
        runs=sampler.steps_per_batch,
        dtype=dtype.name,
    )


def encode_program(embedder: Embedder, mesh: Mesh, batch_size: int, shape: Shape) -> Program:
    """Lower the encoding of whole clips, as the encode command stores them."""
    _check_batch(batch_size, mesh)
    params = _embedder_params(embedder, mesh)
    video = jax.ShapeDtypeStruct((batch_size, *shape, 3), np.uint8, sharding=batch_sharding(mesh))
    embedder.latent_shape(video.shape)
    with on_mesh(mesh):
        lowered = encode_clips.lower(embedder, params, video)
    return Program(
        lowered=lowered,
        mesh=mesh,
        shape=shape,
        batch_size=batch_size,
        parameters=_count(params["model"]),
        resident={"parameters": bytes_of_a_device(params), "batch": bytes_of_a_device(video)},
        rewritten=(),
        flops=_known(embedder, embedder.encode_flops(video.shape)),
        runs=1,
        dtype=np.dtype(embedder.model.dtype).name,
    )


def decode_program(embedder: Embedder, mesh: Mesh, batch_size: int, shape: Shape) -> Program:
    """Lower the decoding of a chunk of latents in the middle of a clip, or of a clip of one chunk,
    as samples and reconstructions are decoded without a memory budget."""
    _check_batch(batch_size, mesh)
    params = _embedder_params(embedder, mesh, decoding=True)
    latents = (batch_size, *embedder.latent_shape(shape), embedder.latent_channels)
    chunk = plan_chunks(embedder, params, "decode", latents, np.float32, None).frames
    whole = chunk == latents[1]
    with on_mesh(mesh):
        lowered, arguments = lower_chunk(
            embedder, params, "decode", latents, np.float32, chunk, whole, batch_sharding(mesh)
        )
    return Program(
        lowered=lowered,
        mesh=mesh,
        shape=shape,
        batch_size=batch_size,
        parameters=_count(params["model"]),
        resident={
            "parameters": bytes_of_a_device(params),
            "batch": bytes_of_a_device(arguments[0]),
            "cache": bytes_of_a_device(arguments[1]),
        },
        rewritten=("cache",),
        flops=_known(
            embedder,
            embedder.decode_flops((batch_size, chunk, *latents[2:]), started=not whole),
        ),
        # What a decoder that looks ahead holds back comes with one more call.
        runs=-(-latents[1] // chunk) + (not whole and embedder.look_ahead > 0),
        dtype=np.dtype(embedder.model.dtype).name,
    )


def _known(embedder: Embedder, flops: float | None) -> float:
    """Return the operations of a program.

    Raises:
      UserError: an embedder has no formula of them.
    """
    if flops is None:
        name = type(embedder).__name__
        raise UserError(f"{name} has no formula of its operations to plan with")
    return flops


def _check_batch(batch_size: int, mesh: Mesh) -> None:
    if batch_size < 1 or batch_size % mesh.size:
        raise UserError(
            f"--batch_size={batch_size} cannot be split equally over {mesh.size} devices; give a "
            f"multiple of {mesh.size}"
        )


def _embedder_params(embedder: Embedder, mesh: Mesh, decoding: bool = False) -> Params:
    statistic = jax.ShapeDtypeStruct((embedder.latent_channels,), np.float32)
    params = {"model": embedder.abstract_model(), "mean": statistic, "std": statistic}
    params = jax.eval_shape(embedder.in_compute_dtype, params) if decoding else params
    return _placed(params, jax.tree.map(lambda _: replicated(mesh), params))


def _placed(shapes: Params, shardings: Params) -> Params:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_of_a_device(tree: Params) -> int:
    """Return the bytes that one device has of a tree of shapes with their shardings, unpadded."""

    def of(leaf):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return int(np.prod(shape)) * leaf.dtype.itemsize

    return sum(map(of, jax.tree.leaves(tree)))
