"""What the scores of many reconstructed clips come to: means, their errors, curves over frames."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xgen_jax.evaluation.seams import seam_figures
from xgen_jax.evaluation.ssim import MS_LEAST

# Figures of a clip that are averaged, in the order of reports; a learned distance comes after them.
MEANS = (
    "psnr_db",
    "psnr_of_mean_mse_db",
    "ssim",
    "ms_ssim",
    "mse",
    "sharpness",
    "blockiness",
)
BY_FRAME = ("psnr_db", "ssim", "sharpness")
FEW_CLIPS = 30  # of fewer a mean is said to be rough
_GRAIN, _BLUR, _MESH, _SEAM = 1.15, 0.85, 1.1, 1.25  # from where on a figure is remarked on


def summarise(
    rows: Sequence[Mapping[str, Any]], chunk_starts: Callable[[int], Sequence[int]] | None = None
) -> dict[str, Any]:
    """Summarise the rows of clips, see `reconstruction.compare`.

    Args:
      rows: one a clip, at least one.
      chunk_starts: frames of a clip -> the frames at which a chunk begins, but the first.

    Returns:
      `mean`: of each metric that all clips have, over clips.
      `standard_error`: of each mean, the deviation of the clips over the root of their number; {}
        of a single clip.
      `by_frame`: lists by the frame's number, over the clips that have that frame: `clips`
        (count), the means `psnr_db`, `ssim`, `sharpness`, and `change` (see `seams.CHANGE`; None
        for the first frame and where no original changes); and `chunk_starts` of the longest clip.
      `seams`: see `seams.seam_figures`; without `chunk_starts` absent.
      `not_computed`: {metric: reason} of metrics that these clips cannot have.
      `notes`: sentences on figures that are easily misread.
    """
    names = [name for name in _names(rows[0]) if all(name in row for row in rows)]
    values = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    mean = {name: math.fsum(x) / len(rows) for name, x in values.items()}
    errors = {}
    if len(rows) > 1:
        errors = {name: float(x.std(ddof=1) / math.sqrt(len(rows))) for name, x in values.items()}
    summary: dict[str, Any] = {"mean": mean, "standard_error": errors}
    starts = (lambda frames: ()) if chunk_starts is None else chunk_starts
    summary["by_frame"] = _by_frame(rows, starts)
    if chunk_starts is not None:
        clips = [
            (row["original_change_frames"], row["change_frames"], chunk_starts(row["frames"]))
            for row in rows
        ]
        summary["seams"] = seam_figures(clips)
    summary["not_computed"] = {}
    if "ms_ssim" not in mean:
        small = min(min(row["height"], row["width"]) for row in rows)
        summary["not_computed"]["ms_ssim"] = (
            f"five scales of an 11x11 window need sides of {MS_LEAST} pixels or more; the shortest "
            f"here has {small}"
        )
    summary["notes"] = notes(len(rows), mean, errors, summary.get("seams", {}))
    return summary


def notes(
    clips: int,
    mean: Mapping[str, float],
    errors: Mapping[str, float],
    seams: Mapping[str, Any],
) -> list[str]:
    """Return sentences on figures that are easily misread, with the figure in each."""
    lines = []
    if clips == 1:
        lines.append("One clip: its figures say little of others.")
    elif clips < FEW_CLIPS:
        lines.append(
            f"{clips} clips: the mean PSNR has a standard error of {errors['psnr_db']:.2f} dB."
        )
    if (sharpness := mean["sharpness"]) > _GRAIN:
        lines.append(
            f"Sharpness {sharpness:.2f} is grain or ringing, not detail: neighbouring pixels "
            "differ by more than in the originals, where it is 1."
        )
    elif sharpness < _BLUR:
        lines.append(f"Sharpness {sharpness:.2f} is blur: the originals have 1.")
    if (blockiness := mean.get("blockiness", 1.0)) > _MESH:
        lines.append(
            f"Blockiness {blockiness:.2f} is a mesh of the decoder's patches: 1 is natural."
        )
    if (ratio := seams.get("seam_ratio", 1.0)) > _SEAM:
        lines.append(
            f"Seam ratio {ratio:.2f}: the video jumps between chunks of latents; 1 is natural."
        )
    return lines


def _names(row: Mapping[str, Any]) -> list[str]:
    """Names of the figures of a clip."""
    learned = [name for name in row if name not in MEANS and f"{name}_frames" in row]
    return [*MEANS, *learned]


def _by_frame(
    rows: Sequence[Mapping[str, Any]], chunk_starts: Callable[[int], Sequence[int]]
) -> dict[str, Any]:
    longest = max(row["frames"] for row in rows)
    counts = [sum(row["frames"] > frame for row in rows) for frame in range(longest)]
    curves: dict[str, Any] = {"clips": counts, "chunk_starts": list(chunk_starts(longest))}
    for name in BY_FRAME:
        sums = _sums([row[f"{name}_frames"] for row in rows], longest)
        curves[name] = (sums / counts).tolist()
    wanted, got = (
        _sums([row[name] for row in rows], longest - 1)
        for name in ("original_change_frames", "change_frames")
    )
    curves["change"] = [
        None,
        *(b / a if a else None for a, b in zip(wanted.tolist(), got.tolist())),
    ]
    return curves


def _sums(lists: Sequence[Sequence[float]], length: int) -> np.ndarray:
    """Sum of lists of different lengths, place by place."""
    total = np.zeros(length)
    for values in lists:
        total[: len(values)] += values
    return total
