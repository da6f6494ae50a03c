"""T5's tokenizer: a sentencepiece model (spiece.model), captions to ids that end with </s>.

Only this module imports sentencepiece. Ids 0, 1, 2 are <pad>, </s> and <unk>.
"""

import os
import pathlib

import numpy as np
import sentencepiece

from xgen_jax.errors import UserError

PAD, END = 0, 1


class T5Tokenizer:
    """Turn texts into the ids that T5 was trained on.

    Args:
      path: a spiece.model.

    Raises:
      UserError: no such file, none of sentencepiece's, or one whose <pad> and </s> are not 0 and 1.
    """

    def __init__(self, path: str | os.PathLike):
        path = pathlib.Path(path)
        try:
            proto = path.read_bytes()
        except OSError as error:
            raise UserError(f"the tokenizer {path} cannot be read ({error.strerror})") from error
        try:
            # Read from memory: given a path, the library writes its own complaints to stderr.
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except RuntimeError as error:
            raise UserError(
                f"{path} is not a sentencepiece model ({error}); fetch it again"
            ) from error
        if (self._pieces.pad_id(), self._pieces.eos_id()) != (PAD, END):
            raise UserError(
                f"{path} is not a T5 tokenizer: its <pad> and </s> are {self._pieces.pad_id()} and "
                f"{self._pieces.eos_id()}, not {PAD} and {END}"
            )

    @property
    def size(self) -> int:
        """Number of pieces; the model's vocabulary may be larger, for sentinels and padding."""
        return self._pieces.vocab_size()

    def __call__(self, texts: list[str], length: int) -> tuple[list[np.ndarray], list[int]]:
        """Return the ids of each text, at most `length` with </s> last, and how many were cut."""
        rows, cut = [], []
        for ids in self._pieces.encode(list(texts), out_type=int):
            cut.append(max(0, len(ids) + 1 - length))
            rows.append(np.array([*ids[: length - 1], END], np.int32))
        return rows, cut


def pad_ids(rows: list[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of ids to ids int32 (B, length) and mask bool (B, length)."""
    ids, mask = np.full((len(rows), length), PAD, np.int32), np.zeros((len(rows), length), bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, True
    return ids, mask
