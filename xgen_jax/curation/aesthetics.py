"""CLIP features of a video's frames, and LAION's aesthetic score of them.

arXiv 2408.12590, section 3, keeps clips with a mean score of 4.5 or more; the features also serve
the comparison of clips (see `curation.duplicates`). Both networks are read from local files (see
`weights.clip`), and JAX is imported only where they are used.
"""

import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa

from xgen_jax.curation.config import AestheticsConfig
from xgen_jax.curation.meter import Columns, Meter
from xgen_jax.errors import UserError
from xgen_jax.files import file_sha256

# Frames at once: on a CPU 17 % faster than one at a time. A larger batch would be mostly empty at
# the end of a short video, and decoding keeps no accelerator busy.
BATCH = 4
WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")


class FeatureMeter(Meter):
    """CLIP features of frames, and their scores if there is a predictor.

    Columns: `feature` float16 (N, features), of length 1; `aesthetic` float32 (N,), about 1 to 10,
    only with `config.head`.

    Frames come at their own size: the network's preprocessing scales once, from there.
    """

    def __init__(self, config: AestheticsConfig):
        """Load the networks, once a process for each path.

        Raises:
          UserError: no `clip_dir`; folders and files that are no such networks.
        """
        if config.clip_dir is None:
            raise UserError("CLIP features need aesthetics.clip_dir, the folder of a CLIP")
        self.every_s = config.every_s
        self._encoder = _encoder(config.clip_dir)
        self._length = self._encoder.model.config.features
        self._head = _head(config.head, self._length) if config.head else None
        self._times: list[float] = []
        self._waiting: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def add(self, time_s: float, image: np.ndarray) -> None:
        self._times.append(time_s)
        self._waiting.append(self._encoder.fit(image))
        if len(self._waiting) == self._encoder.batch:
            self._encode()

    def columns(self) -> Columns:
        if self._waiting:
            self._encode()
        features = np.concatenate([np.empty((0, self._length), np.float32), *self._features])
        flat = pa.array(features.astype(np.float16).reshape(-1))
        columns: dict[str, Any] = {
            "time_s": np.array(self._times, np.float64),
            "feature": pa.FixedSizeListArray.from_arrays(flat, self._length),
        }
        if self._head is not None:
            weights, bias = self._head
            columns["aesthetic"] = (features @ weights + np.float32(bias)).astype(np.float32)
        return columns

    def _encode(self) -> None:
        self._features.append(self._encoder(np.stack(self._waiting)))
        self._waiting = []


def aesthetics_scores(rows: Columns, config: AestheticsConfig) -> dict[str, float]:
    """Return the mean score of a clip's frames as `aesthetic`, NaN without frames or predictor."""
    scores = rows.get("aesthetic", ()) if config.head else ()
    return {"aesthetic": float(np.mean(scores)) if len(scores) else float("nan")}


def mean_feature(rows: Columns) -> np.ndarray | None:
    """Return the mean feature of a clip's frames, float32 (features,) of length 1; None without
    frames.

    Args:
      rows: `feature` is an array (N, features), or N arrays.
    """
    features = rows.get("feature", ())
    if not len(features):
        return None
    mean = np.stack([np.asarray(feature, np.float32) for feature in features]).mean(axis=0)
    return mean / np.linalg.norm(mean)


def weights_digest(config: AestheticsConfig) -> str:
    """Return a hex digest of the bytes of both networks' files, "" without any.

    A path says little about what was measured with it: this belongs in the key of the measurements.
    A file is read once a process, and again when its size or time of change differ.

    Raises:
      UserError: a folder or file that is not there.
    """
    given = {"clip_dir": config.clip_dir, "head": config.head}
    lines = [
        f"{field} {_digest(file)}"
        for field, path in given.items()
        if path is not None
        for file in _files(field, pathlib.Path(path))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] if lines else ""


def _files(field: str, path: pathlib.Path) -> list[pathlib.Path]:
    """Return what is read of a network: a file, or those of a folder by name."""
    if not path.is_dir():
        return [path]
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    if not files:
        raise UserError(f"aesthetics.{field}={path} holds no safetensors and no config.json")
    return files


def _digest(path: pathlib.Path) -> str:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return _digest_of(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _digest_of(path: str, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


@functools.cache
def _encoder(clip_dir: str) -> Any:
    # Here, not above: all other stages work without JAX, and in processes that must not start it.
    from xgen_jax.models.clip import ImageEncoder
    from xgen_jax.weights.clip import load_clip_vision

    model, params = load_clip_vision(clip_dir)
    return ImageEncoder(model, params, BATCH)


@functools.cache
def _head(path: str, features: int) -> tuple[np.ndarray, float]:
    from xgen_jax.weights.clip import load_aesthetic_head

    return load_aesthetic_head(path, features)
