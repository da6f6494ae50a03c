"""CLIP's text tower (arXiv 2103.00020, section 2.4) and its tokenizer: a text to a vector.

    x = tokens + positions;  per block: x += causal attention(norm(x)), x += MLP(norm(x));
    feature = P norm(x)[end of text]

What compares it with an image's feature divides both by their lengths: see `models.clip`.
`weights.clip` reads the released networks.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.files import read_json
from xgen_jax.models.clip import check_positive, quick_gelu
from xgen_jax.nn.embeddings import NORMAL, join_scope
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.stack import Stack
from xgen_jax.typing import Array, Params

START, END = "<|startoftext|>", "<|endoftext|>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of a text tower.

    Attributes:
      vocabulary: number of tokens.
      length: most tokens of a text, its start and end among them.
      width, hidden: of the tokens, and of the MLP.
      depth, heads: blocks, and attention heads in each.
      features: length of the result.
      epsilon: of the norms.
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    hidden: int = 3072
    depth: int = 12
    heads: int = 12
    features: int = 768
    epsilon: float = 1e-5

    def __post_init__(self):
        check_positive(self)
        if self.width % self.heads:
            raise UserError(f"width={self.width} must be a multiple of heads={self.heads}")


class CausalAttention(nn.Module):
    """Self-attention in which a token sees those before it and itself."""

    heads: int

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        width = x_BND.shape[-1]
        qkv = nn.Dense(3 * width, name="qkv")(x_BND)
        q, k, v = jnp.moveaxis(
            qkv.reshape(*x_BND.shape[:2], 3, self.heads, width // self.heads), 2, 0
        )
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return nn.Dense(width, name="proj")(y.reshape(x_BND.shape))


class TextBlock(nn.Module):
    """Causal self-attention and MLP, each after its norm."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        c = self.config
        attention = CausalAttention(c.heads, name="attention")
        x_BND = x_BND + attention(_norm(c, "norm_attention")(x_BND))
        mlp = MLP(c.hidden, activation=quick_gelu, name="mlp")
        return x_BND + mlp(_norm(c, "norm_mlp")(x_BND))


class CLIPText(nn.Module):
    """Encode ids (B, length), see `CLIPTokenizer`, to float32 (B, features).

    The end of a text is the largest id, which in CLIP's vocabulary no other token has; what comes
    after it has no effect.
    """

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, ids_BN: Array) -> Array:
        c = self.config
        if ids_BN.shape[1:] != (c.length,):
            raise UserError(f"this CLIP takes ids (B, {c.length}), not {ids_BN.shape}")
        tokens = self.param("tokens", NORMAL, (c.vocabulary, c.width))
        positions = self.param("positions", NORMAL, (c.length, c.width))
        x = tokens[ids_BN] + positions[None]
        x = join_scope(self, Stack(TextBlock, (c,), c.depth, block_name=None))(x)
        end_B = jnp.argmax(ids_BN, axis=-1)
        x_BD = jnp.take_along_axis(x, end_B.reshape(-1, 1, 1), axis=1)[:, 0]
        x_BD = _norm(c, "norm_out")(x_BD)
        return nn.Dense(c.features, use_bias=False, kernel_init=NORMAL, name="proj")(x_BD)


def _norm(config: CLIPTextConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.epsilon, use_fast_variance=False, name=name)


class TextEncoder:
    """Texts of any number to features of length 1.

    Attributes:
      model: the network.
      cut: how many of the texts so far were longer than the network takes, and were cut off.
    """

    def __init__(self, model: CLIPText, params: Params, tokenizer: "CLIPTokenizer"):
        if tokenizer.size > model.config.vocabulary:
            raise UserError(
                f"the tokenizer has {tokenizer.size} tokens and the network "
                f"{model.config.vocabulary}: they are not of one CLIP"
            )
        self.model, self.cut, self._tokenizer = model, 0, tokenizer
        self._params = jax.device_put(params)
        self._encode = jax.jit(model.apply)

    def __call__(self, texts: list[str], batch: int = 32) -> np.ndarray:
        """Encode texts to float32 (N, features); `batch` of them at once."""
        features = [np.empty((0, self.model.config.features), np.float32)]
        for start in range(0, len(texts), batch):
            some = texts[start : start + batch]
            ids, cut = self._tokenizer(some, self.model.config.length)
            self.cut += cut
            full = np.concatenate([ids, np.repeat(ids[:1], batch - len(ids), axis=0)])
            features.append(np.asarray(self._encode(self._params, full))[: len(ids)])
        together = np.concatenate(features)
        return together / np.linalg.norm(together, axis=-1, keepdims=True)


class CLIPTokenizer:
    """CLIP's byte-pair encoding, from vocab.json and merges.txt of its folder.

    Text is put into Unicode's NFC, spaces are joined and letters lowered, as the `tokenizers`
    library does it; broken text and HTML is not repaired, as the authors' own code did before.

    Raises:
      UserError: a file that is missing or is another tokenizer's.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = pathlib.Path(folder)
        self._ids = read_json(folder / "vocab.json", "fetch it again")
        try:
            lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder / 'merges.txt'} cannot be read ({error})") from error
        pairs = (tuple(line.split()) for line in lines if not line.startswith("#version"))
        self._ranks = {pair: rank for rank, pair in enumerate(pair for pair in pairs if pair)}
        units = {*_BYTES.values(), *(f"{unit}</w>" for unit in _BYTES.values())}
        merged = {"".join(pair) for pair in self._ranks}
        lacking = sorted({START, END, *units, *merged} - self._ids.keys())
        if lacking:
            raise UserError(
                f"{folder} holds no CLIP tokenizer: vocab.json lacks {', '.join(lacking[:5])}"
            )
        if self._ids[END] != max(self._ids.values()):
            raise UserError(f"{folder / 'vocab.json'}: {END} must be the last token of a CLIP")
        self._word = functools.cache(self._encode_word)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 1 + max(self._ids.values())

    def __call__(self, texts: list[str], length: int) -> tuple[np.ndarray, int]:
        """Return ids int32 (N, length), filled up with the end, and how many texts were cut."""
        rows, cut = np.full((len(texts), length), self._ids[END], np.int32), 0
        for row, text in zip(rows, texts):
            ids = self.encode(text)
            cut += len(ids) > length - 2
            row[: min(len(ids), length - 2) + 1] = [self._ids[START], *ids[: length - 2]]
        return rows, cut

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without those of start and end."""
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip().lower()
        return [self._ids[unit] for word in _words(text) for unit in self._word(word)]

    def _encode_word(self, word: str) -> tuple[str, ...]:
        units = [_BYTES[byte] for byte in word.encode()]
        units[-1] += "</w>"
        while len(units) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(units)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            first, second = units[ranks.index(best)], units[ranks.index(best) + 1]
            merged, place = [], 0
            while place < len(units):
                here = units[place : place + 2] == [first, second]
                merged.append(first + second if here else units[place])
                place += 2 if here else 1
            units = merged
        return tuple(units)


def _words(text: str) -> Iterator[str]:
    """Cut a text into contractions, runs of letters, single digits and runs of other signs."""
    place = 0
    while place < len(text):
        kind, end = _kind(text[place]), place + 1
        contraction = next((c for c in _CONTRACTIONS if text.startswith(c, place)), "")
        if contraction:
            end = place + len(contraction)
        elif kind in ("letter", "sign"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[place:end]
        place = end


def _kind(sign: str) -> str:
    if sign.isspace():
        return "space"
    major = unicodedata.category(sign)[0]
    return {"L": "letter", "N": "digit"}.get(major, "sign")


def _byte_names() -> dict[int, str]:
    """Return a printable character for each byte, as GPT-2's encoding has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable}
    return names | {byte: chr(256 + place) for place, byte in enumerate(others)}


_BYTES = _byte_names()
