"""Which steps sampling visits."""

import re

import numpy as np
import pytest

from xgen_jax.diffusion.config import GridConfig
from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import (
    SPACINGS,
    karras_levels,
    make_grid,
    respaced,
    spaced_steps,
    spacings,
)
from xgen_jax.diffusion.processes import make_process
from xgen_jax.diffusion.samplers import make_steps
from xgen_jax.diffusion.time import shift, time_grid
from xgen_jax.errors import UserError


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 50, 999])
def test_spacings_descend_within_the_chain(spacing, steps):
    visited = spaced_steps(1000, steps, spacing)
    assert len(visited) == steps
    assert (np.diff(visited) < 0).all()
    assert visited.min() >= 0
    assert visited.max() <= 999


@pytest.mark.parametrize("spacing", ["respaced", "leading", "trailing"])
def test_all_steps_are_the_whole_chain(spacing):
    assert np.array_equal(spaced_steps(1000, 1000, spacing), np.arange(1000)[::-1])


def test_a_grid_chains_from_noise_to_data():
    for process in (RectifiedFlow(), DDPM()):
        grid = make_grid(process, 10)
        assert grid.now.t[0] == 1.0
        assert grid.after.alpha[-1] == 1.0
        assert grid.after.sigma[-1] == 0.0
        assert np.array_equal(grid.now.t[1:], grid.after.t[:-1])
        assert grid.now.step.tolist() == list(range(10))


def test_the_shift_moves_steps_towards_noise():
    np.testing.assert_allclose(
        make_grid(RectifiedFlow(), 8, ratio=3.0).now.t, shift(time_grid(8), 3.0)[:-1]
    )
    shifted, even = (make_grid(DDPM(), 8, "trailing", ratio=r).now.timestep for r in (3.0, 1.0))
    assert shifted[0] == even[0] == 999
    assert (shifted[1:] > even[1:]).all()
    assert np.array_equal(shifted, np.round(shifted))


def test_sections_take_their_share():
    assert respaced(10, (2, 5)).tolist() == [0, 4, 5, 6, 7, 8, 9]
    with pytest.raises(UserError, match="6 steps cannot be taken out of 5; take 1 .. 5"):
        respaced(10, (2, 6))


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_there_are_or_none_are_refused(steps):
    with pytest.raises(UserError, match=f"steps={steps} must be within 1 .. 1000"):
        make_grid(DDPM(), steps)


def test_what_is_not_known_is_refused():
    with pytest.raises(UserError, match="spacing='cosine' is not known; choose one of respaced"):
        make_grid(DDPM(), 4, "cosine")
    with pytest.raises(UserError, match="spacing='leading' is for the process 'ddpm'; .* even"):
        make_grid(RectifiedFlow(), 4, "leading")
    with pytest.raises(UserError, match="spacing='unipc_flow' is for the process 'flow'"):
        make_grid(DDPM(), 4, "unipc_flow")
    with pytest.raises(UserError, match=r"did you mean 'ddim_leading'\?"):
        make_grid(DDPM(), 4, "ddim_leeding")
    with pytest.raises(UserError, match="fewer than steps=900; take fewer"):
        make_grid(DDPM(), 900, ratio=5.0)
    with pytest.raises(UserError, match="process='edm' is not known; choose one of flow, ddpm"):
        make_process("edm")
    with pytest.raises(UserError, match="a process of finitely many steps"):
        karras_levels(RectifiedFlow(), 4)
    with pytest.raises(UserError, match="zero_snr=False"):
        karras_levels(DDPM(zero_snr=True, prediction="v"), 4)
    with pytest.raises(UserError, match="no variance to learn"):
        make_process("flow", learned_variance=True)


@pytest.mark.parametrize("process", [DDPM(), RectifiedFlow()], ids=["ddpm", "flow"])
def test_every_grid_descends_from_noise_for_every_number_of_steps(process):
    for spacing in spacings(process):
        for steps in (1, 2, 3, 7, 50):
            grid = make_grid(process, steps, spacing)
            assert len(grid.now.t) == len(grid.after.t) == steps
            assert (grid.after.sigma < grid.now.sigma).all(), (spacing, steps)
            assert (np.diff(grid.now.sigma) < 0).all()
            # Down to data, or where steps end N // n lower, to the level of step 0.
            assert grid.after.t[-1] <= (0.001 if spacing == "ddim_trailing" else 0)


def test_stable_diffusions_steps_end_on_step_0():
    options = GridConfig(steps_offset=1, set_alpha_to_one=False)
    grid = make_grid(DDPM(), 50, "ddim_leading", options=options)
    assert grid.now.timestep[[0, -1]].tolist() == [981, 1]
    assert grid.after.alpha[-1] == np.sqrt(1 - 1e-4)
    assert grid.after.sigma[-1] > 0


@pytest.mark.parametrize(
    ("process", "steps", "spacing", "ratio", "options", "message"),
    [
        (DDPM(), 4, "ddim_trailing", 1.0, {"steps_offset": 1}, "steps_offset=1 is for the"),
        (
            DDPM(),
            4,
            None,
            1.0,
            {"set_alpha_to_one": False},
            "linspace, and the spacing is the",
        ),
        (
            DDPM(),
            4,
            "ddim_leading",
            3.0,
            {},
            r"has no shift, .* is 3 \(loss.time_shift",
        ),
        (DDPM(), 1000, "ddim_leading", 1.0, {"steps_offset": 1}, "has 0 .. 999; take fewer steps"),
        (DDPM(), 1000, "dpm_leading", 1.0, {}, "1 different steps, fewer than steps=1000"),
        (DDPM(), 0, "dpm_karras", 1.0, {}, "steps=0 must be 1 or more"),
        (DDPM(), 0, "ddim_linspace", 1.0, {}, "steps=0 must be within 1 .. 1000"),
        (RectifiedFlow(), 0, "unipc_flow", 1.0, {}, "steps=0 must be at least 1"),
        (RectifiedFlow(), 0, "flow_match_euler", 1.0, {}, "steps=0 must be at least 1"),
    ],
)
def test_what_a_grid_does_not_have_is_refused(process, steps, spacing, ratio, options, message):
    with pytest.raises(UserError, match=message):
        make_grid(process, steps, spacing, ratio, GridConfig(**options))
    with pytest.raises(UserError, match="steps_offset=-1 must be 0 or more"):
        GridConfig(steps_offset=-1)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_a_rule_of_several_steps_refuses_a_grid_with_gaps(solver):
    gaps, whole = (make_grid(DDPM(), steps, "ddim_trailing") for steps in (7, 50))
    assert whole.chained and not gaps.chained
    make_steps(solver, whole)
    with pytest.raises(UserError, match=f"'{re.escape(solver)}' needs steps that begin where"):
        make_steps(solver, gaps)
