"""Parts of a video: how many clips each counts for, and whether it is held out of training.

What is held out follows from a file alone, so that it does not change when files are added.
"""

import dataclasses
import hashlib
import math
import os

from xgen_jax.data.config import HOLD_OUT
from xgen_jax.errors import UserError, choose

LEAST_TAIL_S = 4.0  # of a video whose end is held out
# Of a video with `hold_out="ends"`: where the tail would be shorter than LEAST_TAIL_S.
MOST_OF_SHORT = 0.25


@dataclasses.dataclass(frozen=True)
class Division:
    """How the files of a folder are divided.

    Attributes:
      held_out_fraction: part of the clips that training never sees, in [0, 1). A video of which
        that part lasts `LEAST_TAIL_S` or more gives its end; a shorter one, and an image, is held
        out whole or not at all, by a hash of its relative path.
      hold_out: "files" is the above. "ends" is for a folder of few short videos, where a hash may
        choose none or a whole film: each video gives its end, at least `LEAST_TAIL_S` of it, or
        `MOST_OF_SHORT` of it where that is less. An image is held out as above.
      seconds_per_clip: seconds of a video that count as one clip; a shorter video is one clip too.
        None counts every video once.

    Raises:
      UserError: values out of range.
    """

    held_out_fraction: float
    hold_out: str
    seconds_per_clip: float | None

    def __post_init__(self):
        seconds, fraction = self.seconds_per_clip, self.held_out_fraction
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(
                "seconds_per_clip must be above 0, or None to count every video once, not "
                f"{seconds}"
            )
        if not 0 <= fraction < 1:
            raise UserError(f"held_out_fraction must be 0 or more and below 1, not {fraction}")
        choose("hold_out", self.hold_out, HOLD_OUT)

    def parts(
        self, file: str, length_s: float, fps: float, image: bool
    ) -> list[tuple[float, float, int, bool]]:
        """Return (begin_s, end_s, clips, held out) of each part of a file.

        Args:
          file: its relative path.
          length_s, fps: of the video, in seconds and frames a second.
          image: it is none.
        """
        fraction = self.held_out_fraction
        tail_s = length_s * fraction
        ends = self.hold_out == "ends" and fraction > 0 and not image
        if ends:
            tail_s = max(tail_s, min(LEAST_TAIL_S, length_s * MOST_OF_SHORT))
            ends = tail_s * fps >= 1  # else the video is too short to be cut
        if tail_s >= LEAST_TAIL_S or ends:
            border_s = math.ceil((length_s - tail_s) * fps) / fps  # where a frame begins
            spans = [(0.0, border_s, False), (border_s, length_s, True)]
        else:
            spans = [(0.0, length_s, bool(fraction) and _hash_fraction(file) < fraction)]
        return [
            (begin_s, end_s, self._clips_in(end_s - begin_s), held_out)
            for begin_s, end_s, held_out in spans
        ]

    def _clips_in(self, length_s: float) -> int:
        if self.seconds_per_clip is None:
            return 1
        return max(1, int(length_s / self.seconds_per_clip + 1e-6))


def _hash_fraction(file: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(file)).digest()[:8]) / 2**64
