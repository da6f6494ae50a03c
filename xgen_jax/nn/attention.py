"""One attention function, one name for each way to compute it.

    softmax(q k^T / sqrt(d) + mask) v

Names: `xla` runs anywhere; so does `chunked`, which works on a block of queries at a time and needs
little memory, and is `xla` where there are few logits; `cudnn` is the flash kernel of NVIDIA GPUs,
and `splash` that of TPUs; `auto` is the device's kernel for arrays that it takes, but for few
tokens, and `chunked` elsewhere. Every name gives the same values and gradients as `xla` within its
precision.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from xgen_jax.errors import UserError, choose
from xgen_jax.nn.choices import IMPLEMENTATIONS, PROJECTED
from xgen_jax.nn.chunked_attention import chunked
from xgen_jax.nn.cudnn_attention import CUDNN_LIMITS, cudnn, cudnn_takes
from xgen_jax.nn.embeddings import XAVIER, ZEROS
from xgen_jax.nn.layout import Names, constrain, on_each_device, target_device
from xgen_jax.nn.local_attention import SpaceWindow, attend_in_windows
from xgen_jax.nn.norms import RMSNorm
from xgen_jax.nn.plain_attention import plain
from xgen_jax.nn.positions import rotary
from xgen_jax.nn.splash_attention import SPLASH_LIMITS, splash, splash_takes
from xgen_jax.typing import Array

# `auto` leaves shorter sequences, such as the frames at one place of a clip, to plain XLA: the
# flash kernels work on blocks of 64 (NVIDIA) or 128 tokens (TPU), most of which would be padding.
FEWEST_FLASH_TOKENS = 64
# Which arrays a kernel takes, what they are, and what it runs on.
_KERNELS = {
    "cudnn": (cudnn_takes, CUDNN_LIMITS, "NVIDIA GPUs"),
    "splash": (splash_takes, SPLASH_LIMITS, "TPUs"),
}


def attention(
    q_BNKC: Array,
    k_BMKC: Array,
    v_BMKC: Array,
    mask_BM: Array | None = None,
    implementation: str = "xla",
) -> Array:
    """Multi-head attention.

    Args:
      q_BNKC: queries (batch, queries, heads, head dimension).
      k_BMKC: keys; their number M may differ from the queries'.
      v_BMKC: values.
      mask_BM: True where a key may be attended, or None for all. A row must have at least one True.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      (B, N, K, C) in the dtype of the queries; the softmax is taken in float32.

    Raises:
      UserError: a name that is not known, or a kernel that the device does not have or that does
        not take the arrays.
    """
    choose("attention", implementation, IMPLEMENTATIONS)
    arrays = (q_BNKC, k_BMKC, v_BMKC)
    if implementation == "auto":
        implementation = _best(*arrays)
    elif implementation in _KERNELS:
        _check_kernel(implementation, *arrays)
    match implementation:
        case "xla":
            return plain(*arrays, mask_BM)
        case "chunked":
            return chunked(*arrays, mask_BM)
        case "cudnn":
            return cudnn(*arrays, mask_BM)
        case _:
            return splash(*arrays, mask_BM)


def kernel_of(device: Any) -> str | None:
    """Return the name of a device's flash kernel; None if it has none."""
    if device.platform == "tpu":
        return "splash"
    return "cudnn" if "nvidia" in device.device_kind.lower() else None


def _best(q_BNKC: Array, k_BMKC: Array, v_BMKC: Array) -> str:
    """Return the name that `auto` stands for on the device."""
    kernel = kernel_of(target_device())
    if kernel is None or min(q_BNKC.shape[1], k_BMKC.shape[1]) < FEWEST_FLASH_TOKENS:
        return "chunked"
    takes, _, _ = _KERNELS[kernel]
    return kernel if takes(q_BNKC, k_BMKC, v_BMKC) else "chunked"


def _check_kernel(name: str, q_BNKC: Array, k_BMKC: Array, v_BMKC: Array) -> None:
    takes, limits, devices = _KERNELS[name]
    device = target_device()
    if kernel_of(device) != name:
        others = [each for each in IMPLEMENTATIONS if each not in _KERNELS]
        can = ", ".join([*others, *filter(None, [kernel_of(device)])])
        raise UserError(
            f"attention={name!r} is for {devices}; this device, {device.device_kind}, has {can}"
        )
    if not takes(q_BNKC, k_BMKC, v_BMKC):
        raise UserError(
            f"attention={name!r} takes {limits}, not heads of {q_BNKC.shape[-1]} channels in "
            f"{jnp.dtype(q_BNKC.dtype).name}; attention=auto takes it where it can, and chunked "
            "elsewhere"
        )


def _attention_on_each_device(
    q: Array,
    k: Array,
    v: Array,
    mask_BM: Array | None,
    implementation: str,
    names: Names,
    key_names: Names,
    window: SpaceWindow | None = None,
) -> Array:
    """`attention` of queries (..., K, C) to keys and values (..., M, K, C), without exchange.

    Args:
      q, k, v: the dims of keys before M are of sequences apart; queries have them too.
      mask_BM: see `attention`; for keys of one sequence a sample.
      implementation: see `attention`.
      names, key_names: of the dims of the queries, and of keys and values.
      window: see `SelfAttention`.
    """

    def attend(q, k, v, *masks) -> Array:
        sequences = math.prod(k.shape[:-3])
        arrays = (x.reshape(sequences, -1, *x.shape[-2:]) for x in (q, k, v))
        if window is not None:
            one = functools.partial(attention, implementation=implementation)
            return attend_in_windows(one, *arrays, window=window).reshape(q.shape)
        mask = masks[0] if masks else None
        return attention(*arrays, mask_BM=mask, implementation=implementation).reshape(q.shape)

    masks = () if mask_BM is None else (mask_BM,)
    all_names = (names, key_names, key_names, ("batch", None))[: 3 + len(masks)]
    return on_each_device(attend, all_names, names)(q, k, v, *masks)


def implementation_of(layer: nn.Module, name: str) -> str:
    """Return the implementation for a layer that is configured with this name. Parameters are the
    same for all, and can be made or counted where the kernel that is named does not run."""
    return "chunked" if layer.is_initializing() else name


class HeadsDense(nn.Module):
    """`nn.Dense` to `parts` arrays of heads: (..., D) -> (..., parts, K, C).

    The parameters are those of an `nn.Dense` of all these features. `tensor` shards heads, not
    features: the parts of a kernel that is cut in equal runs of features do not begin where runs
    do, and dividing them afterwards would exchange activations instead of parts of the kernel.

    Attributes:
      bias_apart: return the bias (parts, K, C) next to the result, and do not add it.
    """

    parts: int
    heads: int
    width: int
    dtype: jnp.dtype = jnp.float32
    bias_apart: bool = False

    def arrays(self, x: Array) -> tuple[Array, ...]:
        """Return x, the kernel and the bias, in the dtype to compute in."""
        features = self.parts * self.width
        kernel = self.param("kernel", XAVIER, (x.shape[-1], features), jnp.float32)
        bias = self.param("bias", ZEROS, (features,), jnp.float32)
        return tuple(a.astype(self.dtype) for a in (x, kernel, bias))

    @nn.compact
    def __call__(self, x: Array) -> Any:
        x, kernel, bias = self.arrays(x)
        # The channels of all heads are one dim of the product: a head's 72 alone would be padded to
        # the 128 of a TPU's matrix unit.
        kernel = constrain(kernel.reshape(-1, self.parts, self.width), (None, None, "heads"))
        y = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        y = checkpoint_name(y, PROJECTED)
        bias = bias.reshape(self.parts, self.width)
        if not self.bias_apart:
            y = y + bias.reshape((1,) * (x.ndim - 1) + bias.shape)
        y = y.reshape(*x.shape[:-1], self.parts, self.heads, -1)
        return (y, bias.reshape(y.shape[-3:])) if self.bias_apart else y


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional QK-norm and rotary positions.

    Where a dim of tokens that are attended to is sharded, devices exchange tokens for heads before
    the attention and heads for tokens after it, one all-to-all each (Ulysses, arXiv 2309.14509).

    Attributes:
      heads: number of heads; the width must be a multiple of it.
      qk_norm: root-mean-square normalisation of queries and keys per head, before the rotation.
      rotate_first: the rotation before the normalisation instead, as the public STDiT2 has it
        (Open-Sora 1.1): learnt scales that differ between the channels of a pair then break the
        dependence on distance alone.
      zero_init: start the output projection at zero, so that the layer starts as the identity of a
      residual block.
      dims: names of the dims of x but the last, see `nn.layout`.
      attended: how many of them, from the last, are dims of tokens that attend to one another; the
        others are of sequences apart.
      window: where tokens attend, if not to all; the attended dims are then frames and places.
    """

    heads: int
    qk_norm: bool = False
    zero_init: bool = False
    rotate_first: bool = False
    implementation: str = "xla"
    dtype: jnp.dtype = jnp.float32
    dims: tuple[str | None, ...] = ("batch", None)
    attended: int = 1
    window: SpaceWindow | None = None

    @nn.compact
    def __call__(
        self, x: Array, positions: Array | None = None, mask_BN: Array | None = None
    ) -> Array:
        """x (B, ..., D), the tokens' positions (see `rotary`) and which of them are keys -> as x.

        The mask is for x of one sequence a sample, (B, N, D), and for attention to all tokens.
        """
        if self.window is not None and mask_BN is not None:
            raise ValueError("attention in windows takes no mask")
        width, dims, apart = x.shape[-1], self.dims, len(self.dims) - self.attended
        x = constrain(x, (*dims, "width"))
        qkv = HeadsDense(3, self.heads, width, self.dtype, name="qkv")(x)
        qkv = constrain(qkv, (*dims, None, "heads", None))
        # Tokens for heads: from here each device has whole sequences, of some of the heads.
        exchanged = any(name is not None for name in dims[apart:])
        heads = "exchanged_heads" if exchanged else "heads"
        whole = (*dims[:apart], *[None] * self.attended)
        qkv = constrain(qkv, (*whole, None, heads, None))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:apart], -1, *qkv.shape[-3:]), -3, 0)
        if self.rotate_first and positions is not None:
            q, k = rotary(q, positions), rotary(k, positions)
        if self.qk_norm:
            q, k = (
                RMSNorm(dtype=self.dtype, name="q_norm")(q),
                RMSNorm(dtype=self.dtype, name="k_norm")(k),
            )
        if not self.rotate_first and positions is not None:
            q, k = rotary(q, positions), rotary(k, positions)

        names = (*dims[:apart], None, heads, None)
        implementation = implementation_of(self, self.implementation)
        y = _attention_on_each_device(q, k, v, mask_BN, implementation, names, names, self.window)
        # Heads for tokens.
        y = constrain(y.reshape(*x.shape[:-1], *y.shape[-2:]), (*whole, heads, None))
        y = constrain(y, (*dims, "heads", None)).reshape(x.shape)
        init = ZEROS if self.zero_init else XAVIER
        y = nn.Dense(width, dtype=self.dtype, kernel_init=init, name="proj")(y)
        # So is its gradient: of a kernel's gradient by two arrays that are sharded over different
        # dims, XLA (jax 0.10.2) sums only a part.
        return constrain(y, (*dims, "width"))


class CrossAttention(nn.Module):
    """Multi-head attention from x to a context of another length, e.g. text.

    Every device has the whole context, so that tokens of x stay where they are. Attributes as in
    `SelfAttention`; all dims of x behind the first are of tokens.
    """

    heads: int
    qk_norm: bool = False
    zero_init: bool = False
    implementation: str = "xla"
    dtype: jnp.dtype = jnp.float32
    dims: tuple[str | None, ...] = ("batch", None)

    @nn.compact
    def __call__(self, x: Array, context_BLD: Array, mask_BL: Array | None = None) -> Array:
        """x (B, ..., D), a context (B, L, D) and which tokens of it count -> as x."""
        width = x.shape[-1]
        q = HeadsDense(1, self.heads, width, self.dtype, name="q")(x)[..., 0, :, :]
        kv = HeadsDense(2, self.heads, width, self.dtype, name="kv")(context_BLD)
        k, v = jnp.moveaxis(kv, -3, 0)
        if self.qk_norm:
            q, k = (
                RMSNorm(dtype=self.dtype, name="q_norm")(q),
                RMSNorm(dtype=self.dtype, name="k_norm")(k),
            )

        names, of_context = (*self.dims, "heads", None), ("batch", None, "heads", None)
        implementation = implementation_of(self, self.implementation)
        y = _attention_on_each_device(q, k, v, mask_BL, implementation, names, of_context)
        return nn.Dense(
            width, dtype=self.dtype, kernel_init=ZEROS if self.zero_init else XAVIER, name="proj"
        )(y.reshape(x.shape))
