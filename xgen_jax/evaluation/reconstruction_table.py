"""Scores of reconstructions at several clip shapes as a Markdown table, next to the paper's."""

from collections.abc import Sequence
from typing import Any

from xgen_jax.data.buckets import Shape, parse_shapes

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
    "ssim": ("SSIM", ".4f"),
    "mse": ("MSE", ".5f"),
    "sharpness": ("sharpness", ".3f"),
    "blockiness": ("blockiness", ".3f"),
    "lpips_vgg": ("LPIPS, VGG16", ".4f"),
    "lpips_alex": ("LPIPS, AlexNet", ".4f"),
}


def expand_shapes(shapes: Sequence[str]) -> list[Shape]:
    """Parse clip shapes with `parse_shapes`; "paper" stands for the paper's three."""
    return parse_shapes(
        [
            one
            for entry in shapes
            for one in (PAPER if entry.strip().lower() == "paper" else [entry])
        ]
    )


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Format the results of `evaluate_reconstruction` as Markdown.

    Args:
      entries: one a shape: `shape` ("9x32x32"), `clips`, `mean`, `worst`.

    Returns:
      The table, the paper's figures in it where a shape is one of the paper's, and the worst clips
      of each shape.
    """
    columns = {
        key: column
        for key, column in COLUMNS.items()
        if any(key in entry["mean"] for entry in entries)
    }
    paper = any(entry["shape"] in PAPER for entry in entries)
    head = ["frames x height x width", "clips", *(title for title, _ in columns.values())]
    rows = [head + ["paper: PSNR / SSIM / MSE"] * paper]
    rows.append(["---"] * len(rows[0]))
    for entry in entries:
        cells = [
            f"{entry['mean'][key]:{form}}" if key in entry["mean"] else "–"
            for key, (_, form) in columns.items()
        ]
        theirs = PAPER.get(entry["shape"])
        paper_cell = ["–" if theirs is None else "{:.2f} / {:.3f} / {:.5f}".format(*theirs)] * paper
        rows.append([entry["shape"], str(entry["clips"]), *cells, *paper_cell])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if paper:
        lines += ["", PAPER_NOTE]
    lines += ["", "Worst clips by PSNR, worst first:", ""]
    lines += [f"- {entry['shape']}: {'; '.join(entry['worst'])}" for entry in entries]
    return "\n".join(lines) + "\n"
