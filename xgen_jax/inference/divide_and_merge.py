"""Divide-and-merge, the xGen-VideoSyn-1 paper's way with long clips (arXiv 2408.12590, section 3.1
and figure 4).

A clip is cut in short segments that share their end frames, each segment is encoded (or decoded) by
itself, and the doubles are merged. The paper gives segments of five frames and no operator; `drop`,
which Open-Sora-Plan's tiling does, keeps the earlier of two doubles, `mean` averages them.

This is another function than encoding the whole clip, for a latent depends on frames before its
segment: it is here for parity with the paper, and to be measured against. `inference.streaming`
gives the whole clip's values.
"""

from collections.abc import Callable

import jax.numpy as jnp

from xgen_jax.errors import UserError
from xgen_jax.typing import Array

MERGES = ("drop", "mean")


def divide_and_merge(
    function: Callable[[Array], Array], x_BTHWC: Array, segment: int, merge: str = "drop"
) -> Array:
    """Applies a function to segments of a clip that share their end frames, and merges what they
    share.

    Args:
      function: of a segment (B, segment, ...), with as many frames in its result for each; encode
      or decode.
      x_BTHWC: the clip, of 1 + k (segment - 1) frames; a last segment may be shorter where the
      function takes it.
      segment: frames (latent frames, to decode) of a segment: 5 and 2 in the paper.
      merge: `drop` or `mean`.

    Returns:
      The merged result; the last frame of a segment's result and the first of the next are one.

    Raises:
      UserError: a merge that is not known, or segments too short to share a frame.
    """
    if merge not in MERGES:
        raise UserError(f"merge={merge!r} is not known; choose one of {', '.join(MERGES)}")
    if segment < 2:
        raise UserError(f"segments of {segment} frames share none; give 2 or more")
    frames = x_BTHWC.shape[1]
    parts = []
    for at in range(0, max(1, frames - 1), segment - 1):
        part = function(x_BTHWC[:, at : at + segment])
        if parts:
            double = parts[-1][:, -1:]
            parts[-1] = parts[-1][:, :-1]
            double = double if merge == "drop" else (double + part[:, :1]) / 2
            part = jnp.concatenate([double, part[:, 1:]], axis=1)
        parts.append(part)
    return jnp.concatenate(parts, axis=1)
