"""Divide-and-merge: encode long clips as in arXiv 2408.12590, section 3.1 and figure 4.

A clip is cut into short segments that overlap by their end frames, each segment is encoded (or
decoded) by itself, and the duplicates are merged. The paper gives segments of five frames and no
operator; `drop`, as in Open-Sora-Plan's tiling, takes the earlier duplicate, `mean` the mean.

The result differs from encoding the whole clip, since a latent depends on frames before its
segment. It is here for parity with the paper and for comparison; `inference.streaming` gives the
whole clip's values.
"""

from collections.abc import Callable

import jax.numpy as jnp

from xgen_jax.errors import UserError, choose
from xgen_jax.typing import Array

MERGES = ("drop", "mean")


def divide_and_merge(
    function: Callable[[Array], Array], x_BTHWC: Array, segment: int, merge: str = "drop"
) -> Array:
    """Apply a function to segments of a clip that overlap by one frame, and merge the results.

    Args:
      function: encode or decode; (B, segment, ...) -> a result whose first and last frames belong
        to those of the segment.
      x_BTHWC: the clip, of 1 + k (segment - 1) frames; the last segment may be shorter if the
        function takes it.
      segment: frames (to decode, latent frames) of a segment: 5 and 2 in the paper.
      merge: `drop` or `mean`.

    Returns:
      The merged result; the last frame of a segment's result and the first of the next are one.

    Raises:
      UserError: an unknown merge, or segments too short to overlap.
    """
    choose("merge", merge, MERGES)
    if segment < 2:
        raise UserError(f"segments of {segment} frames cannot overlap; give 2 or more")
    frames = x_BTHWC.shape[1]
    parts: list[Array] = []
    for at in range(0, max(1, frames - 1), segment - 1):
        part = function(x_BTHWC[:, at : at + segment])
        if parts:
            duplicate = parts[-1][:, -1:]
            parts[-1] = parts[-1][:, :-1]
            if merge == "mean":
                duplicate = (duplicate + part[:, :1]) / 2
            part = jnp.concatenate([duplicate, part[:, 1:]], axis=1)
        parts.append(part)
    return jnp.concatenate(parts, axis=1)
