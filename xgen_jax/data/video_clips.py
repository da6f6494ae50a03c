"""Several clips of one video from one pass over it.

A clip is decoded from the key frame before it, with a few frames for each that is kept. Clips that
begin after the same key frame share what is decoded.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xgen_jax.data.video import VideoReader, read_video
from xgen_jax.errors import UserError


def read_clips(
    path, starts_s: Sequence[float], *, fps: float | None, frames: int, cover: tuple[int, int]
) -> list[np.ndarray | UserError]:
    """Read clips of one file, decoding once what clips have in common.

    Clips that `read_video` would decode from the same key frame are decoded from there together, so
    they are the same to the bit; others are sought as it does.

    Args:
      path, fps, frames, cover: see `VideoReader`.
      starts_s: of the clips, in any order.

    Returns:
      What `read_video` gives at each start: the frames, or the error that it raises.
    """
    clips: dict[int, np.ndarray | UserError] = {}
    order = sorted(range(len(starts_s)), key=lambda number: starts_s[number])
    options: dict[str, Any] = {"fps": fps, "frames": frames, "cover": cover}
    with contextlib.ExitStack() as file:
        before: VideoReader | None = None
        for turn, number in enumerate(order):
            start_s, later = starts_s[number], order[turn + 1 : turn + 2]
            try:
                reader = VideoReader(path, start_s=start_s, **options)
                if before is None or not reader.share(before):
                    file.close()
                    file.callback(reader.close)
                before = reader
                clips[number] = reader.read(next_s=starts_s[later[0]] if later else math.inf)
            except UserError:
                # What is damaged may end the pass, and not this clip where it is read alone.
                before = None
                try:
                    clips[number], _ = read_video(path, start_s=start_s, **options)
                except UserError as error:
                    clips[number] = error
    return [clips[number] for number in range(len(starts_s))]
