"""Load networks from a run's folder, or from one of converted weights."""

import os
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from xgen_jax.config.runs import HoldsEmbedder, HoldsTransformer, VDiTRun
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text import ByteTextEncoder
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.runs.checkpoint import Step
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.typing import Params

EMBEDDER = "an embedder: a vidvae or regen run, or converted weights of one"
TRANSFORMER = "a transformer: a vdit run, or converted weights of one"
TEXT_TO_VIDEO = "a text-to-video model: a vdit run"


class LoadedEmbedder(NamedTuple):
    """An embedder and its parameters with the latent statistics, which unpack as a pair."""

    embedder: Embedder
    params: Params

    def __repr__(self) -> str:
        return f"(embedder, params) of a {describe_embedder(*self)}"


def describe_embedder(embedder: Embedder, params: Params) -> str:
    """Return what an embedder is in a line, for people."""
    side = embedder.space_factor
    return (
        f"{type(embedder.model).__name__}: {embedder.latent_channels} channels, {side}x{side} "
        f"pixels a latent cell, {count_parameters(params['model']):,} parameters"
    )


def count_parameters(params: Params) -> int:
    """Return the number of values in a tree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def load_embedder(
    path: str | os.PathLike,
    dtype: Any = np.float32,
    require_statistics: bool = True,
    step: Step = None,
) -> LoadedEmbedder:
    """Load an embedder: EMA parameters together with the latent statistics.

    Args:
      path: the folder of a run that trains one, or of converted weights.
      dtype: to compute in.
      require_statistics: False gives an embedder without measured statistics mean 0 and standard
        deviation 1, which is enough to encode and decode again.
      step: of a checkpoint, or one of `runs.checkpoint.CHOICES`; the newest by default.

    Raises:
      UserError: no such folder, one of another network, no checkpoint, or no statistics where they
        are required.
    """
    folder = RunFolder(path)
    config = folder.expect(HoldsEmbedder, EMBEDDER)
    channels = config.model.latent_channels
    statistics = {"mean": [0.0] * channels, "std": [1.0] * channels}
    if (folder.path / LATENT_STATISTICS).exists():
        statistics = folder.read_json(LATENT_STATISTICS)
    elif require_statistics:
        raise UserError(
            f"{path} holds no {LATENT_STATISTICS}: its training has not ended, or its weights were "
            f"converted. launch/encode.py --embedder={path} measures and stores them as it encodes "
            "a data set"
        )
    embedder = config.make_embedder(dtype)
    params = folder.checkpoints().restore_part(("ema", config.family), step)
    mean, std = np.array(statistics["mean"]), np.array(statistics["std"])
    return LoadedEmbedder(embedder, embedder.bundle(params, mean, std))


def load_transformer(path: str | os.PathLike, step: Step = None) -> tuple[HoldsTransformer, Params]:
    """Load a transformer: its configuration and the EMA parameters by sub-tree.

    Args:
      path: the folder of a vdit run, or of converted weights.
      step: of a checkpoint, or one of `runs.checkpoint.CHOICES`; the newest by default.

    Raises:
      UserError: no such folder, one of another network, or no checkpoint.
    """
    folder = RunFolder(path)
    return folder.expect(HoldsTransformer, TRANSFORMER), folder.ema_params(step)


def load_text_encoder(
    path: str | os.PathLike, dtype: Any = np.float32
) -> tuple[ByteTextEncoder, Params]:
    """Load the text encoder that a vdit run trained, and its EMA parameters.

    Raises:
      UserError: no such run, one that trains something else, or no checkpoint.
    """
    folder = RunFolder(path)
    config = folder.expect(VDiTRun, "a text encoder: a vdit run")
    if not config.text.trained:
        raise UserError(
            f"{path} holds a run with the text encoder {config.text.path}, which it did not train"
        )
    text = cast(ByteTextConfig, config.text)  # the only kind that is trained
    return ByteTextEncoder(text, dtype), folder.ema_params()["text"]
