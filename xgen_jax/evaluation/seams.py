"""Seams: jumps of a reconstruction where one chunk of frames ends and the next begins.

    d_i = mean |frame_i - frame_{i-1}|
    ratio(p) = sum of d_i of reconstructions / sum of d_i of originals,

both sums over all clips and all i with i = p modulo the frames of a chunk. 1 is as much change as
the original has. ratio(0) is taken across the chunks' borders; the others show the change between
frames within a chunk, and where a decoder has moved its seams to. Videos are uint8: what a viewer
sees is compared, so a model's floats are rounded and clipped first. In the published videos of
REGEN ratio(0) is 1.29 at 16x and 1.81 at 32x, the median of the others 0.84.

    seam ratio = ratio at borders / ratio elsewhere,

each of the sums over all frames of its kind (`seam_figures`): a reconstruction that flickers
everywhere alike has none, one that is too smooth within its chunks has one although its borders
change by as much as the original.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.pixels import check_clip, check_pair
from xgen_jax.errors import UserError

CHANGE = (
    "mean absolute difference of a frame to the one before, sum over clips of reconstructions over "
    "that of originals; 1 is natural, above flickers, below is too smooth"
)
SEAM_RATIO = (
    "change of reconstructions over originals where a chunk of latents ends and the next begins, "
    "over the same elsewhere; 1 is natural, above is a jump between chunks"
)

Video = np.ndarray  # uint8 (T, H, W, 3); not from xgen_jax.typing, which would import JAX


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seams:
    """Ratios of frame differences, reconstruction over original.

    Attributes:
      ratios: one for each place in a chunk; the first is that of a chunk's first frame to the
        frame before.
    """

    ratios: tuple[float, ...]

    @property
    def border(self) -> float:
        """Seam ratio: across the borders of chunks."""
        return self.ratios[0]

    @property
    def others(self) -> float:
        """Median ratio over the other places."""
        return float(np.median(self.ratios[1:]))

    @property
    def worst_other(self) -> float:
        """Largest ratio of the other places."""
        return max(self.ratios[1:])


def frame_differences(video: Video) -> np.ndarray:
    """Compute the mean absolute difference of each frame to the one before.

    Args:
      video: uint8 (T, H, W, 3).

    Returns:
      float64 (T - 1,) in 0..255.

    Raises:
      UserError: another kind of array.
    """
    check_clip(video)
    frames = video.astype(np.int16)
    return np.abs(frames[1:] - frames[:-1]).mean((1, 2, 3))


def measure_seams(pairs: Iterable[tuple[Video, Video]], chunk_frames: int) -> Seams:
    """Measure the ratios of all clips together.

    Args:
      pairs: (original, reconstruction) of each clip, uint8 (T, H, W, 3) of one shape; clips may
        differ in shape, and chunks begin at their first frames.
      chunk_frames: frames of a chunk, 2 or more.

    Raises:
      UserError: a pair that is not two uint8 videos of one shape; a place in the chunk at which no
        original moves, or which no clip has: no clip is longer than a chunk.
    """
    if chunk_frames < 2:
        raise UserError(
            f"a chunk of {chunk_frames} frames has no pair of frames within; it must have 2 or more"
        )
    wanted, got = np.zeros(chunk_frames), np.zeros(chunk_frames)
    for original, reconstruction in pairs:
        check_pair(original, reconstruction)
        places = np.arange(1, original.shape[0]) % chunk_frames
        np.add.at(wanted, places, frame_differences(original))
        np.add.at(got, places, frame_differences(reconstruction))
    still = np.flatnonzero(wanted == 0)
    if still.size:
        raise UserError(
            f"no original changes at place {still[0]} of its chunks of {chunk_frames} frames: "
            "clips must move, and be longer than a chunk"
        )
    return Seams(ratios=tuple((got / wanted).tolist()))


def seam_figures(
    changes: Iterable[tuple[Sequence[float], Sequence[float], Sequence[int]]],
) -> dict[str, Any]:
    """Compute the seam ratio of all clips together.

    Args:
      changes: of each clip the frame differences of original and reconstruction, (T - 1,), see
        `frame_differences`; and the frames, 1 or more, at which its chunks begin.

    Returns:
      `seam_ratio`, `border` and `elsewhere` (the two ratios of change that it divides) and
      `borders` (count); or `missing`, the reason why there is no seam ratio.
    """
    sums, borders = np.zeros((2, 2)), 0  # original and reconstruction, at borders and elsewhere
    places = np.zeros(2, np.int64)
    for original, reconstruction, starts in changes:
        at_border = np.isin(np.arange(1, len(original) + 1), starts)
        for place, chosen in enumerate((at_border, ~at_border)):
            sums[:, place] += np.sum(original, where=chosen), np.sum(reconstruction, where=chosen)
            places[place] += chosen.sum()
        borders += int(at_border.sum())
    if not places[0]:
        return {"missing": "no clip is longer than a chunk of latents, so that it has no border"}
    if not places[1]:
        return {"missing": "every frame is a chunk of its own, so that there is no other change"}
    if not sums[0].all() or not sums[1, 1]:
        return {"missing": "the clips do not move"}
    at_borders, elsewhere = (sums[1] / sums[0]).tolist()
    return {
        "seam_ratio": at_borders / elsewhere,
        "border": at_borders,
        "elsewhere": elsewhere,
        "borders": borders,
    }
