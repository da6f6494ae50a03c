"""The 3D convolution, valid in time and zero-padded in space, in the formulation that is fast where
it runs.

GPUs and TPUs have a fast 3D convolution. On CPU, XLA's is several times slower than a sum of 2D
ones over the taps in time, its gradients more so, and what is written for a whole clip costs more
in fresh memory than in arithmetic. There the clip goes frame by frame, in buffers that stay in the
cache: values and input gradients as 2D convolutions, kernel gradients as matrix products of shifted
frames. On TPUs a clip is not joined to the frames in front of it.

y = K * x is linear in x and in K, and so are both its gradients in what they are made of. Each of
the three functions here therefore has its derivatives among the three, to any order of reverse-mode
differentiation:

    y(x, K)        dx = input_gradient(dy, K)     dK = kernel_gradient(x, dy)
    dx(dy, K)      ddy = y(ddx, K)                dK = kernel_gradient(ddx, dy)
    dK(x, dy)      dx = input_gradient(dy, ddK)   ddy = y(x, ddK)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from xgen_jax.nn.layout import target_device
from xgen_jax.typing import Array, Kernel

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros before and behind, in (H, W)

Shaped = Array | jax.ShapeDtypeStruct

DIMENSIONS_2D = ("NHWC", "HWIO", "NHWC")
DIMENSIONS_3D = ("NDHWC", "DHWIO", "NDHWC")

# On CPU a clip below this size is convolved at once: its frames are so small that the kernel is the
# larger operand, and reading it again for each of them would take most of the time. The figure is
# about a core's share of the cache.
WHOLE_CLIP_BYTES = 4 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """How a kernel moves over a clip: all that the three functions need besides their arrays.

    Attributes:
      size: (T, H, W) of the input.
      taps, stride: (T, H, W) of the kernel, and its steps.
      padding: zeros around the frames.
    """

    size: Kernel
    taps: Kernel
    stride: Kernel
    padding: Padding

    @property
    def frames(self) -> int:
        """Frames of the output."""
        return (self.size[0] - self.taps[0]) // self.stride[0] + 1

    @property
    def output_sides(self) -> tuple[int, int]:
        """(H, W) of the output."""
        sides = zip(self.size[1:], self.taps[1:], self.stride[1:], self.padding)
        height, width = (
            (side + sum(zeros) - taps) // stride + 1 for side, taps, stride, zeros in sides
        )
        return height, width

    def one_frame(self) -> "Window":
        """The window of a single output frame."""
        return dataclasses.replace(self, size=(self.taps[0], *self.size[1:]))

    def is_2d(self) -> bool:
        return self.taps[0] == 1 and self.stride[0] == 1

    def tap(self, x_BTHWC: Array, tap: int) -> Array:
        """The input frames that one tap in time meets, one for each output frame."""
        last = tap + (self.frames - 1) * self.stride[0]
        return lax.slice_in_dim(x_BTHWC, tap, last + 1, self.stride[0], axis=1)


def _fold(x_BTHWC: Array) -> Array:
    """Frames as samples."""
    return x_BTHWC.reshape(-1, *x_BTHWC.shape[2:])


def _sum_of_2d(x_BTHWC: Array, kernel_DHWIO: Array, window: Window) -> Array:
    total = None
    for tap in range(window.taps[0]):
        x = _fold(window.tap(x_BTHWC, tap))
        strides = window.stride[1:]
        y = lax.conv_general_dilated(
            x, kernel_DHWIO[tap], strides, window.padding, dimension_numbers=DIMENSIONS_2D
        )
        total = y if total is None else total + y
    assert total is not None
    return total.reshape(len(x_BTHWC), -1, *total.shape[1:])


def _direct_3d(x_BTHWC: Array, kernel_DHWIO: Array, window: Window) -> Array:
    if window.is_2d():
        return _sum_of_2d(x_BTHWC, kernel_DHWIO, window)
    padding = ((0, 0), *window.padding)
    return lax.conv_general_dilated(
        x_BTHWC, kernel_DHWIO, window.stride, padding, dimension_numbers=DIMENSIONS_3D
    )


def _sum_of_2d_to_input(dy_BTHWC: Array, turned_DHWOI: Array, window: Window) -> Array:
    """The transpose of `_sum_of_2d`; the kernel comes turned about its centre, with its channels
    swapped."""
    batch, frames = dy_BTHWC.shape[:2]
    padding = []
    for axis in (0, 1):
        side, taps, stride = (
            values[1 + axis] for values in (window.size, window.taps, window.stride)
        )
        before = taps - 1 - window.padding[axis][0]
        dilated = (window.output_sides[axis] - 1) * stride + 1
        padding.append((before, side + taps - 1 - dilated - before))
    total = None
    for tap in range(window.taps[0]):
        dx = lax.conv_general_dilated(
            _fold(dy_BTHWC),
            turned_DHWOI[tap],
            (1, 1),
            padding,
            lhs_dilation=window.stride[1:],
            dimension_numbers=DIMENSIONS_2D,
        ).reshape(batch, frames, *window.size[1:], turned_DHWOI.shape[-1])
        # What `Window.tap` took out goes back in its place.
        behind = window.size[0] - tap - ((frames - 1) * window.stride[0] + 1)
        in_time = (tap, behind, window.stride[0] - 1)
        dx = lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), in_time, *[(0, 0, 0)] * 3])
        total = dx if total is None else total + dx
    assert total is not None
    return total


def _shifts(x_BTHWC: Array, axis: int, taps: int, length: int, step: int) -> list[Array]:
    """What each tap along an axis meets: `length` places, `step` apart."""
    return [
        lax.slice_in_dim(x_BTHWC, tap, tap + (length - 1) * step + 1, step, axis)
        for tap in range(taps)
    ]


def _matrix_products(x_BTHWC: Array, dy_BTHWC: Array, window: Window) -> Array:
    """The kernel gradient (D, H, W, I, O), in float32, as matrix products over the pixels."""
    (_, height, width), (taps_t, taps_h, taps_w) = window.size, window.taps

    def pad(x, rows, columns):
        return lax.pad(
            x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)]
        )

    def product(a_BTHWC, b_BTHWC):
        pixels = ((0, 1, 2, 3), (0, 1, 2, 3))
        return lax.dot_general(
            a_BTHWC, b_BTHWC, (pixels, ((), ())), preferred_element_type=jnp.float32
        )

    # Shifts in time and width lie side by side as channels, which makes few products and large
    # ones; shifts in height are slices of whole rows. In space the narrower of the two operands is
    # shifted, the output's gradient the other way round; it cannot be where the kernel moves in
    # strides.
    x_BTHWC = jnp.concatenate([window.tap(x_BTHWC, tap) for tap in range(taps_t)], axis=-1)
    channels, features = x_BTHWC.shape[-1], dy_BTHWC.shape[-1]
    if window.stride[1:] != (1, 1) or channels < features:
        (step_h, step_w), (rows, columns) = window.stride[1:], window.output_sides
        x = jnp.concatenate(
            _shifts(pad(x_BTHWC, *window.padding), 3, taps_w, columns, step_w), axis=-1
        )
        dk = jnp.stack([product(x, dy_BTHWC) for x in _shifts(x, 2, taps_h, rows, step_h)])
        return dk.reshape(taps_h, taps_w, taps_t, -1, features).transpose(2, 0, 1, 3, 4)
    rows, columns = (
        (taps - 1 - before, side + before - output)
        for taps, side, output, (before, _) in zip(
            window.taps[1:], window.size[1:], window.output_sides, window.padding
        )
    )
    dy = jnp.concatenate(_shifts(pad(dy_BTHWC, rows, columns), 3, taps_w, width, 1)[::-1], axis=-1)
    dk = jnp.stack([product(x_BTHWC, dy) for dy in _shifts(dy, 2, taps_h, height, 1)[::-1]])
    return dk.reshape(taps_h, taps_t, -1, taps_w, features).transpose(1, 0, 3, 2, 4)


def _at_once(x_BTHWC: Shaped, y_BTHWC: Shaped, window: Window) -> bool:
    return (
        window.frames == 1
        or max(x_BTHWC.size, y_BTHWC.size) * x_BTHWC.dtype.itemsize <= WHOLE_CLIP_BYTES
    )


def _frames_of(x_BTHWC: Array, index: Array, window: Window) -> Array:
    """The input frames of one output frame."""
    return lax.dynamic_slice_in_dim(x_BTHWC, index * window.stride[0], window.taps[0], axis=1)


def _convolve_cpu(x_BTHWC: Array, kernel_DHWIO: Array, window: Window) -> Array:
    shape = (len(x_BTHWC), window.frames, *window.output_sides, kernel_DHWIO.shape[-1])
    y = jax.ShapeDtypeStruct(shape, x_BTHWC.dtype)
    if _at_once(x_BTHWC, y, window):
        return _sum_of_2d(x_BTHWC, kernel_DHWIO, window)

    def frame(index, y):
        new = _sum_of_2d(_frames_of(x_BTHWC, index, window), kernel_DHWIO, window.one_frame())
        return lax.dynamic_update_slice_in_dim(y, new, index, axis=1)

    return lax.fori_loop(0, window.frames, frame, jnp.zeros(y.shape, y.dtype))


def _input_gradient_cpu(dy_BTHWC: Array, kernel_DHWIO: Array, window: Window) -> Array:
    # Turned here and not by the convolution: XLA:CPU has no fast code for a kernel that is read
    # backwards.
    turned_DHWOI = jnp.flip(kernel_DHWIO, (1, 2)).swapaxes(3, 4)
    x = jax.ShapeDtypeStruct((len(dy_BTHWC), *window.size, kernel_DHWIO.shape[3]), dy_BTHWC.dtype)
    if _at_once(x, dy_BTHWC, window):
        return _sum_of_2d_to_input(dy_BTHWC, turned_DHWOI, window)

    def frame(index, dx):
        dy = lax.dynamic_slice_in_dim(dy_BTHWC, index, 1, axis=1)
        new = _frames_of(dx, index, window) + _sum_of_2d_to_input(
            dy, turned_DHWOI, window.one_frame()
        )
        return lax.dynamic_update_slice_in_dim(dx, new, index * window.stride[0], axis=1)

    return lax.fori_loop(0, window.frames, frame, jnp.zeros(x.shape, x.dtype))


def _kernel_gradient_cpu(x_BTHWC: Array, dy_BTHWC: Array, window: Window) -> Array:
    if _at_once(x_BTHWC, dy_BTHWC, window):
        return _matrix_products(x_BTHWC, dy_BTHWC, window).astype(x_BTHWC.dtype)

    def frame(index, dk):
        dy = lax.dynamic_slice_in_dim(dy_BTHWC, index, 1, axis=1)
        return dk + _matrix_products(_frames_of(x_BTHWC, index, window), dy, window.one_frame())

    shape = (*window.taps, x_BTHWC.shape[-1], dy_BTHWC.shape[-1])
    return lax.fori_loop(0, window.frames, frame, jnp.zeros(shape, jnp.float32)).astype(
        x_BTHWC.dtype
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolution(x_BTHWC: Array, kernel_DHWIO: Array, window: Window) -> Array:
    """K * x."""
    cpu = functools.partial(_convolve_cpu, window=window)
    default = functools.partial(_direct_3d, window=window)
    return lax.platform_dependent(x_BTHWC, kernel_DHWIO, cpu=cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def input_gradient(dy_BTHWC: Array, kernel_DHWIO: Array, window: Window) -> Array:
    """The gradient of <dy, K * x> with respect to x."""

    def default(dy, kernel):
        x = jax.ShapeDtypeStruct((len(dy), *window.size, kernel.shape[3]), dy.dtype)
        return jax.linear_transpose(lambda x: _direct_3d(x, kernel, window), x)(dy)[0]

    cpu = functools.partial(_input_gradient_cpu, window=window)
    return lax.platform_dependent(dy_BTHWC, kernel_DHWIO, cpu=cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x_BTHWC: Array, dy_BTHWC: Array, window: Window) -> Array:
    """The gradient of <dy, K * x> with respect to K."""

    def default(x, dy):
        kernel = jax.ShapeDtypeStruct((*window.taps, x.shape[-1], dy.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda kernel: _direct_3d(x, kernel, window), kernel)(dy)[0]

    cpu = functools.partial(_kernel_gradient_cpu, window=window)
    return lax.platform_dependent(x_BTHWC, dy_BTHWC, cpu=cpu, default=default)


def _keep_arguments(function):
    return lambda a, b, window: (function(a, b, window), (a, b))


# The table in the module's docstring.
convolution.defvjp(
    _keep_arguments(convolution),
    lambda window, xk, dy: (input_gradient(dy, xk[1], window), kernel_gradient(xk[0], dy, window)),
)
input_gradient.defvjp(
    _keep_arguments(input_gradient),
    lambda window, dyk, ddx: (
        convolution(ddx, dyk[1], window),
        kernel_gradient(ddx, dyk[0], window),
    ),
)
kernel_gradient.defvjp(
    _keep_arguments(kernel_gradient),
    lambda window, xdy, ddk: (
        input_gradient(xdy[1], ddk, window),
        convolution(xdy[0], ddk, window),
    ),
)


def gather_kernel(kernel: Array) -> Array:
    """The kernel, whole on every device of the mesh; without a mesh the kernel as it is.

    Convolutions with a kernel that is sharded over channels are wrong (jax 0.10.2): where height or
    width is sharded too, XLA contracts only a part of the channels. Sharded input channels break
    the values, sharded output channels the input gradient. Parameters stay sharded in memory.
    """
    return nn.with_logical_constraint(kernel, (None,) * kernel.ndim)


def gathered_convolution(x: Array, kernel: Array, *args, **kwargs) -> Array:
    """`lax.conv_general_dilated` with `gather_kernel`; for flax's
    `nn.Conv(conv_general_dilated=)`."""
    return lax.conv_general_dilated(x, gather_kernel(kernel), *args, **kwargs)


def convolve(
    x_BTHWC: Array,
    kernel_DHWIO: Array,
    stride: Kernel,
    padding: Padding,
    before_BTHWC: Array | None = None,
) -> Array:
    """Convolution, valid in time and padded in space.

    Equal to `lax.conv_general_dilated` up to the order of its sums, in values and in reverse-mode
    derivatives of any order. Forward mode (`jax.jvp`) is not defined.

    Args:
      x_BTHWC: the clip, of the kernel's dtype.
      kernel_DHWIO: taps in (T, H, W), channels in and out.
      stride: steps in (T, H, W).
      padding: zeros before and behind, in (H, W).
      before_BTHWC: frames in front of the clip.
    """
    kernel_DHWIO = gather_kernel(kernel_DHWIO)
    if before_BTHWC is not None:
        look_back = (before_BTHWC.shape[1], stride[0]) == (len(kernel_DHWIO) - 1, 1)
        enough = x_BTHWC.shape[1] >= before_BTHWC.shape[1]
        if look_back and enough and target_device().platform == "tpu":
            return _convolve_apart(before_BTHWC, x_BTHWC, kernel_DHWIO, stride, padding)
        x_BTHWC = jnp.concatenate([before_BTHWC, x_BTHWC], axis=1)
    (_, *size, _), (*taps, _, _) = x_BTHWC.shape, kernel_DHWIO.shape
    rows, columns = padding
    window = Window(
        size=(size[0], size[1], size[2]),
        taps=(taps[0], taps[1], taps[2]),
        stride=tuple(stride),
        padding=((rows[0], rows[1]), (columns[0], columns[1])),
    )
    return convolution(x_BTHWC, kernel_DHWIO, window)


def _convolve_apart(
    before_BTHWC: Array, x_BTHWC: Array, kernel_DHWIO: Array, stride: Kernel, padding: Padding
) -> Array:
    """Convolve a clip and as many frames in front of it as the kernel looks back, without an array
    that holds both.

    The clip is convolved after frames of zeros, and what the frames in front of it add to the first
    results is a convolution of its own. On a TPU the joined array, and the two parts of its
    gradient, would each be written and read once more.
    """
    back = before_BTHWC.shape[1]

    def convolved(x, kernel, in_time):
        return lax.conv_general_dilated(
            x, kernel, stride, (in_time, *padding), dimension_numbers=DIMENSIONS_3D
        )

    y = convolved(x_BTHWC, kernel_DHWIO, (back, 0))
    # The last tap meets only the clip. With it here XLA compiles for a TPU 2.5 times as long.
    added = convolved(before_BTHWC, kernel_DHWIO[:back], (0, back - 1))
    behind = (0, y.shape[1] - back, 0)
    return y + lax.pad(added, jnp.zeros((), y.dtype), ((0, 0, 0), behind, *[(0, 0, 0)] * 3))
