"""Adapters as safetensors.

The tensors are `<path of a kernel>/a` and `/b` in float32, see `models.lora`. One entry of the
file's metadata, so that equal adapters are equal files, holds as JSON the format's version, rank,
alpha, rules, and the fingerprint of the base: an adapter fits no other parameters.
"""

import dataclasses
import json
import operator
import os
import pathlib

import jax

from xgen_jax.errors import UserError
from xgen_jax.models.lora import adapter_shapes
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.parallel.sharding import path_name
from xgen_jax.typing import Params
from xgen_jax.weights.safetensors import (
    assemble,
    read_metadata,
    read_safetensors,
    write_safetensors,
)

ENTRY, VERSION = "xgen_jax.lora", 1


def write_adapter(
    path: str | os.PathLike,
    adapter: Params,
    config: LoRAConfig,
    base: str,
    *,
    overwrite: bool = False,
) -> pathlib.Path:
    """Write an adapter of the base with that fingerprint, whole or not at all.

    Raises:
      UserError: another suffix than .safetensors, a file that exists, a folder that cannot be
        written.
    """
    tensors = {
        path_name(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(adapter)
    }
    about = {"version": VERSION, "base": base, **dataclasses.asdict(config)}
    return write_safetensors(
        path, tensors, metadata={ENTRY: json.dumps(about)}, overwrite=overwrite
    )


def read_adapter(path: str | os.PathLike, params: Params, base: str) -> tuple[LoRAConfig, Params]:
    """Read an adapter for a base.

    Args:
      path: the file, or the folder that holds it: of the run that trained it, for instance.
      params: the base's, arrays or shapes.
      base: their fingerprint.

    Returns:
      (its configuration, the adapter): exactly the bits that were written.

    Raises:
      UserError: no such file, one that is not an adapter, an adapter of another base, tensors that
        are missing, left over, mis-shaped or not finite, all of them listed.
    """
    metadata = read_metadata(path)
    if ENTRY not in metadata:
        raise UserError(f"{path} is not an adapter of xgen_jax: its metadata lack {ENTRY}")
    try:
        about = json.loads(metadata[ENTRY])
        version, made_for = about["version"], about["base"]
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    if version != VERSION:
        raise UserError(f"{path} has version {version} of {ENTRY}; this release reads {VERSION}")
    if made_for != base:
        raise UserError(
            f"{path} is an adapter of the base {made_for}, and this model is {base}: give "
            "the run that it was trained on (init_from in its config.json), as it was then"
        )
    try:
        config = LoRAConfig(
            rank=operator.index(about["rank"]), alpha=about["alpha"], rules=tuple(about["rules"])
        )
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    abstract = adapter_shapes(config, params)
    names = {
        path_name(place): path_name(place)
        for place, _ in jax.tree_util.tree_leaves_with_path(abstract)
    }
    return config, assemble(abstract, names, read_safetensors(path), origin=str(path))


def _damaged(path: str | os.PathLike, error: Exception) -> UserError:
    return UserError(
        f"{path} does not say how it is to be applied: its metadata are damaged ({error!r})"
    )
