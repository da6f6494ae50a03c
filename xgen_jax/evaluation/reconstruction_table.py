"""Scores of reconstructions at several clip shapes as a Markdown table, next to the paper's."""

from collections.abc import Sequence
from typing import Any

from xgen_jax.data.buckets import Shape, parse_shapes, shape_name
from xgen_jax.errors import UserError
from xgen_jax.evaluation.ssim import WINDOW

# VidVAE's row of table 3 of arXiv 2408.12590: clip shape -> PSNR in dB, SSIM, MSE on the [-1, 1]
# scale.
PAPER = {
    "1x768x768": (39.41, 0.971, 0.00082),
    "17x512x512": (33.83, 0.935, 0.00281),
    "65x256x256": (29.68, 0.879, 0.00780),
}
PAPER_NOTE = (
    "The paper's column is VidVAE in table 3 of arXiv 2408.12590: means over 1,000 clips of "
    "Kinetics and OpenVid-1M. The clips here are others, so the two columns are not a comparison "
    "of models."
)
COLUMNS = {
    "psnr_db": ("PSNR, dB", ".2f"),
    "psnr_of_mean_mse_db": ("PSNR of mean MSE, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "mse": ("MSE", ".5f"),
    "sharpness": ("sharpness", ".3f"),
    "blockiness": ("blockiness", ".3f"),
    "seam_ratio": ("seam ratio", ".3f"),
    "lpips_vgg": ("LPIPS, VGG16", ".4f"),
    "lpips_alex": ("LPIPS, AlexNet", ".4f"),
    "rfvd": ("rFVD", ".1f"),
}
READING = (
    "PSNR is the mean over frames, then over clips; all of 8-bit RGB. Higher is better for PSNR, "
    "SSIM and MS-SSIM, lower for MSE, LPIPS and rFVD. Sharpness, blockiness and seam ratio are "
    "natural at 1: less sharpness is blur and more is grain, more blockiness is a mesh, a higher "
    "seam ratio is a jump between chunks of latents."
)


def expand_shapes(shapes: Sequence[str]) -> list[Shape]:
    """Parse clip shapes with `parse_shapes`; "paper" stands for the paper's three."""
    return parse_shapes(
        [
            one
            for entry in shapes
            for one in (PAPER if entry.strip().lower() == "paper" else [entry])
        ]
    )


def check_sides(shapes: Sequence[Shape]) -> None:
    """Raise UserError for a shape whose frames cannot be scored."""
    for shape in shapes:
        if min(shape[1:]) < WINDOW:
            raise UserError(
                f"frames of {shape_name(shape)} cannot be scored: SSIM's window takes "
                f"{WINDOW}x{WINDOW} pixels; give --shapes with sides of {WINDOW} or more"
            )


def figures(entry: dict[str, Any]) -> dict[str, float]:
    """Return all figures of a shape by name: means over clips, and those of all clips together."""
    seams = {key: x for key, x in entry.get("seams", {}).items() if key == "seam_ratio"}
    sets = {name: found["value"] for name, found in entry.get("sets", {}).items()}
    return {**entry["mean"], **seams, **sets}


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Format the results of `evaluate_reconstruction` as Markdown.

    Args:
      entries: one a shape: `shape` ("9x32x32"), `clips`, `mean`, `worst`; and where there are any
        `seams`, `sets`, `notes` and `not_computed`.

    Returns:
      The table, the paper's figures in it where a shape is one of the paper's, how to read it, what
      is easily misread, and the worst clips of each shape.
    """
    columns = {
        key: column
        for key, column in COLUMNS.items()
        if any(key in figures(entry) for entry in entries)
    }
    paper = any(entry["shape"] in PAPER for entry in entries)
    head = ["frames x height x width", "clips", *(title for title, _ in columns.values())]
    rows = [head + ["paper: PSNR / SSIM / MSE"] * paper]
    rows.append(["---"] * len(rows[0]))
    for entry in entries:
        cells = [
            f"{figures(entry)[key]:{form}}" if key in figures(entry) else "–"
            for key, (_, form) in columns.items()
        ]
        theirs = PAPER.get(entry["shape"])
        paper_cell = ["–" if theirs is None else "{:.2f} / {:.3f} / {:.5f}".format(*theirs)] * paper
        rows.append([entry["shape"], str(entry["clips"]), *cells, *paper_cell])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if paper:
        lines += ["", PAPER_NOTE]
    lines += ["", READING]
    remarks = [
        f"- {entry['shape']}: {note}" for entry in entries for note in entry.get("notes", ())
    ]
    remarks += [
        f"- {entry['shape']}: no {COLUMNS[key][0]}: {reason}."
        for entry in entries
        for key, reason in _missing(entry).items()
    ]
    lines += ["", *remarks] if remarks else []
    lines += ["", "Worst clips by PSNR, worst first:", ""]
    lines += [f"- {entry['shape']}: {'; '.join(_worst(entry))}" for entry in entries]
    return "\n".join(lines) + "\n"


def _missing(entry: dict[str, Any]) -> dict[str, str]:
    seams = entry.get("seams", {})
    no_seams = {"seam_ratio": seams["missing"]} if "missing" in seams else {}
    return {**entry.get("not_computed", {}), **no_seams}


def _worst(entry: dict[str, Any]) -> list[str]:
    if "worst_clips" not in entry:
        return entry["worst"]
    return [
        f"{clip['name']} ({clip['psnr_db']:.2f} dB{', ' if 'file' in clip else ''}"
        f"{clip.get('file', '')})"
        for clip in entry["worst_clips"]
    ]
