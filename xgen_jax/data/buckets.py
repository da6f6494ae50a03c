"""Buckets: the clip shapes that a run trains on, and the assignment of clips to them.

A table has a row for each resolution, with levels of (frames, keep_prob, batch a device). A clip
goes to the largest resolution that it nearly fills (0.8 of the area), and there to the longest
level for which it has the frames. It stays with probability `keep_prob`, else it falls to the next
smaller resolution. So long clips at a high resolution, which are rare and expensive, also feed the
cheap buckets (Open-Sora 1.1, the template that arXiv 2408.12590, section 3.2, names).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from xgen_jax.errors import UserError, choose

Shape = tuple[int, int, int]
COVERED = 0.8  # of a bucket's area that a clip must have
_SAME_LEVEL = 1.06  # areas within this factor are one resolution in several aspects
_KEEP = 3  # stream of randomness under the seed; the pipeline has 0 to 2

# Side in pixels of the square of each resolution's area.
SIDES = {
    "144p": 192,
    "240p": 320,
    "256": 256,
    "360p": 480,
    "480p": 640,
    "512": 512,
    "720p": 960,
    "1024": 1024,
}
SIDES["1080p"] = 1440

# The seventeen of Open-Sora 1.1, height to width.
ASPECTS = ("3:8", "3:7", "12:25", "1:2", "9:17", "20:37", "9:16", "5:8", "2:3", "3:4", "1:1")
ASPECTS += ("4:3", "3:2", "16:9", "17:9", "2:1", "25:12")
# The aspects of most videos; each shape is a program to compile.
COMMON_ASPECTS = ("9:16", "1:1", "16:9")

# Lengths of Open-Sora 1.1, for an embedder that takes 1 + 4n frames: 17 for 16, and so on. 128
# becomes 113, the paper's 14 s at 8 frames a second, not 129: no longer clips are sampled.
LENGTHS = {1: 1, 16: 17, 32: 33, 48: 49, 64: 65, 96: 97, 128: 113}

Level = tuple[int, float, int]  # frames, keep_prob, batch a device
Table = Mapping[str, Sequence[Level]]


def _level(frames: int, keep_prob: float, batch: int = 1) -> Level:
    return LENGTHS[frames], keep_prob, batch


# The three stages of Open-Sora 1.1. A level of keep_prob 0 prevents longer clips from being cut to
# the level below it. Our own, in the last stage: 113 frames at 480p, 65 and 113 at 720p, for the
# paper's 14 s. With an embedder of 4x8x8 they cost less than the template's 32 frames at 720p with
# one of 1x8x8.
STAGES: dict[str, Table] = {
    "240p": {
        "144p": (_level(1, 0.5, 48), _level(16, 1.0, 6), _level(32, 1.0, 3), _level(96, 1.0, 1)),
        "256": (_level(1, 0.5, 24), _level(16, 0.5, 3), _level(48, 0.5, 1), _level(64, 0.0)),
        "240p": (_level(16, 0.3, 2), _level(32, 0.3, 1), _level(64, 0.0)),
        "512": (_level(1, 0.4, 12),),
        "1024": (_level(1, 0.3, 3),),
    },
    "480p": {
        "144p": (
            _level(1, 1.0, 48),
            _level(16, 1.0, 17),
            _level(32, 1.0, 9),
            _level(64, 1.0, 4),
            _level(128, 1.0, 1),
        ),
        "256": (
            _level(1, 0.8, 254),
            _level(16, 0.5, 17),
            _level(32, 0.5, 9),
            _level(64, 0.5, 4),
            _level(128, 0.5, 1),
        ),
        "240p": (
            _level(1, 0.1, 20),
            _level(16, 0.9, 17),
            _level(32, 0.8, 9),
            _level(64, 0.8, 4),
            _level(128, 0.8, 2),
        ),
        "512": (_level(1, 0.5, 86), _level(16, 0.2, 4), _level(32, 0.2, 2), _level(64, 0.2, 1)),
        "480p": (_level(1, 0.4, 54), _level(16, 0.4, 4), _level(32, 0.0)),
        "720p": (_level(1, 0.1, 20), _level(16, 0.1, 2), _level(32, 0.0)),
        "1024": (_level(1, 0.3, 20),),
        "1080p": (_level(1, 0.4, 8),),
    },
    "720p": {
        "144p": (
            _level(1, 1.0, 200),
            _level(16, 1.0, 36),
            _level(32, 1.0, 18),
            _level(64, 1.0, 9),
            _level(128, 1.0, 4),
        ),
        "256": (
            _level(1, 0.8, 200),
            _level(16, 0.5, 22),
            _level(32, 0.5, 11),
            _level(64, 0.5, 6),
            _level(128, 0.8, 4),
        ),
        "240p": (
            _level(1, 0.8, 200),
            _level(16, 0.5, 22),
            _level(32, 0.5, 10),
            _level(64, 0.5, 6),
            _level(128, 0.5, 3),
        ),
        "360p": (
            _level(1, 0.5, 120),
            _level(16, 0.5, 9),
            _level(32, 0.5, 4),
            _level(64, 0.5, 2),
            _level(128, 0.5, 1),
        ),
        "512": (
            _level(1, 0.5, 120),
            _level(16, 0.5, 9),
            _level(32, 0.5, 4),
            _level(64, 0.5, 2),
            _level(128, 0.8, 1),
        ),
        "480p": (
            _level(1, 0.4, 80),
            _level(16, 0.6, 6),
            _level(32, 0.6, 3),
            _level(64, 0.6, 1),
            _level(128, 0.6, 1),
        ),
        "720p": (
            _level(1, 0.4, 40),
            _level(16, 0.6, 3),
            _level(32, 0.6, 1),
            _level(64, 0.6, 1),
            _level(128, 0.6, 1),
        ),
        "1024": (_level(1, 0.3, 40),),
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """Clips of one shape, and how often they are trained on.

    Attributes:
      frames, height, width: of the clips, the sizes in pixels.
      batch_size: of all devices together.
      weight: of the bucket's steps among those of all. Where clips are fitted (`DataConfig.fit`) it
        multiplies the number of batches that the bucket has clips for.
      keep_prob: where clips are fitted, the probability that a clip which fits stays. At 0 the
        bucket is never trained on, and only stops longer clips.
    """

    frames: int
    height: int
    width: int
    batch_size: int
    weight: float = 1.0
    keep_prob: float = 1.0

    def __post_init__(self):
        for name in ("frames", "height", "width", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(
                    f"a bucket's {name} must be a whole number of 1 or more, not {value!r}"
                )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                f"a bucket's weight must be above 0, not {self.weight}; or leave the bucket out"
            )
        if not 0 <= self.keep_prob <= 1:
            raise UserError(f"a bucket's keep_prob must be in [0, 1], not {self.keep_prob}")

    @property
    def shape(self) -> Shape:
        return self.frames, self.height, self.width

    @property
    def name(self) -> str:
        """The shape in words: "17x240x424"."""
        return shape_name(self.shape)


def frame_size(resolution: str, aspect: str, multiple: int = 8) -> tuple[int, int]:
    """Return (height, width) in pixels of a resolution of `SIDES`.

    The short side is the multiple nearest to the exact one. The long side is the one nearest to the
    area without exceeding it by more than its rounding: 480p at 9:16 is 480x848 (Open-Sora has 854,
    of which an embedder of factor 8 sees 848).

    Args:
      resolution: a key of `SIDES`.
      aspect: height:width in whole numbers.
      multiple: of which both sides are multiples.

    Raises:
      UserError: a resolution that is not known, or an aspect that is not two whole numbers.
    """
    choose("resolution", resolution, SIDES)
    parts = aspect.split(":")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"aspect {aspect!r} must be height:width in whole numbers, e.g. 9:16")
    rows, columns = (int(part) for part in parts)
    area = SIDES[resolution] ** 2
    short = round(math.sqrt(area * min(rows, columns) / max(rows, columns)) / multiple) * multiple
    long = math.floor(area / short / multiple + 0.25) * multiple
    return (short, long) if rows <= columns else (long, short)


def make_buckets(
    table: Table, aspects: Sequence[str], devices: int, multiple: int = 8
) -> tuple[Bucket, ...]:
    """Return the buckets of a table, each level at each aspect.

    Args:
      table: resolutions with their levels.
      aspects: height:width in whole numbers.
      devices: factor of the batches.
      multiple: see `frame_size`.

    Raises:
      UserError: see `frame_size` and `Bucket`.
    """
    return tuple(
        Bucket(
            frames=frames,
            height=height,
            width=width,
            batch_size=batch * devices,
            keep_prob=keep_prob,
        )
        for resolution, levels in table.items()
        for height, width in dict.fromkeys(
            frame_size(resolution, aspect, multiple) for aspect in aspects
        )
        for frames, keep_prob, batch in levels
    )


def fit(extents_N3: np.ndarray, buckets: Sequence[Bucket], seed: int) -> np.ndarray:
    """Assign clips to buckets.

    Args:
      extents_N3: frames, height and width of each clip. One of a single frame is an image, and goes
        to buckets of one frame only, to which no video goes.
      buckets: those of areas within 6% of each other are one resolution.
      seed: of one random number for each clip and resolution, which does not depend on the clips
        after it.

    Returns:
      The number of each clip's bucket, int32 (N,); -1 where it fits none, or none kept it.
    """
    frames, height, width = np.asarray(extents_N3, np.float64).T
    out = np.full(len(frames), -1, np.int32)
    open_ = np.ones(len(frames), bool)
    image = frames == 1
    for number, level in enumerate(_levels(buckets)):
        area = max(buckets[i].height * buckets[i].width for i in level)
        uniform = np.random.default_rng((seed, _KEEP, number)).random(len(frames), np.float32)
        reached = open_ & (height * width >= COVERED * area)
        sizes = sorted({(buckets[i].height, buckets[i].width) for i in level})
        ratios = np.log([rows / columns for rows, columns in sizes])
        nearest = np.argmin(np.abs(np.log(height / width)[:, None] - ratios[None]), axis=1)
        for size, (rows, columns) in enumerate(sizes):
            here = [i for i in level if (buckets[i].height, buckets[i].width) == (rows, columns)]
            left = reached & (nearest == size)
            for i in sorted(here, key=lambda i: -buckets[i].frames):  # the longest first
                one = buckets[i].frames == 1
                taken = left & (image if one else ~image & (frames >= buckets[i].frames))
                kept = taken & (uniform < buckets[i].keep_prob)
                out[kept], open_[kept] = i, False
                left &= ~taken
    return out


def _levels(buckets: Sequence[Bucket]) -> list[list[int]]:
    """Group the buckets' numbers by resolution, the largest first."""
    levels: list[list[int]] = []
    for i in sorted(range(len(buckets)), key=lambda i: -buckets[i].height * buckets[i].width):
        first = buckets[levels[-1][0]] if levels else None
        area = buckets[i].height * buckets[i].width
        if first and first.height * first.width <= _SAME_LEVEL * area:
            levels[-1].append(i)
        else:
            levels.append([i])
    return levels


def shape_name(shape: tuple[int, ...]) -> str:
    """(9, 32, 32) -> "9x32x32"."""
    return "x".join(str(size) for size in shape)


def parse_shapes(shapes: Sequence[str]) -> list[Shape]:
    """["9x32x32", "1x64x64"] -> [(9, 32, 32), (1, 64, 64)], without repetitions.

    Raises:
      UserError: an entry that is not a shape.
    """
    parsed: dict[Shape, None] = {}
    for shape in shapes:
        parts = shape.strip().lower().split("x")
        if len(parts) != 3 or not all(
            part.isascii() and part.isdigit() and int(part) for part in parts
        ):
            raise UserError(
                f"{shape!r} is not a clip shape; give FRAMESxHEIGHTxWIDTH in pixels, "
                "e.g. 17x512x512"
            )
        parsed[int(parts[0]), int(parts[1]), int(parts[2])] = None
    return list(parsed)


BUCKETS_FORM = "FRAMESxHEIGHTxWIDTHxBATCH"
BUCKETS_FLAG = f"--config.data.buckets={BUCKETS_FORM},..., e.g. 9x64x64x4,1x64x64x8"


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """ "9x64x64x4,1x64x64x8" -> two buckets: frames, height, width and batch of each.

    Raises:
      UserError: another form.
    """
    buckets = []
    for part in text.split(","):
        sizes = part.strip().lower().split("x")
        if len(sizes) != 4 or not all(
            size.isascii() and size.isdigit() and int(size) for size in sizes
        ):
            raise UserError(
                f"data.buckets={text!r}: {part.strip()!r} is not a bucket; give {BUCKETS_FLAG} "
                "(sizes in pixels; the batch is that of all devices together)"
            )
        frames, height, width, batch = map(int, sizes)
        buckets.append(Bucket(frames=frames, height=height, width=width, batch_size=batch))
    return tuple(buckets)


def buckets_text(buckets: Sequence[Bucket]) -> str:
    """The inverse of `parse_buckets`; weights and `keep_prob` are not in it."""
    return ",".join(f"{bucket.name}x{bucket.batch_size}" for bucket in buckets)
