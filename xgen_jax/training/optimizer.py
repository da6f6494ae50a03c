"""Optimisers by name: AdamW, or Muon on matrices with Adam for the rest; schedule and clipping."""

import jax
import optax

from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.parallel.sharding import path_name
from xgen_jax.typing import Params


def make_schedule(config: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Make a linear warm-up to `peak`, then the named decay over the rest of `steps`."""
    rest = max(1, steps - config.warmup_steps)
    match config.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
        case _:  # linear
            after = optax.linear_schedule(peak, 0.0, rest)
    warmup = optax.linear_schedule(0.0, peak, max(1, config.warmup_steps))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def muon_dimensions(params: Params) -> Params:
    """Return the matrix dims of every kernel; None for leaves of Adam.

    Optax's own default takes two-dimensional arrays only, and would silently give scan-stacked and
    convolution kernels to Adam.
    """

    def one(path, leaf):
        names = path_name(path).split("/")
        if names[-1] != "kernel" or leaf.ndim < 2:
            return None
        # The leading dim of a scanned block is a batch of matrices.
        stacked = 1 if "blocks" in names else 0
        dims = tuple(range(stacked, leaf.ndim))
        return optax.contrib.MuonDimensionNumbers(reduction_axis=dims[:-1], output_axis=dims[-1])

    return jax.tree_util.tree_map_with_path(one, params)


def decayed(params: Params) -> Params:
    """Return the mask of weight decay: True for all leaves but stored constants, which have no
    gradient."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "constants" not in path_name(path).split("/"), params
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Build the named optimiser for a run of `steps`."""
    rate = make_schedule(config, config.learning_rate, steps)
    match config.name:
        case "adamw":
            mask = decayed if config.weight_decay else None
            update = optax.adamw(
                rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=mask
            )
        case _:  # muon
            update = optax.contrib.muon(
                rate,
                weight_decay=config.weight_decay,
                adam_b1=config.b1,
                adam_b2=config.b2,
                adam_learning_rate=make_schedule(config, config.adam_learning_rate, steps),
                muon_weight_dimension_numbers=muon_dimensions,
            )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, update)


def optimize_apart(
    optimizers: dict[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Combine an optimiser for each top-level entry of the parameters.

    Each sees the gradients of its own entry only, so that clipping is separate too.
    """

    def init(params):
        return {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}

    def update(updates, state, params=None):
        assert params is not None
        pairs = {
            name: opt.update(updates[name], state[name], params[name])
            for name, opt in optimizers.items()
        }
        return {name: pair[0] for name, pair in pairs.items()}, {
            name: pair[1] for name, pair in pairs.items()
        }

    return optax.GradientTransformation(init, update)
