"""LPIPS v0.1, the learned perceptual distance of two images (arXiv 1801.03924, section 3 and
appendix B).

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) / (|f_l(x)| + eps) - f_lc(y) / (|f_l(y)| + eps))^2

f_l are the activations after five ReLUs of an ImageNet classifier, |f_l| their norm over channels
at each place, w_l >= 0 the learnt heads. As a training loss its parameters are held fixed;
`weights.lpips` reads the released ones.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.conv3d import gathered_convolution
from xgen_jax.typing import Array

EPS = 1e-10  # outside the root, as in the authors' code
# ImageNet's mean and standard deviation, for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """The layers between two taps: a max pool of stride 2 (window 0 for none), then convolutions
    with a ReLU each."""

    pool: int
    convs: int = 1
    kernel: int = 3
    stride: int = 1


TRUNKS = {
    "vgg16": tuple(
        Slice(pool=pool, convs=convs) for pool, convs in ((0, 2), (2, 2), (2, 3), (2, 3), (2, 3))
    ),
    "alexnet": (
        Slice(pool=0, kernel=11, stride=4),
        Slice(pool=3, kernel=5),
        Slice(pool=3),
        Slice(pool=0),
        Slice(pool=0),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LPIPSConfig:
    """A classifier, and the channels of each of its five slices."""

    trunk: str = "vgg16"
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    def __post_init__(self):
        if self.trunk not in TRUNKS:
            raise UserError(f"trunk {self.trunk!r} is not one of {', '.join(TRUNKS)}")
        if len(self.widths) != len(TRUNKS[self.trunk]):
            raise UserError(
                f"widths {self.widths} need one entry a slice, {len(TRUNKS[self.trunk])}"
            )

    @property
    def least_side(self) -> int:
        """Pixels of the smallest side that is not empty at the last slice."""
        return {"vgg16": 16, "alexnet": 31}[self.trunk]


PRESETS = {
    "vgg16": LPIPSConfig(),
    "alexnet": LPIPSConfig(trunk="alexnet", widths=(64, 192, 384, 256, 256)),
}


class LPIPS(nn.Module):
    """The distance. Parameters: conv{slice}_{n} (kernel, bias), head{slice} (C,). Computes in
    float32 throughout."""

    config: LPIPSConfig

    def setup(self):
        for number, (layers, width) in enumerate(
            zip(TRUNKS[self.config.trunk], self.config.widths), 1
        ):
            kernel, padding = (layers.kernel, layers.kernel), 2 if layers.kernel > 3 else 1
            for place in range(1, layers.convs + 1):
                conv = nn.Conv(
                    width, kernel, layers.stride, padding, conv_general_dilated=gathered_convolution
                )
                setattr(self, f"conv{number}_{place}", conv)
        ones = nn.initializers.ones
        self.heads = [
            self.param(f"head{n}", ones, (width,)) for n, width in enumerate(self.config.widths, 1)
        ]

    def features(self, x_BHWC: Array) -> list[Array]:
        """Activations at the five taps, (B, h, w, C) each, of images in [-1, 1]."""
        least = self.config.least_side
        if x_BHWC.ndim != 4 or x_BHWC.shape[-1] != 3 or min(x_BHWC.shape[1:3]) < least:
            raise UserError(
                f"LPIPS with {self.config.trunk} takes images (B, H, W, 3) of at least "
                f"{least}x{least}, not {x_BHWC.shape}"
            )
        shift, scale = (jnp.array(c, jnp.float32).reshape(1, 1, 1, 3) for c in (SHIFT, SCALE))
        x, taps = (x_BHWC.astype(jnp.float32) - shift) / scale, []
        for number, layers in enumerate(TRUNKS[self.config.trunk], 1):
            if layers.pool:
                x = nn.max_pool(x, (layers.pool, layers.pool), (2, 2))
            for place in range(1, layers.convs + 1):
                x = nn.relu(getattr(self, f"conv{number}_{place}")(x))
            taps.append(x)
        return taps

    def by_slice(self, x_BHWC: Array, y_BHWC: Array) -> Array:
        """Return the five terms of the distance, (B, 5)."""
        if x_BHWC.shape != y_BHWC.shape:
            raise UserError(
                f"LPIPS compares images of one shape, not {x_BHWC.shape} and {y_BHWC.shape}"
            )
        # One pass each, not one for both, so that a fixed original needs no backward pass.
        pairs = zip(self.features(x_BHWC), self.features(y_BHWC), self.heads)
        terms = [jnp.square(_unit(f) - _unit(g)).mean((1, 2)) @ head for f, g, head in pairs]
        return jnp.stack(terms, axis=-1)

    def __call__(self, x_BHWC: Array, y_BHWC: Array) -> Array:
        """Distance of each pair of images.

        Args:
          x_BHWC, y_BHWC: (B, H, W, 3) in [-1, 1]; frames of a video are images of a batch.

        Returns:
          float32 (B,), 0 where they are equal. Gradients are finite everywhere.

        Raises:
          UserError: images of different shapes, or smaller than the trunk can take.
        """
        return self.by_slice(x_BHWC, y_BHWC).sum(-1)


def _unit(f_BHWC: Array) -> Array:
    """Normalise features over channels.

    Where all are zero, which after a ReLU is not rare, result and gradient are zero.
    """
    squares = jnp.square(f_BHWC).sum(-1, keepdims=True)
    some = squares > 0
    norm = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
    return f_BHWC / (norm + EPS)
