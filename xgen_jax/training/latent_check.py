"""Latents on disk are worth what made them: those of another embedder are refused before anything
is trained."""

import numpy as np

from xgen_jax.config.runs import RunConfig
from xgen_jax.data.buckets import shape_name
from xgen_jax.data.sources.base import Source
from xgen_jax.errors import UserError


def check_latents(config: RunConfig, source: Source, objective) -> None:
    """Raises UserError if the data are latents, and not those of the run's embedder or lacking one
    of its buckets."""
    if "embedder" not in source.made_by:
        return
    if config.objective != "vdit":
        raise UserError(
            f"a {config.objective} run needs videos; {config.data.source.path} holds latents"
        )
    here = objective.fingerprints()["embedder"]
    if source.made_by["embedder"] != here:
        raise UserError(
            f"{config.data.source.path} holds latents of the embedder {source.made_by['embedder']}, and the run's embedder {config.embedder} "
            f"is {here}{_other_ratio(config, source, objective)}: encode again with launch/encode.py "
            f"--embedder={config.embedder}, or name the embedder that made the latents"
        )
    for bucket in config.data.buckets:
        if bucket.name in source.bucket_names or not config.data.fit:
            source.read(0, np.random.default_rng(0), *bucket.shape)


def _other_ratio(config: RunConfig, source: Source, objective) -> str:
    """In words, where clips of one size have latents of another: their embedder has another
    ratio."""
    for bucket in config.data.buckets:
        if bucket.name in source.bucket_names:
            there = source.read(0, np.random.default_rng(0), *bucket.shape)["latents"].shape[:3]
            here = objective.latent_shape(bucket.shape)
            if there != here:
                return f", of another ratio ({bucket.name} has latents {shape_name(there)}, not {shape_name(here)})"
    return ""
