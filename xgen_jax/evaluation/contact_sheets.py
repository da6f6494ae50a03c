"""Clips of a curation as cards of small pictures, a bounded number of bytes in all."""

import base64
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xgen_jax.curation.meter import Columns
from xgen_jax.curation.selection import Decided
from xgen_jax.evaluation.clips import Card, Sheet

IN_SIGHT = 12  # cards of a sheet; the rest is folded away


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
    ) -> Sheet:
        """Return cards of clips with a line that counts them.

        A card's row has the clip's "source", "caption", "where", "reasons" and "scores", and with
        `pairs` the "twin" that it is a duplicate of, such a row or an id.

        Args:
          clips: indices in the table.
          of: how many there are, of which these were chosen.
          how: they were chosen: "evenly spaced over flow".
          score: name of the one to show first.
          pictures: of a clip at most.
          pairs: whether to show, next to each clip, the one that it is a duplicate of.
        """
        room = self._left // max(self._sheets, 1)
        self._sheets -= 1
        cards: list[Card] = []
        for clip in clips.tolist():
            files, row = self._pictures(clip, pictures), self._row(clip, score)
            if pairs:
                other = row["twin"] = str(self._table["duplicate_of"][clip])
                if other in self._index:
                    files = files + self._pictures(self._index[other], pictures)
                    row["twin"] = self._row(self._index[other], score)
            size = sum(map(len, files))
            if size > room:
                break
            room -= size
            self._left -= size
            sources = [f"data:image/jpeg;base64,{base64.b64encode(x).decode()}" for x in files]
            cards.append(Card((), row, sources))
        note = f"All {of:,}" if len(cards) == of else f"{len(cards):,} of {of:,}"
        if len(cards) < len(clips):
            note += " (no more fit on this page)"
        return Sheet(cards, f"{note}, {how}." if of else "None.", "clips", IN_SIGHT)

    def _pictures(self, clip: int, most: int) -> list[bytes]:
        """Return a clip's pictures, in the middle of evenly divided time."""
        files = self._thumbnails(clip)
        count = min(most, len(files))
        return [files[(2 * i + 1) * len(files) // (2 * count)] for i in range(count)]

    def _row(self, clip: int, first: str | None) -> dict[str, Any]:
        table = self._table
        start, end, fps = (float(table[name][clip]) for name in ("start_s", "end_s", "fps"))
        names = sorted((name for name in SCORES if name in table), key=lambda name: name != first)
        return {
            "source": table["source"][clip],
            "caption": table["caption"][clip] if "caption" in table else "",
            "where": (
                f"{_clock(start)}–{_clock(end)}",
                f"{table['width'][clip]:.0f}×{table['height'][clip]:.0f}",
                f"{fps:.4g} fps",
            ),
            "reasons": self._decided.reasons(clip),
            "scores": [
                (f"{SCORES[name].name} {_short(value)}", name == first)
                for name in names
                if np.isfinite(value := float(table[name][clip]))
            ],
        }


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return "<0.0001" if 0 < value < 1e-4 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"
