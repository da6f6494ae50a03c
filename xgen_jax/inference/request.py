"""What is to be drawn: a clip's size, length and rate, checked, and cut in pieces where it is
longer than training's.

A piece is as long as the network was trained on, and begins with the last latent frames of the one
before, which it is
given as its condition: pieces 0 .. 4 of 29 latent frames with an overlap of 7 are 29 + 4 x 22 = 117
in all. Behind a REGEN both are whole chunks, two latent frames each.
"""

import dataclasses

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.buckets import Bucket, shape_name
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.typing import Shape

_SLACK = 1.06  # of an area, an aspect or a length: sizes are rounded to what patches and embedders can take


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """A clip to draw. Made by `plan_clip`.

    Attributes:
      frames, height, width: in pixels.
      fps: frames a second, as the network is told and the file is written.
      latent_frames: of the whole clip.
      piece_frames: pixel frames of a piece, the whole clip's where there is but one.
      piece_shape: latents (t, h, w, c) of a piece.
      overlap: latent frames at most that a piece is given, of the one before or of a condition.
      doubts: in words, what of it the network was not trained on.
    """

    frames: int
    height: int
    width: int
    fps: float
    latent_frames: int
    piece_frames: int
    piece_shape: Shape
    overlap: int
    doubts: tuple[str, ...] = ()

    @property
    def pieces(self) -> int:
        """How many; what the last draws beyond the clip's end is cut off."""
        whole, piece = self.latent_frames, self.piece_shape[0]
        return 1 if whole <= piece else 1 + -(-(whole - piece) // (piece - self.overlap))

    def tokens(self, patch: int) -> int:
        """Tokens of a piece."""
        t, h, w, _ = self.piece_shape
        return t * -(-h // patch) * -(-w // patch)


def trained_buckets(config: VDiTRun) -> list[Bucket]:
    """Those that a run takes clips from."""
    return [bucket for bucket in config.data.buckets if bucket.keep_prob > 0 or not config.data.fit]


def plan_clip(
    config: VDiTRun,
    embedder: Embedder,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    piece_frames: int | None = None,
    overlap: int | None = None,
) -> ClipPlan:
    """Checks a request, and fills in what it leaves open.

    Args:
      config: of the run that trained the network.
      embedder: that decodes.
      frames: length in pixel frames; by default that of the first bucket of videos.
      size: (height, width) in pixels, by default of that bucket.
      fps: by default the run's.
      piece_frames: pixel frames drawn at once; by default as many as the longest clip trained on.
      overlap: latent frames that a piece is given of the one before, in the embedder's units; by
        default a quarter of a piece, the most that training's masks leave clean at the head, and
        one unit at least.

    Raises:
      UserError: a length or size that the embedder cannot take, an overlap that leaves nothing to
      draw.
    """
    buckets = trained_buckets(config)
    default = next((bucket for bucket in buckets if bucket.frames > 1), buckets[0])
    frames, fps = frames or default.frames, config.sample_fps if fps is None else fps
    height, width = size or (default.height, default.width)
    if not fps > 0:
        raise UserError(f"fps={fps} must be above 0")
    t, h, w = embedder.latent_shape((frames, height, width))
    config.model.check_latents((t, h, w))
    longest = max(bucket.frames for bucket in buckets)
    # A network that knows images alone cannot go on from one.
    given, piece_frames = piece_frames, piece_frames or (longest if longest > 1 else frames)
    piece_frames, unit = min(piece_frames, frames), embedder.unit
    piece = embedder.latent_shape((piece_frames, height, width))[0]
    if piece < t and piece % unit:
        if given or piece < unit:
            least = embedder.frames(unit)
            raise UserError(
                f"piece_frames={piece_frames} must be a multiple of {least}: pieces are cut between chunks"
            )
        piece = piece // unit * unit
        piece_frames = embedder.frames(piece)
    overlap = max(unit, piece // 4 // unit * unit) if overlap is None else overlap
    if overlap < unit or overlap % unit or (piece < t and overlap >= piece):
        raise UserError(
            f"overlap={overlap} must be {unit} or more latent frames{f', whole chunks of {unit},' if unit > 1 else ''} "
            f"and fewer than a piece's {piece}, or there is nothing left to draw"
        )
    plan = ClipPlan(
        frames=frames,
        height=height,
        width=width,
        fps=fps,
        latent_frames=t,
        piece_frames=piece_frames,
        piece_shape=(piece, h, w, embedder.latent_channels),
        overlap=overlap,
    )
    return dataclasses.replace(plan, doubts=tuple(_doubts(config, buckets, plan)))


def _doubts(config: VDiTRun, buckets: list[Bucket], plan: ClipPlan):
    """What a run was not trained on: it may come out all the same, and is not refused."""
    size, area, aspect = (
        f"{plan.height}x{plan.width}",
        plan.height * plan.width,
        plan.height / plan.width,
    )
    areas = sorted(buckets, key=lambda bucket: bucket.height * bucket.width)
    least, most = (bucket.height * bucket.width for bucket in (areas[0], areas[-1]))
    inside = least <= area * _SLACK and area <= most * _SLACK
    if not inside:
        names = list(
            dict.fromkeys(f"{bucket.height}x{bucket.width}" for bucket in (areas[0], areas[-1]))
        )
        yield f"{size} (height x width) is outside the sizes trained on, {' to '.join(names)}"
    aspects = [bucket.height / bucket.width for bucket in buckets]
    if not min(aspects) / _SLACK <= aspect <= max(aspects) * _SLACK:
        yield (
            f"{size} has an aspect (height / width) of {aspect:.3g}, outside those trained on, {min(aspects):.3g} to "
            f"{max(aspects):.3g}"
        )
    largest = max(buckets, key=lambda bucket: bucket.frames * bucket.height * bucket.width)
    longest = max(bucket.frames for bucket in buckets)
    if plan.piece_frames > longest:
        yield f"{plan.piece_frames} frames at once are more than the {longest} trained on"
    elif (
        inside
        and plan.piece_frames * area > _SLACK * largest.frames * largest.height * largest.width
    ):
        shape = shape_name((plan.piece_frames, plan.height, plan.width))
        yield f"{shape} at once is more than the largest clip trained on, {largest.name} (frames x height x width)"
    if plan.pieces > 1 and not continues(config):
        yield f"{plan.pieces} pieces are to continue one another, and {UNTRAINED}"


UNTRAINED = "the run was not trained on given frames (loss.frame_masks.none is 1)"


def continues(config: VDiTRun) -> bool:
    """Whether a run's network was trained to go on from given frames."""
    return config.loss.frame_masks.none < 1
