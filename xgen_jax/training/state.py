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
    """Everything that a resumed run needs beside its configuration: masters, average and optimiser state, all float32.

    Nothing random is kept: keys are folded from (seed, step, sample).
    """

    step: Array  # int32 scalar: updates made
    params: Params
    ema: Params
    opt_state: Any


def init_state(objective, optimizer: optax.GradientTransformation, key: Array, arrays) -> TrainState:
    """The state before the first step."""
    params = objective.init(key, arrays)
    copy = jax.tree.map(jnp.copy, params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, ema=copy, opt_state=optimizer.init(params))


def sample_keys(seed: int | Array, step: Array, sample_id_B: Array) -> Array:
    """One key a sample from (seed, step, sample id)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(sample_id_B)


def make_update(objective, optimizer, seed: int, ema_decay: float) -> Callable:
    """(state, arrays, sample_id uint32 (B,)) -> (state, metrics). An update that is not finite is not applied."""

    def update(state: TrainState, arrays, sample_id_B):
        keys = sample_keys(seed, state.step, sample_id_B)
        (loss, metrics), grads = jax.value_and_grad(objective.loss, has_aux=True)(state.params, arrays, keys)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average forgets its random start faster.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)
        new = TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
        return new, {"loss": loss, "grad_norm": grad_norm, **metrics}

    return update
