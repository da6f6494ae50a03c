"""LPIPS of two uint8 videos, frame by frame, from a local weights file."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np

from xgen_jax.data.pixels import to_unit_range
from xgen_jax.models.lpips import LPIPS
from xgen_jax.typing import Params, Video
from xgen_jax.weights.lpips import load_lpips

NAMES = {"vgg16": "lpips_vgg", "alexnet": "lpips_alex"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LPIPSDistance:
    """LPIPS as a `reconstruction.FrameDistance`; see `load_lpips_distance`."""

    model: LPIPS
    params: Params

    @property
    def name(self) -> str:
        """`lpips_vgg` or `lpips_alex`: figures of the two are not comparable."""
        return NAMES[self.model.config.trunk]

    @property
    def convention(self) -> str:
        """Definition of the figure, for reports."""
        trunk = {"vgg16": "VGG16", "alexnet": "AlexNet"}[self.model.config.trunk]
        return (
            f"LPIPS v0.1 with {trunk}, frames at their own size, mean over frames, then over "
            "clips; 0 is equal"
        )

    def __call__(self, a: Video, b: Video) -> np.ndarray:
        """Distance of each pair of frames.

        Args:
          a, b: uint8 (T, H, W, 3), at least 16x16 with VGG16 and 31x31 with AlexNet.

        Returns:
          float32 (T,).

        Raises:
          UserError: videos of different shapes or too small.
        """
        # One frame at a time: compiled once a frame size, whatever the length, in the memory of one
        # frame's features.
        pairs = (
            (to_unit_range(x)[None], to_unit_range(y)[None]) for x, y in zip(a, b, strict=True)
        )
        return np.concatenate([_distance(self.model, self.params, x, y) for x, y in pairs])


@functools.partial(jax.jit, static_argnums=0)
def _distance(model: LPIPS, params: Params, x_BHWC, y_BHWC):
    # A published figure must not depend on whether the device rounds its products.
    with jax.default_matmul_precision("highest"):
        return model.apply(params, x_BHWC, y_BHWC)


def load_lpips_distance(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> LPIPSDistance:
    """Load the weights; see `weights.lpips.load_lpips` for the files and the errors."""
    model, params = load_lpips(paths)
    return LPIPSDistance(model=model, params=jax.device_put(params))
