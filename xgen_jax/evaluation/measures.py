"""The figures of evaluations: their names, how they are written, and which of two is better. What
they mean to a reader stands in `templates/meanings.html.j2`, by the same keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from xgen_jax.evaluation.page import figure
from xgen_jax.evaluation.reconstruction_table import COLUMNS, figures

HIGHER, LOWER, ONE = "higher", "lower", "near 1"
BETTER = {
    **dict.fromkeys(("psnr_db", "psnr_of_mean_mse_db", "ssim", "ms_ssim"), HIGHER),
    **dict.fromkeys(("mse", "lpips_vgg", "lpips_alex", "rfvd"), LOWER),
    **dict.fromkeys(("sharpness", "blockiness", "seam_ratio"), ONE),
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A kind of figure.

    Attributes:
      name: a word or two, with the unit.
      form: of the number.
      better: "higher", "lower", "near 1", or "" where neither is.
    """

    name: str
    form: str = ""
    better: str = ""

    def show(self, value: Any) -> str:
        """Format a value; a dash where there is none."""
        return figure(value, self.form)


RECONSTRUCTION = {key: Measure(*column, BETTER.get(key, "")) for key, column in COLUMNS.items()}


def reconstruction_figures(shape: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the figures of a clip shape of reconstruction.json, by `RECONSTRUCTION`'s keys."""
    found = figures({"mean": {}, **(shape or {})})
    return {key: found[key] for key in RECONSTRUCTION if key in found}
