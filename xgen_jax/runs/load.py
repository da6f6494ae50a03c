"""What a run has trained, loaded from its folder."""

import os

import numpy as np

from xgen_jax.config.runs import EMBEDDERS, RunConfig
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder, REGENEmbedder, VidVAEEmbedder
from xgen_jax.models.regen import REGEN
from xgen_jax.models.text import ByteTextEncoder
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.typing import Params


def make_embedder(config: RunConfig, dtype=np.float32) -> Embedder:
    """The embedder that a run trains, computing in `dtype`."""
    if config.objective == "regen":
        return REGENEmbedder(
            model=REGEN(config.model, dtype),
            process=config.loss.make_process(),
            steps=config.decode_steps,
            windows=config.loss.windows,
        )
    return VidVAEEmbedder(model=VidVAE(config.model, dtype))


def load_embedder(
    path: str | os.PathLike, dtype=np.float32, require_statistics: bool = True
) -> tuple[Embedder, Params]:
    """The embedder of a VidVAE or REGEN run, or of converted weights: averaged parameters with the
    latent statistics.

    Args:
      path: the run folder.
      dtype: to compute in.
      require_statistics: if False, an embedder whose statistics nobody has measured gets mean 0 and
        deviation 1, which is enough to encode and decode again.

    Raises:
      UserError: no such run, one that trains something else, no checkpoint, or no statistics where
      they are required.
    """
    folder = RunFolder(path)
    config = folder.config()
    if config.objective not in EMBEDDERS:
        raise UserError(
            f"{path} holds a {config.objective} run; an embedder is a vidvae or regen run, or converted weights"
        )
    channels = config.model.latent_channels
    statistics = {"mean": [0.0] * channels, "std": [1.0] * channels}
    if (folder.path / LATENT_STATISTICS).exists():
        statistics = folder.read_json(LATENT_STATISTICS)
    elif require_statistics:
        raise UserError(
            f"{path} holds no {LATENT_STATISTICS}: its training has not ended, or its weights were converted. "
            f"launch/encode.py --embedder={path} measures and stores them as it encodes a data set"
        )
    embedder = make_embedder(config, dtype)
    params = folder.checkpoints().restore_part(
        ("ema", "regen" if config.objective == "regen" else "vidvae")
    )
    return embedder, embedder.bundle(
        params, np.array(statistics["mean"]), np.array(statistics["std"])
    )


def load_text_encoder(path: str | os.PathLike, dtype=np.float32) -> tuple[ByteTextEncoder, Params]:
    """The text encoder that a VDiT run trained, and its averaged parameters.

    Raises:
      UserError: no such run, one that trains something else, or no checkpoint.
    """
    folder = RunFolder(path)
    config = folder.config()
    if config.objective != "vdit":
        raise UserError(
            f"{path} holds a {config.objective} run; a text encoder is that of a vdit run"
        )
    if not config.text.trained:
        raise UserError(
            f"{path} holds a run with the text encoder {config.text.path}, which it did not train"
        )
    params = (
        folder.averaged()["text"]
        if config.lora
        else folder.checkpoints().restore_part(("ema", "text"))
    )
    return ByteTextEncoder(config.text, dtype), params
