"""Where a run's first step starts from, when not from random parameters: another run, or converted
weights."""

import dataclasses
import sys
from typing import Any

import jax
import numpy as np

from xgen_jax.config.runs import EMBEDDERS, TRANSFORMERS, RunConfig
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import REGENEmbedder, VidVAEEmbedder
from xgen_jax.models.regen import abstract_variables as abstract_regen
from xgen_jax.models.vdit import abstract_variables
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.parallel.sharding import path_name
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.load import load_embedder
from xgen_jax.typing import Params


def starting_params(config: RunConfig) -> Params | None:
    """The averaged parameters, on the host, that a run's first step starts from, by the name of
    their sub-tree; None where all are random.

    Raises:
      UserError: no such run, one of another kind, or parameters that have not the model's shapes.
    """
    if config.init_from is None:
        return None
    if config.objective in EMBEDDERS:
        return {config.objective: _starting_embedder(config)}
    folder = RunFolder(config.init_from)
    other = folder.config()
    if other.objective not in TRANSFORMERS:
        raise UserError(
            f"init_from={config.init_from} holds a {other.objective} run; give a vdit run to start from"
        )
    found = jax.tree.map(np.asarray, folder.averaged())
    channels = RunFolder(config.embedder).config().model.latent_channels
    wanted = abstract_variables(config.model, channels)
    network = extend_null_caption(found["vdit"], config.model.null_caption_tokens)
    _check(config, other.model, network, wanted)
    start = {"vdit": network}
    if "text" in found and getattr(other, "text", None) == config.text:
        start["text"] = found["text"]
    return start


def _starting_embedder(config: RunConfig) -> Params:
    """The averaged parameters of the embedder's network in `init_from`, on the host."""
    embedder, params = load_embedder(config.init_from, require_statistics=False)
    if config.objective == "regen":
        if not isinstance(embedder, REGENEmbedder):
            raise UserError(
                f"init_from={config.init_from} holds a VidVAE; give a regen run to start from"
            )
        wanted = abstract_regen(config.model)
    else:
        if not isinstance(embedder, VidVAEEmbedder):
            raise UserError(
                f"init_from={config.init_from} holds a REGEN; give a vidvae run to start from"
            )
        bucket = config.data.buckets[0]
        video = jax.ShapeDtypeStruct((1, *bucket.shape, 3), np.float32)
        wanted = jax.eval_shape(VidVAE(config.model).init, jax.random.key(0), video)
    _check(config, embedder.model.config, params["model"], wanted)
    return jax.tree.map(np.asarray, params["model"])


def extend_null_caption(variables: Params, tokens: int) -> Params:
    """A VDiT's variables with a null caption of so many tokens: a shorter one repeats its last row,
    as Open-Sora extends PixArt-alpha's.
    """
    caption = variables.get("constants", {}).get("null_caption")
    if caption is None or not 0 < len(caption) < tokens:
        return variables
    rows = np.minimum(np.arange(tokens), len(caption) - 1)
    return {
        **variables,
        "constants": {**variables["constants"], "null_caption": np.asarray(caption)[rows]},
    }


def _check(config: RunConfig, other_model: Any, found: Params, wanted: Params) -> None:
    """Raises UserError where the shapes differ, and says on stderr where the models differ but
    fit."""
    there = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }
    here = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)
    }
    differing = [
        name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)
    ]
    old, new = dataclasses.asdict(other_model), dataclasses.asdict(config.model)
    fields = "".join(
        f"\n  model.{key}: {old[key]!r} -> {new[key]!r}" for key in old if old[key] != new[key]
    )
    if differing:
        name = differing[0]
        raise UserError(
            f"init_from={config.init_from} has other parameters than the model (there -> here):{fields}\n"
            f"{len(differing)} of {len(here)} differ, {name} first: {there.get(name)} -> {here.get(name)}"
        )
    if fields:
        print(
            f"init_from={config.init_from} fits, but was another model (there -> here):{fields}",
            file=sys.stderr,
        )
