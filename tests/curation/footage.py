"""Synthetic films whose cuts, dissolves, fades, flashes and movement are known."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A shot: a camera that pans over a textured plane, and discs that move over it.

    Attributes:
      seed: of texture, colours and directions.
      length_s: seconds from the border before to the border after it.
      pan: of the camera, widths of the picture a second; 0 is a static camera.
      shake: standard deviation of the camera's position around its path, in pixels.
      light: factor of the brightness; 0.15 is a night scene.
      noise: standard deviation of grain that is new in each frame, in levels of 255.
      discs: number of moving discs.
      disc_size: their diameter, as part of the picture's width.
      disc_speed: widths a second.
      flashes_s: times from the scene's start at which the picture is nearly white for `flash_s`.
      colours: seed of the colours alone; scenes that share it look alike. None for `seed`.
    """

    seed: int
    length_s: float = 2.0
    pan: float = 0.1
    shake: float = 0.0
    light: float = 1.0
    noise: float = 0.0
    discs: int = 0
    disc_size: float = 0.1
    disc_speed: float = 0.2
    flashes_s: tuple[float, ...] = ()
    flash_s: float = 0.08
    colours: int | None = None


@dataclasses.dataclass(frozen=True)
class Join:
    """How two scenes meet: a `cut`, or a `dissolve` or `fade` (through black) of a length, with the
    border between the scenes in its middle."""

    kind: str = "cut"
    length_s: float = 0.0


CUT = Join()


@dataclasses.dataclass(frozen=True)
class Film:
    """Scenes one after another; iterate for (time_s, image uint8 (H, W, 3) RGB).

    Attributes:
      scenes: in their order.
      joins: between each two of them; all cuts if empty.
      size: height and width of a frame.
      fps: frames a second.
      times_s: of all frames, for a variable rate; they replace `fps`.
    """

    scenes: Sequence[Scene]
    joins: Sequence[Join] = ()
    size: tuple[int, int] = (144, 256)
    fps: float = 25.0
    times_s: Sequence[float] | None = None

    def __post_init__(self):
        assert len(self.joins) in (0, len(self.scenes) - 1)

    @property
    def duration_s(self) -> float:
        return float(sum(scene.length_s for scene in self.scenes))

    @property
    def times(self) -> np.ndarray:
        """Times of the frames, float64 (T,)."""
        if self.times_s is not None:
            return np.asarray(self.times_s, np.float64)
        return np.arange(round(self.duration_s * self.fps)) / self.fps

    @property
    def cuts_s(self) -> list[float]:
        """Times of the first frames after the hard cuts."""
        times = self.times
        return [
            float(times[np.searchsorted(times, border - 1e-9)])
            for border, join in self._borders()
            if join.kind == "cut"
        ]

    @property
    def gradual_s(self) -> list[tuple[float, float]]:
        """Start and end of each dissolve and fade."""
        return [
            (border - join.length_s / 2, border + join.length_s / 2)
            for border, join in self._borders()
            if join.kind != "cut"
        ]

    def _borders(self) -> list[tuple[float, Join]]:
        ends = np.cumsum([scene.length_s for scene in self.scenes])[:-1]
        return list(zip(ends.tolist(), self.joins or [CUT] * len(ends)))

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        starts = np.cumsum([0.0, *(scene.length_s for scene in self.scenes)])
        borders = self._borders()
        shots: dict[int, _Shot] = {}

        def shot(index: int, time_s: float) -> np.ndarray:
            if index not in shots:
                shots.pop(index - 2, None)  # the film may have hundreds of scenes
                shots[index] = _Shot(self.scenes[index], self.size)
            return shots[index].picture(time_s - starts[index])

        for time_s in self.times.tolist():
            index = int(np.searchsorted(starts, time_s + 1e-9, side="right")) - 1
            index = min(index, len(self.scenes) - 1)
            for before in (index - 1, index):
                if not 0 <= before < len(borders):
                    continue
                border, join = borders[before]
                if join.kind != "cut" and abs(time_s - border) < join.length_s / 2:
                    part = (time_s - border) / join.length_s + 0.5
                    if join.kind == "fade":
                        image = shot(index, time_s) * abs(2 * part - 1)
                    else:
                        image = (1 - part) * shot(before, time_s) + part * shot(before + 1, time_s)
                    break
            else:
                image = shot(index, time_s)
            yield time_s, np.clip(image + 0.5, 0, 255).astype(np.uint8)

    def video(self) -> np.ndarray:
        """Return all frames, uint8 (T, H, W, 3)."""
        return np.stack([image for _, image in self])

    def write(self, path, crf: int = 23, codec: str = "libx264") -> None:
        """Write the film with its times, to the millisecond."""
        with av.open(os.fspath(path), "w") as out:
            options = {"crf": str(crf), "preset": "veryfast"}
            stream = out.add_stream(codec, rate=round(self.fps), options=options)
            stream.height, stream.width = self.size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            for time_s, image in self:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())


class _Shot:
    """The pictures of a scene, at any time."""

    def __init__(self, scene: Scene, size: tuple[int, int]):
        height, width = size
        random = np.random.default_rng(scene.seed)
        colours = np.random.default_rng(scene.seed if scene.colours is None else scene.colours)
        self._scene, self._size, self._random = scene, size, random
        plane = _texture(random, colours, height, 2 * width)
        self._plane = np.pad(plane, ((0, 0), (0, width), (0, 0)), mode="wrap")
        self._start, self._sense = random.uniform(0, 2 * width), random.choice((-1, 1))
        self._discs = [
            (random.uniform(0, width), random.uniform(0.2, 0.8) * height, random.choice((-1, 1)))
            for _ in range(scene.discs)
        ]
        grain = random.standard_normal((2 * height, 2 * width, 3), np.float32)
        self._grain = np.float32(scene.noise) * grain if scene.noise else None
        self._disc_colours = random.uniform(0, 255, (scene.discs, 3)).tolist()

    def picture(self, time_s: float) -> np.ndarray:
        """Return the picture, float32 (H, W, 3), at a time from the scene's start."""
        scene, (height, width) = self._scene, self._size
        left = self._start + self._sense * scene.pan * width * time_s
        down = 0.0
        if scene.shake:
            left, down = self._random.normal((left, down), scene.shake)
        centre = (left % (2 * width) + (width - 1) / 2, (height - 1) / 2 + down)
        image = cv2.getRectSubPix(self._plane, (width, height), centre)
        for (x, y, sense), colour in zip(self._discs, self._disc_colours):
            x = (x + sense * scene.disc_speed * width * time_s) % width
            at = (round(16 * x), round(16 * y))
            radius = round(8 * scene.disc_size * width)
            cv2.circle(image, at, radius, colour, -1, cv2.LINE_AA, shift=4)
        image = image.astype(np.float32)
        if any(0 <= time_s - flash < scene.flash_s for flash in scene.flashes_s):
            image = 0.2 * image + 200
        image *= scene.light
        if scene.noise:
            # A new part of one picture of grain, flipped or not, is as good as new grain.
            y, x = self._random.integers(0, (height, width))
            grain = self._grain[y : y + height, x : x + width]
            image += grain[:: self._random.choice((-1, 1))]
        return image


def _texture(random, colours, height: int, width: int) -> np.ndarray:
    """Return a texture like that of photographs (its power falls with frequency), uint8 (height,
    width, 3), periodic in both directions."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    fall = frequency ** -random.uniform(1.1, 1.5)
    waves = fall * np.exp(2j * np.pi * random.uniform(size=(2, *fall.shape)))
    light, hue = np.fft.irfft2(waves, s=(height, width))
    mean = colours.uniform(70, 170, 3)
    tint, spread = colours.uniform(-1, 1, 3), colours.uniform(25, 50)
    image = spread * (light / light.std())[..., None] + spread * (hue / hue.std())[..., None] * tint
    return np.clip(mean + image, 0, 255).astype(np.uint8)


def feed(meter, frames):
    """Return the columns of a meter that was given frames, (time_s, image)."""
    for time_s, image in frames:
        meter.add(time_s, image)
    return meter.columns()
