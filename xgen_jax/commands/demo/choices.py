"""What the demo offers for a model: sizes and lengths of its run, in steps that it can take."""

import dataclasses

from xgen_jax.config.runs import VDiTRun
from xgen_jax.errors import UserError
from xgen_jax.inference.request import (
    VideoPlan,
    VideoRequest,
    plan_video,
    trained_buckets,
    trained_with_conditions,
)
from xgen_jax.models.embedder import Embedder

_LENGTHS = 12  # at most, of one segment, besides those trained on
_SEGMENTS = 4  # of the longest video
_STEPS, _GUIDANCE = 100, 15.0  # most of the sliders, unless the run's own value is higher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What the page offers for a text-to-video model.

    Attributes:
      sizes: (height, width) of the run's videos, the default first.
      frames: lengths, in order.
      default: the plan of a request that leaves all open.
      most_steps, most_guidance: ends of the sliders.
    """

    sizes: tuple[tuple[int, int], ...]
    frames: tuple[int, ...]
    default: VideoPlan
    most_steps: int
    most_guidance: float


def make_choices(config: VDiTRun, embedder: Embedder) -> Choices:
    """Return what a run can do, without and with segments that continue one another.

    Args:
      config: of the run.
      embedder: of the run.
    """
    default = plan_video(config, embedder, VideoRequest())
    buckets = trained_buckets(config)
    sizes = [(bucket.height, bucket.width) for bucket in buckets if bucket.frames > 1]
    lengths = {bucket.frames for bucket in buckets}
    longest, unit = max(lengths), embedder.unit
    latents = embedder.latent_shape((longest, default.height, default.width))[0]
    every = -(-latents // (_LENGTHS * unit)) * unit
    lengths |= {embedder.frames(count) for count in (1, *range(every, latents, every))}
    if trained_with_conditions(config) and longest > 1:
        segment, overlap = latents // unit * unit, default.overlap
        for number in range(2, _SEGMENTS + 1):
            lengths.add(embedder.frames(segment + (number - 1) * (segment - overlap)))
    return Choices(
        sizes=tuple(dict.fromkeys([(default.height, default.width), *sizes])),
        frames=tuple(sorted(frames for frames in lengths if _can(config, embedder, frames))),
        default=default,
        most_steps=max(_STEPS, default.steps),
        most_guidance=max(_GUIDANCE, default.guidance_scale),
    )


def _can(config: VDiTRun, embedder: Embedder, frames: int) -> bool:
    try:
        plan_video(config, embedder, VideoRequest(frames=frames))
    except UserError:
        return False
    return True


def length_label(frames: int, fps: float) -> str:
    """Return a length for people: "17 frames, 2.1 s"."""
    if frames == 1:
        return "1 frame, an image"
    return f"{frames} frames, {frames / fps:.2g} s"
