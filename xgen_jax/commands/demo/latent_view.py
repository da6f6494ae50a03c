"""Latents of a clip as pictures, next to the frames that they decode to."""

import dataclasses
import functools
import math

import numpy as np

from xgen_jax.errors import choose
from xgen_jax.models.embedder import Embedder
from xgen_jax.typing import Video

PRINCIPAL = "three principal components"
_SHOWN = 320  # pixels of a picture's longer side, about
_STRIP = 1200  # pixels of the width of all of them, about
_GAP = 128  # grey between pictures
_PERCENT = 1.0  # of the values at each end that are darker or brighter than the picture shows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatentView:
    """Latents that are looked at frame by frame.

    Attributes:
      embedder: that they belong to.
      latents: normalised, (t, h, w, c).
      video: what they decode to at the speed of the clip, uint8 (T, H, W, 3).
      title: for people, what clip it is.
    """

    embedder: Embedder
    latents: np.ndarray
    video: Video
    title: str

    @property
    def views(self) -> list[str]:
        """Names of what `picture` can show."""
        channels = [f"channel {number}" for number in range(self.latents.shape[-1])]
        return [PRINCIPAL, *channels]

    def picture(self, place: int, view: str = PRINCIPAL) -> np.ndarray:
        """Return a latent frame as a picture, each cell a square, uint8 (H, W, 3).

        Colours mean the same in all frames of the clip.

        Args:
          place: of the latent frame, 0 .. t - 1.
          view: a name in `views`. A channel is grey: dark is low, bright is high.

        Raises:
          UserError: another view.
        """
        choose("view", view, self.views)
        return enlarged(self._pictures(view)[place])

    def strip(self, view: str = PRINCIPAL) -> np.ndarray:
        """Return all latent frames as one picture about four times as wide as high, uint8."""
        choose("view", view, self.views)
        pictures = self._pictures(view)
        count, height, width, _ = pictures.shape
        columns = min(count, math.ceil(math.sqrt(4 * count * height / width)))
        side = max(1, _STRIP // columns)
        return _tiled([enlarged(picture, side) for picture in pictures], columns)

    def frames(self, place: int) -> tuple[int, int]:
        """Return (first, end) of the frames that a latent frame decodes to, with those of its unit:
        content and motion of a REGEN's chunk have their frames in common."""
        unit = self.embedder.unit
        first = place // unit * unit
        end = min(first + unit, len(self.latents))
        shown = len(self.video)
        return min(self.embedder.frames(first), shown), min(self.embedder.frames(end), shown)

    def decoded(self, place: int) -> np.ndarray:
        """Return the frames of `frames` as one picture, uint8 (H, W, 3), row by row."""
        first, end = self.frames(place)
        # Of padding at the end there may be none.
        frames = list(self.video[first:end]) or [np.full_like(self.video[0], _GAP)]
        columns = math.ceil(math.sqrt(len(frames)))
        return _tiled([enlarged(frame) for frame in frames], columns)

    def caption(self, place: int) -> str:
        """Return a sentence on a latent frame."""
        first, end = self.frames(place)
        t, h, w, c = self.latents.shape
        if self.embedder.unit > 1:
            whole = place // self.embedder.unit * self.embedder.unit + 1 < t
            part = f" ({('content', 'motion')[place % 2]})" if whole else " (an image)"
        else:
            part = ""
        which = f"frame {first}" if end - first == 1 else f"frames {first} to {end - 1}"
        here = self.latents[place]
        return (
            f"Latent frame {place} of 0 to {t - 1}{part}, {h}x{w} cells of {c} channels, decodes "
            f"to {which}. Mean {here.mean():.2f}, standard deviation {here.std():.2f}."
        )

    def _pictures(self, view: str) -> np.ndarray:
        if view == PRINCIPAL:
            return self._principal
        return to_colours(self.latents[..., [self.views.index(view) - 1] * 3])

    @functools.cached_property
    def _principal(self) -> np.ndarray:
        return to_colours(principal_components(self.latents))


def principal_components(latents: np.ndarray, count: int = 3) -> np.ndarray:
    """Project channels on their first principal components over all places.

    Args:
      latents: (t, h, w, c).
      count: of components; with fewer channels the rest is 0.

    Returns:
      (t, h, w, count), the component of the highest variance first. The largest loading of each is
      positive, so that the sign does not hang on rounding.
    """
    values = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    values -= values.mean(axis=0)
    _, vectors = np.linalg.eigh(values.T @ values / len(values))  # ascending
    vectors = vectors[:, ::-1][:, :count]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
    out = np.zeros((len(values), count))
    out[:, : vectors.shape[1]] = values @ vectors
    return out.reshape(*latents.shape[:-1], count)


def to_colours(values: np.ndarray) -> np.ndarray:
    """Scale the last axis' values to uint8, each from its 1st to its 99th percentile; a component
    without spread is mid-grey."""
    flat = values.reshape(-1, values.shape[-1])
    low, high = np.percentile(flat, [_PERCENT, 100 - _PERCENT], axis=0)
    spread = np.where(high > low, high - low, np.inf)
    centred = (values - (low + high) / 2) / spread + 0.5
    return np.round(255 * np.clip(centred, 0, 1)).astype(np.uint8)


def _tiled(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    """Arrange pictures (h, w, 3) in rows with gaps."""
    height, width, _ = pictures[0].shape
    gap = max(2, width // 40)
    rows = -(-len(pictures) // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), _GAP, np.uint8)
    for number, picture in enumerate(pictures):
        y, x = (number // columns) * (height + gap), (number % columns) * (width + gap)
        out[y : y + height, x : x + width] = picture
    return out


def enlarged(picture: np.ndarray, side: int = _SHOWN) -> np.ndarray:
    """Repeat each pixel so often that the longer side is at most `side`, or as it is."""
    times = max(1, side // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
