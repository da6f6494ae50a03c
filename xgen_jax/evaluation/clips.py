"""Videos inside pages, a bounded number of bytes in all, and cards of them."""

import base64
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xgen_jax.data.sources.synthetic import ATTRIBUTES, render, typical_scene
from xgen_jax.data.video import probe
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError

SMALL = 160  # pixels; a video that is no wider is shown with its pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A video on a page.

    Attributes:
      label: what it shows.
      note: under it.
      missing: why it is not there; "" where it is.
      src: a data address.
      notes: of each frame, or none.
      fps, frames, width, height: of the video.
    """

    label: str
    note: str = ""
    missing: str = ""
    src: str = ""
    notes: Sequence[str] = ()
    fps: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0

    @property
    def small(self) -> bool:
        return min(self.width, self.height) <= SMALL


@dataclasses.dataclass(frozen=True)
class Card:
    """Videos that belong together, or pictures of one.

    Attributes:
      clips: videos.
      row: what the page says of them.
      pictures: data addresses, where there are no videos.
    """

    clips: Sequence[Clip]
    row: Mapping[str, Any]
    pictures: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Cards, those that fit.

    Attributes:
      cards: the first are in sight.
      note: counts them.
      what: they are, in the plural.
      most_in_sight: the rest is folded away.
    """

    cards: Sequence[Card]
    note: str
    what: str
    most_in_sight: int

    @property
    def in_sight(self) -> Sequence[Card]:
        return self.cards[: self.most_in_sight]

    @property
    def folded(self) -> Sequence[Card]:
        return self.cards[self.most_in_sight :]


class PageIsFull(Exception):
    """No more videos fit."""


class Clips:
    """Videos as data addresses, until the page is full.

    Args:
      budget: bytes of all videos, before base64, which adds a third.
    """

    def __init__(self, budget: int):
        self.left = budget

    def read(
        self, folder: pathlib.Path, file: Any, label: str, note: str = "", notes: Sequence[str] = ()
    ) -> Clip:
        """Return a video, or a clip that says why it is not there.

        Raises:
          PageIsFull: it does not fit.
        """
        path = (folder / str(file)).resolve()
        # Only files in the folder of the JSON that names them: a page that is passed on must not
        # contain others.
        if not file or not path.is_relative_to(folder.resolve()) or not path.is_file():
            return Clip(label=label, note=note, missing=f"{file} is not there.")
        try:
            info = probe(path)
        except UserError:
            return Clip(label=label, note=note, missing=f"{file} is not a video.")
        return Clip(
            label=label,
            note=note,
            notes=notes,
            src=self._embed(path.read_bytes()),
            fps=round(info.fps, 4),
            frames=info.frames or max(1, round(info.duration_s * info.fps)),
            width=info.width,
            height=info.height,
        )

    def truth(self, wanted: Any, like: Clip, note: str, style: str) -> Clip | None:
        """Return what attributes of moving shapes look like, as a video like another; None where
        one is not given, or the other video is not there.

        Raises:
          PageIsFull: it does not fit.
        """
        shape = like.frames, like.height, like.width
        wanted = wanted if isinstance(wanted, Mapping) else {}
        named = {name: wanted[name] for name in ATTRIBUTES if wanted.get(name) in ATTRIBUTES[name]}
        if len(named) < len(ATTRIBUTES) or not like.src:
            return None
        data = _rendered(tuple(named.items()), shape, like.fps, style)
        return dataclasses.replace(
            like, note=note, notes=(), src=self._embed(data), label=f"{like.label}: {note}"
        )

    def _embed(self, data: bytes) -> str:
        if len(data) > self.left:
            raise PageIsFull
        self.left -= len(data)
        return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"

    def sheet(
        self,
        rows: Sequence[dict[str, Any]],
        make: Callable[[dict[str, Any]], Sequence[Clip]],
        most: int,
        what: str,
        remark: str,
        in_sight: int = 16,
    ) -> Sheet:
        """Return cards of the first rows, with a line that counts them.

        Args:
          rows: what the page says of each.
          make: a row's clips.
          most: cards.
          what: they are, in the plural.
          remark: at the end of the line.
          in_sight: the rest is folded away, so that the next section is near.
        """
        cards: list[Card] = []
        for row in rows[:most]:
            try:
                cards.append(Card(make(row), row))
            except PageIsFull:
                break
        shown = f"The first {len(cards)} of" if len(cards) < len(rows) else "All"
        return Sheet(cards, f"{shown} {len(rows)} {what}{remark}.", what, in_sight)


@functools.lru_cache(maxsize=512)
def _rendered(
    wanted: tuple[tuple[str, str], ...], shape: tuple[int, int, int], fps: float, style: str
) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "truth.mp4"
        write_video(path, render(typical_scene(dict(wanted)), *shape, style), fps)
        return path.read_bytes()
