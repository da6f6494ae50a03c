"""Conditions of new videos: an image, or the last frames of a video, prepared as in training."""

import numpy as np

from xgen_jax.data.images import read_image
from xgen_jax.data.pixels import center_crop, check_clip
from xgen_jax.data.video import probe, read_video, resize_cover
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoPlan
from xgen_jax.models.embedder import Embedder
from xgen_jax.typing import Video


def read_condition(image, video, plan: VideoPlan, embedder: Embedder) -> Video | None:
    """Read the frames that condition a video from a file.

    Args:
      image: an image file, see `data.images`; or None.
      video: a video file, of which the last frames that the plan's overlap allows are read, at the
        plan's rate; or None.
      plan: of the video.
      embedder: of the model.

    Returns:
      uint8 (T, H, W, 3); None if there is no file.

    Raises:
      UserError: both an image and a video, a file that cannot be read.
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
    for start_s in dict.fromkeys((late_s, 0.0)):  # a header may announce more frames than there are
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


def fit_condition(frames: Video, plan: VideoPlan, embedder: Embedder) -> Video:
    """Choose, resize and crop the frames that a video begins with, as training does.

    Args:
      frames: uint8 (T, H, W, 3), any size. The last ones are taken that make whole units of the
        embedder and fit the plan's overlap: 1 + f n frames for a VidVAE, whole chunks for a REGEN;
        if there are too few frames, the last frame, as an image.
      plan: of the video.
      embedder: of the model.

    Returns:
      uint8 (T, height, width, 3) of the plan's size.

    Raises:
      UserError: not a uint8 video, or a plan in which the condition leaves nothing to generate.
    """
    check_clip(frames, "a condition")
    if plan.segment_shape[0] < 2:
        raise UserError(
            f"a video of {plan.segment_frames} frame(s) is too short for a condition; ask for more "
            "frames"
        )
    most = min(plan.overlap, plan.segment_shape[0] - 1) // embedder.unit * embedder.unit
    latent = min(most, embedder.whole_latents(len(frames))) or 1
    frames = frames[-embedder.frames(latent) :]
    return center_crop(resize_cover(frames, plan.height, plan.width), plan.height, plan.width)
