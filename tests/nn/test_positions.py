"""Rotary positions turn, and only turn; sinusoids tell places apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.nn.positions import rotary, sinusoid, sinusoid_2d


def test_rotary_products_depend_on_distance_alone():
    q, k = (jax.random.normal(jax.random.key(i), (1, 6, 2, 16)) for i in range(2))

    def products(shift):
        positions = jnp.arange(6) + shift
        return jnp.einsum("bnkc,bmkc->bknm", rotary(q, positions), rotary(k, positions))

    np.testing.assert_allclose(products(37), products(0), atol=2e-5)
    assert np.abs(products(0) - jnp.einsum("bnkc,bmkc->bknm", q, k)).max() > 0.1


def test_rotary_keeps_norms_and_leaves_place_zero_as_it_is():
    x = jax.random.normal(jax.random.key(0), (2, 5, 2, 16))
    y = rotary(x, jnp.array([0.0, 1.0, 2.5, 100.0, 1e4]))
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    assert np.array_equal(y[:, 0], x[:, 0])


def test_rotary_turns_a_pair_by_its_angle():
    # One pair has frequency 1: at position p the unit vector (1, 0) becomes (cos p, sin p).
    y = rotary(jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2), jnp.array([0.7]))
    np.testing.assert_allclose(y.ravel(), [np.cos(0.7), np.sin(0.7)], atol=1e-6)


def test_sinusoid_of_scalars():
    y = sinusoid(jnp.array([0.0, 1.0]), 8)
    frequencies = 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(y[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(
        y[1], np.concatenate([np.cos(frequencies), np.sin(frequencies)]), atol=1e-6
    )
    assert sinusoid(jnp.zeros((2, 3)), 8).shape == (2, 3, 8)


def test_sinusoid_2d_tells_every_cell_apart():
    height, width, dim = 3, 5, 16
    table = np.asarray(sinusoid_2d(height, width, dim))
    assert table.shape == (15, dim)
    assert np.abs(table).max() <= 1
    assert len(np.unique(table.round(5), axis=0)) == 15
    grid = table.reshape(height, width, dim)
    # Columns in the first half, rows in the second.
    np.testing.assert_array_equal(grid[0, :, : dim // 2], grid[2, :, : dim // 2])
    np.testing.assert_array_equal(grid[:, 0, dim // 2 :], grid[:, 4, dim // 2 :])


def test_sinusoid_2d_does_not_depend_on_the_grids_size():
    small, large = sinusoid_2d(2, 2, 8).reshape(2, 2, 8), sinusoid_2d(4, 6, 8).reshape(4, 6, 8)
    np.testing.assert_array_equal(small, large[:2, :2])


def test_sinusoid_2d_of_a_dim_that_four_does_not_divide_ends_in_zeros():
    table = sinusoid_2d(2, 2, 10)
    assert table.shape == (4, 10)
    assert not np.any(table[:, 8:])


@pytest.mark.slow
def test_sinusoid_2d_keeps_its_place_at_any_size_when_scaled():
    small = sinusoid_2d(2, 3, 16, scales=(32 / 2, 32 / 3)).reshape(2, 3, 16)
    large = sinusoid_2d(4, 9, 16, scales=(32 / 4, 32 / 9)).reshape(4, 9, 16)
    np.testing.assert_allclose(large[::2, ::3], small, atol=1e-5)


def test_rotary_products_depend_on_the_distance_along_each_axis():
    q, k = (jax.random.normal(jax.random.key(i), (1, 12, 2, 24)) for i in range(2))
    grid = np.stack(
        np.meshgrid(np.arange(2), np.arange(2), np.arange(3), indexing="ij"), -1
    ).reshape(12, 3)

    def products(positions):
        return jnp.einsum("bnkc,bmkc->bknm", rotary(q, positions), rotary(k, positions))

    moved = grid + np.array([[5, -2, 3]])
    np.testing.assert_allclose(products(moved), products(grid), atol=2e-5)
    for axis in range(3):  # each axis counts
        stretched = grid * np.where(np.arange(3) == axis, 2, 1)[None]
        assert np.abs(products(stretched) - products(grid)).max() > 0.1


def test_rotary_of_several_axes_divides_the_channels_among_them():
    x = jax.random.normal(jax.random.key(0), (1, 4, 1, 16))
    positions = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    turned = np.abs(rotary(x, positions) - x).max((0, 2)) > 1e-6
    # 2 floor(16 / 6) = 4 channels for the later axes, 8 for the first.
    assert [np.flatnonzero(row).tolist() for row in turned[:, :16]] == [
        list(range(8)),
        list(range(8, 12)),
        list(range(12, 16)),
        [],
    ]
    np.testing.assert_allclose(rotary(x, np.arange(4)[:, None]), rotary(x, np.arange(4)), atol=0)
