"""Classifier-free guidance (arXiv 2207.12598): null + scale (condition - null), in one forward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from xgen_jax.diffusion.config import PLAIN_GUIDANCE, GuidanceConfig
from xgen_jax.diffusion.process import Denoised, Level, Process
from xgen_jax.typing import Array

# (x (B, ...), timestep (B,), condition, frame mask (B, T) or None) -> network output (B, ...)
Predict = Callable[[Array, Array, Any, Array | None], Array]


def combine(
    conditional: Array, null: Array, scale: float | Array, config: GuidanceConfig = PLAIN_GUIDANCE
) -> Array:
    """Combine two predictions, (B, ..., C) each and without variance, to the guided one.

    Args:
      conditional: with the condition.
      null: with the empty condition.
      scale: 1 is no guidance; a number or (B,).
      config: see there.
    """
    scale = jnp.asarray(scale, conditional.dtype)
    scale = scale.reshape(scale.shape + (1,) * (conditional.ndim - 1)) if scale.ndim else scale
    if config.zero_star:
        axes = tuple(range(1, conditional.ndim))
        product = (conditional * null).sum(axes, keepdims=True)
        null = null * (product / (jnp.square(null).sum(axes, keepdims=True) + 1e-8))
    y = null + scale * (conditional - null)
    if config.channels is None:
        return y
    return jnp.concatenate(
        [y[..., : config.channels], conditional[..., config.channels :]], axis=-1
    )


def guided(
    predict: Predict,
    condition: Any,
    null: Any,
    scale: float | Array | None,
    process: Process,
    config: GuidanceConfig = PLAIN_GUIDANCE,
    clip: float | None = None,
) -> Callable[[Array, Level, Array | None], Denoised]:
    """Make a denoise function for `samplers.sample` from a conditional network.

    Args:
      predict: see `Predict`; called with 2B rows, condition first, where guidance is given.
      condition: a pytree with leading dim B.
      null: the same for the empty condition.
      scale: a number or (B,); None for no guidance: only the condition is evaluated, at half the
        cost of a scale of 1, which gives the same but for rounding.
      process: turns outputs into x0 and eps.
      config: see there.
      clip: bound of |x0|; None for none.
    """
    config.check(process.prediction)
    both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, null)

    def twice(a):
        return jnp.concatenate([a, a])

    def guide(x, level, frame_mask):
        time = jnp.full((2 * x.shape[0],), level.timestep)
        masks = None if frame_mask is None else twice(frame_mask)
        conditional, unconditional = jnp.split(predict(twice(x), time, both, masks), 2)
        prediction, variance = process.split(conditional)
        assert scale is not None  # `denoise` asks
        prediction = combine(prediction, process.split(unconditional)[0], scale, config)
        return prediction if variance is None else jnp.concatenate([prediction, variance], axis=-1)

    def follow(x, level, frame_mask):
        return predict(x, jnp.full((x.shape[0],), level.timestep), condition, frame_mask)

    def denoise(x, level, frame_mask=None):
        if scale is None:
            output = follow(x, level, frame_mask)
        elif config.interval is None:
            output = guide(x, level, frame_mask)
        else:
            low, high = config.interval
            inside = jnp.logical_and(level.t > low, level.t <= high)
            output = lax.cond(inside, guide, follow, x, level, frame_mask)
        if config.zero_steps:
            output = jnp.where(level.step < config.zero_steps, 0.0, output)
        return process.denoised(output, x, level, clip)

    return denoise
