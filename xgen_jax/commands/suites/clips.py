"""The clips that suites score: of a folder, or like those that a run was trained on."""

import dataclasses
import pathlib
from typing import Any

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import (
    DataConfig,
    LatentsConfig,
    ShardsConfig,
    TFDSConfig,
    VideoFolderConfig,
)
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.runs.folder import RunFolder

# Sources of videos that a person gave, which have clips that are held out.
Videos = VideoFolderConfig | ShardsConfig | TFDSConfig
VIDEOS = (VideoFolderConfig, ShardsConfig, TFDSConfig)


def of_videos(config: Videos) -> Source:
    """Build a source of videos, without images; captions may be missing."""
    if not isinstance(config, TFDSConfig):
        config = dataclasses.replace(config, require_captions=False)
    if isinstance(config, VideoFolderConfig):
        config = dataclasses.replace(config, memory_gb=0.0)  # each clip is read once
    buckets = (Bucket(frames=2, height=1, width=1, batch_size=1),)  # no images
    return make_source(DataConfig(source=config, buckets=buckets))


def of_shapes(count: int, seed: int, style: str = "filled") -> SyntheticSource:
    """Build moving shapes of the combinations that no run is trained on, from a seed that none has.

    Args:
      count: of the clips.
      seed: of the request.
      style: see `SyntheticSource`.
    """
    return SyntheticSource(seed=10_000 + seed, split="held_out", num_clips=count, style=style)


def trained_on(run: RunFolder, source: Any, instead: str) -> Any:
    """Return the configuration of what a run was trained on, whose latents may have moved with it.

    Args:
      run: the folder.
      source: its `data.source`.
      instead: for the message, what to give where the latents are not known.

    Raises:
      UserError: its latents are neither here nor next to the run.
    """
    if not (isinstance(source, LatentsConfig) and source.path):
        return source
    path = run.resolve_sibling(source.path)
    if not pathlib.Path(path).is_dir():
        raise UserError(
            f"{run.path} was trained on the latents in {source.path}, a folder that is neither "
            "here nor next to the run, so nothing says whether they show moving shapes: start "
            f"this in the folder in which training was started, or {instead}"
        )
    return dataclasses.replace(source, path=path)
