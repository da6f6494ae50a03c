"""Where a suite writes its results."""

import os
import pathlib

from xgen_jax.errors import UserError

SHOWN = 64  # videos kept with the figures
WORST = 5  # clips with the lowest PSNR, kept as well whatever their numbers


def results_folder(out: str | os.PathLike, name: str) -> pathlib.Path:
    folder = pathlib.Path(out) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({error.strerror})") from error
    return folder
