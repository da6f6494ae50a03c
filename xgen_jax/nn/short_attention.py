"""Attention over the few frames at each place of a clip, without moving places and frames.

A matrix product for each place and head, of a few frames by the channels of a head, is almost only
padding on an accelerator: at 480p (5 latent frames) the logits took 41 times their size on a TPU,
and transposing the clip before and after it as much memory traffic as the projections. Here a
kernel of the device reads what is projected, in the order that the projection leaves it in, and
does all that lies between the two projections.
"""

from types import ModuleType

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from xgen_jax.nn.attention import HeadsDense, kernel_of
from xgen_jax.nn.choices import PROJECTED
from xgen_jax.nn.embeddings import XAVIER, ZEROS
from xgen_jax.nn.layout import TOKENS, Names, constrain, on_each_device, target_device
from xgen_jax.nn.positions import Placing, rotary_angles
from xgen_jax.typing import Array

# The work grows with the square of the number of frames.
MOST_FRAMES = 32
_SUBLANES = 8  # of a vector of TPUs


def takes_short(implementation: str, frames: int, channels: int, dtype: jnp.dtype) -> bool:
    """Whether the frames of a place attend to one another here: few ones under `auto`, on devices
    whose kernel takes heads of this number of channels."""
    if implementation != "auto" or frames > MOST_FRAMES:
        return False
    kernel = _kernel()
    return kernel is not None and kernel.takes(frames, channels, dtype)


def _kernel() -> ModuleType | None:
    """Return the module of the device's kernel; None if it has none."""
    # Loaded only where it runs: Pallas takes 0.07 s, which commands on a CPU need not wait for.
    match kernel_of(target_device()):
        case "splash":
            from xgen_jax.nn import short_attention_tpu as kernel
        case "cudnn":
            from xgen_jax.nn import short_attention_gpu as kernel
        case _:
            return None
    return kernel


def pairs_apart(x: Array) -> Array:
    """Reorder the channels of a head, the last dim, for the kernel of TPUs: of each 8 the 4 even
    ones, then the odd ones. The two of a pair that is rotated are then half a vector apart."""
    pairs = x.reshape(*x.shape[:-1], -1, _SUBLANES // 2, 2)
    return jnp.swapaxes(pairs, -1, -2).reshape(x.shape)


class ShortAttention(nn.Module):
    """Attention in time: (B, T, S, D) -> the same, with the parameters and the values of
    `nn.attention.SelfAttention` on (B, S, T, D), for what `takes_short`.

    Attributes: see there; the head dimension is even.
    """

    heads: int
    qk_norm: bool = False
    zero_init: bool = False
    rotate_first: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTSD: Array, positions_T1: Array) -> Array:
        """x, and the frames' positions (T, 1) -> as x."""
        channels = x_BTSD.shape[-1] // self.heads
        angles_TC = rotary_angles(positions_T1, channels)
        scales = [_Scale(name=name)(channels) for name in ("q_norm", "k_norm") if self.qk_norm]
        scale_2C = jnp.stack(scales) if scales else jnp.ones((2, channels))
        on_tpu = target_device().platform == "tpu"
        attend = self._places_last if on_tpu else self._channels_last
        y = attend(constrain(x_BTSD, TOKENS), scale_2C, angles_TC)
        return constrain(y, TOKENS)

    def _channels_last(self, x: Array, scale_2C: Array, angles_TC: Array) -> Array:
        """In the order of GPUs: the channels last, as `nn.Dense` has them."""
        width, names = x.shape[-1], ("batch", None, "space", None, "heads", None)
        qkv, bias_3KC = HeadsDense(3, self.heads, width, self.dtype, bias_apart=True, name="qkv")(x)
        arrays = (constrain(qkv, names), bias_3KC, scale_2C, angles_TC)
        y_BTSKC = self._attend(names, 3, *arrays)
        init = ZEROS if self.zero_init else XAVIER
        dense = nn.Dense(width, dtype=self.dtype, kernel_init=init, name="proj")
        return dense(y_BTSKC.reshape(x.shape))

    def _places_last(self, x: Array, scale_2C: Array, angles_TC: Array) -> Array:
        """In the order of TPUs: the places last, so that no head's channels are padded."""
        width, names = x.shape[-1], ("batch", None, None, "heads", None, "space")
        qkv, bias_3KC = _ChannelsFirst(3, self.heads, width, self.dtype, name="qkv")(x)
        arrays = (constrain(qkv, names), bias_3KC, pairs_apart(scale_2C), angles_TC)
        y_BTKCS = self._attend(names, 2, *arrays)
        return _ChannelsMerged(width, self.zero_init, self.dtype, name="proj")(y_BTKCS)

    def _attend(self, names: Names, part: int, *arrays: Array) -> Array:
        """Run the kernel on each device.

        `names` are of the dims of what is projected; `part` is the number of the one of queries,
        keys and values, which the result is without.
        """
        placing, kernel = Placing(self.qk_norm, self.rotate_first), _kernel()
        assert kernel is not None, "a caller asks `takes_short` first"

        def attend(*arrays: Array) -> Array:
            return kernel.frames_kernel(*arrays, placing)

        small = ((None, "heads", None), (None, None), (None, None))
        out_names = (*names[:part], *names[part + 1 :])
        return on_each_device(attend, (names, *small), out_names)(*arrays)


class _ChannelsFirst(HeadsDense):
    """`HeadsDense`, in another order: (B, T, S, D) -> (B, T, parts, K, C, S), and the bias
    (parts, K, C) apart; channels as `pairs_apart` has them."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x, kernel, bias = self.arrays(x)

        def ordered(a):
            return pairs_apart(a.reshape(*a.shape[:-1], self.parts, self.heads, -1))

        # The channels of all heads are one dim of the product, see `HeadsDense`.
        kernel = ordered(kernel).reshape(-1, self.parts, self.width)
        kernel = constrain(kernel, (None, None, "heads"))
        y = lax.dot_general(kernel, x, (((0,), (x.ndim - 1,)), ((), ())))
        y = checkpoint_name(y, PROJECTED).reshape(self.parts, self.heads, -1, *x.shape[:-1])
        return jnp.moveaxis(y, (3, 4), (0, 1)), ordered(bias)


class _ChannelsMerged(nn.Module):
    """`nn.Dense` of heads in the order of `_ChannelsFirst`: (B, T, K, C, S) -> (B, T, S, D)."""

    width: int
    zero_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = ZEROS if self.zero_init else XAVIER
        kernel = self.param("kernel", init, (self.width, self.width), jnp.float32)
        bias = self.param("bias", ZEROS, (self.width,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        rows = kernel.T.reshape(self.width, *x.shape[2:4])
        kernel = constrain(pairs_apart(rows).reshape(self.width, -1).T, ("heads", None))
        x = jnp.moveaxis(x, (0, 1), (2, 3)).reshape(self.width, *x.shape[:2], -1)
        return lax.dot_general(x, kernel, (((0,), (0,)), ((), ()))) + bias.reshape(1, 1, 1, -1)


class _Scale(nn.Module):
    """The parameter of an `nn.norms.RMSNorm`."""

    @nn.compact
    def __call__(self, channels: int) -> Array:
        return self.param("scale", nn.initializers.ones, (channels,))
