"""The state of a run and its pure update."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from xgen_jax.typing import Array, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a resumed run needs beside its configuration: masters, average and optimiser
    state, all float32.

    Nothing random is kept: keys are folded from (seed, step, sample).
    """

    step: Array  # int32 scalar: updates made
    params: Params
    ema: Params  # of the objective's `averaged` part
    opt_state: Any


def init_state(
    objective, optimizer: optax.GradientTransformation, key: Array, arrays
) -> TrainState:
    """The state before the first step."""
    params = objective.init(key, arrays)
    copy = jax.tree.map(jnp.copy, objective.averaged(params))
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema=copy, opt_state=optimizer.init(params)
    )


def sample_keys(seed: int | Array, step: Array, sample_id_B: Array) -> Array:
    """One key a sample from (seed, step, sample id)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(sample_id_B)


def make_update(objective, optimizer, seed: int, ema_decay: float, accumulate: int = 1) -> Callable:
    """(state, arrays, sample_id uint32 (B,), frozen) -> (state, metrics). One that is not finite is
    not applied.

    The gradient is the mean over `accumulate` parts of the batch, one after another: for a loss
    that is a mean over samples the whole batch's, for the memory of a part. What is no such mean
    (the adaptive weight) is taken of parts.
    """

    def gradient(state, arrays, sample_id_B, frozen):
        keys = sample_keys(seed, state.step, sample_id_B)
        (loss, metrics), grads = jax.value_and_grad(objective.loss, has_aux=True)(
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
            return jax.tree.map(jnp.add, total, gradient(state, *part, frozen)), None

        batch = jax.tree.map(parts, (arrays, sample_id_B))
        shapes = jax.eval_shape(gradient, state, *jax.tree.map(lambda x: x[0], batch), frozen)
        total, _ = jax.lax.scan(
            add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), batch
        )
        return jax.tree.map(lambda x: x / accumulate, total)

    def update(state: TrainState, arrays, sample_id_B, frozen: Params = None):
        grads, metrics = mean_gradient(state, arrays, sample_id_B, frozen)
        metrics["grad_norm"] = optax.tree.norm(grads)
        if len(grads) > 1:
            metrics |= {
                f"grad_norm_{name}": optax.tree.norm(group) for name, group in grads.items()
            }
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average forgets its random start faster.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(objective.averaged(params), state.ema, 1.0 - decay)
        new = TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
        return new, metrics

    return update
