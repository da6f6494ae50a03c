"""Names of the array kinds, and the legend of the shape suffixes used in the code.

    B batch   T frames (video) or latent frames   H, W height, width (pixels or latent cells)   C channels
    L text tokens   N tokens of any sequence   D model width   K heads

A name such as `x_BTHWC` carries its shape. Video outside the models is uint8 (T, H, W, 3), inside
it is float in [-1, 1].
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array
AnyArray = jax.Array | np.ndarray  # of a device or of the host
Video = np.ndarray  # uint8 (T, H, W, 3)
Params = Any  # a pytree of arrays
Shape = tuple[int, ...]
