"""FVD, the Frechet distance of videos' I3D features (arXiv 1812.01717), by StyleGAN-V's protocol.

A clip's frames are resized so that the shorter side has 224 pixels (bilinear, half-pixel centres,
no antialiasing; the longer side rounded up), the centre 224x224 is cut out, pixels are in [-1, 1];
the 400 logits before the softmax are its features. Mean and unbiased covariance are accumulated in
float64, so any number of clips fits into memory.

Few clips make the figure large: covariances of fewer clips than features are singular. Length,
frame rate, resolution and the compression of the files change it more than models do: only figures
with the same of all of them can be compared.
"""

import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.data.pixels import check_clip
from xgen_jax.errors import UserError
from xgen_jax.evaluation.frechet import FeatureStatistics
from xgen_jax.models.i3d import I3D, LEAST_FRAMES, SIDE
from xgen_jax.parallel.agreement import gather, gather_arrays
from xgen_jax.typing import Array, Params, Video
from xgen_jax.weights.i3d import load_i3d

PREPROCESSING = "stylegan-v"
CONVENTION = (
    "Frechet distance of I3D logits (before the softmax), means and unbiased covariances in "
    f"float64; StyleGAN-V's preprocessing: uint8 frames to [0, 1], shorter side to {SIDE} by "
    f"bilinear interpolation (half-pixel centres, no antialiasing), centre {SIDE}x{SIDE}, [-1, 1]; "
    "0 is equal; figures of other lengths, frame rates, resolutions or numbers of clips do not "
    "compare"
)
_AT_ONCE = 8  # clips of a batch on the device; what is left goes one by one, without a new program


class FrechetVideoDistance:
    """FVD of two sets of clips that come one after another.

        fvd = FrechetVideoDistance("weights/i3d")
        for real, generated in pairs:
            fvd.update(real=real, generated=generated)
        fvd.result()["fvd"]

    Several processes (`jax.process_count()`) each update with their own clips; `result`, which all
    must call, is that of all clips.

    Args:
      weights: the folder of a converted I3D, see `weights.i3d`.

    Raises:
      UserError: no I3D in the folder.
    """

    def __init__(self, weights: str | os.PathLike):
        loaded = load_i3d(weights)
        self._model, self._params = loaded.model, jax.device_put(loaded.params)
        self._weights = {
            "source": loaded.source,
            "sha256": loaded.sha256,
            "checked_against_torch": dict(loaded.checked),
        }
        classes = loaded.model.config.classes
        self._sets = {name: FeatureStatistics(classes) for name in ("real", "generated")}
        self._sizes: dict[str, set[tuple[int, int]]] = {name: set() for name in self._sets}
        self._frames: int | None = None

    def update(self, real: Video | None = None, generated: Video | None = None) -> None:
        """Add clips to either set or to both.

        Args:
          real, generated: a clip uint8 (T, H, W, 3), or clips of one size (N, T, H, W, 3). All
            clips have the same length, of 10 frames or more; sizes may differ.

        Raises:
          UserError: another kind of array, a clip that is too short, or of another length.
        """
        for name, clips in (("real", real), ("generated", generated)):
            if clips is None:
                continue
            several = clips if getattr(clips, "ndim", 4) == 5 else [clips]
            for clip in several:
                self._check(name, clip)
            self._sets[name].update(i3d_features(self._model, self._params, np.stack([*several])))

    def result(self) -> dict[str, Any]:
        """Return the figure and what it depends on.

        Returns:
          fvd; clips_real, clips_generated; frames; size_real, size_generated ("HxW" each);
          preprocessing, convention; weights (source, sha256, checked_against_torch); notes,
          sentences on how far to trust the figure.

        Raises:
          UserError: fewer than two clips of either set, or lengths that differ between processes.
        """
        everyone = gather([self._frames, {n: sorted(s) for n, s in self._sizes.items()}])
        lengths = {frames for frames, _ in everyone if frames is not None}
        if len(lengths) > 1:
            raise UserError(f"FVD needs clips of one length; the processes have {sorted(lengths)}")
        merged = {name: _merged(statistics) for name, statistics in self._sets.items()}
        counts = {name: statistics.count for name, statistics in merged.items()}
        if min(counts.values()) < 2:
            raise UserError(
                "FVD needs 2 clips or more of each set, and says something from some hundred on; "
                f"there are {counts['real']} real and {counts['generated']} generated"
            )
        return {
            "fvd": merged["real"].distance(merged["generated"]),
            **{f"clips_{name}": count for name, count in counts.items()},
            "frames": lengths.pop(),
            **{
                f"size_{name}": sorted(
                    {f"{h}x{w}" for _, sizes in everyone for h, w in sizes[name]}
                )
                for name in self._sets
            },
            "preprocessing": PREPROCESSING,
            "convention": CONVENTION,
            "weights": self._weights,
            "notes": self._notes(min(counts.values())),
        }

    def _check(self, name: str, clip: Video) -> None:
        check_clip(clip, f"a {name} clip")
        frames = len(clip)
        if frames < LEAST_FRAMES:
            raise UserError(
                f"FVD needs clips of {LEAST_FRAMES} frames or more, which I3D can take; this "
                f"{name} one has {frames}"
            )
        if self._frames not in (None, frames):
            raise UserError(
                f"FVD needs clips of one length: this {name} one has {frames} frames, those before "
                f"it {self._frames}"
            )
        self._frames = frames
        self._sizes[name].add((clip.shape[1], clip.shape[2]))

    def _notes(self, fewest: int) -> list[str]:
        features, notes = self._model.config.classes, []
        if fewest <= features:
            notes.append(
                f"{fewest} clips for {features} features: a covariance is singular and the figure "
                "is biased; compare it only with figures of as many clips"
            )
        if not self._weights["checked_against_torch"]:
            notes.append(
                "the network was converted from a state dict, and was not compared with the torch "
                "module"
            )
        return notes


def _merged(statistics: FeatureStatistics) -> FeatureStatistics:
    """Return the statistics of all processes; all must call it."""
    total = FeatureStatistics(len(statistics.mean_D))
    # As bytes: a JAX array would round float64.
    for packed in gather_arrays(statistics.packed().view(np.uint8)):
        total.add_packed(np.ascontiguousarray(packed).view(np.float64))
    return total


def i3d_features(model: I3D, params: Params, clips_NTHWC: np.ndarray) -> np.ndarray:
    """Compute the features of clips of any size, uint8 (N, T, H, W, 3): float32 (N, classes)."""
    sizes = clips_NTHWC.shape[2:4]
    rows, columns = (resize_matrix(size, *sizes) for size in sizes)
    whole = len(clips_NTHWC) // _AT_ONCE * _AT_ONCE
    starts = [*range(0, whole, _AT_ONCE), *range(whole, len(clips_NTHWC))]
    features = [np.zeros((0, model.config.classes), np.float32)]
    for start, end in zip(starts, [*starts[1:], len(clips_NTHWC)]):
        x = preprocess(clips_NTHWC[start:end], rows, columns)
        features.append(np.asarray(_features(model, params, x)))
    return np.concatenate(features)


def resize_matrix(size: int, height: int, width: int) -> np.ndarray:
    """Return the weights (224, size) that resize and cut one side of frames of height x width.

    As torch's `interpolate(mode="bilinear", align_corners=False)` and a centre crop do it.
    """
    shorter = min(height, width)
    long = SIDE if size == shorter else math.ceil(size * (SIDE / shorter))
    first = (long - SIDE) // 2
    places = np.maximum((np.arange(first, first + SIDE) + 0.5) * (size / long) - 0.5, 0)
    below = np.minimum(places.astype(int), size - 1)
    above, part = np.minimum(below + 1, size - 1), places - below
    matrix, row = np.zeros((SIDE, size)), np.arange(SIDE)
    np.add.at(matrix, (row, below), 1 - part)
    np.add.at(matrix, (row, above), part)
    return matrix.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _features(model: I3D, params: Params, x_NTHWC: Array) -> Array:
    # A published figure must not depend on whether the device rounds its products.
    with jax.default_matmul_precision("highest"):
        logits_NC = model.apply(params, x_NTHWC)
    assert isinstance(logits_NC, jax.Array)
    return logits_NC


@jax.jit
def preprocess(clips_NTHWC: Array, rows: Array, columns: Array) -> Array:
    """Resize and cut uint8 clips with the matrices of `resize_matrix`: (N, T, 224, 224, 3) in
    [-1, 1]."""
    x = clips_NTHWC.astype(jnp.float32) / 255
    with jax.default_matmul_precision("highest"):
        x = jnp.einsum("yh,nthwc->ntywc", rows, x)
        return 2 * (jnp.einsum("xw,ntywc->ntyxc", columns, x) - 0.5)
