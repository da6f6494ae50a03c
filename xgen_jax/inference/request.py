"""A request for videos, and the plan that a run makes of it.

A video longer than those trained on is generated in overlapping segments of the length trained on.
A segment begins with the last latent frames of the segment before it, which are its condition:
5 segments of 29 latent frames with an overlap of 7 are 29 + 4 * 22 = 117 latent frames. With a
REGEN, segment and overlap are whole chunks of two latent frames.
"""

import dataclasses
from collections.abc import Iterator

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.buckets import Bucket, shape_name
from xgen_jax.diffusion.config import PLAIN_GRID, GridConfig
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.typing import Shape

# Tolerance of areas, aspects and lengths before a warning: sizes are rounded to what patches and
# embedders can take.
_TOLERANCE = 1.06
NO_CONDITION_TRAINING = "the run was not trained with given frames (loss.frame_masks.none is 1)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A request for videos; None takes the run's own value.

    Attributes:
      frames: length in pixel frames; by default that of the run's first bucket of videos.
      size: (height, width) in pixels; by default that of the same bucket.
      fps: frames per second, given to the network as a condition and written to the file.
      segment_frames: pixel frames generated at once; by default those of the longest clip trained
        on.
      overlap: latent frames of a segment that are the end of the segment before it; by default a
        quarter of a segment, the most that training's frame masks leave clean at the start, and at
        least one unit of the embedder.
      steps: sampling steps.
      guidance_scale: of classifier-free guidance; 1 is no guidance.
      sampler: a name in `diffusion.samplers`.
      spacing: the time grid, a name that the run's process has in `diffusion.grids`.
      steps_offset, set_alpha_to_one: options of some of these, see `GridConfig`.
      negative_prompt: what videos are guided away from, in place of the empty caption.

    Raises:
      UserError: a number of frames or steps below 1.
    """

    frames: int | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    segment_frames: int | None = None
    overlap: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    spacing: str | None = None
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None
    negative_prompt: str | None = None

    def __post_init__(self):
        for name in ("frames", "segment_frames", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """A request with every value filled in and checked; see `plan_video`.

    Attributes:
      frames, height, width: of the video, in pixels.
      fps: frames per second.
      latent_frames: of the whole video.
      segment_frames: pixel frames of a segment; those of the video if there is only one.
      segment_shape: latents (t, h, w, c) of a segment.
      overlap: latent frames, at most, at the start of a segment that are known: the end of the
        segment before it, or a condition.
      steps, guidance_scale, sampler, spacing, negative_prompt: see `VideoRequest`.
      grid: the spacing's options.
      warnings: sentences on what the network was not trained on.
    """

    frames: int
    height: int
    width: int
    fps: float
    latent_frames: int
    segment_frames: int
    segment_shape: Shape
    overlap: int
    steps: int
    guidance_scale: float
    sampler: str
    spacing: str | None = None
    grid: GridConfig = PLAIN_GRID
    negative_prompt: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def segments(self) -> int:
        """Number of segments; frames of the last one beyond the video's end are cut off."""
        whole, segment = self.latent_frames, self.segment_shape[0]
        return 1 if whole <= segment else 1 + -(-(whole - segment) // (segment - self.overlap))

    def tokens(self, patch: int) -> int:
        """Transformer tokens of a segment, for patches of `patch` x `patch` latent cells."""
        t, h, w, _ = self.segment_shape
        return t * -(-h // patch) * -(-w // patch)


def trained_buckets(config: VDiTRun) -> list[Bucket]:
    """Return the buckets that a run takes clips from."""
    return [bucket for bucket in config.data.buckets if bucket.keep_prob > 0 or not config.data.fit]


def trained_with_conditions(config: VDiTRun) -> bool:
    """Return whether a run's network was trained to continue given frames."""
    return config.loss.frame_masks.none < 1


def plan_video(config: VDiTRun, embedder: Embedder, request: VideoRequest) -> VideoPlan:
    """Check a request against a run and fill in what it leaves open.

    Args:
      config: of the run that trained the network.
      embedder: of the run.
      request: of the user.

    Raises:
      UserError: a length or size that the embedder cannot take, a rate that is not positive, an
        overlap that leaves nothing to generate.
    """

    def given(value, default):
        return default if value is None else value

    buckets = trained_buckets(config)
    default = next((bucket for bucket in buckets if bucket.frames > 1), buckets[0])
    frames = given(request.frames, default.frames)
    height, width = given(request.size, (default.height, default.width))
    fps = given(request.fps, config.fps)
    if not fps > 0:
        raise UserError(f"fps={fps} must be above 0")
    t, h, w = embedder.latent_shape((frames, height, width))
    config.model.check_latents((t, h, w))
    segment_frames = _segment_frames(request, embedder, buckets, (frames, height, width), t)
    segment = embedder.latent_shape((segment_frames, height, width))[0]
    plan = VideoPlan(
        frames=frames,
        height=height,
        width=width,
        fps=fps,
        latent_frames=t,
        segment_frames=segment_frames,
        segment_shape=(segment, h, w, embedder.latent_channels),
        overlap=_overlap(request, embedder.unit, segment, t),
        steps=given(request.steps, config.sample_steps),
        guidance_scale=given(request.guidance_scale, config.guidance_scale),
        sampler=given(request.sampler, config.sampler),
        spacing=given(request.spacing, config.sample_spacing),
        grid=_grid(config, request),
        negative_prompt=request.negative_prompt,
    )
    if plan.negative_prompt is not None and plan.guidance_scale == 1:
        raise UserError(
            "negative_prompt has no effect without guidance: give guidance_scale above 1, or leave "
            "it out"
        )
    return dataclasses.replace(plan, warnings=tuple(_warnings(config, buckets, plan)))


def _grid(config: VDiTRun, request: VideoRequest) -> GridConfig:
    """Return the options of the time grid: the request's, else those of the run's own spacing."""
    own = config.grid if request.spacing in (None, config.sample_spacing) else PLAIN_GRID
    fields = (field.name for field in dataclasses.fields(GridConfig))
    given = {name: getattr(request, name) for name in fields}
    return dataclasses.replace(own, **{k: v for k, v in given.items() if v is not None})


def _segment_frames(
    request: VideoRequest, embedder: Embedder, buckets: list[Bucket], shape: Shape, t: int
) -> int:
    """Return the pixel frames of a segment of a video of `shape`, which has t latent frames."""
    frames, height, width = shape
    longest = max(bucket.frames for bucket in buckets)
    # A network trained on images only cannot continue from one.
    segment_frames = request.segment_frames or (longest if longest > 1 else frames)
    segment_frames, unit = min(segment_frames, frames), embedder.unit
    segment = embedder.latent_shape((segment_frames, height, width))[0]
    if segment == t or segment % unit == 0:
        return segment_frames
    if request.segment_frames or segment < unit:
        raise UserError(
            f"segment_frames={segment_frames} must be a multiple of {embedder.frames(unit)}: "
            "segments are whole chunks"
        )
    return embedder.frames(segment // unit * unit)


def _overlap(request: VideoRequest, unit: int, segment: int, t: int) -> int:
    """Return the overlap of segments; `segment` latent frames of t are generated at once."""
    if request.overlap is None:
        overlap = max(unit, segment // 4 // unit * unit)
    else:
        overlap = request.overlap
    if overlap < unit or overlap % unit or (segment < t and overlap >= segment):
        chunks = f", whole chunks of {unit}," if unit > 1 else ""
        raise UserError(
            f"overlap={overlap} must be {unit} or more latent frames{chunks} and fewer than a "
            f"segment's {segment}, or there is nothing left to generate"
        )
    return overlap


def _warnings(config: VDiTRun, buckets: list[Bucket], plan: VideoPlan) -> Iterator[str]:
    """Yield what a run was not trained on: it may still work, and is not refused."""
    size = f"{plan.height}x{plan.width}"
    area, aspect = plan.height * plan.width, plan.height / plan.width
    by_area = sorted(buckets, key=lambda bucket: bucket.height * bucket.width)
    least, most = (bucket.height * bucket.width for bucket in (by_area[0], by_area[-1]))
    inside = least <= area * _TOLERANCE and area <= most * _TOLERANCE
    if not inside:
        ends = [f"{bucket.height}x{bucket.width}" for bucket in (by_area[0], by_area[-1])]
        trained = " to ".join(dict.fromkeys(ends))
        yield f"{size} (height x width) is outside the sizes trained on, {trained}"
    aspects = [bucket.height / bucket.width for bucket in buckets]
    if not min(aspects) / _TOLERANCE <= aspect <= max(aspects) * _TOLERANCE:
        yield (
            f"{size} has an aspect (height / width) of {aspect:.3g}, outside those trained on, "
            f"{min(aspects):.3g} to {max(aspects):.3g}"
        )
    longest = max(bucket.frames for bucket in buckets)
    largest = max(buckets, key=lambda bucket: bucket.frames * bucket.height * bucket.width)
    most = _TOLERANCE * largest.frames * largest.height * largest.width
    if plan.segment_frames > longest:
        yield f"{plan.segment_frames} frames at once are more than the {longest} trained on"
    elif inside and plan.segment_frames * area > most:
        shape = shape_name((plan.segment_frames, plan.height, plan.width))
        yield (
            f"{shape} at once is more than the largest clip trained on, {largest.name} "
            "(frames x height x width)"
        )
    if plan.segments > 1 and not trained_with_conditions(config):
        yield f"{plan.segments} segments continue one another, and {NO_CONDITION_TRAINING}"
