"""Text conditioning: from captions to the tokens that a transformer attends to. A conditioner is

    arrays(captions) -> {name: array (B, ...)}               on the host
    init(key, arrays) -> {name: sub-tree}                    what is trained along with the transformer; may be empty
    embed(params, arrays, dropped_B) -> (text (B, L, D), mask (B, L))      on the device; `params` is the whole run's
    batch_arrays(batch) -> as arrays                         of a training batch, which may hold stored embeddings
    check(prompts)                                           raises UserError for a prompt that cannot be drawn
    prepare(prompts)                                         checks, and does ahead what may be done for all at once
    fingerprints() -> {name: fingerprint}                    of frozen networks

The null caption of classifier-free guidance lives inside `embed`, so training's caption drop and
sampling's guidance share it. `ByteConditioner` is small, needs no vocabulary file and is trained
with the transformer it serves; `T5Conditioner` takes a frozen T5's embeddings, made before (the
normal path) or by an encoder at hand.
"""

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.vdit import null_caption
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.conv3d import gathered_convolution
from xgen_jax.nn.mlp import MLP
from xgen_jax.typing import Array, Params

PAD, BEGIN, VOCABULARY = 0, 257, 258  # bytes are 1..256
STRIDE = 4  # bytes a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTextConfig:
    """Sizes of a byte-level encoder, trained along. `max_bytes` is the longest prompt in UTF-8
    bytes."""

    trained: ClassVar[bool] = True  # along with the transformer
    path: ClassVar[str | None] = None

    kind: str = "bytes"
    width: int = 96
    depth: int = 2
    heads: int = 4
    max_bytes: int = 64
    attention: str = "xla"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5TextConfig:
    """A frozen T5 encoder.

    Attributes:
      path: its local folder in Hugging Face's layout, see `weights.t5`. Training on latents with
        stored embeddings needs nothing of it but that these are its own; sampling reads it.
      length: tokens a caption, the end-of-sentence token included; longer ones are cut, and it is
      said.
    """

    trained: ClassVar[bool] = False

    kind: str = "t5"
    path: str
    length: int = 250

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"text.length must be 1 or more, not {self.length}")


def tokenize_bytes(prompts: list[str], max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes behind a begin token: ids int32 (B, max_bytes + 1), mask bool of the same shape.

    The empty string is the null caption of classifier-free guidance: the begin token alone.

    Raises:
      UserError: a prompt longer than `max_bytes`; nothing is cut off in silence.
    """
    ids = np.full((len(prompts), max_bytes + 1), PAD, np.int32)
    ids[:, 0] = BEGIN
    for row, prompt in enumerate(prompts):
        try:
            data = prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the prompt {prompt!r} holds half a character (place {error.start}); mend it"
            ) from error
        if len(data) > max_bytes:
            raise UserError(
                f"the prompt {prompt!r} has {len(data)} bytes; this model takes at most {max_bytes}"
            )
        ids[row, 1 : 1 + len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
    return ids, ids != PAD


class ByteTextEncoder(nn.Module):
    """Bytes to tokens: two convolutions join letters to parts of words, the second keeping every
    fourth place, and a pre-norm transformer encoder relates those (the down-sampling of CANINE,
    arXiv 2103.06874, section 3.2).

    ids and mask (B, L) -> tokens (B, ceil(L / 4), width) and their mask.
    """

    config: ByteTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BL: Array, mask_BL: Array) -> tuple[Array, Array]:
        c = self.config
        # Unit scale: with the usual 0.02 the first layers see no difference between bytes or places
        # for long.
        unit = nn.initializers.normal(1.0)
        x = nn.Embed(VOCABULARY, c.width, embedding_init=unit, name="bytes")(ids_BL).astype(
            self.dtype
        )
        # What lies behind the mask must not reach a token in front of it through a convolution.
        letters = nn.Conv(
            c.width,
            (5,),
            dtype=self.dtype,
            conv_general_dilated=gathered_convolution,
            name="letters",
        )
        x = nn.gelu(letters(x * mask_BL[..., None]))
        pad = -ids_BL.shape[1] % STRIDE
        x = jnp.pad(x * mask_BL[..., None], ((0, 0), (0, pad), (0, 0)))
        mask = jnp.pad(mask_BL, ((0, 0), (0, pad))).reshape(len(ids_BL), -1, STRIDE).any(-1)
        parts = nn.Conv(
            c.width,
            (2 * STRIDE,),
            (STRIDE,),
            dtype=self.dtype,
            conv_general_dilated=gathered_convolution,
            name="parts",
        )
        x = parts(x)
        x = x + self.param("positions", unit, (x.shape[1], c.width)).astype(self.dtype)[None]
        mask_BL = mask
        for layer in range(c.depth):
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm_attention{layer}")(x)
            attend = SelfAttention(
                c.heads, implementation=c.attention, dtype=self.dtype, name=f"attention{layer}"
            )
            x = x + attend(h, mask_BN=mask_BL)
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm_mlp{layer}")(x)
            x = x + MLP(4 * c.width, dtype=self.dtype, name=f"mlp{layer}")(h)
        return nn.LayerNorm(dtype=self.dtype, name="norm_out")(x), mask_BL


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteConditioner:
    """`ByteTextEncoder` as a conditioner; its parameters are params["text"]. The null caption is
    the begin token."""

    encoder: ByteTextEncoder
    kind: ClassVar[str] = "bytes"

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.encoder.config.width

    def fingerprints(self) -> dict[str, str]:
        """Nothing is frozen."""
        return {}

    def check(self, prompts: Sequence[str]) -> None:
        """Raises UserError for an empty prompt, one that is too long, or one with control
        characters."""
        refuse_empty(prompts, prompts)
        for prompt in prompts:
            place = next((i for i, c in enumerate(prompt) if unicodedata.category(c) == "Cc"), None)
            if place is not None:
                code = f"U+{ord(prompt[place]):04X}"
                raise UserError(
                    f"the prompt {prompt!r} has the control character {code} at place {place}; take it out"
                )
        tokenize_bytes(list(prompts), self.encoder.config.max_bytes)

    prepare = check  # there is nothing to do ahead

    def problem(self, caption: str) -> str:
        """The reason why a caption cannot be trained on; empty where it can."""
        try:
            tokenize_bytes([caption], self.encoder.config.max_bytes)
        except UserError as error:
            return str(error)
        return ""

    def arrays(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """{"ids", "mask"}, see `tokenize_bytes`."""
        ids, mask = tokenize_bytes(list(captions), self.encoder.config.max_bytes)
        return {"ids": ids, "mask": mask}

    def batch_arrays(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Those of a training batch; embeddings stored in it are of another encoder's, and left
        aside."""
        return self.arrays(batch["caption"])

    def init(self, key: Array, arrays: dict[str, Array]) -> Params:
        """{"text": the encoder's parameters}."""
        return {"text": self.encoder.init(key, arrays["ids"], arrays["mask"])}

    def embed(
        self, params: Params, arrays: dict[str, Array], dropped_B: Array | None = None
    ) -> tuple[Array, Array]:
        """Tokens (B, ceil((max_bytes + 1) / 4), D) and their mask; where `dropped_B` is True, the
        null caption's."""
        ids, mask = arrays["ids"], arrays["mask"]
        if dropped_B is not None:
            # The empty caption is the begin token alone, so dropping a caption is masking all else.
            first_L = jnp.arange(mask.shape[1]) == 0
            mask = jnp.where(dropped_B[:, None], first_L[None, :], mask)
        return self.encoder.apply(params["text"], ids, mask)


class CaptionEncoder(Protocol):
    """A frozen text encoder at hand; see `runs.text_encoders`."""

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each caption, (n, D); none for an empty one."""

    def check(self, prompts: Sequence[str]) -> None:
        """As a conditioner's."""

    def prepare(self, prompts: Sequence[str]) -> None:
        """As a conditioner's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Conditioner:
    """Embeddings of a frozen T5, (B, length, width) with a mask.

    The null caption is the transformer's own, `null_caption(params["vdit"])` (length, width), that
    no training moves. It is attended to whole, so that the unconditional prediction is one and the
    same for every prompt; with `released` it wears the mask of the prompt it stands beside, as
    STDiT2's weights know it. A caption without tokens, which an empty one is, is the null caption.

    Attributes:
      length: tokens of every row, padding included.
      released: see above.
      fingerprint: of the T5.
      encoder: makes embeddings that are not in a batch; None where all are stored.
    """

    length: int
    width: int
    released: bool = False
    fingerprint: str = ""
    encoder: CaptionEncoder | None = dataclasses.field(
        default=None, compare=False
    )  # it is no part of what is compiled
    kind: ClassVar[str] = "t5"

    def fingerprints(self) -> dict[str, str]:
        """The T5."""
        return {"text_encoder": self.fingerprint}

    def check(self, prompts: Sequence[str]) -> None:
        """Raises UserError for a prompt with nothing in it, also when cleaned; says which are cut,
        and by how much."""
        self._at_hand().check(prompts)

    def problem(self, caption: str) -> str:
        """The reason why a caption cannot be trained on: there is none, a long one is cut."""
        del caption
        return ""

    def prepare(self, prompts: Sequence[str]) -> None:
        """Checks the prompts, and embeds them all, so that the T5's weights can go before others
        come."""
        self._at_hand().prepare(prompts)

    def arrays(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """{"text" (B, length, width), "text_mask" bool (B, length)}, made by the encoder."""
        rows = self._at_hand()(captions)
        text = np.zeros((len(rows), self.length, self.width), rows[0].dtype if rows else np.float32)
        mask = np.zeros(text.shape[:2], bool)
        for place, row in enumerate(rows):
            text[place, : len(row)], mask[place, : len(row)] = row, True
        return {"text": text, "text_mask": mask}

    def batch_arrays(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """The embeddings stored in a batch, padded to the length, or made anew where there are
        none."""
        if "text" not in batch:
            return self.arrays(batch["caption"])
        text, mask = np.asarray(batch["text"]), np.asarray(batch["text_mask"])
        if text.shape[1] > self.length or text.shape[2] != self.width:
            raise UserError(
                f"stored embeddings are {text.shape[1:]}; the run takes up to {(self.length, self.width)}"
            )
        pad = self.length - text.shape[1]
        return {
            "text": np.pad(text, ((0, 0), (0, pad), (0, 0))),
            "text_mask": np.pad(mask, ((0, 0), (0, pad))),
        }

    def init(self, key: Array, arrays: dict[str, Array]) -> Params:
        """Nothing is trained along."""
        del key, arrays
        return {}

    def embed(
        self, params: Params, arrays: dict[str, Array], dropped_B: Array | None = None
    ) -> tuple[Array, Array]:
        """Tokens (B, length, width) and mask; where `dropped_B` is True, the null caption's.

        Without `dropped_B` no null caption is looked up: that is for initialising the transformer
        it belongs to.
        """
        text, mask = arrays["text"], arrays["text_mask"]
        empty_B = ~mask.any(axis=1)
        if dropped_B is None:
            return text, mask | empty_B[:, None]
        dropped_B = dropped_B | empty_B
        text = jnp.where(dropped_B[:, None, None], null_caption(params["vdit"])[None], text)
        whole_B = empty_B if self.released else dropped_B
        return text, mask | whole_B[:, None]

    def _at_hand(self) -> CaptionEncoder:
        if self.encoder is None:
            raise UserError(
                "these captions have no stored embeddings, and the run has no text encoder to make them"
            )
        return self.encoder


def refuse_empty(prompts: Sequence[str], cleaned: Sequence[str]) -> None:
    """Raises UserError for a prompt with nothing in it, before or after cleaning."""
    for prompt, rest in zip(prompts, cleaned, strict=True):
        if not rest.strip():
            reason = (
                f"nothing is left of the prompt {prompt!r} when it is cleaned"
                if prompt.strip()
                else "a prompt is empty"
            )
            raise UserError(f"{reason}; say what should be seen")
