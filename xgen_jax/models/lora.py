"""LoRA: low-rank adapters of a frozen network's kernels (arXiv 2106.09685, section 4.1).

    W' = W + alpha / rank * A B,    A (in, rank) random, B (rank, out) zero, so that at first W' = W

An adapter is {path of a kernel: {"a": A, "b": B}}. Its kernels are chosen by patterns over their
paths, as specs are in `parallel.sharding`. The network is applied to the merged kernels and knows
nothing of adapters. This costs memory for the merged kernels and, in training, their gradients.
"""

import difflib
import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from xgen_jax.errors import UserError
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.parallel.sharding import path_name
from xgen_jax.typing import Array, Params, Shape


def adapter_shapes(
    config: LoRAConfig, params: Params
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return the shapes of an adapter.

    Args:
      config: its rank and rules.
      params: of the base, arrays or shapes: {"vdit": ...} and what was trained with it.

    Returns:
      {path: {"a": (..., in, rank), "b": (..., rank, out)}}, float32; the leading dim is that of
      scanned layers, and `in` of a convolution includes its taps.

    Raises:
      UserError: a rule that finds no kernel, or a rank above a kernel's smaller side.
    """
    leaves = (
        (path_name(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    )
    kernels = {name: shape for name, shape in leaves if name.endswith("/kernel")}
    for rule in config.rules:
        if not any(re.search(rule, name) for name in kernels):
            near = ", ".join(_nearest(rule, kernels))
            raise UserError(
                f"lora.rules has {rule!r}, which finds none of {len(kernels)} kernels; "
                f"the nearest: {near}"
            )
    shapes = {}
    for name, shape in kernels.items():
        if not any(re.search(rule, name) for rule in config.rules):
            continue
        stacked, rows, columns = _matrix(name, shape)
        if config.rank > min(rows, columns):
            raise UserError(
                f"lora.rank={config.rank} is more than {name} of {rows}x{columns} can have: choose "
                f"{min(rows, columns)} or less, or rules that leave it out"
            )
        sides = {"a": (*stacked, rows, config.rank), "b": (*stacked, config.rank, columns)}
        shapes[name] = {
            part: jax.ShapeDtypeStruct(side, jnp.float32) for part, side in sides.items()
        }
    return shapes


def init_adapter(config: LoRAConfig, params: Params, key: Array) -> Params:
    """Return an adapter that changes nothing yet: A normal with deviation in^-0.5, B zero.

    `params` may be shapes.
    """

    def one(key, pair):
        a, b = pair["a"], pair["b"]
        return {"a": a.shape[-2] ** -0.5 * jax.random.normal(key, a.shape), "b": jnp.zeros(b.shape)}

    shapes = adapter_shapes(config, params)
    return {
        name: one(key, pair)
        for key, (name, pair) in zip(jax.random.split(key, len(shapes)), shapes.items())
    }


def merge(params: Params, adapter: Params, scale: float | Array) -> Params:
    """Return parameters with W + scale A B for the kernels that the adapter names.

    With -scale it removes the adapter again, up to rounding.

    Raises:
      KeyError: a path that `params` lacks.
    """
    left = set(adapter)

    def one(path, w):
        name = path_name(path)
        if name not in adapter:
            return w
        left.remove(name)
        product = jnp.matmul(adapter[name]["a"], adapter[name]["b"], precision="highest")
        return w + scale * product.reshape(w.shape)

    merged = jax.tree_util.tree_map_with_path(one, params)
    if left:
        raise KeyError(f"no such kernels: {sorted(left)}")
    return merged


def _nearest(rule: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return the names whose ends, as deep as the rule, are most like it."""
    depth = rule.count("/") + 1

    def likeness(name):
        return difflib.SequenceMatcher(None, rule, "/".join(name.split("/")[-depth:])).ratio()

    return sorted(names, key=likeness, reverse=True)[:count]


def _matrix(name: str, shape: Shape) -> tuple[Shape, int, int]:
    """Return a kernel's shape as matrices: (leading dim of scanned layers or (), rows, columns)."""
    stacked = shape[:1] if "blocks" in name.split("/") else ()
    return stacked, math.prod(shape[len(stacked) : -1]), shape[-1]
