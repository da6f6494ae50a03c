"""Grids of sampling: the steps of a discrete process that are visited, and their levels.

`linspace`, `leading` and `trailing` are those of arXiv 2305.08891, table 2; `respaced` is that of
arXiv 2102.09672, section 4 (Open-Sora 1.1's, whose `ddimN` is `leading`).
"""

import itertools
from typing import NamedTuple

import numpy as np

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


def chain(levels: Level) -> Grid:
    """Return the n intervals between n + 1 levels."""
    steps = len(levels.t) - 1
    levels = levels._replace(step=np.arange(steps + 1))
    return Grid(Level(*(field[:-1] for field in levels)), Level(*(field[1:] for field in levels)))


def make_grid(process: Process, steps: int, spacing: str | None = None, ratio: float = 1.0) -> Grid:
    """Return the grid of a process; see `Process.grid_times`."""
    return chain(process.levels(process.grid_times(steps, spacing, ratio)))


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
    if not 1 <= steps <= num_steps:
        raise UserError(
            f"steps={steps} must be within 1 .. {num_steps}, the steps that the process has"
        )
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
    if len(np.unique(visited)) < steps:
        raise UserError(
            f"spacing {spacing!r} with a shift by {ratio:g} gives {len(np.unique(visited))} "
            f"different steps, fewer than steps={steps}; take fewer"
        )
    return visited


def karras_levels(process: Process, steps: int, rho: float = 7.0) -> Level:
    """Return levels (steps + 1,), even in (sigma / alpha)^(1 / rho) over a DDPM's range, and data.

    The timestep is the nearest step in log(sigma / alpha) (arXiv 2206.00364, equation 5).

    Args:
      process: a variance-preserving process of discrete steps.
      steps: 2 or more.
      rho: 7 is the paper's.

    Raises:
      UserError: a process whose noise has no bound.
    """
    if not hasattr(process, "tables"):
        raise UserError("Karras' spacing needs a process of finitely many steps: DDPM")
    if steps < 2:
        raise UserError(f"steps={steps} must be 2 or more for Karras' spacing")
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
