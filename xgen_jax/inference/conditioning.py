"""What a new clip is to begin with: an image, or the last frames of a video, as training would see
them."""

import numpy as np

from xgen_jax.data.images import read_image
from xgen_jax.data.pixels import center_crop, resize_cover
from xgen_jax.data.video import probe, read_video
from xgen_jax.errors import UserError
from xgen_jax.inference.request import ClipPlan
from xgen_jax.models.embedder import Embedder
from xgen_jax.typing import Video


def read_condition(image, video, plan: ClipPlan, embedder: Embedder) -> Video | None:
    """The frames of a file that condition a clip, uint8 (T, H, W, 3), of the clip's rate; None
    where there is none.

    Args:
      image: a PNG, JPEG or WebP file, see `data.images`.
      video: a video file; so many of its last frames are read as the plan's overlap allows.

    Raises:
      UserError: both, a file that cannot be read.
    """
    if image and video:
        raise UserError("give one of --condition_image and --condition_video")
    if image:
        return read_image(image)[None]
    if not video:
        return None
    wanted = embedder.frames(plan.overlap)
    late_s = max(0.0, probe(video).duration_s - (wanted + 1) / plan.fps)
    frames = np.zeros((0, 1, 1, 3), np.uint8)
    for start_s in dict.fromkeys((late_s, 0.0)):  # a header may announce more than there is
        try:
            frames, _ = read_video(
                video, fps=plan.fps, start_s=start_s, cover=(plan.height, plan.width)
            )
        except UserError:
            if not start_s:
                raise
        if len(frames) >= wanted:
            break
    return frames[-wanted:]


def fit_condition(frames: Video, plan: ClipPlan, embedder: Embedder) -> Video:
    """Frames to be known at the head of a clip, as training would see them: resized to cover, then
    cropped.

    Args:
      frames: uint8 (T, H, W, 3), any size. Of them the last are taken that make whole units of the
        embedder and fit the plan's overlap: 1 + f n for a VidVAE, whole chunks for a REGEN; where
        none fit, the very last, as an image.

    Raises:
      UserError: no uint8 video, or a clip that such a condition leaves nothing of.
    """
    if (
        not isinstance(frames, np.ndarray)
        or frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] != 3
    ):
        what = (
            f"{frames.dtype} {frames.shape}"
            if isinstance(frames, np.ndarray)
            else type(frames).__name__
        )
        raise UserError(f"a condition is a uint8 video (T, H, W, 3), not {what}")
    if 0 in frames.shape:
        raise UserError(f"a condition has frames, and pixels in them; this one is {frames.shape}")
    if plan.piece_shape[0] < 2:
        raise UserError(
            f"a clip of {plan.piece_frames} frame(s) has no room for a condition; draw a longer one"
        )
    room = min(plan.overlap, plan.piece_shape[0] - 1) // embedder.unit * embedder.unit
    latent = min(room, embedder.whole_latents(len(frames))) or 1
    frames = frames[-embedder.frames(latent) :]
    return center_crop(resize_cover(frames, plan.height, plan.width), plan.height, plan.width)
