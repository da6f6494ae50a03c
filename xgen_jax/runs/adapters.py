"""Adapters on disk: written by a run that trained one, and merged into their base."""

import os
import pathlib

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.lora import merge
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.parallel.agreement import is_first
from xgen_jax.runs.folder import ADAPTER, RunFolder
from xgen_jax.typing import Params
from xgen_jax.weights.lora import read_adapter, write_adapter


def store_adapter(folder: RunFolder) -> None:
    """Write the EMA adapter of a run with `lora` as a file of its own next to the checkpoints."""
    checkpoints, lora = folder.checkpoints(), folder.config().adapter
    assert lora is not None
    base = checkpoints.restore_data()["fingerprints"]["base"]
    adapter = checkpoints.restore_part(("ema", "lora"))
    if is_first():
        write_adapter(folder.path / ADAPTER, adapter, lora, base, overwrite=True)


def with_adapter(params: Params, model: VDiTConfig, adapter: str | os.PathLike) -> Params:
    """Merge an adapter into the EMA parameters of its base.

    Args:
      params: from `RunFolder.ema_params`.
      model: the base's.
      adapter: FILE, or FILE:SCALE to scale the adapter; FILE may be the folder of a run with
        `lora`.

    Raises:
      UserError: a scale that is not a number; whatever `weights.lora.read_adapter` refuses.
    """
    file, colon, weight = str(adapter).rpartition(":")
    if not colon or pathlib.Path(adapter).exists():
        file, weight = str(adapter), "1"
    try:
        scale = float(weight)
    except ValueError:
        scale = np.nan
    if not np.isfinite(scale):
        raise UserError(
            f"the adapter {adapter} must be FILE or FILE:SCALE, and {weight!r} is not a number"
        )
    lora, trained = read_adapter(file, params, fingerprint(model, params))
    return merge(params, jax.device_put(trained), scale * lora.scale)
