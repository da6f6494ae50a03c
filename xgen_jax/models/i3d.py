"""I3D, the action classifier whose features FVD compares (arXiv 1705.07750, figure 3): Inception-v1
with its kernels inflated in time.

Only what inference needs: a batch norm with fixed statistics is a factor and a shift of the
convolution before it, and `weights.i3d` has folded it in. All layers have TensorFlow's "same"
padding, which the original was trained with.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xgen_jax.errors import UserError, choose
from xgen_jax.nn.conv3d import convolve
from xgen_jax.typing import Array, Kernel, Params

# same: as many zeros as the size of the input needs, as TensorFlow counts them. fixed: those that a
# multiple of the stride needs, whatever the size; a port to PyTorch has them. They differ in clips
# whose length is no multiple of 8.
PADDINGS = ("same", "fixed")
SIDE = 224  # pixels of the square frames that the head is made for
LEAST_FRAMES = 10  # shorter clips leave the head fewer than its two places in time
STEM = {"1a": 7, "2b": 1, "2c": 3}  # the first convolutions: side of the kernel
# The blocks of branches; a max pool (window, stride) stands before some.
MIXED = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
POOLS: dict[str, tuple[Kernel, Kernel]] = {
    "2b": ((1, 3, 3), (1, 2, 2)),
    "3b": ((1, 3, 3), (1, 2, 2)),
    "4b": ((3, 3, 3), (2, 2, 2)),
    "5b": ((2, 2, 2), (2, 2, 2)),
}
HEAD: Kernel = (2, 7, 7)  # window of the average before the classes
# Of the six convolutions of a block: 1x1x1; 1x1x1 and 3x3x3, twice; a pool and 1x1x1.
BRANCHES = {"b0": 1, "b1a": 1, "b1b": 3, "b2a": 1, "b2b": 3, "b3b": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class I3DConfig:
    """Sizes of the network.

    Attributes:
      stem: channels of the three convolutions before the blocks.
      blocks: channels of the six convolutions of each of the nine blocks, see `BRANCHES`.
      classes: length of the result.
      padding: one of `PADDINGS`.
    """

    stem: tuple[int, ...] = (64, 64, 192)
    blocks: tuple[tuple[int, ...], ...] = (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    )
    classes: int = 400
    padding: str = "same"

    def __post_init__(self):
        object.__setattr__(self, "stem", tuple(self.stem))
        object.__setattr__(self, "blocks", tuple(tuple(block) for block in self.blocks))
        shape = [len(self.stem), *map(len, self.blocks)]
        if shape != [3, *[len(BRANCHES)] * len(MIXED)]:
            raise UserError(
                f"an I3D has 3 convolutions and {len(MIXED)} blocks of {len(BRANCHES)}, not "
                f"{self.stem} and {self.blocks}"
            )
        if min(*self.stem, *itertools.chain(*self.blocks), self.classes) < 1:
            raise UserError(f"an I3D's channels must be 1 or more: {self}")
        choose("padding", self.padding, PADDINGS)


class Unit(nn.Module):
    """Convolution and ReLU. Parameters: kernel (k, k, k, in, out), bias (out,)."""

    features: int
    side: int
    padding: str
    stride: int = 1
    relu: bool = True

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        taps, strides = (self.side,) * 3, (self.stride,) * 3
        shape = (*taps, x_BTHWC.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.side == 1:  # a matrix product, which compiles faster
            x = jnp.einsum("bthwi,io->bthwo", x_BTHWC, kernel[0, 0, 0])
        else:
            in_time, *in_space = _zeros(x_BTHWC, taps, strides, self.padding)
            x = jnp.pad(x_BTHWC, ((0, 0), in_time, (0, 0), (0, 0), (0, 0)))
            x = convolve(x, kernel, strides, (in_space[0], in_space[1]))
        x = x + bias.reshape(1, 1, 1, 1, -1)
        return nn.relu(x) if self.relu else x


class Mixed(nn.Module):
    """Four branches next to each other; their channels are joined."""

    widths: tuple[int, ...]
    padding: str

    @nn.compact
    def __call__(self, x_BTHWC: Array) -> Array:
        units = {
            name: Unit(width, side, self.padding, name=name)
            for (name, side), width in zip(BRANCHES.items(), self.widths)
        }
        pooled = _max_pool(x_BTHWC, (3, 3, 3), (1, 1, 1), self.padding)
        branches = (
            units["b0"](x_BTHWC),
            units["b1b"](units["b1a"](x_BTHWC)),
            units["b2b"](units["b2a"](x_BTHWC)),
            units["b3b"](pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
    """Classify clips (B, T, 224, 224, 3) in [-1, 1], T >= 10: logits float32 (B, classes), the mean
    over time of those before the softmax."""

    config: I3DConfig = I3DConfig()

    @nn.compact
    def __call__(self, video_BTHWC: Array) -> Array:
        c, shape = self.config, video_BTHWC.shape
        if len(shape) != 5 or shape[2:] != (SIDE, SIDE, 3) or shape[1] < LEAST_FRAMES:
            raise UserError(
                f"I3D takes clips (B, T, {SIDE}, {SIDE}, 3) of {LEAST_FRAMES} frames or more, not "
                f"{shape}"
            )
        x = video_BTHWC.astype(jnp.float32)
        for (name, side), width in zip(STEM.items(), c.stem):
            x = self._pool(x, name)
            stride = 2 if name == "1a" else 1
            x = Unit(width, side, c.padding, stride, name=f"conv_{name}")(x)
        for name, widths in zip(MIXED, c.blocks):
            x = Mixed(widths, c.padding, name=f"mixed_{name}")(self._pool(x, name))
        x = nn.avg_pool(x, HEAD, padding="VALID")
        x = Unit(c.classes, 1, c.padding, relu=False, name="logits")(x)
        return x.mean((1, 2, 3))

    def _pool(self, x_BTHWC: Array, name: str) -> Array:
        if name not in POOLS:
            return x_BTHWC
        return _max_pool(x_BTHWC, *POOLS[name], self.config.padding)


def _max_pool(x_BTHWC: Array, window: Kernel, stride: Kernel, padding: str) -> Array:
    # What is padded never wins: after a ReLU nothing is below the zeros of the ports.
    return nn.max_pool(x_BTHWC, window, stride, _zeros(x_BTHWC, window, stride, padding, True))


def _zeros(
    x_BTHWC: Array, window: Kernel, stride: Kernel, padding: str, pool: bool = False
) -> list[tuple[int, int]]:
    """Return what is padded before and behind, in (T, H, W): the half, and the odd one behind."""
    pairs = []
    for size, side, step in zip(x_BTHWC.shape[1:4], window, stride):
        rest = size % step if padding == "same" else 0
        total = max(side - (rest or step), 0)
        before, behind = total // 2, total - total // 2
        if pool and padding == "fixed":  # the last window may reach beyond the end
            behind += -(size + total - side) % step
        pairs.append((before, behind))
    return pairs


def abstract_params(config: I3DConfig) -> Params:
    """Return the shapes of all parameters. To trace the network for them would take seconds."""

    def unit(side: int, inputs: int, outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"kernel": (side, side, side, inputs, outputs), "bias": (outputs,)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    tree: dict[str, Any] = {}
    inputs = 3
    for (name, side), width in zip(STEM.items(), config.stem):
        tree[f"conv_{name}"], inputs = unit(side, inputs, width), width
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in zip(MIXED, config.blocks):
        tree[f"mixed_{name}"] = {
            "b0": unit(1, inputs, b0),
            "b1a": unit(1, inputs, b1a),
            "b1b": unit(3, b1a, b1b),
            "b2a": unit(1, inputs, b2a),
            "b2b": unit(3, b2a, b2b),
            "b3b": unit(1, inputs, b3b),
        }
        inputs = b0 + b1b + b2b + b3b
    return {"params": {**tree, "logits": unit(1, inputs, config.classes)}}
