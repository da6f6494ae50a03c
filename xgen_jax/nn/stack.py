"""A stack of equal blocks: scanned over stacked parameters, or one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from xgen_jax.errors import choose
from xgen_jax.nn.choices import KEPT_OF_ATTENTION, MLP_RESULT, PROJECTED, REMAT
from xgen_jax.nn.cudnn_attention import FORWARD
from xgen_jax.typing import Array

BLOCK_INPUT = "block_input"  # the name under which a policy finds it


def remat_policy(remat: str) -> Callable[..., Any] | None:
    """Return the policy of `jax.checkpoint` for one of `REMAT` but `none`; None for `full`."""
    policies = jax.checkpoint_policies
    of_attention = (
        policies.save_only_these_names(KEPT_OF_ATTENTION),
        lambda primitive, *_, **params: primitive.name == FORWARD,
    )
    of_mlp = policies.save_only_these_names(MLP_RESULT)
    projected = policies.save_only_these_names(PROJECTED)
    with_parameters = policies.dots_with_no_batch_dims_saveable

    def any_of(*kept: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **params: any(policy(*args, **params) for policy in kept)

    match remat:
        case "dots":
            return any_of(with_parameters, *of_attention)
        case "qkv":
            return any_of(projected, of_mlp, *of_attention)
        case "attention":
            return any_of(of_mlp, *of_attention)
        case "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=[BLOCK_INPUT],
                offload_src="device",
                offload_dst="pinned_host",
            )
        case _:
            return None


class Layer(nn.Module):
    """A block with the signature that `nn.scan` needs: (x, *context) -> (x, x or None).

    Attributes: see `Stack`.
    """

    block: type[nn.Module]
    arguments: tuple[Any, ...]
    remat: str
    block_name: str | None
    collect: bool
    scan: bool

    @nn.compact
    def __call__(self, x: Array, *context: Any) -> tuple[Array, Array | None]:
        def run(layer: "Layer", x: Array, *context: Any) -> Array:
            block = layer.block(*layer.arguments, name=layer.block_name)
            if layer.block_name is None:
                nn.share_scope(layer, block)
            return block(checkpoint_name(x, BLOCK_INPUT), *context)

        if self.remat != "none":
            # The body of a loop is not merged with that of the backward loop.
            run = nn.remat(run, prevent_cse=not self.scan, policy=remat_policy(self.remat))
        x = run(self, x, *context)
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
      remat: what of a block is computed again in the backward pass, one of `REMAT`:
        `none`: nothing;
        `dots`: all but the results of matrix products with parameters, and of attention;
        `qkv`: all but queries, keys and values as projected, and the results of attention and MLP;
        `attention`: all but the results of attention and MLP;
        `full`: all, from the block's input;
        `offload`: all, from the block's input, which waits in the host's memory. On a CPU, which
        has no other, this is `full`.
      block_name: the name under which a block's parameters lie; None for none.
      collect: also return the output of every block, all of which are then in memory at once.
    """

    block: type[nn.Module]
    arguments: tuple[Any, ...]
    depth: int
    scan: bool = True
    remat: str = "none"
    block_name: str | None = "block"
    collect: bool = False

    @nn.compact
    def __call__(self, x: Array, *context: Any) -> Any:
        """Return x after all blocks; every block gets the same context.

        With `collect`, return (x, x after each block (depth, ...)).
        """
        choose("remat", self.remat, REMAT)
        how = (self.remat, self.block_name, self.collect, self.scan)
        layer = (self.block, self.arguments, *how)
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
