"""The moving-shapes dataset: procedural text-video data of any size and length, with no download.

One shape crosses a plain background; the caption names its size, colour, shape, direction and
background. Everything is a pure function of (seed, index), so any host can render any clip at any
time. An eighth of the 432 combinations of attributes is held out of training: a model that
generates those correctly has composed words, not recalled clips.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xgen_jax.data.sources.base import Sample, Source
from xgen_jax.errors import UserError, choose

# Raise this whenever any clip's pixels or caption change: it is part of every fingerprint.
VERSION = 2
FPS = 8.0  # nominal: a shape takes the whole clip to cross, however long it is

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle"),
    "color": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "direction": ("left", "right", "up", "down"),
    "size": ("small", "large"),
    "background": ("black", "gray", "white"),
}

# Backgrounds are neutral and off the extremes (an autoencoder's output saturates at 0 and 255);
# every colour stands at least 100 levels from every background and from every other colour.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "green": (30, 190, 60),
    "blue": (40, 70, 235),
    "yellow": (245, 215, 30),
    "magenta": (225, 50, 215),
    "cyan": (30, 205, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (16, 16, 16),
    "gray": (136, 136, 136),
    "white": (238, 238, 238),
}

# Side of the bounding box as a fraction of the frame's short side. All shapes of a size share the
# box, so that they differ by how much of it they fill.
EXTENTS: dict[str, float] = {"small": 0.36, "large": 0.58}
STYLES = ("filled", "outline")
_HOLE = 0.6  # side of what an outline leaves out, as a fraction of its shape's
FILL: dict[str, float] = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}

# (x, y) unit steps; y grows downward as rows do.
STEPS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

# Distance travelled, as a fraction of the space a shape has. It is long, so that the place where a
# shape starts hints at its direction; whether directions are learned sooner was not measured.
_TRAVEL_RANGE = (0.55, 0.80)
_MARGIN = 0.02  # distance to the frame's edge, so that the soft outline stays inside as well

# Brackets hold what is left out when its attribute is not given.
PHRASINGS: tuple[str, ...] = (
    "a [{size} ]{color} {shape} moving {direction}[ on a {background} background]",
    "[on {background}, ]a [{size} ]{color} {shape} moves {direction}",
    "[{size} ]{color} {shape} going {direction}[, {background} background]",
    "a [{background} ]scene with a [{size} ]{color} {shape} moving {direction}",
    "the [{size} ]{shape} is {color} and moves {direction}[ on {background}]",
)
_ALWAYS_NAMED = ("color", "shape", "direction")
# (probability, left out)
_OMISSIONS = ((0.05, ("size",)), (0.05, ("background",)), (0.10, ("size", "background")))

_SYNONYMS = {"grey": "gray", "big": "large", "little": "small", "upward": "up", "downward": "down"}
_SYNONYMS |= {"upwards": "up", "downwards": "down", "leftward": "left", "rightward": "right"}
_SYNONYMS |= {"leftwards": "left", "rightwards": "right"}
_ATTRIBUTE_OF = {value: name for name, values in ATTRIBUTES.items() for value in values}

SPLITS = ("train", "held_out")
_HELD_OUT_WEIGHTS = {"shape": 1, "color": 1, "direction": 1, "size": 4, "background": 5}


def check_attributes(attributes: Mapping[str, str]) -> None:
    """Raise UserError for an attribute or a value outside `ATTRIBUTES`."""
    for name, value in attributes.items():
        choose(name, value, ATTRIBUTES[choose("attribute", name, ATTRIBUTES)])


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A shape and its motion in a clip.

    Attributes:
      shape, color, direction, size, background: values of `ATTRIBUTES`.
      x, y: centre of the shape's bounding box in the first frame, as fractions of the frame's width
        and height.
      travel: distance to the centre in the last frame, along `direction`, for any number of frames;
        a fraction of the width (left, right) or height (up, down).
    """

    shape: str
    color: str
    direction: str
    size: str
    background: str
    x: float
    y: float
    travel: float

    def __post_init__(self) -> None:
        check_attributes(self.attributes)

    @property
    def attributes(self) -> dict[str, str]:
        """The five named attributes, in the order of `ATTRIBUTES`."""
        return {name: getattr(self, name) for name in ATTRIBUTES}


def sample_scene(rng: np.random.Generator, attributes: Mapping[str, str] | None = None) -> Scene:
    """Sample a scene whose shape stays inside a frame of any aspect ratio.

    Attributes not given are sampled uniformly, held-out combinations included. Always takes eight
    uniform numbers, so that attributes which are given do not change the others.

    Raises:
      UserError: an unknown attribute or value.
    """
    check_attributes(attributes or {})
    uniforms = rng.random(len(ATTRIBUTES) + 3)
    sampled = {
        name: values[int(u * len(values))]
        for u, (name, values) in zip(uniforms, ATTRIBUTES.items())
    }
    sampled |= attributes or {}
    u_x, u_y, u_travel = (float(u) for u in uniforms[-3:])
    low, high = _TRAVEL_RANGE
    # A shape that fits a square frame fits any other: its extent is measured on the short side.
    edge = EXTENTS[sampled["size"]] / 2 + _MARGIN
    travel = (low + (high - low) * u_travel) * (1 - 2 * edge)

    def start(u: float, step: int) -> float:
        first, last = edge + travel * (step < 0), 1 - edge - travel * (step > 0)
        return first + (last - first) * u

    step_x, step_y = STEPS[sampled["direction"]]
    return Scene(**sampled, x=start(u_x, step_x), y=start(u_y, step_y), travel=travel)


def render(scene: Scene, frames: int, height: int, width: int, style: str = "filled") -> np.ndarray:
    """Render a scene, anti-aliased, in one of `STYLES`: uint8 (frames, height, width, 3).

    A single frame is the first of the clip.

    Raises:
      UserError: a length below 1.
    """
    if min(frames, height, width) < 1:
        raise UserError(
            f"cannot render {frames} frames of {height}x{width} pixels; each must be at least 1"
        )
    travelled = scene.travel * np.linspace(0.0, 1.0, frames)
    step_x, step_y = STEPS[scene.direction]
    place = {
        "center_x": (scene.x + step_x * travelled) * width,
        "center_y": (scene.y + step_y * travelled) * height,
        "height": height,
        "width": width,
    }
    extent = EXTENTS[scene.size] * min(height, width)
    cover = coverage(scene.shape, extent, **place)
    if style == "outline":
        cover = np.maximum(cover - coverage(scene.shape, _HOLE * extent, **place), 0)
    # Mixing 256 colours once and looking them up beats mixing every pixel.
    background, color = (
        np.array(rgb, np.float32) for rgb in (BACKGROUNDS[scene.background], PALETTE[scene.color])
    )
    levels = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    mixed = np.rint(background + levels * (color - background)).astype(np.uint8)
    return mixed[(cover * 255 + 0.5).astype(np.uint8)]


def coverage(
    shape: str,
    extent: float,
    *,
    center_x: np.ndarray,
    center_y: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """Return the fraction of each pixel that a shape covers, float32 (T, height, width) in [0, 1].

    The distance to the outline, clipped to half a pixel on either side, approximates the area.

    Args:
      shape: of `ATTRIBUTES`.
      extent: side of the bounding box in pixels.
      center_x, center_y: its centre in pixels (T,); the centre of the first pixel is 0.5.
      height, width: of the frame.
    """
    half = np.float32(extent / 2)
    # Distances to the centre, (T, W) and (T, H).
    x = np.arange(0.5, width, dtype=np.float32) - np.asarray(center_x, np.float32)[:, None]
    y = np.arange(0.5, height, dtype=np.float32) - np.asarray(center_y, np.float32)[:, None]
    match choose("shape", shape, ATTRIBUTES["shape"]):
        case "circle":
            radius = np.sqrt((x * x)[:, None, :] + (y * y)[:, :, None])
            return np.clip(half + np.float32(0.5) - radius, 0, 1)
        case "square":
            inside_x, inside_y = (
                np.clip(half + np.float32(0.5) - np.abs(offset), 0, 1) for offset in (x, y)
            )
            return inside_y[:, :, None] * inside_x[:, None, :]
        case _:  # triangle
            # Apex up, base as wide as the box is high: the flanks fall two rows for every column.
            below_base = np.clip(half + np.float32(0.5) - y, 0, 1)
            flank = ((y + half) / 2)[:, :, None] - np.abs(x)[:, None, :]
            flank *= np.float32(2 / np.sqrt(5))
            flank += np.float32(0.5)
            return np.clip(flank, 0, 1, out=flank) * below_base[:, :, None]


def caption(scene: Scene | Mapping[str, str], phrasing: int = 0) -> str:
    """Return words for a scene or for attributes, at most 64 bytes.

    Size and background are left out when not among the attributes.

    Args:
      scene: or attributes by name.
      phrasing: number of one of `PHRASINGS`, modulo their number.

    Raises:
      UserError: colour, shape or direction are missing, or a value is unknown.
    """
    attributes = scene.attributes if isinstance(scene, Scene) else scene
    check_attributes(attributes)
    missing = [name for name in _ALWAYS_NAMED if name not in attributes]
    if missing:
        raise UserError(
            f"a caption needs color, shape and direction; {dict(attributes)} lacks "
            f"{', '.join(missing)}"
        )

    def optional(part: re.Match) -> str:
        name = re.search(r"{(\w+)}", part[1])
        return part[1] if name and name[1] in attributes else ""

    return re.sub(r"\[(.*?)\]", optional, PHRASINGS[phrasing % len(PHRASINGS)]).format_map(
        attributes
    )


def parse_caption(text: str) -> dict[str, str]:
    """Return the attributes that a prompt names, by whole words and a few synonyms; the first
    mention of each counts."""
    found: dict[str, str] = {}
    for word in re.findall(r"[a-z]+", text.lower()):
        value = _SYNONYMS.get(word, word)
        if value in _ATTRIBUTE_OF:
            found.setdefault(_ATTRIBUTE_OF[value], value)
    return {name: found[name] for name in ATTRIBUTES if name in found}


def is_held_out(attributes: Mapping[str, str]) -> bool:
    """Return whether a full combination of attributes is held out of training.

    Those are chosen by a weighted sum of the values' positions, modulo 8: every value equally
    often, and no pair of values altogether.

    Raises:
      UserError: an attribute is missing or unknown.
    """
    check_attributes(attributes)
    missing = [name for name in ATTRIBUTES if name not in attributes]
    if missing:
        raise UserError(
            f"is_held_out needs all five attributes; {dict(attributes)} lacks {', '.join(missing)}"
        )
    return (
        sum(w * ATTRIBUTES[name].index(attributes[name]) for name, w in _HELD_OUT_WEIGHTS.items())
        % 8
        == 0
    )


@functools.cache
def _combinations(held_out: bool) -> tuple[dict[str, str], ...]:
    every = (dict(zip(ATTRIBUTES, values)) for values in itertools.product(*ATTRIBUTES.values()))
    return tuple(combination for combination in every if is_held_out(combination) == held_out)


def held_out_combinations() -> list[dict[str, str]]:
    """Return the 54 combinations of all five attributes that training never shows."""
    return [dict(combination) for combination in _combinations(True)]


def held_out_prompts(count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """Return `count` (prompt, attributes) that name all five attributes.

    No combination is repeated before all 54 have been used; from then on the phrasing differs, and
    after all 270 prompts they repeat, for other noise to be sampled from.

    Raises:
      UserError: `count` is below 1.
    """
    if count < 1:
        raise UserError(f"{count} held-out prompts are not possible; ask for 1 or more")
    combinations = held_out_combinations()
    order = np.argsort(_rng(seed, "prompts", 0).random(len(combinations)), kind="stable")
    prompts = []
    for place in range(count):
        lap, position = divmod(place, len(combinations))
        attributes = combinations[order[position]]
        prompts.append((caption(attributes, position + lap), dict(attributes)))
    return prompts


def _rng(seed: int, stream: str, index: int) -> np.random.Generator:
    # The hash is the key, so the generators of neighbouring indices are unrelated.
    digest = hashlib.blake2b(f"{VERSION}/{stream}/{seed}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class SyntheticSource(Source):
    """Captioned clips of moving shapes, rendered when read.

    Clip `index` is a function of (seed, split, index) alone.

    Args:
      seed: of all clips.
      split: "train" shows only combinations that are not held out, and sometimes leaves size or
        background out of the caption; "held_out" shows only the others, with full captions.
      num_clips: bounds the index, at no cost.
      style: one of `STYLES`. It changes the look of clips only: captions do not name it.

    Raises:
      UserError: an unknown split or style, or fewer than one clip.
    """

    name = "synthetic"

    def __init__(
        self, seed: int = 0, split: str = "train", num_clips: int = 1_000_000, style: str = "filled"
    ) -> None:
        choose("split", split, SPLITS)
        choose("style", style, STYLES)
        if num_clips < 1:
            raise UserError(f"num_clips must be 1 or more, not {num_clips}")
        self.seed, self.split, self.num_clips, self.style = seed, split, num_clips, style

    def __len__(self) -> int:
        return self.num_clips

    def fingerprint(self) -> str:
        """Return a hex digest of the dataset's version and the settings: equal means equal
        clips."""
        settings = {
            "world": VERSION,
            "seed": self.seed,
            "split": self.split,
            "num_clips": self.num_clips,
        }
        if self.style != "filled":  # fingerprints are older than styles
            settings["style"] = self.style
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def scene(self, index: int) -> tuple[Scene, str]:
        """Return the scene and caption of a clip; IndexError outside [0, num_clips)."""
        if not 0 <= index < self.num_clips:
            raise IndexError(f"clip {index} of {self.num_clips}")
        rng = _rng(self.seed, self.split, index)
        u_combination, u_phrasing, u_omission = rng.random(3)
        combinations = _combinations(self.split == "held_out")
        scene = sample_scene(rng, combinations[int(u_combination * len(combinations))])
        named = scene.attributes
        if self.split == "train":
            for probability, left_out in _OMISSIONS:
                if 0 <= u_omission < probability:
                    named = {name: value for name, value in named.items() if name not in left_out}
                u_omission -= probability
        return scene, caption(named, int(u_phrasing * len(PHRASINGS)))

    def read(
        self, index: int, rng: np.random.Generator | None, frames: int, height: int, width: int
    ) -> Sample:
        """Render a clip: "video", uint8 (frames, height, width, 3), "caption", and "fps".

        `rng` is not used.

        Raises:
          IndexError: `index` is outside [0, num_clips).
          UserError: a length below 1.
        """
        del rng
        scene, text = self.scene(index)
        return {
            "video": render(scene, frames, height, width, self.style),
            "caption": text,
            "fps": FPS,
        }
