"""What is checked of a VDiT's run before it trains: buckets, stored latents, captions, the base."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.buckets import shape_name
from xgen_jax.data.sources.base import Source
from xgen_jax.errors import UserError
from xgen_jax.runs.folder import RunFolder
from xgen_jax.typing import Shape


def check_buckets(config: VDiTRun, latent_shape: Callable[[Shape], Shape]) -> None:
    """Raise UserError, with the nearest lengths or sizes, for a bucket the embedder cannot take."""
    for bucket in config.data.buckets:
        try:
            config.model.check_latents(latent_shape(bucket.shape))
        except UserError as error:
            where = f" of {config.embedder}" if config.embedder else ""
            raise UserError(f"bucket {bucket.name}{where}: {error}") from error


def check_latents(
    config: VDiTRun, source: Source, latent_shape: Callable[[Shape], Shape], here: str
) -> None:
    """Raise UserError for stored latents of another embedder, or that lack one of the buckets.

    Args:
      config: of the run.
      source: of the latents.
      latent_shape: of the run's embedder.
      here: its fingerprint.
    """
    there = source.made_by["embedder"]
    stored = source.bucket_names
    shapes = {
        bucket: source.read(0, np.random.default_rng(0), *bucket.shape)["latents"].shape[:3]
        for bucket in config.data.buckets
        if stored is None or bucket.name in stored or not config.data.fit
    }
    if there == here:
        return
    ratio = ""
    for bucket, shape in shapes.items():
        if shape != latent_shape(bucket.shape):
            mine = shape_name(latent_shape(bucket.shape))
            ratio = (
                f", of another ratio ({bucket.name} has latents {shape_name(shape)}, not {mine})"
            )
            break
    raise UserError(
        f"{source.path} holds latents of the embedder {there}, and the run's embedder "
        f"{config.embedder} is {here}{ratio}: encode again with launch/encode.py "
        f"--embedder={config.embedder}, or name the embedder that made the latents"
    )


def check_captions(config: VDiTRun, source: Source, text: Any, shown: int = 10) -> None:
    """Raise UserError, by file, if there are captions that the text conditioner cannot take."""
    problems = [
        f"{where}: {problem}"
        for where, caption in source.captions()
        if (problem := text.problem(caption))
    ]
    if problems:
        listed = "\n  ".join(problems[:shown])
        more = f"\n  and {len(problems) - shown} more" if len(problems) > shown else ""
        raise UserError(
            f"{len(problems)} captions cannot be trained on:\n  {listed}{more}\nshorten them, or "
            "train with a larger --config.text.max_bytes"
        )


# Flags that choose the frozen networks.
GIVEN_BY = {
    "embedder": "--config.embedder and --config.data.source.path",
    "text_encoder": "--config.text.path and --config.data.source.path",
}


def check_base(folder: RunFolder, here: dict[str, str], config: VDiTRun) -> None:
    """Raise UserError if a transformer was trained on other frozen networks than those of a run.

    Converted weights have no fingerprints: nothing is known of them.
    """
    there = folder.checkpoints().restore_data().get("fingerprints") or {}
    for name, mark in here.items():
        if there.get(name, mark) != mark:
            raise UserError(
                f"init_from={config.init_from} was trained on the {name} {there[name]}, and this "
                f"run's {name} is {mark}: its parameters do not fit. Give {GIVEN_BY[name]} of the "
                f"{name} it was trained on, or start without --config.init_from"
            )
