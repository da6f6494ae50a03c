"""Attention in windows of space is attention with a mask of those windows, for any picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.nn.attention import SelfAttention, attention
from xgen_jax.nn.layout import TOKENS
from xgen_jax.nn.local_attention import SpaceWindow, attend_in_windows

FRAMES = 2


def arrays(grid, batch=2, heads=2, channels=4):
    shape = (batch, FRAMES * grid[0] * grid[1], heads, channels)
    return [jax.random.normal(jax.random.key(seed), shape) for seed in range(4)]


def seen_along(tokens, size):
    """(tokens, tokens): whether a query sees a key, by the words of the module."""
    if size >= tokens:
        return np.ones((tokens, tokens), bool)
    block = size // 3
    seen = np.zeros((tokens, tokens), bool)
    for query in range(tokens):
        first = query // block * block - block  # of the block before
        first = min(max(first, 0), tokens - size)  # shifted inward
        seen[query, first : first + size] = True
    return seen


def masked(q, k, v, window):
    """Plain attention with the mask of the windows."""
    rows, columns = (seen_along(*side) for side in zip(window.grid, window.size))
    seen = rows[:, None, :, None] & columns[None, :, None, :]
    places = window.grid[0] * window.grid[1]
    seen = np.tile(seen.reshape(places, places), (FRAMES, FRAMES))
    logits = jnp.einsum("bnkc,bmkc->bknm", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bknm,bmkc->bnkc", weights, v)


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
@pytest.mark.parametrize(
    "grid, size",
    [
        ((6, 9), (3, 3)),  # blocks of one token
        ((8, 10), (6, 6)),  # whole blocks
        ((7, 11), (6, 9)),  # the last blocks are not whole
        ((4, 9), (6, 6)),  # all rows, some columns
    ],
)
def test_windows_are_a_mask_in_values_and_gradients(grid, size, implementation):
    window, (q, k, v, dy) = SpaceWindow(grid, size), arrays(grid)
    one = functools.partial(attention, implementation=implementation)

    @functools.partial(jax.jit, static_argnums=0)
    def both(function):
        y, backward = jax.vjp(function, q, k, v)
        return y, *backward(dy)

    ours = both(lambda *x: attend_in_windows(one, *x, window))
    for got, want in zip(ours, both(lambda *x: masked(*x, window)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(6, 6), (9, 30)])
def test_a_window_that_covers_the_picture_is_all_of_it(size):
    grid = (5, 6)
    window, (q, k, v, _) = SpaceWindow(grid, size), arrays(grid)
    np.testing.assert_array_equal(attend_in_windows(attention, q, k, v, window), attention(q, k, v))
    assert (window.queries, window.keys) == (30, 30)


def test_what_is_computed_grows_with_the_window():
    window = SpaceWindow((24, 40), (12, 21))
    assert (window.queries, window.keys) == (24 * 42, 12 * 21)  # 40 columns are six blocks of 7
    starts = [side.starts for side in window.sides]
    assert starts == [[0, 0, 4, 8, 12, 12], [0, 0, 7, 14, 19, 19]]
    for side in window.sides:
        assert all(0 <= at <= side.tokens - side.window for at in side.starts)


def test_far_tokens_do_not_change_a_token_and_near_ones_do():
    layer = SelfAttention(2, dims=TOKENS[:-1], attended=2, window=SpaceWindow((6, 6), (3, 3)))
    x = jax.random.normal(jax.random.key(0), (1, FRAMES, 36, 8))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    of_the_first_place = jax.grad(lambda x: layer.apply(params, x)[0, 0, 0].sum())
    gradient = jax.jit(of_the_first_place)(x)
    seen = np.abs(gradient).max((0, 1, 3)).reshape(6, 6) > 0
    wanted = np.zeros((6, 6), bool)
    wanted[:3, :3] = True
    np.testing.assert_array_equal(seen, wanted)
    with pytest.raises(ValueError, match="takes no mask"):
        layer.apply(params, x, None, jnp.ones((1, 72), bool))
