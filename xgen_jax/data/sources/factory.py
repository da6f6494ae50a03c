"""Sources by name."""

import dataclasses
import difflib

from xgen_jax.data.config import DataConfig
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.errors import UserError

SOURCES = ("synthetic", "video_folder", "latents")


def make_source(config: "DataConfig") -> Source:
    """Builds the source `config.source` names; UserError for another name or a folder source
    without a path."""
    if config.source == "synthetic":
        from xgen_jax.data.sources.synthetic import SyntheticSource

        return SyntheticSource(
            seed=config.seed, split=config.split, num_clips=config.num_clips, style=config.style
        )
    if config.source == "video_folder":
        if not config.path:
            raise UserError("source 'video_folder' needs `path`, the folder of videos")
        return VideoFolderSource(
            config.path,
            fps=config.fps,
            stride=config.stride,
            require_captions=config.require_captions,
            flip=config.flip,
            images=any(bucket.frames == 1 for bucket in config.buckets),
        )
    if config.source == "latents":
        from xgen_jax.data.sources.latents import LatentSource

        if not config.path:
            raise UserError("source 'latents' needs `path`, a folder that launch/encode.py wrote")
        if config.fps is not None or config.stride != 1 or config.flip:
            raise UserError(
                "fps, stride and flip cannot be changed once clips are latents; give them when encoding"
            )
        return LatentSource(config.path)
    near = difflib.get_close_matches(str(config.source), SOURCES, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(
        f"no source is named {config.source!r}{hint}; the sources are: {', '.join(SOURCES)}"
    )


def held_out_source(config: DataConfig) -> Source:
    """The clips to evaluate on, which training does not see."""
    if config.source == "synthetic":
        changes = {"split": "held_out", "seed": 10_000 + config.seed}
        return make_source(dataclasses.replace(config, **changes))
    raise UserError(
        f"loop.evaluate_every needs held-out clips, which source {config.source!r} has not"
    )
