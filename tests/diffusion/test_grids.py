"""Which steps sampling visits."""

import numpy as np
import pytest

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.grids import SPACINGS, karras_levels, make_grid, respaced, spaced_steps
from xgen_jax.diffusion.processes import make_process
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
    with pytest.raises(UserError, match="spacing='leading' is not rectified flow's"):
        make_grid(RectifiedFlow(), 4, "leading")
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
