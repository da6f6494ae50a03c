"""Reconstruction metrics of uint8 videos, in NumPy: PSNR, SSIM, MS-SSIM, MSE and what they hide.

What a viewer sees is compared: both videos are uint8, so a model's floats are rounded and clipped
first.

    PSNR = 10 log10(255^2 / MSE)

of each frame; the mean over frames of the PSNR and the PSNR of the mean MSE are two figures, by
Jensen's inequality the first the higher, and both are reported by their names. MSE is on the
[-1, 1] scale, which is the one consistent with the xGen-VideoSyn-1 paper's table 3
(arXiv 2408.12590). SSIM and MS-SSIM are in `evaluation.ssim`; sharpness and blockiness, which show
what those do not, in `evaluation.artifacts`; the change at chunk borders in `evaluation.seams`.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from xgen_jax.data.pixels import check_pair
from xgen_jax.errors import UserError
from xgen_jax.evaluation.artifacts import BLOCKINESS, SHARPNESS, BlockSums, sharpness_frames
from xgen_jax.evaluation.reconstruction_summary import summarise
from xgen_jax.evaluation.seams import CHANGE, SEAM_RATIO, frame_differences
from xgen_jax.evaluation.ssim import DATA_RANGE, MS_LEAST, ssim_frame
from xgen_jax.parallel.agreement import gather

# Identical frames have an infinite PSNR, which neither a mean nor JSON can hold. Means take at most
# this much.
PSNR_CAP_DB = 100.0
MSE_TO_UNIT = (2.0 / DATA_RANGE) ** 2  # from the 0..255 scale to [-1, 1]

CONVENTIONS = {
    "pixels": "both videos as uint8 RGB 0..255: a model's output is clipped and rounded first",
    "psnr_db": f"uint8, range 255, per frame, capped at {PSNR_CAP_DB:g} dB, mean over frames, "
    f"then over clips",
    "psnr_of_mean_mse_db": "PSNR of a clip's mean MSE, then mean over clips; at most psnr_db, by "
    "Jensen's inequality",
    "ssim": "uint8 RGB, 11x11 Gaussian, sigma 1.5, K 0.01 and 0.03, valid region, mean over "
    "channels and frames, then over clips",
    "ms_ssim": "five scales with weights 0.0448, 0.2856, 0.3001, 0.2363, 0.1333, window and K as "
    "of ssim, 2x2 means between scales, mean over channels and frames, then over clips; of frames "
    f"with sides of {MS_LEAST} pixels or more",
    "mse": "on the [-1, 1] scale",
    "sharpness": SHARPNESS,
}

Video = np.ndarray  # uint8 (T, H, W, 3); not from xgen_jax.typing, which would import JAX


class FrameDistance(Protocol):
    """Learned distance of two uint8 videos (T, H, W, 3), frame by frame: (T,), 0 where equal.

    Attributes:
      name: key in the results.
      convention: definition of the figure, for reports.
    """

    @property
    def name(self) -> str: ...

    @property
    def convention(self) -> str: ...

    def __call__(self, a: Video, b: Video) -> np.ndarray: ...


class SetDistance(Protocol):
    """Distance of the set of reconstructions to the set of originals, such as rFVD.

    Attributes:
      name: key in the results.
      convention: definition of the figure, for reports.
    """

    @property
    def name(self) -> str: ...

    @property
    def convention(self) -> str: ...

    def add(self, original: Video, reconstruction: Video) -> None:
        """Add a clip and its reconstruction, uint8 (T, H, W, 3)."""

    def result(self) -> Mapping[str, Any]:
        """Return the distance of all clips so far, those of all processes together.

        Returns:
          `value`, and what it depends on, ready for JSON; `notes`, sentences on how far to trust
          it, if any.

        Raises:
          UserError: fewer clips than it needs.
        """
        ...


def psnr_frames(a: Video, b: Video) -> np.ndarray:
    """Compute the peak signal-to-noise ratio of each frame.

    Args:
      a, b: uint8 (T, H, W, 3).

    Returns:
      float64 (T,) in dB; infinite where the frames are identical.

    Raises:
      UserError: not two uint8 videos of one shape.
    """
    return _psnr(_mse_frames(a, b))


def ssim_frames(a: Video, b: Video) -> np.ndarray:
    """Compute the structural similarity of each frame; see `evaluation.ssim`.

    Args:
      a, b: uint8 (T, H, W, 3), H and W at least 11.

    Returns:
      float64 (T,) in [-1, 1]; 1 where the frames are identical.

    Raises:
      UserError: not two uint8 videos of one shape, or frames smaller than the window.
    """
    check_pair(a, b)
    return np.array([ssim_frame(x, y)[0] for x, y in zip(a, b, strict=True)])


class ClipScores:
    """All metrics of one clip, which may come in parts, one after another.

    Args:
      lpips: a learned distance to report as well.
      patch: pixels a side of the patches that the decoder puts together, to report `blockiness`.

    Attributes:
      changes: frame differences of the original and of the reconstruction, see
        `seams.frame_differences`.
    """

    def __init__(self, lpips: FrameDistance | None = None, patch: int | None = None):
        self._lpips = lpips
        self._blocks = None if patch is None else BlockSums(patch)
        self._last: tuple[Video, Video] | None = None  # frames, for the change to the next
        self._psnr_db_sum = 0.0
        self._mse, self._ssim, self._ms_ssim = [], [], []
        self._sharpness, self._lpips_frames = [], []
        self.changes: tuple[list[float], list[float]] = ([], [])

    def add(self, original: Video, reconstruction: Video) -> None:
        """Add the next frames of both: uint8 (T, H, W, 3), H and W at least 11.

        Raises:
          UserError: not two uint8 videos of one shape, or frames smaller than SSIM's window; what
            `lpips` raises.
        """
        mse = _mse_frames(original, reconstruction)
        self._mse += mse.tolist()
        self._psnr_db_sum += float(np.minimum(_psnr(mse), PSNR_CAP_DB).sum())
        similar = [ssim_frame(x, y) for x, y in zip(original, reconstruction, strict=True)]
        self._ssim += [one for one, _ in similar]
        self._ms_ssim += [several for _, several in similar if several is not None]
        self._sharpness += sharpness_frames(original, reconstruction).tolist()
        if self._blocks is not None:
            self._blocks.add(original, reconstruction)
        if self._lpips is not None:
            distances = np.asarray(self._lpips(original, reconstruction), np.float64)
            self._lpips_frames += distances.tolist()
        before = self._last or (original[:0], reconstruction[:0])
        for changes, last, frames in zip(self.changes, before, (original, reconstruction)):
            changes += frame_differences(np.concatenate([last, frames])).tolist()
        self._last = original[-1:], reconstruction[-1:]

    @property
    def psnr_db(self) -> float:
        """Mean PSNR of the frames so far, a frame counting for at most 100 dB."""
        return self._psnr_db_sum / len(self._mse)

    def means(self) -> dict[str, float]:
        """Return the figures of the frames so far by name; see `compare`."""
        mse = np.array(self._mse)
        result = {
            "psnr_db": self.psnr_db,
            "psnr_of_mean_mse_db": min(float(_psnr(mse.mean())), PSNR_CAP_DB),
            "ssim": float(np.mean(self._ssim)),
        }
        if self._ms_ssim:
            result["ms_ssim"] = float(np.mean(self._ms_ssim))
        result |= {
            "mse": float(mse.mean() * MSE_TO_UNIT),
            "sharpness": float(np.mean(self._sharpness)),
        }
        if self._blocks is not None:
            result["blockiness"] = self._blocks.blockiness
        if self._lpips is not None:
            result[self._lpips.name] = float(np.mean(self._lpips_frames))
        return result

    def result(self) -> dict[str, Any]:
        """Return the figures and their values frame by frame; see `compare`."""
        mse = np.array(self._mse)
        result = {
            **self.means(),
            "identical_frames": int((mse == 0).sum()),
            "psnr_db_frames": np.minimum(_psnr(mse), PSNR_CAP_DB).tolist(),
            "ssim_frames": self._ssim,
            "mse_frames": (mse * MSE_TO_UNIT).tolist(),
            "sharpness_frames": self._sharpness,
            "original_change_frames": self.changes[0],
            "change_frames": self.changes[1],
        }
        if self._ms_ssim:
            result["ms_ssim_frames"] = self._ms_ssim
        if self._lpips is not None:
            result[f"{self._lpips.name}_frames"] = self._lpips_frames
        return result


def compare(
    original: Video,
    reconstruction: Video,
    lpips: FrameDistance | None = None,
    patch: int | None = None,
) -> dict[str, Any]:
    """Compute all metrics of one clip.

    Args:
      original, reconstruction: uint8 (T, H, W, 3), H and W at least 11.
      lpips: a learned distance to report as well.
      patch: pixels a side of the patches that the decoder puts together, to report `blockiness`.

    Returns:
      `psnr_db` (mean over frames, a frame counting for at most 100 dB: identical frames have no
      finite PSNR), `psnr_of_mean_mse_db` (the PSNR of the clip's mean MSE, capped likewise; never
      above `psnr_db` without the cap), `ssim` (mean over frames), `ms_ssim` (likewise; absent of
      frames with a side under 161 pixels), `mse` (mean, [-1, 1] scale), `sharpness` (mean over
      frames), `identical_frames` (count), and the lists `psnr_db_frames`, `ssim_frames`,
      `ms_ssim_frames`, `mse_frames`, `sharpness_frames`, and of T - 1 entries, the mean absolute
      difference of a frame to the one before in levels of 255, `original_change_frames` and
      `change_frames` (of the reconstruction); with `lpips` its mean and list under its name; with
      `patch` `blockiness`. All finite.

    Raises:
      UserError: as `psnr_frames` and `ssim_frames`; what `lpips` raises.
    """
    scores = ClipScores(lpips, patch)
    scores.add(original, reconstruction)
    return scores.result()


def evaluate_reconstruction(
    reconstruct: Callable[[Video], Video],
    clips: Iterable[tuple[str, Video]],
    visit: Callable[[dict[str, Any], Video, Video], None] | None = None,
    worst: int = 5,
    lpips: FrameDistance | None = None,
    patch: int | None = None,
    chunk_starts: Callable[[int], Sequence[int]] | None = None,
    sets: Sequence[SetDistance] = (),
) -> dict[str, Any]:
    """Reconstruct every clip and score it; one clip is in memory at a time.

    Several processes give their own clips each, in turns: of n, process p has the clips p, p + n,
    ... The result is that of all.

    Args:
      reconstruct: video -> video of the same shape, both uint8 (T, H, W, 3).
      clips: (name, video) pairs, at least one in all.
      visit: called with each clip's row, original and reconstruction, to save them or to show
        progress; it may add entries to the row, such as the `file` it wrote.
      worst: number of clips with the lowest PSNR to list.
      lpips: a learned distance to report as well, under its name.
      patch: as of `compare`.
      chunk_starts: frames of a clip -> the frames at which a chunk begins, but the first; to report
        the seam ratio.
      sets: distances of all reconstructions to all originals to report as well, under their names.

    Returns:
      `clips` (count), `mean` (of each metric, over clips), `worst` (names, worst first),
      `conventions` (definitions of the metrics) and `videos`, one row a clip: `name`, `frames`,
      `height`, `width` and all of `compare`. Also what `reconstruction_summary.summarise` returns,
      and `sets`, {name of a distance: its result}.

    Raises:
      UserError: no clips, or a clip that cannot be compared; the message names it. What a distance
        of sets raises.
    """
    rows: list[dict[str, Any]] = []
    for name, original in clips:
        reconstruction = reconstruct(original)
        try:
            result = compare(original, reconstruction, lpips, patch)
            for distance in sets:
                distance.add(original, reconstruction)
        except UserError as error:
            raise UserError(f"clip {name!r}: {error}") from error
        frames, height, width, _ = original.shape
        row = {"name": name, "frames": frames, "height": height, "width": width, **result}
        if visit is not None:
            visit(row, original, reconstruction)
        rows.append(row)
    turns = itertools.zip_longest(*gather(rows))
    rows = [row for turn in turns for row in turn if row is not None]
    if not rows:
        raise UserError("no clips to reconstruct: the data is empty, or every clip was left out")
    conventions = dict(CONVENTIONS)
    if patch is not None:
        conventions["blockiness"] = BLOCKINESS.format(patch=patch)
    if lpips is not None:
        conventions[lpips.name] = lpips.convention
    if chunk_starts is not None:
        conventions |= {"change": CHANGE, "seam_ratio": SEAM_RATIO}
    conventions |= {distance.name: distance.convention for distance in sets}
    order = sorted(range(len(rows)), key=lambda number: rows[number]["psnr_db"])[:worst]
    summary = summarise(rows, chunk_starts)
    together = {distance.name: dict(distance.result()) for distance in sets}
    for name, found in together.items():
        summary["notes"] += [f"{name}: {note}." for note in found.pop("notes", ())]
    return {
        "clips": len(rows),
        **summary,
        "sets": together,
        "worst": [rows[number]["name"] for number in order],
        "worst_clips": [
            {"clip": number, **{key: rows[number][key] for key in ("name", "psnr_db", "ssim")}}
            for number in order
        ],
        "conventions": conventions,
        "videos": rows,
    }


def side_by_side(original: Video, reconstruction: Video, separator: int = 2) -> Video:
    """Join two videos: the original on the left, a grey line, the reconstruction on the right.

    Args:
      original, reconstruction: uint8 (T, H, W, 3).
      separator: width of the line in pixels, even, since the common video formats need an even
        width.

    Returns:
      uint8 (T, H, 2 W + separator, 3).

    Raises:
      UserError: not two uint8 videos of one shape, or an odd separator.
    """
    check_pair(original, reconstruction)
    if separator < 0 or separator % 2:
        raise UserError(
            f"the separator is {separator} pixels wide; it must be even and not negative"
        )
    frames, height, _, channels = original.shape
    line = np.full((frames, height, separator, channels), 128, np.uint8)
    return np.concatenate([original, line, reconstruction], axis=2)


def _mse_frames(a: Video, b: Video) -> np.ndarray:
    """Mean squared difference of each frame on the 0..255 scale, float64 (T,)."""
    check_pair(a, b)  # whole numbers below: the sums are exact
    return np.array([np.square(x.astype(np.int64) - y).mean() for x, y in zip(a, b, strict=True)])


def _psnr(mse: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(DATA_RANGE**2 / mse)
