"""Attention that is local in space: blocks of tokens attend to a window around them, in all frames.

The tokens of a frame are cut into blocks, and all queries of a block attend to the same keys: those
of a window of three times its sides, the block and its neighbours. At the border of a picture the
window is shifted inward. So all windows have the same number of keys and there is no mask: blocks
are sequences, which any implementation of attention takes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jax import lax

from xgen_jax.nn.choices import WINDOW_BLOCKS
from xgen_jax.typing import Array


class SpaceWindow(NamedTuple):
    """Where the tokens of a clip attend.

    Attributes:
      grid: rows and columns of the tokens of a frame.
      size: rows and columns of a window, multiples of `WINDOW_BLOCKS`. A window that is as large as
        the grid in one direction is all of it in that direction.
    """

    grid: tuple[int, int]
    size: tuple[int, int]

    @property
    def sides(self) -> "tuple[Side, Side]":
        """How rows and columns are cut."""
        return Side(self.grid[0], self.size[0]), Side(self.grid[1], self.size[1])

    @property
    def queries(self) -> int:
        """Queries of a frame, with those that fill the last blocks."""
        rows, columns = self.sides
        return rows.padded * columns.padded

    @property
    def keys(self) -> int:
        """Keys of a query in each frame."""
        rows, columns = self.sides
        return rows.window * columns.window


class Side(NamedTuple):
    """One direction of a grid.

    Attributes:
      tokens: of the grid.
      size: tokens of a window that lies within a larger grid.
    """

    tokens: int
    size: int

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return min(self.size, self.tokens)

    @property
    def block(self) -> int:
        """Tokens of a block of queries."""
        return self.size // WINDOW_BLOCKS if self.size < self.tokens else self.tokens

    @property
    def padded(self) -> int:
        """Tokens of all blocks."""
        return -(-self.tokens // self.block) * self.block

    @property
    def starts(self) -> list[int]:
        """The first token of each block's window."""
        around = (self.window - self.block) // 2
        last = self.tokens - self.window
        return [min(max(0, at - around), last) for at in range(0, self.tokens, self.block)]


def attend_in_windows(
    attend: Callable[[Array, Array, Array], Array],
    q_BNKC: Array,
    k_BNKC: Array,
    v_BNKC: Array,
    window: SpaceWindow,
) -> Array:
    """Attend to the window around each block of tokens.

    Args:
      attend: attention of queries (B', N', K, C) to keys and values (B', M', K, C).
      q_BNKC: queries (batch, frames times rows times columns, heads, head dimension).
      k_BNKC, v_BNKC: keys and values of the same tokens.
      window: see `SpaceWindow`; one that covers the grid is attention to all tokens.

    Returns:
      (B, N, K, C).
    """
    (rows, columns), (height, width) = window.sides, window.grid
    if window.keys == height * width:
        return attend(q_BNKC, k_BNKC, v_BNKC)

    # The compiler of TPU v5p (libtpu of jax 0.10.2) crashes where it fuses the gradients of blocks
    # and windows with those of the norms before them.
    q_BNKC, k_BNKC, v_BNKC = lax.optimization_barrier((q_BNKC, k_BNKC, v_BNKC))

    def in_space(x: Array) -> Array:
        return rearrange(x, "b (t h w) k c -> b t h w k c", h=height, w=width)

    def windows(x: Array) -> Array:
        # Slices, not a gather by indices: the gradient then adds in a fixed order, without atomics.
        for axis, side in ((2, rows), (4, columns)):
            slices = [lax.slice_in_dim(x, at, at + side.window, axis=axis) for at in side.starts]
            x = jnp.stack(slices, axis=axis)
        return rearrange(x, "b t i h j w k c -> (b i j) (t h w) k c")

    fill = ((0, rows.padded - height), (0, columns.padded - width))
    q = jnp.pad(in_space(q_BNKC), ((0, 0), (0, 0), *fill, (0, 0), (0, 0)))
    cut = {"h": rows.block, "w": columns.block}
    q = rearrange(q, "b t (i h) (j w) k c -> (b i j) (t h w) k c", **cut)
    y = attend(q, windows(in_space(k_BNKC)), windows(in_space(v_BNKC)))
    blocks = {"i": len(rows.starts), "j": len(columns.starts)}
    y = rearrange(y, "(b i j) (t h w) k c -> b t (i h) (j w) k c", **cut, **blocks)
    return y[:, :, :height, :width].reshape(q_BNKC.shape)
