"""What to train on."""

import dataclasses

from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on.

    Args:
      source: "synthetic", "video_folder" or "latents".
      path: the folder of a video_folder, or of latents that launch/encode.py wrote.
      split, num_clips, style: of the synthetic source.
      seed: of everything random here, 0 or more.
      fps, stride, require_captions, flip: of a video_folder, see `VideoFolderSource`.
      buckets: clip shapes and their batches.
      fit: each clip goes to the one bucket that it fits (see `buckets.fit`); if False, every clip
        to every bucket, as often as their weights say, enlarged or held where it is too small or
        too short, but images to those of one frame alone.
      num_threads: threads that prepare batches, one batch each; 0 prepares them in the caller.
      prefetch: batches kept ready, at least as many as threads to keep these busy.
    """

    source: str
    path: str | None = None
    split: str = "train"
    num_clips: int = 1_000_000
    style: str = "filled"
    seed: int = 0
    fps: float | None = None
    stride: int = 1
    require_captions: bool = True
    flip: bool = False
    buckets: tuple[Bucket, ...]
    fit: bool = False
    num_threads: int = 2
    prefetch: int = 2

    def __post_init__(self):
        if not self.buckets:
            raise UserError("the data needs at least one bucket")
        for name in ("seed", "num_threads", "prefetch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UserError(f"{name} must be a whole number of 0 or more, not {value!r}")
