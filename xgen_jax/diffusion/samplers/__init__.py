"""Sampling = time grid x step rule x denoise function, run by one `lax.scan` that knows neither model nor schedule.

A step rule is `init(x) -> memory` and `step(denoise, x, memory, t, t_next) -> (x, memory)`; each lives in its own
file and states the order to which it converges.
"""

from collections.abc import Callable

from jax import lax

from xgen_jax.diffusion.samplers import euler
from xgen_jax.errors import UserError
from xgen_jax.typing import Array

RULES = {"euler": euler}


def sample(denoise: Callable[[Array, Array], Array], x: Array, times: Array, rule: str = "euler") -> Array:
    """Carries x from times[0] to times[-1].

    Args:
      denoise: (x, t) -> velocity dx/dt; t is a scalar.
      x: the state at times[0], usually noise.
      times: (steps + 1,), monotone.
      rule: a name in `RULES`.

    Returns:
      The state at times[-1].
    """
    if rule not in RULES:
        raise UserError(f"sampler {rule!r} is not known; choose one of {', '.join(sorted(RULES))}")
    step_rule = RULES[rule]

    def step(carry, interval):
        return step_rule.step(denoise, *carry, *interval), None

    (x, _), _ = lax.scan(step, (x, step_rule.init(x)), (times[:-1], times[1:]))
    return x
