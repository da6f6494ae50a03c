"""An adapter and its base: what a run with `lora` stands on, what it leaves, and the way back into the base."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import EXECUTION, fingerprint
from xgen_jax.models.lora import adapter_shapes, merge
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.training.config import RunConfig, VDiTRun, differing_keys
from xgen_jax.training.objectives.lora import LoRAObjective
from xgen_jax.training.objectives.vdit import VDiTObjective
from xgen_jax.training.run_folder import ADAPTER, RunFolder
from xgen_jax.training.start import starting_params
from xgen_jax.typing import Params
from xgen_jax.weights.lora import read_adapter, write_adapter


def adapted(config: VDiTRun, objective: VDiTObjective) -> LoRAObjective:
    """The objective of a run with `lora`, its base loaded.

    Raises:
      UserError: no such base, one that has an adapter itself, or one of another network or text encoder than the run's.
    """
    where, other = f"init_from={config.init_from}", RunFolder(config.init_from).config()
    if getattr(other, "lora", None):
        raise UserError(f"{where} holds an adapter; make a base of it with launch/convert.py --kind=lora")
    # Converted weights have no text encoder: any will do that fits.
    parts = [part for part in ("model", "text") if hasattr(other, part)]
    if differing := differing_keys(_parts(other, parts), _parts(config, parts)):
        listed = "\n  ".join(differing)
        raise UserError(f"{where} is no base for this run (there -> here):\n  {listed}")
    base = starting_params(config)
    if config.text.kind == "bytes" and "text" not in base:
        raise UserError(f"{where} holds no text encoder, and text.kind='bytes' is trained along: give a vdit run")
    adapter_shapes(config.lora, base)  # a rule or a rank that does not fit is told before anything is made
    return LoRAObjective(base=objective, lora=config.lora, frozen=base, fingerprint=fingerprint(config.model, base))


def store_adapter(folder: RunFolder) -> None:
    """Writes what a run with `lora` has trained, averaged, as a file of its own beside the checkpoints."""
    checkpoints, lora = folder.checkpoints(), folder.config().lora
    base = checkpoints.restore_data()["fingerprints"]["base"]
    adapter = checkpoints.restore_part(("ema", "lora"))
    if jax.process_index() == 0:
        write_adapter(folder.path / ADAPTER, adapter, lora, base, overwrite=True)


def with_adapter(params: Params, model: VDiTConfig, adapter: str | os.PathLike) -> Params:
    """A base's averaged parameters, moved by an adapter.

    Args:
      params: all of them, as `RunFolder.averaged` gives them.
      model: the base's.
      adapter: FILE, or FILE:SCALE to weigh what the adapter does; a folder of a run with `lora` in place of the file.

    Raises:
      UserError: a scale that is no number; whatever `weights.lora.read_adapter` refuses.
    """
    file, colon, weight = str(adapter).rpartition(":")
    if not colon or pathlib.Path(adapter).exists():
        file, weight = str(adapter), "1"
    try:
        scale = float(weight)
    except ValueError:
        scale = np.nan
    if not np.isfinite(scale):
        raise UserError(f"the adapter {adapter} must be FILE or FILE:SCALE, and {weight!r} is no scale")
    lora, trained = read_adapter(file, params, fingerprint(model, params))
    return merge(params, jax.device_put(trained), scale * lora.scale)


def _parts(config: RunConfig, names: list[str]) -> dict[str, Any]:
    """Parts of a configuration, but how they are computed."""
    parts = {name: dataclasses.asdict(getattr(config, name)) for name in names}
    return {name: {k: v for k, v in part.items() if k not in EXECUTION} for name, part in parts.items()}
