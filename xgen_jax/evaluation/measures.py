"""The figures of evaluations: their names and how they are written. What they mean to a reader
stands in `templates/meanings.html.j2`, by the same keys."""

import dataclasses
from typing import Any

from xgen_jax.evaluation.page import figure

HIGHER, LOWER, ONE = "higher", "lower", "near 1"


@dataclasses.dataclass(frozen=True)
class Measure:
    """A kind of figure.

    Attributes:
      name: a word or two.
      form: of the number.
      unit: with a space before it.
      better: "higher", "lower", "near 1", or "" where neither is.
    """

    name: str
    form: str = ".3f"
    unit: str = ""
    better: str = ""

    def show(self, value: Any) -> str:
        """Format a value with its unit."""
        return figure(value, self.form, self.unit)


# By their names in reconstruction.json.
RECONSTRUCTION = {
    "psnr_db": Measure("PSNR", ".2f", " dB", HIGHER),
    "psnr_of_mean_mse_db": Measure("PSNR of the mean error", ".2f", " dB", HIGHER),
    "ssim": Measure("SSIM", ".4f", "", HIGHER),
    "ms_ssim": Measure("MS-SSIM", ".4f", "", HIGHER),
    "mse": Measure("MSE in [-1, 1]", ".5f", "", LOWER),
    "sharpness": Measure("sharpness", ".2f", "", ONE),
    "blockiness": Measure("blockiness", ".2f", "", ONE),
    "seam_ratio": Measure("seam ratio", ".2f", "", ONE),
    "rfvd": Measure("rFVD", ".1f", "", LOWER),
}


def of_reconstruction(name: str) -> Measure:
    """Return what a figure of reconstruction.json is, by its name there."""
    shown = name.replace("_", " ").replace("lpips", "LPIPS")
    better = LOWER if name.startswith("lpips") else ""
    return RECONSTRUCTION.get(name) or Measure(shown, ".4f", "", better)
