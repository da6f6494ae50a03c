"""Frozen text encoders: captions in, rows of tokens without padding out.

For `launch/encode.py`, which stores the rows, for training on videos with a T5, and for sampling. A
T5 of gigabytes is loaded only for a caption that is not in the cache, which has a small file for
each under (fingerprint, length, dtype).
"""

import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.config import SyntheticConfig, source_folder
from xgen_jax.data.latent_shards import read_manifest
from xgen_jax.errors import UserError
from xgen_jax.files import read_json
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.prompts import clean_prompt
from xgen_jax.models.t5 import T5Encoder
from xgen_jax.models.t5_tokenizer import pad_ids
from xgen_jax.models.text import (
    ByteConditioner,
    ByteTextEncoder,
    T5Conditioner,
    TextConditioner,
    refuse_empty,
    tokenize_bytes,
)
from xgen_jax.models.text_config import T5TextConfig
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh, parameter_spec
from xgen_jax.runs.exported import INDEX
from xgen_jax.runs.folder import CONFIG, RunFolder
from xgen_jax.runs.hub import local_folder
from xgen_jax.runs.load import load_text_encoder
from xgen_jax.typing import Params
from xgen_jax.weights.safetensors import read_safetensors, write_safetensors
from xgen_jax.weights.t5 import T5Folder

# Tokens of a padded row; rows are padded to powers of two, since few prompts fill the length.
_SHORTEST = 32
_BATCH = 8


class TextCache:
    """Embeddings of cleaned prompts on disk.

    A file that cannot be read is made again; the first one that cannot be written prints a warning.
    """

    def __init__(self, path: str | os.PathLike, *marks: object):
        self.path = pathlib.Path(path) / "-".join(map(str, marks))
        self._warned = False

    def get(self, prompt: str) -> np.ndarray | None:
        """Return a prompt's tokens (n, D), float32; None if they are not in the cache."""
        file = self._file(prompt)
        if not file.is_file():
            return None
        try:
            return read_safetensors(file).get("text")
        except UserError:  # cut off by a full disk, for instance; `put` replaces it
            return None

    def put(self, prompt: str, tokens: np.ndarray) -> None:
        """Store a prompt's tokens in their dtype."""
        try:
            write_safetensors(self._file(prompt), {"text": tokens}, overwrite=True)
        except UserError as error:
            if not self._warned:
                print(f"text embeddings are not cached: {error}", file=sys.stderr)
            self._warned = True

    def _file(self, prompt: str) -> pathlib.Path:
        return self.path / f"{hashlib.sha256(prompt.encode()).hexdigest()[:32]}.safetensors"


def default_cache() -> pathlib.Path:
    """Return the default folder of cached embeddings: $XGEN_JAX_CACHE/text, or
    ~/.cache/xgen_jax/text."""
    return (
        pathlib.Path(
            os.environ.get("XGEN_JAX_CACHE") or pathlib.Path.home() / ".cache" / "xgen_jax"
        )
        / "text"
    )


class T5Captions:
    """A T5 as a `CaptionEncoder`. Captions are cleaned (`models.prompts`); one with nothing left
    has no tokens.

    A caption's tokens depend on it alone, up to rounding: neither on the captions around it nor on
    padding.

    Args:
      path: the T5's folder.
      length: tokens at most, </s> included.
      dtype: to compute in; the weights are held as bfloat16, sharded over this process's devices by
        the path rules.
      cache: folder for embeddings; None caches none.

    Attributes:
      fingerprint, width: of the T5.
      cut: captions cut so far.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        length: int,
        dtype: Any = np.float32,
        cache: str | os.PathLike | None = None,
    ):
        self.folder, self.length = T5Folder(local_folder(path)), length
        self.dtype = jnp.dtype(dtype)
        self.width, self.fingerprint, self.cut = (
            self.folder.config.width,
            self.folder.fingerprint,
            0,
        )
        self._tokenizer = self.folder.tokenizer
        self._cache = TextCache(cache, self.fingerprint, length, self.dtype.name) if cache else None
        self._loaded: Params | None = None
        self._warned: set[str] = set()

    def check(self, prompts: Sequence[str]) -> None:
        """Check prompts, see `T5Conditioner.check`; print on stderr, once a prompt, what is cut."""
        cleaned = [self._clean(prompt) for prompt in prompts]
        refuse_empty(prompts, cleaned)
        _, cut = self._tokenizer(cleaned, self.length)
        for prompt, tokens in zip(prompts, cut):
            if tokens and prompt not in self._warned:
                self._warned.add(prompt)
                shown = prompt if len(prompt) < 60 else prompt[:57] + "..."
                print(
                    f"the prompt {shown!r} has {self.length + tokens} tokens; the last {tokens} "
                    f"are cut off: the model takes {self.length}",
                    file=sys.stderr,
                )

    def prepare(self, prompts: Sequence[str]) -> None:
        """Check the prompts, put their embeddings in the cache, and free the weights."""
        self.check(prompts)
        if self._cache:
            for first in range(0, len(prompts), _BATCH):
                self(prompts[first : first + _BATCH])
            self.release()

    def release(self) -> None:
        """Free the weights; they are loaded again when needed."""
        self._loaded = None

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Compute the tokens of each caption, (n, width) with n from 0 to `length`, in `dtype`."""
        cleaned = [self._clean(caption) for caption in captions]
        ids, cut = self._tokenizer(cleaned, self.length)
        self.cut += sum(tokens > 0 for tokens in cut)
        known: dict[str, np.ndarray] = {"": np.zeros((0, self.width), self.dtype)}
        waiting: dict[int, dict[str, np.ndarray]] = {}
        for text, row in zip(cleaned, ids):
            if text in known:
                continue
            cached = self._cache.get(text) if self._cache else None
            if cached is not None and cached.shape == (len(row), self.width):
                known[text] = cached.astype(self.dtype)
            else:
                waiting.setdefault(self._places(len(row)), {})[text] = row
        for places, rows in waiting.items():
            known |= self._embed(rows, places)
        return [known[text] for text in cleaned]

    def hidden_states(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Compute all states of each caption, float32 (depth + 1, n, width); see `T5Encoder`.

        The last is what a call gives; n is 0 for a caption with nothing left. Nothing is cached.
        """
        cleaned = [self._clean(caption) for caption in captions]
        rows, out = self._tokenizer(cleaned, self.length)[0], []
        apply = jax.jit(T5Encoder(self.folder.config, self.dtype).apply, static_argnums=3)
        with on_mesh(self._mesh):
            for first in range(0, len(rows), self._batch):
                some = rows[first : first + self._batch]
                padded = [some[min(row, len(some) - 1)] for row in range(self._batch)]
                arrays = pad_ids(padded, self._places(max(map(len, some))))
                arrays = jax.device_put(arrays, batch_sharding(self._mesh))
                states = np.asarray(apply(self._params(), *arrays, True)[1])
                for row, ids in enumerate(some):
                    length = len(ids) if cleaned[first + row] else 0
                    out.append(np.array(states[:, row, :length]))
        return out

    def _places(self, tokens: int) -> int:
        """Return the length to which a row of `tokens` is padded."""
        return min(self.length, max(_SHORTEST, 1 << (tokens - 1).bit_length()))

    def _embed(self, rows: dict[str, np.ndarray], places: int) -> dict[str, np.ndarray]:
        """Compute tokens by caption; each row is padded to `places` tokens."""
        texts, out = list(rows), {}
        with on_mesh(self._mesh):
            for first in range(0, len(texts), self._batch):
                some = texts[first : first + self._batch]
                # A batch that is not full repeats its last row: every batch of a length runs the
                # same compiled program.
                padded = [rows[some[min(row, len(some) - 1)]] for row in range(self._batch)]
                ids, mask = jax.device_put(pad_ids(padded, places), batch_sharding(self._mesh))
                tokens = np.asarray(self._apply(self._params(), ids, mask))
                for text, embedded in zip(some, tokens):
                    out[text] = np.array(embedded[: len(rows[text])])
                    if self._cache:
                        self._cache.put(text, out[text])
        return out

    @functools.cached_property
    def _mesh(self):
        return make_mesh(MeshConfig(), jax.local_devices())

    @property
    def _batch(self) -> int:
        return -(-_BATCH // self._mesh.size) * self._mesh.size

    @functools.cached_property
    def _apply(self):
        return jax.jit(T5Encoder(self.folder.config, self.dtype).apply)

    def _params(self) -> Params:
        if self._loaded is None:

            def place(path, array):
                return jax.device_put(
                    array, NamedSharding(self._mesh, parameter_spec(path, array.shape, self._mesh))
                )

            self._loaded = self.folder.load(place=place)
        return self._loaded

    def _clean(self, caption: str) -> str:
        # UMT5 knows Chinese characters, T5 does not.
        return clean_prompt(caption, ideographs=self.folder.config.bias_per_block)


class ByteCaptions:
    """The text encoder that a VDiT run trained, as a `CaptionEncoder` for storing its rows."""

    def __init__(self, path: str | os.PathLike, dtype: Any = np.float32, batch_size: int = _BATCH):
        self.encoder, self.params = load_text_encoder(path, dtype)
        self.fingerprint, self.width, self.cut = (
            fingerprint(self.encoder.config, self.params),
            self.encoder.config.width,
            0,
        )
        self.length = self.encoder.config.tokens
        self._batch, self._apply = batch_size, jax.jit(self.encoder.apply)

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Compute the tokens of each caption, (n, width); of an empty one the begin token's."""
        out = []
        for first in range(0, len(captions), self._batch):
            some = list(captions[first : first + self._batch])
            padded = [some[min(row, len(some) - 1)] for row in range(self._batch)]
            tokens, mask = self._apply(
                self.params, *tokenize_bytes(padded, self.encoder.config.max_bytes)
            )
            kept = np.asarray(mask).sum(axis=1)
            out += [np.array(row[:count]) for row, count in zip(np.asarray(tokens), kept)][
                : len(some)
            ]
        return out


def load_captions(
    path: str | os.PathLike,
    dtype: Any = np.float32,
    length: int | None = None,
    batch_size: int = _BATCH,
) -> T5Captions | ByteCaptions:
    """Load the text encoder in a folder, to embed captions once: a T5, or that of a VDiT run.

    Args:
      path: the folder.
      dtype: to compute in.
      length: tokens at most, of a T5's folder; 250 by default. A run has its own.
      batch_size: captions computed at once where the encoder is a run's.

    Raises:
      UserError: a folder that holds neither, or a length for a run.
    """
    folder = local_folder(path)
    file = folder / CONFIG
    values = read_json(file) if file.is_file() else {}
    pipeline = (folder / "text_encoder").is_dir() and not (folder / INDEX).is_file()
    if "model_type" in values or pipeline:
        return T5Captions(path, length or T5TextConfig.length, dtype)
    if not values and not (folder / INDEX).is_file():
        raise UserError(f"{path} holds no text encoder: give the folder of a T5, or of a vdit run")
    if length is not None:
        raise UserError("text_length is for a T5's folder; a run has its own")
    text = RunFolder(path).expect(VDiTRun, "a text encoder: the folder of a T5 or a vdit run").text
    if text.trained is True:
        return ByteCaptions(path, dtype, batch_size)
    return T5Captions(text.path, text.length, dtype)


def make_conditioner(
    config: VDiTRun,
    dtype: Any = np.float32,
    fingerprint: str = "",
    encoder: T5Captions | None = None,
) -> TextConditioner:
    """Make the text conditioner that a configuration names; nothing is read.

    Raises:
      UserError: a text encoder whose tokens do not fit the network.
    """
    text, model = config.text, config.model
    if text.trained is True:
        if model.text_width != text.width:
            raise UserError(f"model.text_width {model.text_width} is not text.width {text.width}")
        return ByteConditioner(encoder=ByteTextEncoder(text, dtype))
    # Its null caption is the network's, and as long as its captions.
    needed = {"null_caption_tokens": text.length}
    needed |= {"text_width": encoder.width} if encoder else {}
    if any(getattr(model, name) != value for name, value in needed.items()):
        flags = " ".join(f"--config.model.{name}={value}" for name, value in needed.items())
        given = ", ".join(f"{name} {getattr(model, name)}" for name in needed)
        raise UserError(f"the model has {given}; captions of the T5 in {text.path} need {flags}")
    return T5Conditioner(
        length=text.length,
        width=model.text_width,
        opensora_compat=model.opensora_compat,
        fingerprint=fingerprint,
        encoder=encoder,
    )


def load_conditioner(
    config: VDiTRun,
    dtype: Any = np.float32,
    *,
    path: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    stored: bool = False,
) -> TextConditioner:
    """Load the text conditioner of a run.

    Args:
      config: the run's.
      dtype: to compute in.
      path: the T5's folder, if it is not where the configuration says.
      cache: folder for a T5's embeddings; None caches none.
      stored: the embeddings are those in the latents of `config.data`. The T5's folder need not be
        there then; if it is, it must be the one that made them.

    Raises:
      UserError: no such T5, embeddings that are not there or of another text encoder, sizes that
        do not fit.
    """
    text = config.text
    if text.trained is True:
        return make_conditioner(config, dtype)
    path = path or text.path
    if not stored:
        encoder = T5Captions(path, text.length, dtype, cache)
        return make_conditioner(config, dtype, encoder.fingerprint, encoder)
    assert not isinstance(config.data.source, SyntheticConfig)
    latents = source_folder(config.data.source)
    manifest = read_manifest(latents)
    made_by = manifest.get("text_encoder")
    again = f"encode again with launch/encode.py --text_encoder={path} --text_length={text.length}"
    if not made_by:
        raise UserError(
            f"{latents} holds no text embeddings, and the run has text.kind='t5'; {again}"
        )
    if pathlib.Path(path).is_dir() and (here := T5Folder(path).fingerprint) != made_by:
        raise UserError(
            f"{latents} holds embeddings of the text encoder {made_by}, and the run's text "
            f"encoder {path} is {here}: {again}, or name the text encoder that made the embeddings"
        )
    length, width = (
        manifest.get("text_length", 0),
        manifest.get("text_width", config.model.text_width),
    )
    if length > text.length or width != config.model.text_width:
        raise UserError(
            f"{latents} holds text embeddings of up to {length} tokens of width {width}; the run "
            f"takes text.length {text.length} and model.text_width {config.model.text_width}: "
            f"{again}, or change the run's"
        )
    return make_conditioner(config, dtype, made_by)
