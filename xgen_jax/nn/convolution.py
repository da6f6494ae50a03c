"""Causal convolution and pooling in time, as functions of (input, cache).

A causal layer with time kernel k and stride s sees, for output frame j, the input frames up to j*s.
At the start of a clip (`cache=None`) the first frame is repeated for the k-1 frames before it, so
1 + s*n frames give 1 + n; later chunks of s*n frames give n. The new cache is the last k-s frames
of the layer's input. Whole-clip, chunked and streaming evaluation are therefore one code path
(xGen-VideoSyn-1, arXiv 2408.12590, section 3.1; the first frame is repeated as in Open-Sora-Plan's
CausalVAE).
"""

import functools

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax

from xgen_jax.nn.conv3d import convolve
from xgen_jax.typing import Array, Kernel


def extend_in_time(
    x_BTHWC: Array, cache: Array | None, kernel: int, stride: int = 1
) -> tuple[Array, Array]:
    """Prepend the cache to a chunk.

    Args:
      x_BTHWC: the chunk.
      cache: the last `kernel - stride` input frames of the chunk before, or None at the start of a
        clip.
      kernel: frames that the layer sees.
      stride: frames from one output to the next.

    Returns:
      The extended chunk, and the cache for the next one.
    """
    before = _frames_before(x_BTHWC, cache, kernel)
    extended = jnp.concatenate([before, x_BTHWC], axis=1)
    return extended, _last_frames(before, x_BTHWC, kernel - stride)


def _frames_before(x_BTHWC: Array, cache: Array | None, kernel: int) -> Array:
    if cache is None:
        cache = jnp.repeat(x_BTHWC[:, :1], kernel - 1, axis=1)
    return cache.astype(x_BTHWC.dtype)


def _last_frames(before_BTHWC: Array, x_BTHWC: Array, frames: int) -> Array:
    if x_BTHWC.shape[1] < frames:
        x_BTHWC = jnp.concatenate([before_BTHWC, x_BTHWC], axis=1)
    return x_BTHWC[:, x_BTHWC.shape[1] - frames :]


class CausalConv3D(nn.Module):
    """Convolution over (T, H, W) that looks back in time only; zero padding in space.

    Attributes:
      features: output channels.
      kernel: taps in (T, H, W); a time kernel of 1 mixes no frames and needs no cache.
      stride: steps in (T, H, W). With stride 2 in space the padding is right and bottom only, as in
      Stable Diffusion's VAE.
    """

    features: int
    kernel: Kernel = (3, 3, 3)
    stride: Kernel = (1, 1, 1)
    zero_init: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC: Array, cache: Array | None = None) -> tuple[Array, Array | None]:
        init = (
            nn.initializers.zeros
            if self.zero_init
            else nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3))
        )
        kernel = self.param("kernel", init, (*self.kernel, x_BTHWC.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x_BTHWC, stride, before = x_BTHWC.astype(self.dtype), self.stride, None
        if self.kernel[0] > 1:
            before = _frames_before(x_BTHWC, cache, self.kernel[0])
            image = cache is None and x_BTHWC.shape[1] == 1
            cache = _last_frames(before, x_BTHWC, self.kernel[0] - stride[0])
            if image:
                # It needs only the sum of the taps in time, at a fraction of the work.
                kernel, stride, before = kernel.sum(0, keepdims=True), (1, *stride[1:]), None
        rows, columns = (
            (k // 2, k // 2) if s == 1 else (0, k - s) for k, s in zip(self.kernel[1:], stride[1:])
        )
        y = convolve(x_BTHWC, kernel.astype(self.dtype), stride, (rows, columns), before)
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape), cache


class UpsampledConv(nn.Module):
    """Double height and width by repetition, then convolve with 1x3x3 taps.

    The parameters are those of a `CausalConv3D` with a kernel of (1, 3, 3).
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        init = nn.initializers.lecun_normal(in_axis=(0, 1, 2, 3))
        kernel = self.param("kernel", init, (1, 3, 3, x_BTHWC.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = convolve_upsampled(x_BTHWC.astype(self.dtype), kernel)
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


def convolve_upsampled(x_BTHWC: Array, kernel_DHWIO: Array) -> Array:
    """Convolve `nearest_upsample(x)` with a kernel of 1x3x3 taps and zeros around it.

    On accelerators by `convolve_in_phases`. On CPU the many small convolutions would take longer.
    """

    def as_written(x, kernel):
        return convolve(nearest_upsample(x), kernel.astype(x.dtype), (1, 1, 1), ((1, 1), (1, 1)))

    on_gpu = functools.partial(convolve_in_phases, symmetric=True)
    return lax.platform_dependent(
        x_BTHWC, kernel_DHWIO, cpu=as_written, cuda=on_gpu, default=convolve_in_phases
    )


def convolve_in_phases(x_BTHWC: Array, kernel_DHWIO: Array, symmetric: bool = False) -> Array:
    """Give what `convolve_upsampled` gives, without the upsampled frames.

    In each direction a result at an even place meets two different values, with taps 0 and 1 + 2,
    one at an odd place with taps 0 + 1 and 2: four kernels of 2x2 taps on the small frame, with
    16/36 of the operations.

    cuDNN pads both sides alike, and for one side XLA would write a padded copy of the frame for
    each kernel: `symmetric` pads both, and leaves out the first or the last row and column.
    """
    batch, frames, height, width, _ = x_BTHWC.shape

    def merged(kernel, axis):
        a, b, c = jnp.split(kernel, 3, axis)
        return jnp.concatenate([a, b + c], axis), jnp.concatenate([a + b, c], axis)

    def phase(kernel, row, column):
        kernel, padding = kernel.astype(x_BTHWC.dtype), ((1 - row, row), (1 - column, column))
        if not symmetric:
            return convolve(x_BTHWC, kernel, (1, 1, 1), padding)
        y = convolve(x_BTHWC, kernel, (1, 1, 1), ((1, 1), (1, 1)))
        return y[:, :, row : row + height, column : column + width]

    y = jnp.stack(
        [
            jnp.stack([phase(k, row, column) for column, k in enumerate(merged(rows, 2))], axis=4)
            for row, rows in enumerate(merged(kernel_DHWIO, 1))
        ],
        axis=3,
    )
    # A chunk may have no frames yet, so that no side can be inferred.
    return y.reshape(batch, frames, 2 * height, 2 * width, y.shape[-1])


def causal_average_pool(x_BTHWC: Array, cache: Array | None = None) -> tuple[Array, Array]:
    """Halve the frame rate by means of three frames (arXiv 2408.12590, section 3.1)."""
    x_BTHWC, cache = extend_in_time(x_BTHWC, cache, kernel=3, stride=2)
    frames = (x_BTHWC.shape[1] - 3) // 2 + 1
    taps = [lax.slice_in_dim(x_BTHWC, tap, tap + 2 * frames - 1, 2, axis=1) for tap in range(3)]
    return (taps[0] + taps[1] + taps[2]) / 3, cache


def causal_repeat(x_BTHWC: Array, started: bool) -> Array:
    """Double the frame rate by repetition; at a clip's start (`started` False) not of frame 0."""
    y = jnp.repeat(x_BTHWC, 2, axis=1)
    return y if started else y[:, 1:]


def trilinear_double(x_BTHWC: Array, cache: tuple | None, last: bool) -> tuple[Array, tuple]:
    """Double the frame rate by linear interpolation, as Open-Sora-Plan's decoders do.

    It looks one frame ahead. The first frame of a clip stays one; every other frame i becomes two,
    at i - 1/4 and i + 1/4, clamped at the ends. The second waits for frame i + 1, so a chunk's
    output ends one frame early unless it is the `last`.

    Args:
      x_BTHWC: the chunk; the last may be empty.
      cache: None at the start of a clip, () after its first frame, then (the last frame,).
      last: whether no chunk follows.

    Returns:
      The final frames, and the cache for the next chunk.
    """
    done = []
    if cache is None:
        done, x_BTHWC, cache = [x_BTHWC[:, :1]], x_BTHWC[:, 1:], ()
    if x_BTHWC.shape[1]:
        # The frame before the first of these counts as equal to it.
        done += [] if cache else [x_BTHWC[:, :1]]
        x = jnp.concatenate([*cache, x_BTHWC], axis=1)
        before, after = x[:, :-1], x[:, 1:]
        pairs = jnp.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], axis=2)
        done.append(pairs.reshape(x.shape[0], -1, *x.shape[2:]))
        cache = (x_BTHWC[:, -1:],)
    if last:
        done += cache
    return jnp.concatenate([x_BTHWC[:, :0], *done], axis=1), cache


def nearest_upsample(x_BTHWC: Array) -> Array:
    """Double height and width by repetition."""
    return jnp.repeat(jnp.repeat(x_BTHWC, 2, axis=2), 2, axis=3)


def causal_space_to_depth(
    x_BTHWC: Array, patch: Kernel, cache: Array | None = None
) -> tuple[Array, Array]:
    """Cut a chunk into (pt, ph, pw) patches: (B, T, H, W, C) -> (B, t, H/ph, W/pw, pt*ph*pw*C).

    As in every causal layer of stride pt, the first frame of a clip fills a patch by itself:
    1 + pt*n frames give 1 + n.
    """
    x_BTHWC, cache = extend_in_time(x_BTHWC, cache, kernel=patch[0], stride=patch[0])
    pattern = "b (t r) (h p) (w q) c -> b t h w (r p q c)"
    return rearrange(x_BTHWC, pattern, **dict(zip("rpq", patch))), cache


def causal_depth_to_space(x_BTHWC: Array, patch: Kernel, started: bool) -> Array:
    """Invert `causal_space_to_depth`; of a clip's first patch (`started` False) keep one frame."""
    pattern = "b t h w (r p q c) -> b (t r) (h p) (w q) c"
    y = rearrange(x_BTHWC, pattern, **dict(zip("rpq", patch)))
    return y if started else y[:, patch[0] - 1 :]
