"""Sampling = time grid x solver x denoise function, run by one `lax.scan`.

The scan knows neither model nor schedule. A solver is three functions in a file of its own, which
states the order to which it converges:

    coefficients(grid, **options)           {name: (steps,)}, on the host in float64: all of the
                                            schedule's mathematics
    init(x, coefficients)                   memory from step to step, a pytree
    step(denoise, x, memory, here, noise)   (x, memory): sums of arrays with the coefficients `here`

and, if it evaluates the network more than once in some steps,

    evaluations(after)                      (steps,): evaluations in steps that end at these levels

A warm-up at the start, a lower order at the end or a noiseless last step are other coefficients,
not another program: one compiled program serves all grids of as many steps, all seeds and guidance
scales. A solver depends on (alpha, sigma) only and runs on any process.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xgen_jax.diffusion.grids import Grid
from xgen_jax.diffusion.process import Denoised, Level
from xgen_jax.diffusion.samplers import ancestral, ddim, dpm_solver, euler, heun, unipc
from xgen_jax.errors import UserError, choose
from xgen_jax.typing import Array, Shape

SOLVERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm++2m": dpm_solver,
    "euler": euler,
    "heun": heun,
    "unipc": unipc,
}

MULTISTEP = ("dpm++2m", "unipc")  # they take x0 of earlier steps along

Denoise = Callable[[Array, Level, Array | None], Denoised]
Noise = Callable[[Array, int], Array]


class Steps(NamedTuple):
    """A solver's arrays along a grid, with leading axis steps; arguments of a compiled program."""

    now: Level
    after: Level
    coefficients: dict[str, Any]


class Frames(Protocol):
    """Frames that are given while sampling; see `diffusion.frames`."""

    def before(self, x: Array, now: Level, noise: Noise) -> Array:
        """Return the state from which a step begins."""

    def frame_mask(self, now: Level) -> Array:
        """Return the network's frame mask (B, T): True for a noised frame, False if clean."""

    def after(self, x_before: Array, x: Array, now: Level) -> Array:
        """Return the state with which a step ends."""


def check_solver(solver: str) -> None:
    """Raise UserError for a name that is not in `SOLVERS`."""
    choose("sampler", solver, sorted(SOLVERS))


def make_steps(solver: str, grid: Grid, **options) -> Steps:
    """Return the arrays with which a solver goes along a grid.

    Args:
      solver: a name in `SOLVERS`.
      grid: see `diffusion.grids`.
      options: of the solver: `eta` (ddim), `order` (unipc).

    Raises:
      UserError: an unknown solver, or one of several steps on a grid with gaps.
    """
    check_solver(solver)
    if solver in MULTISTEP and not grid.chained:
        raise UserError(
            f"sampler={solver!r} needs steps that begin where the last one ended, and those of "
            "this spacing do not at this number of steps; choose 'ddim' or 'euler', or a dpm_ "
            "spacing"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        coefficients = SOLVERS[solver].coefficients(grid, **options)
    return Steps(grid.now, grid.after, coefficients)


def count_evaluations(solver: str, steps: Steps) -> int:
    """Return how often a solver evaluates the network along a grid.

    Args:
      solver: a name in `SOLVERS`.
      steps: see `make_steps`; of the same solver, on the host.
    """
    check_solver(solver)
    count = getattr(SOLVERS[solver], "evaluations", None)
    return len(steps.after.t) if count is None else int(count(steps.after).sum())


def key_noise(key_B: Array, shape: Shape) -> Noise:
    """Return noise of a batch by absolute step.

    A sample's noise depends neither on its batch nor on where sampling was resumed.

    Args:
      key_B: a key for each sample.
      shape: of one sample.
    """

    def noise(step, stream):
        keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, stream), step))(
            key_B
        )
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    return noise


def no_noise(step: Array, stream: int) -> Array:
    """Refuse: the noise of solvers that need none."""
    raise UserError("this sampler needs noise: give `sample` a noise function, see `key_noise`")


@overload
def sample(
    denoise: Denoise,
    x: Array,
    steps: Steps,
    solver: str,
    noise: Noise = no_noise,
    frames: Frames | None = None,
    trajectory: Literal[False] = False,
) -> Array: ...
@overload
def sample(
    denoise: Denoise,
    x: Array,
    steps: Steps,
    solver: str,
    noise: Noise = no_noise,
    frames: Frames | None = None,
    *,
    trajectory: Literal[True],
) -> tuple[Array, Array]: ...
def sample(
    denoise: Denoise,
    x: Array,
    steps: Steps,
    solver: str,
    noise: Noise = no_noise,
    frames: Frames | None = None,
    trajectory: bool = False,
) -> Array | tuple[Array, Array | None]:
    """Integrate x from the first level to the last.

    Args:
      denoise: (x, level of scalars, frame mask (B, T) or None) -> `Denoised`.
      x: the state at the first level, usually noise.
      steps: see `make_steps`; of the same solver.
      solver: a name in `SOLVERS`.
      noise: (step, stream) -> as x; see `key_noise`.
      frames: given frames; None where all are sampled.
      trajectory: also return the state after each step.

    Returns:
      The state at the last level; with `trajectory` (state, the states (steps, ...)).
    """
    carry, states = advance(
        denoise, begin(x, steps, solver), steps, solver, noise, frames, trajectory
    )
    return (carry[0], states) if trajectory else carry[0]


def begin(x: Array, steps: Steps, solver: str) -> tuple[Array, Any]:
    """Return the first carry of `advance`: (state, the solver's memory).

    Arguments as of `sample`.
    """
    check_solver(solver)
    return x, SOLVERS[solver].init(x, _in_precision(steps, x).coefficients)


def advance(
    denoise: Denoise,
    carry: tuple[Array, Any],
    steps: Steps,
    solver: str,
    noise: Noise = no_noise,
    frames: Frames | None = None,
    trajectory: bool = False,
) -> tuple[tuple[Array, Any], Array | None]:
    """Take some of the steps: `sample` in parts, for progress and interruption.

    Args:
      carry: from `begin`, or from the steps before.
      steps: those to take, in order; the others are as of `sample`.

    Returns:
      (carry, the state after each step with `trajectory`, else None).
    """
    solver_module = SOLVERS[solver]

    def body(carry, here):
        x, memory = carry
        if frames is None:
            x, memory = solver_module.step(
                lambda x, level: denoise(x, level, None), x, memory, here, noise
            )
        else:
            start = frames.before(x, here.now, noise)

            def held(x):
                return frames.after(start, x, here.now)

            def denoise_held(x, level):  # a solver may ask at another state than the step's
                return denoise(held(x), level, frames.frame_mask(here.now))

            x, memory = solver_module.step(denoise_held, start, memory, here, noise)
            x = held(x)
        return (x, memory), x if trajectory else None

    return lax.scan(body, carry, _in_precision(steps, carry[0]))


def _in_precision(steps: Steps, x: Array) -> Steps:
    """Cast coefficients, float64 on the host, to the precision of x."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, x.dtype if np.issubdtype(a.dtype, np.floating) else None), steps
    )
