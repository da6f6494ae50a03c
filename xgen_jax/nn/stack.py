"""A stack of equal blocks: scanned over stacked parameters, or one after the other."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from xgen_jax.typing import Array


class Layer(nn.Module):
    """A block with the signature that `nn.scan` needs: (x, *context) -> (x, x or None).

    Attributes: see `Stack`.
    """

    block: type[nn.Module]
    arguments: tuple[Any, ...]
    remat: bool
    block_name: str | None
    collect: bool

    @nn.compact
    def __call__(self, x: Array, *context: Any) -> tuple[Array, Array | None]:
        block_class = nn.remat(self.block, prevent_cse=False) if self.remat else self.block
        block = block_class(*self.arguments, name=self.block_name)
        if self.block_name is None:
            nn.share_scope(self, block)
        x = block(x, *context)
        return x, x if self.collect else None


class Stack(nn.Module):
    """Apply `depth` blocks of one kind, each with parameters of its own.

    Use it through `nn.embeddings.join_scope`: scanned, the parameters are `blocks/block/...` with a
    leading dimension of `depth`; looped, `blocks_{i}/block/...`.

    Attributes:
      block: the module class of a block, (x, *context) -> x.
      arguments: its attributes, in order.
      depth: blocks.
      scan: one scanned block, which compiles once; False for a loop, to debug.
      remat: recompute each block in the backward pass.
      block_name: the name under which a block's parameters lie; None for none.
      collect: also return the output of every block, all of which are then in memory at once.
    """

    block: type[nn.Module]
    arguments: tuple[Any, ...]
    depth: int
    scan: bool = True
    remat: bool = False
    block_name: str | None = "block"
    collect: bool = False

    @nn.compact
    def __call__(self, x: Array, *context: Any) -> Any:
        """Return x after all blocks; every block gets the same context.

        With `collect`, return (x, x after each block (depth, ...)).
        """
        layer = (self.block, self.arguments, self.remat, self.block_name, self.collect)
        if not self.scan:
            outputs: list[Any] = []
            for number in range(self.depth):
                x, output = Layer(*layer, name=f"blocks_{number}")(x, *context)
                outputs.append(output)
            return (x, jnp.stack(outputs)) if self.collect else x
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )
        collected: Any = scanned(*layer, name="blocks")(x, *context)
        return collected if self.collect else collected[0]
