"""Attention in plain XLA, with a derivative of its own.

    weights = exp(q k^T - max),    y = weights v / sum(weights)

Products are of arrays in the dtype of the inputs, with sums in float32: those of the backward pass
too, where automatic differentiation would multiply float32 cotangents of the logits. The derivative
needs no mask, for masked weights are exactly zero.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from xgen_jax.nn.choices import KEPT_OF_ATTENTION
from xgen_jax.typing import Array

# On CPU more logits than these are computed head by head, forward and backward, for out of the
# cache they cost more than the products: at 1,024 tokens that halves the time of the forward pass.
LOGITS_BYTES = 16 * 2**20


def plain(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array, mask_BM: Array | None = None) -> Array:
    """Attention of all queries at once; the logits are kept for the backward pass, but for many on
    a CPU."""
    q, k, v = (_heads_first(x) for x in (_scaled(q_BNKC), k_BMKC, v_BMKC))
    masks = () if mask_BM is None else (mask_BM,)

    def at_once(q, k, v, *masks):
        return _keeping(q, k, v, masks[0][:, None, None, :] if masks else None)

    def again(q, k, v, *masks):
        return _recomputing(q, k, v, masks[0] if masks else None, q.shape[2])

    if _few(q, k):
        y = at_once(q, k, v, *masks)
    else:
        y = lax.platform_dependent(q, k, v, *masks, cpu=again, default=at_once)
    return _heads_first(y)


def in_blocks(
    q_BNKC: Array, k_BMKC: Array, v_BMKC: Array, mask_BM: Array | None, block: int
) -> Array:
    """Attention of `block` queries at a time, whose logits are dropped and computed once more in
    the backward pass."""
    queries = q_BNKC.shape[1]
    q_BNKC = jnp.pad(_scaled(q_BNKC), ((0, 0), (0, -queries % block), (0, 0), (0, 0)))
    q, k, v = (_heads_first(x) for x in (q_BNKC, k_BMKC, v_BMKC))
    return _heads_first(_recomputing(q, k, v, mask_BM, block))[:, :queries]


def _scaled(q_BNKC: Array) -> Array:
    return q_BNKC * q_BNKC.shape[-1] ** -0.5


def _heads_first(x: Array) -> Array:
    # Next to the batch: the products are then plain batched matrix products, which XLA:CPU runs up
    # to three times faster than the same einsum over (B, N, K, C).
    return jnp.swapaxes(x, 1, 2)


def _product(spec: str, one: Array, other: Array) -> Array:
    return jnp.einsum(spec, one, other, preferred_element_type=jnp.float32)


def _logits(q: Array, k: Array, mask: Array | None) -> Array:
    logits = _product("...nc,...mc->...nm", q, k)
    return logits if mask is None else jnp.where(mask, logits, jnp.finfo(jnp.float32).min)


def _forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array, Array, Array]:
    """Return the result (..., N, C), and of the softmax the weights (..., N, M), and their largest
    logit and their sum (..., N, 1).

    Leading dims are alike, and the mask broadcasts to them. The sum divides the result, which is
    smaller than the weights.
    """
    logits = _logits(q, k, mask)
    largest = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    y = _product("...nm,...mc->...nc", weights, v) / total
    return y.astype(v.dtype), weights, largest, total


def _backward(
    q: Array, k: Array, v: Array, y: Array, weights: Array, total: Array, dy: Array
) -> tuple[Array, Array, Array]:
    """Return the cotangents of queries, keys and values, in float32, from that of the result."""
    dy = (dy.astype(jnp.float32) / total).astype(v.dtype)
    dv = _product("...nc,...nm->...cm", dy, weights)
    dweights = _product("...nc,...mc->...nm", dy, v)
    # The sum's part is the same for all keys of a query.
    of_total = (dy.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1, keepdims=True)
    dlogits = (weights.astype(jnp.float32) * (dweights - of_total)).astype(q.dtype)
    dk = _product("...nc,...nm->...cm", q, dlogits)
    # Tokens last, and then transposed, which is faster on a CPU: by a third at 256 tokens.
    dk, dv = jnp.swapaxes(dk, -1, -2), jnp.swapaxes(dv, -1, -2)
    return _product("...nm,...mc->...nc", dlogits, k), dk, dv


@jax.custom_vjp
def _keeping(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Attention over the last two dims (N, C), (M, C), whose weights are kept."""
    return _forward(q, k, v, mask)[0]


def _keeping_forward(q, k, v, mask):
    y, weights, _, total = _forward(q, k, v, mask)
    return y, (q, k, v, y, weights, total)


def _keeping_backward(kept, dy):
    q, k, v, y, weights, total = kept
    return *_like(_backward(q, k, v, y, weights, total, dy), q, k, v), None


_keeping.defvjp(_keeping_forward, _keeping_backward)


def _like(cotangents: tuple[Array, ...], *arrays: Array) -> tuple[Array, ...]:
    return tuple(x.astype(like.dtype) for x, like in zip(cotangents, arrays, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _recomputing(q: Array, k: Array, v: Array, mask_BM: Array | None, block: int) -> Array:
    """Attention of heads (B, K, N, C) to (B, K, M, C), `block` queries at a time."""
    return _without_weights(q, k, v, mask_BM, block)[0]


def _without_weights(q, k, v, mask_BM, block):
    def forward(*arrays):
        y, _, largest, total = _forward(*arrays)
        return y, largest, total

    return _over_blocks(lambda q: _over_heads(forward, q, k, v, mask_BM), block, q)


def _recomputing_forward(q, k, v, mask_BM, block):
    kept = _without_weights(q, k, v, mask_BM, block)
    y, largest, total = (checkpoint_name(x, KEPT_OF_ATTENTION) for x in kept)
    return y, (q, k, v, mask_BM, y, largest, total)


def _recomputing_backward(block, kept, dy):
    q, k, v, mask_BM, *sums = kept

    def gradients(q, k, v, mask, y, largest, total, dy):
        weights = jnp.exp(_logits(q, k, mask) - largest).astype(v.dtype)
        return _backward(q, k, v, y, weights, total, dy)

    def one(q, *rest):
        return _over_heads(gradients, q, k, v, mask_BM, *rest)

    return *_like(_over_blocks(one, block, q, *sums, dy, summed=2), q, k, v), None


_recomputing.defvjp(_recomputing_forward, _recomputing_backward)


def _over_blocks(one: Callable, block: int, *arrays: Array, summed: int = 0) -> Any:
    """Apply `one` to blocks, which divide them, of the queries' arrays (B, K, N, ...): the results
    are of the queries too, but the last `summed` are sums over them."""
    if arrays[0].shape[2] == block:
        return one(*arrays)

    def cut(x):
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, block, x.shape[3]), 2, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], -1, x.shape[4])

    def step(sums, parts):
        results = one(*parts)
        split = len(results) - summed
        return tuple(a + b for a, b in zip(sums, results[split:])), results[:split]

    parts = tuple(cut(x) for x in arrays)
    shapes = jax.eval_shape(one, *(x[0] for x in parts))
    zeros = tuple(jnp.zeros(x.shape, x.dtype) for x in shapes[len(shapes) - summed :])
    sums, results = lax.scan(step, zeros, parts)
    return *(join(x) for x in results), *sums


def _over_heads(
    function: Callable, q: Array, k: Array, v: Array, mask_BM: Array | None, *rest: Array
) -> Any:
    """Apply `function` of (..., N, C), (..., M, C) and masks to all heads (B, K, ...) at once; one
    after the other for many logits on a CPU."""
    masks = () if mask_BM is None else (mask_BM,)

    def call(arrays, masks):
        q, k, v, *rest = arrays
        return function(q, k, v, masks[0] if masks else None, *rest)

    def at_once(arrays, masks):
        return call(arrays, [mask_BM[:, None, None, :] for mask_BM in masks])

    def one_by_one(arrays, masks):
        batch, heads = arrays[0].shape[:2]
        arrays = [x.reshape(batch * heads, *x.shape[2:]) for x in arrays]
        masks = [jnp.repeat(mask_BM[:, None], heads, axis=0) for mask_BM in masks]
        results = lax.map(lambda each: call(*each), (arrays, masks))
        return jax.tree.map(lambda x: x.reshape(batch, heads, *x.shape[1:]), results)

    arrays = [q, k, v, *rest]
    if _few(q, k):
        return at_once(arrays, masks)
    return lax.platform_dependent(arrays, masks, cpu=one_by_one, default=at_once)


def _few(q: Array, k: Array) -> bool:
    """Whether all logits of heads (B, K, N, C) and (B, K, M, C) are few for a CPU."""
    return 4 * q[..., 0].size * k.shape[2] <= LOGITS_BYTES
