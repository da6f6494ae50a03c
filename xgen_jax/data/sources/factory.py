"""A source from its configuration."""

import dataclasses
from collections.abc import Callable
from typing import Any

from xgen_jax.data.config import (
    DataConfig,
    LatentsConfig,
    SyntheticConfig,
    VideoFolderConfig,
    source_folder,
)
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.video_folder import VideoFolderSource


def make_source(config: DataConfig) -> Source:
    """Build the source that `config.source` describes.

    Raises:
      UserError: a folder that is not given, holds another kind of clips, or cannot be read.
    """
    return _MAKERS[type(config.source)](config.source, config)


def _synthetic(source: SyntheticConfig, data: DataConfig) -> Source:
    return SyntheticSource(
        seed=data.seed, split=source.split, num_clips=source.num_clips, style=source.style
    )


def _video_folder(source: VideoFolderConfig, data: DataConfig) -> Source:
    return VideoFolderSource(
        source_folder(source),
        fps=source.fps,
        stride=source.stride,
        require_captions=source.require_captions,
        flip=source.flip,
        images=any(bucket.frames == 1 for bucket in data.buckets),
    )


def _latents(source: LatentsConfig, data: DataConfig) -> Source:
    del data
    return LatentSource(source_folder(source))


_MAKERS: dict[type, Callable[[Any, DataConfig], Source]] = {
    SyntheticConfig: _synthetic,
    VideoFolderConfig: _video_folder,
    LatentsConfig: _latents,
}


def held_out_source(config: DataConfig) -> Source:
    """Build the source of the clips to evaluate on, which training does not see.

    Raises:
      UserError: a source that holds no clips out.
    """
    # Another seed than any run trains on.
    changes = {"source": config.source.held_out(), "seed": 10_000 + config.seed}
    return make_source(dataclasses.replace(config, **changes))
