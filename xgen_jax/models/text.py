"""Text conditioning: from captions to the tokens that a transformer attends to.

`TextConditioner` is the interface. `ByteConditioner` is small, needs no vocabulary file, and is
trained with the transformer that it serves. `T5Conditioner` takes the embeddings of a frozen T5,
stored next to the latents (the normal path) or computed when they are needed.
"""

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.flops import text_encoder_flops
from xgen_jax.models.text_config import STRIDE, ByteTextConfig
from xgen_jax.models.vdit import null_caption
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.conv3d import gathered_convolution
from xgen_jax.nn.mlp import MLP
from xgen_jax.typing import Array, Params

PAD, BEGIN, VOCABULARY = 0, 257, 258  # bytes are 1..256


class TextConditioner(Protocol):
    """Turn captions into tokens (B, L, width) for a transformer; a static argument of `jax.jit`.

    The null caption of classifier-free guidance lives inside `embed`: training's dropped captions
    and sampling's guidance share it.
    """

    @property
    def width(self) -> int:
        """Width of the tokens."""

    @property
    def tokens(self) -> int:
        """Tokens of a caption, padding included."""

    @property
    def computes(self) -> bool:
        """Whether `arrays` runs a network on the devices."""

    def train_flops(self, captions: int) -> float:
        """Return the operations of embedding captions in a training step; see `models.flops`."""

    def fingerprints(self) -> dict[str, str]:
        """Return {name: fingerprint} of the frozen networks that the tokens depend on."""

    def check(self, prompts: Sequence[str]) -> None:
        """Raise UserError for a prompt that cannot be sampled."""

    def problem(self, caption: str) -> str:
        """Return why a caption cannot be trained on; empty if it can."""

    def prepare(self, prompts: Sequence[str]) -> None:
        """Check the prompts, and compute in advance what can be computed for all at once."""

    def arrays(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Return host arrays (B, ...) of captions, by name; the input of `embed`."""

    def batch_arrays(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the arrays of a training batch, which may hold stored embeddings."""

    def init(self, key: Array, arrays: dict[str, Array]) -> Params:
        """Return the parameters that are trained with the transformer, {name: tree}, maybe none."""

    def embed(
        self, params: Params, arrays: dict[str, Array], dropped_B: Array | None = None
    ) -> tuple[Array, Array]:
        """Return tokens (B, L, width) and their mask (B, L), on the device.

        Args:
          params: of the whole run.
          arrays: see `arrays`.
          dropped_B: True where the null caption stands in for a row's; None for nowhere.
        """


def tokenize_bytes(prompts: list[str], max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode prompts as a begin token and their UTF-8 bytes.

    The empty string is the null caption of classifier-free guidance: only the begin token.

    Returns:
      (ids int32, mask bool), both (B, max_bytes + 1).

    Raises:
      UserError: a prompt longer than `max_bytes`, or with half a surrogate pair.
    """
    ids = np.full((len(prompts), max_bytes + 1), PAD, np.int32)
    ids[:, 0] = BEGIN
    for row, prompt in enumerate(prompts):
        try:
            data = prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the prompt {prompt!r} holds half a character (place {error.start}); fix it"
            ) from error
        if len(data) > max_bytes:
            raise UserError(
                f"the prompt {prompt!r} has {len(data)} bytes; this model takes at most {max_bytes}"
            )
        ids[row, 1 : 1 + len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
    return ids, ids != PAD


class ByteTextEncoder(nn.Module):
    """Encode bytes: ids and mask (B, L) -> tokens (B, ceil(L / 4), width) and their mask.

    Two convolutions join letters to parts of words, the second with stride 4, and a pre-norm
    transformer encoder follows (the down-sampling of CANINE, arXiv 2103.06874, section 3.2).
    """

    config: ByteTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BL: Array, mask_BL: Array) -> tuple[Array, Array]:
        c = self.config
        # Unit scale: with the usual 0.02 it takes the first layers long to tell bytes apart.
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
    """`ByteTextEncoder` as a `TextConditioner`. The null caption is the begin token."""

    encoder: ByteTextEncoder

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.encoder.config.width

    @property
    def tokens(self) -> int:
        """Tokens of a caption, padding included."""
        return self.encoder.config.tokens

    @property
    def computes(self) -> bool:
        """Return False: captions become bytes."""
        return False

    def train_flops(self, captions: int) -> float:
        """Return the operations of a training step of the encoder."""
        return text_encoder_flops(self.encoder.config, captions, train=True)

    def fingerprints(self) -> dict[str, str]:
        """Return {}: no network is frozen."""
        return {}

    def check(self, prompts: Sequence[str]) -> None:
        """Raise UserError for an empty prompt, one too long, or one with control characters."""
        refuse_empty(prompts, prompts)
        for prompt in prompts:
            place = next((i for i, c in enumerate(prompt) if unicodedata.category(c) == "Cc"), None)
            if place is not None:
                raise UserError(
                    f"the prompt {prompt!r} has the control character U+{ord(prompt[place]):04X} "
                    f"at place {place}; take it out"
                )
        tokenize_bytes(list(prompts), self.encoder.config.max_bytes)

    prepare = check  # there is nothing to compute in advance

    def problem(self, caption: str) -> str:
        """The reason why a caption cannot be trained on; empty where it can."""
        try:
            tokenize_bytes([caption], self.encoder.config.max_bytes)
        except UserError as error:
            return str(error)
        return ""

    def arrays(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Return {"ids", "mask"}, see `tokenize_bytes`."""
        ids, mask = tokenize_bytes(list(captions), self.encoder.config.max_bytes)
        return {"ids": ids, "mask": mask}

    def batch_arrays(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the arrays of a batch's captions; stored embeddings are another encoder's."""
        return self.arrays(batch["caption"])

    def init(self, key: Array, arrays: dict[str, Array]) -> Params:
        """Return {"text": the encoder's parameters}."""
        return {"text": self.encoder.init(key, arrays["ids"], arrays["mask"])}

    def embed(
        self, params: Params, arrays: dict[str, Array], dropped_B: Array | None = None
    ) -> tuple[Array, Array]:
        """Return tokens (B, ceil((max_bytes + 1) / 4), width) and their mask."""
        ids, mask = arrays["ids"], arrays["mask"]
        if dropped_B is not None:
            # The empty caption is the begin token alone, so dropping a caption is masking all else.
            first_L = jnp.arange(mask.shape[1]) == 0
            mask = jnp.where(dropped_B[:, None], first_L[None, :], mask)
        tokens: Any = self.encoder.apply(params["text"], ids, mask)
        return tokens


class CaptionEncoder(Protocol):
    """A frozen text encoder that can be called; see `runs.text_encoders`."""

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of each caption, (n, D); n is 0 for an empty one."""

    def check(self, prompts: Sequence[str]) -> None:
        """See `TextConditioner.check`."""

    def prepare(self, prompts: Sequence[str]) -> None:
        """See `TextConditioner.prepare`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Conditioner:
    """Embeddings of a frozen T5, (B, length, width) with a mask, as a `TextConditioner`.

    The null caption is the transformer's own constant, `null_caption(params["vdit"])` (length,
    width). All of it is attended to, so that the unconditional prediction is the same for every
    prompt; with `opensora_compat` it gets the mask of the prompt that it stands in for, as STDiT2's
    weights were trained. A caption without tokens, such as an empty one, is the null caption.

    Attributes:
      length: tokens of every row, padding included.
      width: of the tokens.
      opensora_compat: see above.
      fingerprint: of the T5.
      encoder: computes embeddings that are not in a batch; None where all are stored.
    """

    length: int
    width: int
    opensora_compat: bool = False
    fingerprint: str = ""
    # Not compared: no part of what is compiled.
    encoder: CaptionEncoder | None = dataclasses.field(default=None, compare=False)

    @property
    def tokens(self) -> int:
        """Tokens of a caption, padding included."""
        return self.length

    @property
    def computes(self) -> bool:
        """Whether there is an encoder, for what is not stored."""
        return self.encoder is not None

    def train_flops(self, captions: int) -> float:
        """Return 0: nothing of it is part of a training step."""
        del captions
        return 0.0

    def fingerprints(self) -> dict[str, str]:
        """Return {"text_encoder": the T5's}."""
        return {"text_encoder": self.fingerprint}

    def check(self, prompts: Sequence[str]) -> None:
        """Raise UserError for a prompt that is empty, also when cleaned; warn of those cut."""
        self._require_encoder().check(prompts)

    def problem(self, caption: str) -> str:
        """The reason why a caption cannot be trained on: there is none, a long one is cut."""
        del caption
        return ""

    def prepare(self, prompts: Sequence[str]) -> None:
        """Check and embed all prompts, so that the T5's weights can be freed before others load."""
        self._require_encoder().prepare(prompts)

    def arrays(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Return {"text" (B, length, width), "text_mask" bool (B, length)} by the encoder."""
        return self._padded(self._require_encoder()(captions))

    def batch_arrays(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return a batch's stored embeddings, padded to the length, or the encoder's if none are.

        Raises:
          UserError: stored embeddings of another size; none, and no encoder.
        """
        if "text" not in batch:
            return self.arrays(batch["caption"])
        for row in batch["text"]:
            if row.shape[0] > self.length or row.shape[1] != self.width:
                raise UserError(
                    f"stored embeddings are {row.shape}; "
                    f"the run takes up to {(self.length, self.width)}"
                )
        return self._padded(batch["text"])

    def _padded(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad tokens (n, width) of each caption with zeros. Only here, when a batch goes to the
        devices: padding is most of it, and would be most of the memory of those that wait."""
        dtype = rows[0].dtype if len(rows) else np.float32
        text = np.zeros((len(rows), self.length, self.width), dtype)
        mask = np.zeros(text.shape[:2], bool)
        for place, row in enumerate(rows):
            text[place, : len(row)], mask[place, : len(row)] = row, True
        return {"text": text, "text_mask": mask}

    def init(self, key: Array, arrays: dict[str, Array]) -> Params:
        """Return {}: nothing is trained."""
        del key, arrays
        return {}

    def embed(
        self, params: Params, arrays: dict[str, Array], dropped_B: Array | None = None
    ) -> tuple[Array, Array]:
        """Return tokens (B, length, width) and their mask.

        Without `dropped_B` no null caption is looked up: to initialise the transformer, which holds
        it.
        """
        text, mask = arrays["text"], arrays["text_mask"]
        empty_B = ~mask.any(axis=1)
        if dropped_B is None:
            return text, mask | empty_B[:, None]
        dropped_B = dropped_B | empty_B
        text = jnp.where(dropped_B[:, None, None], null_caption(params["vdit"])[None], text)
        whole_B = empty_B if self.opensora_compat else dropped_B
        return text, mask | whole_B[:, None]

    def _require_encoder(self) -> CaptionEncoder:
        if self.encoder is None:
            raise UserError(
                "these captions have no stored embeddings, "
                "and the run has no text encoder to make them"
            )
        return self.encoder


def refuse_empty(prompts: Sequence[str], cleaned: Sequence[str]) -> None:
    """Raise UserError for a prompt that is empty, before or after cleaning."""
    for prompt, rest in zip(prompts, cleaned, strict=True):
        if not rest.strip():
            reason = (
                f"nothing is left of the prompt {prompt!r} when it is cleaned"
                if prompt.strip()
                else "a prompt is empty"
            )
            raise UserError(f"{reason}; say what should be seen")
