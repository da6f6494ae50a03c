"""The text encoders that a transformer can have, and their sizes; see `models.text`."""

import dataclasses
from typing import ClassVar, Literal

from xgen_jax.errors import UserError, choose
from xgen_jax.nn.choices import IMPLEMENTATIONS

STRIDE = 4  # bytes a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTextConfig:
    """Sizes of a byte-level encoder.

    Attributes:
      kind: `bytes`.
      width: of the tokens, and of the encoder.
      depth, heads: of the encoder.
      max_bytes: the longest prompt, in UTF-8 bytes.
      attention: the implementation, see `xgen_jax.nn.attention`.
      trained: whether the encoder is trained with the transformer, as params["text"].
      path: folder of a frozen encoder; None for none.
    """

    trained: ClassVar[Literal[True]] = True  # along with the transformer
    path: ClassVar[str | None] = None

    kind: str = "bytes"
    width: int = 96
    depth: int = 2
    heads: int = 4
    max_bytes: int = 64
    attention: str = "xla"

    def __post_init__(self):
        choose("text.attention", self.attention, IMPLEMENTATIONS)

    @property
    def tokens(self) -> int:
        """Tokens of a caption, padding included: the bytes and a begin token, joined by four."""
        return -(-(self.max_bytes + 1) // STRIDE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5TextConfig:
    """A frozen T5 encoder.

    Attributes:
      kind: `t5`.
      path: its local folder in Hugging Face's layout, see `weights.t5`. Training on latents with
        stored embeddings only checks that they are its own; sampling reads it.
      length: tokens a caption, the end-of-sentence token included; longer ones are cut, with a
        warning.
      trained: see `ByteTextConfig`.
    """

    trained: ClassVar[Literal[False]] = False

    kind: str = "t5"
    path: str
    length: int = 250

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"text.length must be 1 or more, not {self.length}")

    @property
    def tokens(self) -> int:
        """Tokens of a caption, padding included."""
        return self.length
