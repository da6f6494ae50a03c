"""The training loop: one for every objective.

Order within a step: fetch a batch, dispatch the update, only then look at the metrics of the step
before, so that the device never waits for the host. A loss that is not finite was not applied, and
stops the run with the step, the bucket and the sample ids.
"""

import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.runs import EMBEDDERS, REGENRun, RunConfig, VDiTRun, VidVAERun
from xgen_jax.data.config import LatentsConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.models.latent_statistics import latent_statistics
from xgen_jax.models.lpips import LPIPS
from xgen_jax.models.regen import REGEN
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.parallel.mesh import make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh, replicated, tree_shardings
from xgen_jax.runs.adapters import store_adapter
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder, check_fingerprints, describe_machine
from xgen_jax.runs.load import load_embedder, make_embedder
from xgen_jax.runs.text_encoders import load_conditioner
from xgen_jax.runs.warm_start import starting_params
from xgen_jax.training.compiled import abstract_arrays, compile_ahead
from xgen_jax.training.latent_check import check_latents
from xgen_jax.training.metric_writers import (
    ConsoleWriter,
    JsonlWriter,
    MetricWriters,
    TensorBoardWriter,
)
from xgen_jax.training.state import TrainState, init_state, make_update
from xgen_jax.training.tasks.lora import adapted
from xgen_jax.training.tasks.regen import REGENObjective
from xgen_jax.training.tasks.vdit import VDiTObjective
from xgen_jax.training.tasks.vidvae import VidVAEObjective
from xgen_jax.typing import Params, Shape
from xgen_jax.weights.lpips import load_lpips


class NonFiniteLoss(UserError):
    """The loss or its gradient is NaN or infinite; the state before that step is intact."""


def make_objective(config: RunConfig, mesh: Mesh | None = None):
    """The objective that a configuration names, with what it needs loaded: an embedder on every
    device of the mesh.

    Raises:
      UserError: a bucket that the models cannot take, or an embedder that cannot be loaded; before
      anything is trained.
    """
    dtype = np.dtype(config.loop.compute_dtype)
    for b in config.data.buckets:
        if b.batch_size % config.loop.accumulate:
            raise UserError(
                f"a batch of {b.batch_size} cannot be cut in loop.accumulate={config.loop.accumulate} equal parts"
            )
    if config.objective in EMBEDDERS:
        for bucket in config.data.buckets:
            config.model.latent_shape(bucket.shape)
        lpips, lpips_params = load_perceptual(config)
        network, objective = {
            "vidvae": (VidVAE, VidVAEObjective),
            "regen": (REGEN, REGENObjective),
        }[config.objective]
        return objective(
            model=network(config.model, dtype),
            loss_config=config.loss,
            lpips=lpips,
            frozen=lpips_params,
        )
    embedder, embedder_params = load_embedder(config.embedder, dtype)
    check_buckets(config, embedder.latent_shape)
    stored = isinstance(config.data.source, LatentsConfig)
    text = load_conditioner(config, dtype, stored=stored)
    objective = make_vdit_objective(
        config, embedder.latent_shape, text, embedder.fingerprint(embedder_params)
    )
    if not stored:  # else the embedder's fingerprint is all that is needed of it
        if mesh is not None:
            embedder_params = jax.device_put(embedder_params, replicated(mesh))
        objective = dataclasses.replace(
            objective, embedder=embedder, embedder_params=embedder_params
        )
    return adapted(config, objective) if config.lora else objective


def load_perceptual(config: VidVAERun | REGENRun) -> tuple[LPIPS | None, Params]:
    """LPIPS and its parameters where a run has that term and names its weights; (None, None)
    elsewhere.

    Raises:
      UserError: weights that cannot be read, or a bucket of frames too small for it.
    """
    if not (config.loss.lpips and config.loss.lpips_weights):
        return None, None
    lpips, params = load_lpips(config.loss.lpips_weights.split(","))
    for bucket in config.data.buckets:
        if min(bucket.height, bucket.width) < lpips.config.least_side:
            raise UserError(
                f"LPIPS needs frames of at least {lpips.config.least_side}x{lpips.config.least_side} pixels; a bucket "
                f"has {bucket.height}x{bucket.width}. Leave it out, or choose loss.lpips=0"
            )
    return lpips, params


def make_vdit_objective(
    config: VDiTRun, latent_shape: Callable[[Shape], Shape], text, embedder_fingerprint: str = ""
) -> VDiTObjective:
    """The objective of a vdit run on latents of these shapes, with a text conditioner."""
    config.loss.make_process(config.model.learned_variance)
    return VDiTObjective(
        model=VDiT(config.model, np.dtype(config.loop.compute_dtype)),
        text=text,
        embedder=None,
        embedder_params=None,
        loss_config=config.loss,
        embedder_fingerprint=embedder_fingerprint,
        latent_shape=latent_shape,
    )


def check_buckets(config: VDiTRun, latent_shape: Callable[[Shape], Shape]) -> None:
    """Raises UserError, naming the bucket and the nearest lengths or sizes, for one that the
    embedder cannot take."""
    for bucket in config.data.buckets:
        try:
            config.model.check_latents(latent_shape(bucket.shape))
        except UserError as error:
            raise UserError(f"bucket {bucket.name} of {config.embedder}: {error}") from error


def check_resume(folder: RunFolder, pipeline: Pipeline, objective) -> None:
    """Raises UserError if the run in the folder was trained on other data or with other frozen
    networks."""
    checkpoints = folder.checkpoints()
    if checkpoints.steps():
        saved = checkpoints.restore_data()
        pipeline.check_state(saved)
        check_fingerprints(objective.fingerprints(), saved, f"the run in {folder.path}")


def train(
    config: RunConfig, workdir: str | pathlib.Path, overwrite: bool = False
) -> dict[str, Any]:
    """Trains, or goes on training, the run of `config` in the folder `workdir`.

    Args:
      config: see `config.runs.run_config`.
      workdir: the run folder; if it holds this very run, training goes on from its newest
        checkpoint, bit for bit as if never interrupted (on the same devices).
      overwrite: remove the run that is in the folder.

    Returns:
      A summary: step, last metrics, seconds spent here, parameters.

    Raises:
      UserError: anything the user can mend; NonFiniteLoss among them.
    """
    if config.objective.endswith("_weights"):
        kind = config.objective.removesuffix("_weights")
        raise UserError(
            f"converted weights are no run; train a {kind} run that starts from them, with init_from=FOLDER"
        )
    folder = RunFolder(workdir)
    mesh = make_mesh(config.mesh)
    objective = make_objective(config, mesh)
    source = make_source(config.data)
    check_latents(config, source, objective)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    for bucket in config.data.buckets:
        if bucket.batch_size % devices:
            raise UserError(
                f"bucket {bucket.name}: a batch of {bucket.batch_size} cannot be shared equally by {devices} devices "
                "(mesh.data x mesh.fsdp)"
            )
    pipeline = Pipeline(
        source, config.data, process_index=jax.process_index(), process_count=jax.process_count()
    )
    if report := source.report():
        print(report, file=sys.stderr)
    for line in pipeline.problems:
        print(line, file=sys.stderr)
    folder.check(config, overwrite)
    if not overwrite:
        check_resume(folder, pipeline, objective)
    fresh = overwrite or not folder.checkpoints().steps()
    start = starting_params(config) if fresh and not getattr(config, "lora", None) else None
    folder.claim(config, overwrite)
    with on_mesh(mesh):
        return _train(config, folder, mesh, objective, pipeline, start)


def abstract_state(objective, optimizer, mesh, key, arrays) -> tuple[TrainState, TrainState]:
    """(shapes, shardings) of a run's state on a mesh."""
    shapes = jax.eval_shape(functools.partial(init_state, objective, optimizer), key, arrays)
    return placed(shapes, mesh), tree_shardings(shapes, mesh)


def placed(shapes: Params, mesh) -> Params:
    """Shapes with the shardings of the path rules."""

    def one(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, shapes, tree_shardings(shapes, mesh))


def _train(
    config: RunConfig, folder: RunFolder, mesh, objective, pipeline: Pipeline, start: Params | None
) -> dict[str, Any]:
    started = time.monotonic()
    loop, on_batch = config.loop, batch_sharding(mesh)
    optimizer = objective.optimizer(config.optimizer, loop.steps)

    def to_device(batch):
        arrays = {**objective.arrays(batch), "sample_id": batch["sample_id"].astype(np.uint32)}
        arrays = jax.tree.map(lambda x: jax.make_array_from_process_local_data(on_batch, x), arrays)
        sample_id = arrays.pop("sample_id")
        # What is compiled ahead takes its arguments in these places alone.
        return jax.device_put(objective.prepare(arrays), on_batch), sample_id

    # Shapes, then shardings, then values: no array is ever made in a place where it does not
    # belong.
    arrays, _ = to_device(pipeline.batch(0))

    key = jax.device_put(jax.random.key(loop.seed), replicated(mesh))
    abstract, shardings = abstract_state(objective, optimizer, mesh, key, arrays)
    checkpoints = folder.checkpoints(loop.keep_checkpoints)
    if checkpoints.steps():
        state, _ = checkpoints.restore(abstract)
    else:
        init = functools.partial(init_state, objective, optimizer)
        state = jax.jit(init, out_shardings=shardings)(key, arrays)
        if start is not None:
            start = jax.device_put(start, {name: shardings.params[name] for name in start})
            state = state.replace(
                params={**state.params, **start}, ema={**state.ema, **jax.tree.map(jnp.copy, start)}
            )
    first_step = int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))

    update = jax.jit(
        make_update(objective, optimizer, loop.seed, loop.ema_decay, loop.accumulate),
        donate_argnums=0,
        out_shardings=(shardings, replicated(mesh)),
    )
    frozen = jax.device_put(objective.frozen, tree_shardings(objective.frozen, mesh))
    last: dict[str, float] = {}
    if first_step < loop.steps:
        before = time.monotonic()
        shapes = {
            bucket: abstract_arrays(objective, arrays, bucket, on_batch)
            for bucket in pipeline.buckets
        }
        steps = compile_ahead(update, abstract, shapes, frozen)
        compile_s = time.monotonic() - before

        def step(bucket, state, arrays, sample_id):
            return steps[bucket](state, arrays, sample_id, frozen)

        state, last = _take_steps(
            config,
            folder,
            pipeline,
            checkpoints,
            objective,
            to_device,
            step,
            state,
            parameters,
            compile_s,
        )
    if config.objective in EMBEDDERS and (last or not (folder.path / LATENT_STATISTICS).exists()):
        videos = (pipeline.batch(step)["video"] for step in range(32))
        statistics = latent_statistics(
            make_embedder(config, np.dtype(loop.compute_dtype)), state.ema[config.objective], videos
        )
        folder.write_json(LATENT_STATISTICS, statistics)
    if getattr(config, "lora", None):
        store_adapter(folder)
    return {
        "objective": config.objective,
        "workdir": str(folder.path),
        "step": int(state.step),
        "parameters": parameters,
        "wall_s": round(time.monotonic() - started, 1),
        **{name: round(value, 5) for name, value in last.items()},
    }


def _take_steps(
    config: RunConfig,
    folder: RunFolder,
    pipeline: Pipeline,
    checkpoints,
    objective,
    to_device,
    update,
    state: TrainState,
    parameters: int,
    compile_s: float,
) -> tuple[TrainState, dict[str, float]]:
    """From the state's step to the last: (state, the last metrics)."""
    started, loop, first_step = time.monotonic(), config.loop, int(state.step)
    run = {**describe_machine(), "parameters": parameters}
    spent_before = folder.read_json("run.json").get("wall_s", 0.0) if first_step else 0.0
    show = ("loss", "psnr_db", "disc_loss")  # those that the objective has
    with contextlib.ExitStack() as stack:
        writers = stack.enter_context(
            MetricWriters(
                ConsoleWriter(loop.steps, config.objective, first_step, show),
                JsonlWriter(
                    folder.metrics, first_step + 1
                ),  # rows carry the number of updates made
                TensorBoardWriter(folder.path / "tensorboard", first_step + 1),
            )
        )
        batches = stack.enter_context(contextlib.closing(pipeline.iterate(first_step)))
        stack.callback(checkpoints.wait)  # whatever ends the run, a save under way is finished
        pending, last = None, {}
        mark_s, mark_step = time.monotonic(), first_step

        def settle():
            """Looks at the step dispatched last; by now the device works on the next one."""
            nonlocal last, mark_s, mark_step
            if pending is None:
                return
            step, batch, metrics = pending
            last = {name: float(value) for name, value in metrics.items()}
            if not (np.isfinite(last["loss"]) and np.isfinite(last["grad_norm"])):
                b = pipeline.bucket(step)
                names = ", ".join(name for name, value in last.items() if not np.isfinite(value))
                raise NonFiniteLoss(
                    f"step {step}: loss {last['loss']}, gradient norm {last['grad_norm']}, bucket "
                    f"{b.frames}x{b.height}x{b.width}, samples {batch['index'].tolist()}; not finite: {names}. The "
                    "step was not applied. Lower the learning rate, or look at those samples"
                )
            if (step + 1) % loop.log_every == 0 or step + 1 == loop.steps:
                now = time.monotonic()
                speed = (step + 1 - mark_step) / max(now - mark_s, 1e-9)
                mark_s, mark_step = now, step + 1
                elapsed = spent_before + now - started
                writers.write(step + 1, {**last, "steps_per_s": speed, "time_s": elapsed})
            else:
                writers.progress(step + 1, last)

        def save(step, state):
            # First, so that a checkpoint is never without it.
            wall_s = spent_before + time.monotonic() - started
            folder.write_json("run.json", {**run, "wall_s": wall_s, "compile_s": compile_s})
            checkpoints.save(
                step, state, {**pipeline.state(step), "fingerprints": objective.fingerprints()}
            )

        interrupted = stack.enter_context(_signals())
        for step, batch in batches:
            arrays, sample_id = to_device(batch)
            state, metrics = update(pipeline.bucket(step), state, arrays, sample_id)
            settle()
            pending = (step, batch, metrics)
            done = step + 1
            if done == loop.steps:
                break
            if interrupted or done % loop.checkpoint_every == 0:
                settle()
                pending = None
                save(done, state)
                if interrupted:
                    raise KeyboardInterrupt
        settle()
        save(loop.steps, state)
        checkpoints.wait()
    return state, last


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop (Ctrl-C, or a scheduler's SIGTERM), so
    that a step is finished and saved first; asked twice, it stops at once. Does nothing outside the
    main thread, as Python wants it.
    """
    received: list[int] = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
