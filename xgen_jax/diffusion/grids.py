"""Grids of sampling: the noise levels that are visited, and the timesteps that the network gets.

`linspace`, `leading` and `trailing` are those of arXiv 2305.08891, table 2; `respaced` is that of
arXiv 2102.09672, section 4 (Open-Sora 1.1's, whose `ddimN` is `leading`).

`DISCRETE_GRIDS` and `FLOW_GRIDS` are those of diffusers' schedulers (checked against 0.42.1), which
differ from these, and from each other, in where they begin, end and round. A released model's own
samples need the grid of its own scheduler; docs/sampling.md says which name is which.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xgen_jax.diffusion.config import PLAIN_GRID, GridConfig
from xgen_jax.diffusion.process import Level, Process
from xgen_jax.diffusion.time import shift
from xgen_jax.errors import UserError, choose

SPACINGS = ("respaced", "linspace", "leading", "trailing")


class Grid(NamedTuple):
    """The intervals of sampling, from `now` to `after`.

    Each is a `Level` of arrays (steps,), on the host in float64.
    """

    now: Level
    after: Level

    @property
    def chained(self) -> bool:
        """Whether each interval begins where the one before it ends."""
        return np.allclose(self.now.t[1:], self.after.t[:-1], rtol=0, atol=1e-9)


def chain(levels: Level) -> Grid:
    """Return the n intervals between n + 1 levels."""
    steps = len(levels.t) - 1
    levels = levels._replace(step=np.arange(steps + 1))
    return Grid(Level(*(field[:-1] for field in levels)), Level(*(field[1:] for field in levels)))


def make_grid(
    process: Process,
    steps: int,
    spacing: str | None = None,
    ratio: float = 1.0,
    options: GridConfig = PLAIN_GRID,
) -> Grid:
    """Return the grid of a process.

    Args:
      process: see `diffusion.process`.
      steps: 1 or more.
      spacing: a name in `spacings(process)`; None for the process's default.
      ratio: of `diffusion.time.shift`.
      options: see `GridConfig`.

    Raises:
      UserError: a spacing that is not known, or is another process's; more steps than it has; a
        shift or an option that it does not have.
    """
    named = DISCRETE_GRIDS if _discrete(process) else FLOW_GRIDS
    if spacing is not None:
        known = spacings(process)
        if spacing not in known and spacing in (*SPACINGS, *DISCRETE_GRIDS, "even", *FLOW_GRIDS):
            other = "flow" if _discrete(process) else "ddpm"
            raise UserError(
                f"spacing={spacing!r} is for the process {other!r}; for this run's process choose "
                f"one of {', '.join(known)}"
            )
        choose("spacing", spacing, known)
    for option, takes in _OPTIONS.items():
        value = getattr(options, option)
        if value != getattr(PLAIN_GRID, option) and spacing not in takes:
            raise UserError(
                f"{option}={value} is for the spacings {', '.join(takes)}, and the spacing is "
                f"{spacing or 'the default'}; leave it out, or choose one of these"
            )
    if spacing in named:
        return named[spacing](process, steps, ratio, options)
    return chain(process.levels(process.grid_times(steps, spacing, ratio)))


def spacings(process: Process) -> tuple[str, ...]:
    """Return the names of the grids that a process can be sampled on."""
    if _discrete(process):
        return (*SPACINGS, *DISCRETE_GRIDS)
    return ("even", *FLOW_GRIDS)


def _discrete(process: Process) -> bool:
    """Return whether a process has finitely many steps."""
    return hasattr(process, "tables")


def respaced(num_steps: int, sections: tuple[int, ...]) -> np.ndarray:
    """Return steps of 0 .. num_steps - 1, ascending, spaced evenly within each of equal sections.

    Args:
      num_steps: N of the process.
      sections: steps to take from each section.

    Raises:
      UserError: a section holds fewer steps than are to be taken.
    """
    size, extra = divmod(num_steps, len(sections))
    first, visited = 0, []
    for index, count in enumerate(sections):
        length = size + (index < extra)
        if not 1 <= count <= length:
            raise UserError(f"{count} steps cannot be taken out of {length}; take 1 .. {length}")
        stride = 1.0 if count == 1 else (length - 1) / (count - 1)
        # Summed, not multiplied, so that halves are rounded as in the reference.
        places = itertools.accumulate([stride] * (count - 1), initial=0.0)
        visited += [first + round(place) for place in places]
        first += length
    return np.array(visited)


def spaced_steps(num_steps: int, steps: int, spacing: str, ratio: float = 1.0) -> np.ndarray:
    """Return the visited steps, descending, int (steps,).

    Args:
      num_steps: N of the process.
      steps: how many to visit.
      spacing: a name in `SPACINGS`.
      ratio: of `diffusion.time.shift`, applied before rounding.

    Raises:
      UserError: too few or too many steps, or a spacing that is not known.
    """
    _check_steps(num_steps, steps)
    choose("spacing", spacing, SPACINGS)
    match spacing:
        case "respaced":
            visited = respaced(num_steps, (steps,))[::-1]
        case "leading":
            visited = np.arange(steps)[::-1] * (num_steps // steps)
        case "linspace":
            visited = np.round(np.linspace(0, num_steps - 1, steps + 1)).astype(int)[:0:-1]
        case _:  # trailing
            visited = np.round(num_steps - np.arange(steps) * num_steps / steps).astype(int) - 1
    if ratio != 1.0:
        shifted = shift((visited + 1) / num_steps, ratio)
        visited = np.clip(np.round(shifted * num_steps).astype(int) - 1, 0, num_steps - 1)
    return _distinct(visited, f"{spacing!r} with a shift by {ratio:g}")


def _distinct(visited: np.ndarray, spacing: str) -> np.ndarray:
    """Return the visited steps; UserError where one is visited twice."""
    if len(np.unique(visited)) < len(visited):
        raise UserError(
            f"spacing {spacing} gives {len(np.unique(visited))} different steps, fewer than "
            f"steps={len(visited)}; take fewer"
        )
    return visited


def karras_levels(process: Any, steps: int, rho: float = 7.0) -> Level:
    """Return levels (steps + 1,), even in (sigma / alpha)^(1 / rho) over a DDPM's range, and data.

    The timestep is the nearest step in log(sigma / alpha) (arXiv 2206.00364, equation 5).

    Args:
      process: a variance-preserving process of discrete steps.
      steps: 1 or more; a single one goes from the noisiest level to data.
      rho: 7 is the paper's.

    Raises:
      UserError: a process whose noise has no bound.
    """
    if not _discrete(process):
        raise UserError("Karras' spacing needs a process of finitely many steps: DDPM")
    if steps < 1:
        raise UserError(f"steps={steps} must be 1 or more for Karras' spacing")
    abar = process.tables.alphas_cumprod
    if abar[-1] == 0:
        raise UserError("Karras' spacing needs a last step that is not noise alone: zero_snr=False")
    table = np.sqrt((1.0 - abar) / abar)
    ends = table[[-1, 0]] ** (1.0 / rho)
    ratio = np.linspace(ends[0], ends[1], steps) ** rho
    step = np.round(np.interp(np.log(ratio), np.log(table), np.arange(len(table))))
    alpha = 1.0 / np.sqrt(1.0 + ratio**2)
    return Level(
        np.append((step + 1) / len(table), 0.0),
        np.append(alpha, 1.0),
        np.append(ratio * alpha, 0.0),
        np.append(step, 0.0),
        np.arange(steps + 1),
    )


def _ddim(process: Any, steps: int, ratio: float, options: GridConfig, *, spacing: str) -> Grid:
    """`DDIMScheduler`: a step ends N // steps below where it begins.

    That is not always where the next one begins. The last ends on data, or, as Stable Diffusion's
    do, on the level of step 0 (`set_alpha_to_one=False`). `linspace` visits both ends; a single
    step visits step 0.
    """
    count = process.num_steps
    _no_shift(f"ddim_{spacing}", ratio)
    if spacing == "linspace":
        _check_steps(count, steps)
        visited = np.round(np.linspace(0, count - 1, steps)).astype(int)[::-1]
    else:
        visited = spaced_steps(count, steps, spacing)
        visited = _offset(visited, count, options if spacing == "leading" else PLAIN_GRID)
    end = visited - count // steps
    last = 0.0 if options.set_alpha_to_one else 1 / count
    after = process.levels(np.where(end >= 0, (end + 1) / count, last))
    return Grid(process.levels((visited + 1) / count), after._replace(step=np.arange(1, steps + 1)))


def _dpm(process: Any, steps: int, ratio: float, options: GridConfig, *, spacing: str) -> Grid:
    """`DPMSolverMultistepScheduler` and `UniPCMultistepScheduler`: down to data.

    `leading` and `linspace` make steps + 1 steps and leave the lowest out.
    """
    count = process.num_steps
    _no_shift(f"dpm_{spacing}", ratio)
    if spacing == "leading":
        _check_steps(count, steps)
        visited = np.arange(1, steps + 1)[::-1] * (count // (steps + 1))
        visited = _offset(_distinct(visited, "'dpm_leading'"), count, options)
    else:
        visited = spaced_steps(count, steps, spacing)
    return chain(process.levels(np.append((visited + 1) / count, 0.0)))


def _dpm_karras(process: Process, steps: int, ratio: float, options: GridConfig) -> Grid:
    """`use_karras_sigmas=True` of the same two."""
    del options
    _no_shift("dpm_karras", ratio)
    return chain(karras_levels(process, steps))


def _flow_match_euler(
    process: Process, steps: int, ratio: float, options: GridConfig, *, dynamic: bool
) -> Grid:
    """`FlowMatchEulerDiscreteScheduler` without sigmas of a pipeline's own.

    Times are even between the shifted ends, 1 and 1 / 1000, and then shifted again. With
    `use_dynamic_shifting`, whose ratio is exp(mu), the ends are not shifted.
    """
    del options
    ends = np.array([1.0, 1.0 / _FLOW_STEPS])
    if not dynamic:
        ends = shift(ends, ratio)
    return _to_data(process, shift(np.linspace(ends[0], ends[1], _at_least_one(steps)), ratio))


def _flow_sigmas(
    process: Process, steps: int, ratio: float, options: GridConfig, *, solver: str
) -> Grid:
    """`use_flow_sigmas=True`, with `flow_shift`, of the DPM-Solver and UniPC schedulers.

    Both leave pure noise out: the first starts at 0.999 before the shift, the second stops 1e-6
    short of it. The network gets timesteps without their fraction.
    """
    del options
    steps = _at_least_one(steps)
    if solver == "dpm":
        times = (1.0 - np.linspace(1.0, 1.0 / _FLOW_STEPS, steps + 1))[:0:-1]
    else:
        times = np.linspace(1.0, 1.0 / _FLOW_STEPS, steps + 1)[:-1]
    times = np.minimum(shift(times, ratio), 1.0 - 1e-6)
    grid = _to_data(process, times)
    whole = np.floor(times * _FLOW_STEPS)
    return Grid(
        grid.now._replace(timestep=whole), grid.after._replace(timestep=np.append(whole[1:], 0.0))
    )


def _to_data(process: Process, times: np.ndarray) -> Grid:
    return chain(process.levels(np.append(times, 0.0)))


def _offset(visited: np.ndarray, count: int, options: GridConfig) -> np.ndarray:
    """Add `steps_offset`; UserError where the process does not have so high a step."""
    visited = visited + options.steps_offset
    if visited[0] >= count:
        raise UserError(
            f"steps_offset={options.steps_offset} with steps={len(visited)} begins at step "
            f"{visited[0]}, and the process has 0 .. {count - 1}; take fewer steps"
        )
    return visited


def _no_shift(spacing: str, ratio: float) -> None:
    if ratio != 1.0:
        raise UserError(
            f"spacing {spacing!r} has no shift, and this run's is {ratio:g} (loss.time_shift, "
            f"loss.shift_by_size); choose one of {', '.join(SPACINGS)}, which have"
        )


def _check_steps(count: int, steps: int) -> None:
    if not 1 <= steps <= count:
        raise UserError(
            f"steps={steps} must be within 1 .. {count}, the steps that the process has"
        )


def _at_least_one(steps: int) -> int:
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    return steps


_FLOW_STEPS = 1000  # num_train_timesteps of every released flow model's scheduler

Make = Callable[[Any, int, float, GridConfig], Grid]  # the process is of the table's kind
DISCRETE_GRIDS: Mapping[str, Make] = {
    **{
        f"{name}_{spacing}": functools.partial(make, spacing=spacing)
        for name, make in (("ddim", _ddim), ("dpm", _dpm))
        for spacing in ("leading", "trailing", "linspace")
    },
    "dpm_karras": _dpm_karras,
}
FLOW_GRIDS: Mapping[str, Make] = {
    "flow_match_euler": functools.partial(_flow_match_euler, dynamic=False),
    "flow_match_euler_dynamic": functools.partial(_flow_match_euler, dynamic=True),
    "dpm_flow": functools.partial(_flow_sigmas, solver="dpm"),
    "unipc_flow": functools.partial(_flow_sigmas, solver="unipc"),
}
_OPTIONS = {
    "steps_offset": ("ddim_leading", "dpm_leading"),
    "set_alpha_to_one": ("ddim_leading", "ddim_trailing", "ddim_linspace"),
}
