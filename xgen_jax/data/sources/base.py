"""The protocol of a source of clips."""

from typing import Any, Protocol

import numpy as np

# "caption": str, "fps": float, and arrays: "video", or "latents" with, where they were stored,
# "text" and "text_mask".
Sample = dict[str, Any]


class Source(Protocol):
    """Clips by index. `read` must be a pure function of its arguments and safe to call from several
    threads."""

    name: str

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Hex digest of everything that decides what `read` returns."""
        ...

    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> Sample:
        """Clip `index` of frames x height x width pixels; every random choice comes from `rng`.

        Its "caption", its "fps" (frames a second; 0 where nobody knows), and its "video", uint8
        (frames, height, width, 3), or "latents", float32 (t, h, w, c), of a clip that was so large.
        All samples of a source have the same keys.

        A source whose clips have sizes of their own also has `fit(buckets, seed)`: for each bucket
        the clips that go to it, ascending (see `data.buckets.fit`). One that cannot give every clip
        in every bucket has `clips_for(bucket)`: those that it gives where clips are not fitted,
        ascending, or None for all.
        """
        ...
