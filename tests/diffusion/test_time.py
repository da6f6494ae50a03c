"""Times: the shift's identities, the distributions' statistics, the ends of the sampling grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.time import sample_times, shift, shift_ratio, time_grid
from xgen_jax.errors import UserError

T = jnp.linspace(0.0, 1.0, 11)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_shift_keeps_the_ends_and_the_order(ratio):
    shifted = shift(T, ratio)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert np.all(np.diff(shifted) > 0)
    if ratio > 1:
        assert np.all(shifted[1:-1] > T[1:-1])


def test_shift_by_one_is_the_identity():
    assert np.array_equal(shift(T, 1.0), T)


def test_shifts_multiply_and_invert():
    np.testing.assert_allclose(shift(shift(T, 3.0), 1 / 3.0), T, atol=1e-6)
    np.testing.assert_allclose(shift(shift(T, 3.0), 2.0), shift(T, 6.0), atol=1e-6)


@pytest.mark.parametrize(
    "distribution,ratio", [("uniform", 1.0), ("logit_normal", 1.0), ("uniform", 3.0)]
)
def test_times_have_their_distribution(distribution, ratio):
    t = shift(
        sample_times(jax.random.split(jax.random.key(0), 20_000), distribution, ratio), 1 / ratio
    )
    assert t.min() >= 0
    assert t.max() <= 1
    # Bounds are five standard errors of 20,000 draws.
    if distribution == "uniform":
        assert abs(float(t.mean()) - 0.5) < 5 * 12**-0.5 / 20_000**0.5
        assert abs(float(t.var()) - 1 / 12) < 0.003
    else:
        logit = jnp.log(t) - jnp.log1p(-t)
        assert abs(float(logit.mean())) < 5 / 20_000**0.5
        assert abs(float(logit.std()) - 1) < 5 / 40_000**0.5


def test_a_samples_time_does_not_depend_on_its_batch():
    keys = jax.random.split(jax.random.key(0), 8)
    whole = sample_times(keys, "logit_normal", 2.0)
    assert np.array_equal(sample_times(keys[5:], "logit_normal", 2.0), whole[5:])
    assert len(set(whole.tolist())) == 8


def test_an_unknown_distribution_is_refused():
    with pytest.raises(UserError, match="'cosine' is not known"):
        sample_times(jax.random.split(jax.random.key(0), 2), "cosine")


def test_the_grid_goes_from_noise_to_data():
    assert time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = time_grid(4, 3.0)
    assert shifted[0] == 1
    assert shifted[-1] == 0
    np.testing.assert_allclose(shifted, shift(time_grid(4), 3.0))


def test_a_grid_without_steps_is_refused():
    with pytest.raises(UserError, match="steps=0"):
        time_grid(0)


def test_the_ratio_grows_with_the_root_of_area_and_length():
    assert shift_ratio(512, 512, 1) == 1
    assert shift_ratio(512, 512, 16) == 4
    assert shift_ratio(1024, 1024, 1) == 2
    assert shift_ratio(256, 1024, 4, scale=1.5) == 3
    assert shift_ratio(240, 426, 5, base_pixels=240 * 426, base_latent_frames=5) == 1
    # Open-Sora 1.2's for 720p at 51 frames (15 latent frames): sqrt(720 1280 / 512^2) sqrt(15).
    np.testing.assert_allclose(shift_ratio(720, 1280, 15), 7.262, atol=1e-3)
    each = shift_ratio(
        jnp.array([512.0, 1024.0]), jnp.array([512.0, 1024.0]), jnp.array([1.0, 4.0])
    )
    assert each.tolist() == [1, 4]


def test_each_sample_may_have_its_own_shift():
    keys = jax.random.split(jax.random.key(0), 3)
    ratio = jnp.array([1.0, 2.0, 5.0])
    drawn = sample_times(keys, "logit_normal", ratio)
    one_by_one = [
        sample_times(keys[i : i + 1], "logit_normal", float(ratio[i]))[0] for i in range(3)
    ]
    np.testing.assert_allclose(drawn, one_by_one, rtol=1e-6)
