"""Buckets: the clip shapes that a run trains on, the tables they come from, and which clip goes to
which.

A table has a row a resolution and in it levels of (frames, keep, batch a device). A clip goes to
the largest resolution it nearly fills (0.8 of the area) and there to the longest level it has the
frames for; with probability `keep` it stays, else it falls to the next smaller resolution. So long
clips at a high resolution, which are rare and dear, also feed the cheap buckets (Open-Sora 1.1, the
template that arXiv 2408.12590, section 3.2, names).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from xgen_jax.errors import UserError

Shape = tuple[int, int, int]
COVERED = 0.8  # of a bucket's area that a clip must have
_SAME_LEVEL = 1.06  # areas within this factor are one resolution in several aspects
_KEEP = 3  # stream of randomness below the seed; 0 to 2 are the pipeline's

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

# Open-Sora 1.1's seventeen, height to width.
ASPECTS = ("3:8", "3:7", "12:25", "1:2", "9:17", "20:37", "9:16", "5:8", "2:3", "3:4", "1:1")
ASPECTS += ("4:3", "3:2", "16:9", "17:9", "2:1", "25:12")
COMMON_ASPECTS = ("9:16", "1:1", "16:9")  # what most videos are; each shape is a program to compile

# Its lengths, for an embedder that takes 1 + 4n frames: 17 for 16, and so on. 128 becomes 113, the
# paper's 14 s at 8 frames a second, and not 129: nothing longer is ever drawn.
LENGTHS = {1: 1, 16: 17, 32: 33, 48: 49, 64: 65, 96: 97, 128: 113}

Level = tuple[int, float, int]  # frames, keep, batch a device
Table = Mapping[str, Sequence[Level]]


def _level(frames: int, keep: float, batch: int = 1) -> Level:
    return LENGTHS[frames], keep, batch


# Open-Sora 1.1's three stages. A level that keeps nothing stops longer clips from being cut down to
# the level below it. Ours are, in the last, 113 frames at 480p and 65 and 113 at 720p, for the
# paper's 14 s: behind an embedder of 4x8x8 they cost less than the 32 frames at 720p that the
# template has behind one of 1x8x8.
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
    """Clips of one shape: frames, height and width in pixels, the global batch, and the relative
    share of steps.

    Where clips are fitted (`DataConfig.fit`) the share follows from how many there are, times
    `weight`, and `keep` is the probability that a clip which fits stays; at 0 the bucket is never
    trained on, and only stops longer clips.
    """

    frames: int
    height: int
    width: int
    batch_size: int
    weight: float = 1.0
    keep: float = 1.0

    def __post_init__(self):
        for name in ("frames", "height", "width", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(
                    f"a bucket's {name} must be a whole number of 1 or more, not {value!r}"
                )
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UserError(
                f"a bucket's weight must be above 0, not {self.weight}; leave the bucket out instead"
            )
        if not 0 <= self.keep <= 1:
            raise UserError(f"a bucket's keep must be in [0, 1], not {self.keep}")

    @property
    def shape(self) -> Shape:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def name(self) -> str:
        """As "17x240x424"."""
        return shape_name(self.shape)


def frame_size(resolution: str, aspect: str, multiple: int = 8) -> tuple[int, int]:
    """(height, width) in pixels of a resolution of `SIDES` at an aspect height:width.

    The short side is the nearest multiple to the exact one, the long side that which comes nearest
    to the area without
    exceeding it by more than its rounding: 480p at 9:16 is 480x848 (Open-Sora has 854, of which an
    embedder of factor 8 sees 848).

    Raises:
      UserError: a resolution that is not known, or an aspect that is not two whole numbers.
    """
    if resolution not in SIDES:
        raise UserError(f"resolution {resolution!r} is not known; choose one of {', '.join(SIDES)}")
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
    """The buckets of a table at some aspects, with the batches of so many devices.

    Raises:
      UserError: see `frame_size` and `Bucket`.
    """
    return tuple(
        Bucket(frames=frames, height=height, width=width, batch_size=batch * devices, keep=keep)
        for resolution, levels in table.items()
        for height, width in dict.fromkeys(
            frame_size(resolution, aspect, multiple) for aspect in aspects
        )
        for frames, keep, batch in levels
    )


def fit(extents_N3: np.ndarray, buckets: Sequence[Bucket], seed: int) -> np.ndarray:
    """Which bucket each clip goes to: its number, or -1 where it fits none or none kept it. int32
    (N,).

    Args:
      extents_N3: frames, height and width of each clip; one of a single frame is an image, and goes
        to buckets of one frame only, to which no video goes.
      buckets: those of areas within 6% of each other are one resolution.
      seed: of the draws, one a clip and resolution; the draw does not depend on clips behind it.
    """
    frames, height, width = np.asarray(extents_N3, np.float64).T
    out = np.full(len(frames), -1, np.int32)
    open_ = np.ones(len(frames), bool)
    image = frames == 1
    for number, level in enumerate(_levels(buckets)):
        area = max(buckets[i].height * buckets[i].width for i in level)
        draws = np.random.default_rng((seed, _KEEP, number)).random(len(frames), np.float32)
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
                kept = taken & (draws < buckets[i].keep)
                out[kept], open_[kept] = i, False
                left &= ~taken
    return out


def _levels(buckets: Sequence[Bucket]) -> list[list[int]]:
    """Numbers of the buckets of each resolution, the largest first."""
    levels: list[list[int]] = []
    for i in sorted(range(len(buckets)), key=lambda i: -buckets[i].height * buckets[i].width):
        first = buckets[levels[-1][0]] if levels else None
        area = buckets[i].height * buckets[i].width
        if first and first.height * first.width <= _SAME_LEVEL * area:
            levels[-1].append(i)
        else:
            levels.append([i])
    return levels


def shape_name(shape: Shape) -> str:
    """(9, 32, 32) -> "9x32x32"."""
    return "x".join(str(size) for size in shape)


def parse_shapes(shapes: Sequence[str]) -> list[Shape]:
    """["9x32x32", "1x64x64"] -> [(9, 32, 32), (1, 64, 64)], each once.

    Raises:
      UserError: an entry that is not a shape; the message says what one is.
    """
    parsed: dict[Shape, None] = {}
    for shape in shapes:
        parts = shape.strip().lower().split("x")
        if len(parts) != 3 or not all(
            part.isascii() and part.isdigit() and int(part) for part in parts
        ):
            raise UserError(
                f"{shape!r} is not a clip shape; give FRAMESxHEIGHTxWIDTH in pixels, e.g. 17x512x512"
            )
        parsed[int(parts[0]), int(parts[1]), int(parts[2])] = None
    return list(parsed)
