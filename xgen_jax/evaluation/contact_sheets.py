"""Clips of a curation as cards of small pictures, a bounded number of bytes in all."""

import base64
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from xgen_jax.curation.meter import Columns
from xgen_jax.curation.selection import Decided
from xgen_jax.evaluation import page

IN_SIGHT = 12  # cards of a sheet; the rest is folded away
MAX_CAPTION = 800  # characters


@dataclasses.dataclass(frozen=True)
class Score:
    """How a score is shown.

    Attributes:
      name: a word or two.
      meaning: with its unit or range.
      log: whether its values span orders of magnitude.
    """

    name: str
    meaning: str
    log: bool = False


SCORES = {
    "piqe": Score("PIQE", "blur, blocks and noise; 0 (clean) to 100"),
    "sharpness": Score("sharpness", "no threshold"),
    "aesthetic": Score("aesthetics", "LAION's predictor, 0 to 10"),
    "text_area": Score("text", "part of the frame that text covers", log=True),
    "motion": Score("motion", "how many times the noise of a still camera moves", log=True),
    "changed": Score("changed", "part of the picture that changes from frame to frame", log=True),
    "flow": Score("flow", "optical flow a second, as part of the diagonal", log=True),
}


def evenly(clips: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the clips (N,), evenly spaced, the first and the last among them."""
    if len(clips) <= most:
        return clips
    return clips[np.linspace(0, len(clips) - 1, most).round().astype(int)]


class ContactSheets:
    """Sheets that divide a page's bytes among them: what one leaves is for those that follow."""

    def __init__(
        self,
        table: Columns,
        decided: Decided,
        thumbnails: Callable[[int], Sequence[bytes]],
        budget: int,
        sheets: int,
    ):
        """Make as many as `sheets` of at most `budget` bytes of JPEG files together.

        Args:
          table: of clips; see `curation.selection`.
          decided: what became of them.
          thumbnails: a clip's JPEG files by its index in the table, in increasing time.
          budget: bytes.
          sheets: how often `sheet` is called.
        """
        self._table, self._decided, self._thumbnails = table, decided, thumbnails
        self._left, self._sheets = budget, sheets
        self._index = {str(name): i for i, name in enumerate(table["clip_id"])}

    def sheet(
        self,
        clips: np.ndarray,
        of: int,
        how: str,
        score: str | None = None,
        pictures: int = 1,
        pairs: bool = False,
        captions: bool = False,
    ) -> str:
        """Return a grid of clips with a line that counts them.

        Args:
          clips: indices in the table.
          of: how many there are, of which these were chosen.
          how: they were chosen: "evenly spaced over flow".
          score: name of the one to show first.
          pictures: of a clip at most.
          pairs: whether to show, next to each clip, the one that it is a duplicate of.
          captions: whether to show the clips' captions instead of their scores.
        """
        room = self._left // max(self._sheets, 1)
        self._sheets -= 1
        if not of:
            return page.missing("None.")
        cards = []
        for clip in clips.tolist():
            images, size = self._images(clip, pictures)
            caption = self._words(clip) if captions else self._caption(clip, score)
            if pairs:
                other = str(self._table["duplicate_of"][clip])
                caption += f"<p>the same as{' (right)' if other in self._index else ''}:</p>"
                if other in self._index:
                    kept = self._index[other]
                    more, more_size = self._images(kept, pictures)
                    images, size = images + more, size + more_size
                    caption += self._caption(kept, score)
                else:
                    caption += f"<p>{page.file_name(other)}</p>"
            if size > room:
                break
            room -= size
            self._left -= size
            cards.append(
                f'<figure><div class="strip">{images}</div>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        note = f"All {of:,}" if len(cards) == of else f"{len(cards):,} of {of:,}"
        if len(cards) < len(clips):
            note += " (no more fit on this page)"
        kind = "cards long" if pairs or pictures > 1 else "cards"
        sheet = f'<p class="note">{note}, {how}.</p><div class="{kind}">'
        sheet += "".join(cards[:IN_SIGHT]) + "</div>"
        if len(cards) > IN_SIGHT:
            more = f'<div class="{kind}">{"".join(cards[IN_SIGHT:])}</div>'
            sheet += page.folded(f"{len(cards) - IN_SIGHT} more", more)
        return sheet

    def _images(self, clip: int, most: int) -> tuple[str, int]:
        """Return a clip's pictures, in the middle of evenly divided time, and their bytes."""
        files = self._thumbnails(clip)
        if not files:
            return "<span>no picture was stored</span>", 0
        count = min(most, len(files))
        chosen = [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]
        images = (
            f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file).decode()}">'
            for file in chosen
        )
        return "".join(images), sum(map(len, chosen))

    def _caption(self, clip: int, first: str | None) -> str:
        table = self._table
        start, end, fps = (float(table[name][clip]) for name in ("start_s", "end_s", "fps"))
        where = (
            f"{_clock(start)}–{_clock(end)}",
            f"{table['width'][clip]:.0f}×{table['height'][clip]:.0f}",
            f"{fps:.4g} fps",
        )
        reasons = ", ".join(self._decided.reasons(clip))
        fate = f'<span class="wrong">{reasons}</span>' if reasons else "kept"
        names = sorted((name for name in SCORES if name in table), key=lambda name: name != first)
        scores = []
        for name in names:
            value = float(table[name][clip])
            if np.isfinite(value):
                shown = f"{SCORES[name].name} {_short(value)}"
                scores.append(f"<strong>{shown}</strong>" if name == first else shown)
        return (
            f"<p>{page.file_name(table['source'][clip])}</p>"
            f'<p class="note">{_items((*where, fate))}</p><p class="note">{_items(scores)}</p>'
        )

    def _words(self, clip: int) -> str:
        return (
            f"<p>{page.shortened(self._table['caption'][clip], MAX_CAPTION)}</p>"
            f'<p class="note">{page.file_name(self._table["source"][clip])}</p>'
        )


def _items(items: Sequence[str]) -> str:
    """Join items so that a line ends between them, not within."""
    return " · ".join(
        item if item.startswith("<span") else item.replace(" ", "\u00a0") for item in items
    )


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return "&lt;0.0001" if 0 < value < 1e-4 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"
