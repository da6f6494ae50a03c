"""A source from its configuration."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from xgen_jax.data.config import (
    DataConfig,
    LatentsConfig,
    ShardsConfig,
    SyntheticConfig,
    TFDSConfig,
    VideoFolderConfig,
    source_folder,
)
from xgen_jax.data.latent_shards import read_manifest
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.tfds import TFDSSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.errors import UserError


def make_source(config: DataConfig, text: bool = True) -> Source:
    """Build the source that `config.source` describes.

    Args:
      config: of the data.
      text: give stored embeddings of captions; see `LatentSource`.

    Raises:
      UserError: a folder that is not given, holds another kind of clips, or cannot be read.
    """
    return _MAKERS[type(config.source)](config.source, config, text)


def _synthetic(source: SyntheticConfig, data: DataConfig, text: bool) -> Source:
    del text
    return SyntheticSource(
        seed=data.seed, split=source.split, num_clips=source.num_clips, style=source.style
    )


def _video_folder(source: VideoFolderConfig, data: DataConfig, text: bool) -> Source:
    del text
    return VideoFolderSource(
        source_folder(source),
        split=source.split,
        held_out_fraction=source.held_out_fraction,
        hold_out=source.hold_out,
        seconds_per_clip=source.seconds_per_clip,
        fps=source.fps,
        stride=source.stride,
        require_captions=source.require_captions,
        flip=source.flip,
        memory_gb=source.memory_gb,
        images=any(bucket.frames == 1 for bucket in data.buckets),
    )


def _latents(source: LatentsConfig, data: DataConfig, text: bool) -> Source:
    del data
    return LatentSource(source_folder(source), split=source.split, text=text)


def _shards(source: ShardsConfig, data: DataConfig, text: bool) -> Source:
    del data, text
    return ShardSource(
        source_folder(source),
        source.split,
        fps=source.fps,
        stride=source.stride,
        require_captions=source.require_captions,
        flip=source.flip,
    )


def _tfds(source: TFDSConfig, data: DataConfig, text: bool) -> Source:
    del data, text
    return TFDSSource(
        source_folder(source),
        source.split,
        data_dir=source.data_dir,
        held_out_fraction=source.held_out_fraction,
        video=source.video,
        caption=source.caption,
        frame_rate=source.frame_rate,
        stride=source.stride,
        flip=source.flip,
    )


_MAKERS: dict[type, Callable[[Any, DataConfig, bool], Source]] = {
    SyntheticConfig: _synthetic,
    VideoFolderConfig: _video_folder,
    LatentsConfig: _latents,
    ShardsConfig: _shards,
    TFDSConfig: _tfds,
}


def shapes_style(source: Any) -> str | None:
    """Return the style of the moving shapes that a source, by its configuration, shows, or that its
    latents are of; None for other videos. Captions of filled ones can be verified, see
    `evaluation.captions`."""
    if isinstance(source, SyntheticConfig):
        return source.style
    if isinstance(source, LatentsConfig) and source.path and os.path.isdir(source.path):
        encoded = read_manifest(source.path)["source"]
        return "filled" if encoded == SyntheticConfig.kind else None  # encode takes filled ones
    return None


def held_out_data(
    config: DataConfig, multiple: int = 1, text: bool = True
) -> tuple[Source, DataConfig]:
    """Build the clips to evaluate on, which training does not see.

    Args:
      config: of the data that is trained on.
      multiple: of which every batch must be a multiple, the number of devices that share one.
      text: see `make_source`.

    Returns:
      The source, and the configuration of its batches, which are smaller than those of training
      where fewer clips are held out.

    Raises:
      UserError: no clips are held out, or fewer than `multiple` in every bucket.
    """
    # Another seed than any run trains on.
    changes = {"source": config.source.held_out(), "seed": 10_000 + config.seed}
    config = dataclasses.replace(config, **changes)
    source = make_source(config, text)
    if config.fit:
        members = source.fit(config.buckets, config.seed)
    else:
        members = [source.clips_for(bucket) for bucket in config.buckets]
    counts = [len(source) if clips is None else len(clips) for clips in members]
    buckets = []
    for bucket, clips in zip(config.buckets, counts, strict=True):
        size = min(bucket.batch_size, clips // multiple * multiple)
        if size or config.fit:  # a bucket without a batch still takes clips from smaller ones
            buckets.append(dataclasses.replace(bucket, batch_size=size or bucket.batch_size))
    if not any(clips >= multiple for clips in counts):
        raise UserError(
            f"{len(source)} held-out clips give no batch of {multiple}, one for each device: hold "
            "out more, with --config.data.source.held_out_fraction, or give "
            "--config.loop.evaluate_every=0"
        )
    return source, dataclasses.replace(config, buckets=tuple(buckets))
