"""The state of a run, its place on a mesh, and its pure update."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from xgen_jax.parallel.arrays import put
from xgen_jax.parallel.sharding import tree_shardings
from xgen_jax.training.tasks.base import Arrays, Task
from xgen_jax.typing import Array, Params


@flax.struct.dataclass
class TrainState:
    """Master parameters, EMA and optimiser state, all float32.

    With the configuration and the data, this is all that a resumed run needs. It has nothing
    random: keys are folded from (seed, step, sample).
    """

    step: Array  # int32 scalar: updates made
    params: Params
    ema: Params  # of the task's `ema_params`
    opt_state: Any


def init_state(
    task: Task, optimizer: optax.GradientTransformation, key: Array, arrays: Arrays
) -> TrainState:
    """Make the state before the first step."""
    params = task.init(key, arrays)
    copy = jax.tree.map(jnp.copy, task.ema_params(params))
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema=copy, opt_state=optimizer.init(params)
    )


def place(shapes: Params, mesh: Mesh) -> Params:
    """Give shapes the shardings of the path rules."""

    def one(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, shapes, tree_shardings(shapes, mesh))


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, key: Array, arrays: Arrays
) -> tuple[TrainState, TrainState]:
    """Return (shapes, shardings) of a run's state on a mesh."""
    shapes = jax.eval_shape(functools.partial(init_state, task, optimizer), key, arrays)
    return place(shapes, mesh), tree_shardings(shapes, mesh)


def start_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    key: Array,
    arrays: Arrays,
    start: Params | None = None,
) -> TrainState:
    """Initialise the state, each array on its own devices from the start.

    Args:
      task, optimizer: of the run.
      shardings: of the state, see `abstract_state`.
      key: on the mesh.
      arrays: a prepared batch.
      start: sub-trees on the host that replace initial parameters and their EMA.
    """
    init = functools.partial(init_state, task, optimizer)
    sharding: Any = shardings.step
    (platform,) = {device.platform for device in sharding.device_set}
    # It runs once. On a CPU compiling it takes 10 s of a core for the tiny VidVAE, 2 s like this.
    options = {"xla_backend_optimization_level": 0} if platform == "cpu" else None
    state = jax.jit(init, out_shardings=shardings, compiler_options=options)(key, arrays)
    if start is None:
        return state
    start = put(start, {name: shardings.params[name] for name in start})
    ema = {**state.ema, **jax.tree.map(jnp.copy, start)}
    return state.replace(params={**state.params, **start}, ema=ema)


def sample_keys(seed: int | Array, step: Array | np.int32, sample_id_B: Array) -> Array:
    """Fold one key a sample, (B,), from (seed, step, sample id)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(sample_id_B)


def make_update(
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
    accumulate: int = 1,
    skip: bool = False,
) -> Callable:
    """Make the update: (state, arrays, sample_id uint32 (B,), frozen) -> (state, metrics).

    An update whose loss or gradient is not finite is not applied, and the step stays; with `skip`
    it advances, so that the batch is left out. With a fifth
    argument, the step that the batch is of, neither is one of another step than the state's: a
    batch that was dispatched after such an update. The gradient is the mean over
    `accumulate` parts of the batch, computed one after another: that of the whole batch for a loss
    that is a mean over samples, in the memory of a part. A quantity that is not a mean (the
    adaptive weight of the adversarial term) is computed for each part.
    """

    def gradient(state, arrays, sample_id_B, frozen):
        keys = sample_keys(seed, state.step, sample_id_B)
        (loss, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, arrays, keys, state.step, frozen
        )
        return grads, {"loss": loss, **metrics}

    def mean_gradient(state, arrays, sample_id_B, frozen):
        if accumulate == 1:
            return gradient(state, arrays, sample_id_B, frozen)

        def parts(x):
            # Part i takes every accumulate-th sample: no sample leaves the device it is on.
            return jnp.swapaxes(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 0, 1)

        def add(total, part):
            arrays, sample_id_B = part
            return jax.tree.map(jnp.add, total, gradient(state, arrays, sample_id_B, frozen)), None

        batch = jax.tree.map(parts, (arrays, sample_id_B))
        shapes = jax.eval_shape(gradient, state, *jax.tree.map(lambda x: x[0], batch), frozen)
        total, _ = jax.lax.scan(
            add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), batch
        )
        return jax.tree.map(lambda x: x / accumulate, total)

    def update(
        state: TrainState, arrays, sample_id_B, frozen: Params = None, step: Array | None = None
    ):
        grads, metrics = mean_gradient(state, arrays, sample_id_B, frozen)
        metrics["grad_norm"] = optax.tree.norm(grads)
        if len(grads) > 1:
            metrics |= {
                f"grad_norm_{name}": optax.tree.norm(group) for name, group in grads.items()
            }
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        in_turn = jnp.bool_(True) if step is None else state.step == step
        applied = finite & in_turn
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young EMA forgets its random start faster.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(task.ema_params(params), state.ema, 1.0 - decay)
        new = TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
        new = jax.tree.map(lambda n, o: jnp.where(applied, n, o), new, state)
        if skip:
            new = new.replace(step=state.step + in_turn.astype(jnp.int32))
        return new, metrics

    return update
