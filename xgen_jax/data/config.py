"""The data of a run: a source of clips by its kind, buckets, and the preparation of batches."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.shard_layout import find_shards
from xgen_jax.errors import UserError, choose
from xgen_jax.files import read_json

PATH_FLAG = "--config.data.source.path=FOLDER"
# What a folder holds out of training; see `data.sources.video_folder.VideoFolderSource`.
HOLD_OUT = ("files", "ends")
NOTHING_HELD_OUT = (
    "loop.evaluate_every needs held-out clips: give --config.data.source.held_out_fraction=0.05, "
    "or --config.loop.evaluate_every=0"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The moving-shapes dataset; see `data.sources.synthetic.SyntheticSource`.

    Attributes:
      kind: `synthetic`.
      split: `train`, combinations of attributes that are not held out; or `held_out`.
      num_clips: number of clips.
      style: how shapes look, `filled` or `outline`.
    """

    kind: str = "synthetic"
    split: str = "train"
    num_clips: int = 1_000_000
    style: str = "filled"

    def held_out(self) -> "SyntheticConfig":
        """Return the configuration of the combinations that training never shows."""
        return dataclasses.replace(self, split="held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFolderConfig:
    """A folder of videos and images; see `data.sources.video_folder.VideoFolderSource`.

    Attributes:
      kind: `video_folder`.
      path: of the folder; may be left to a flag.
      split: `train` or `held_out` clips, or `all`.
      held_out_fraction: part of the clips that training never sees, in [0, 1).
      hold_out: `files`, the ends of long videos and some of the others whole; or `ends`, the end of
        every video, for a folder of few.
      seconds_per_clip: seconds of a video that count as one clip; None counts each video once.
      fps: frames a second at which clips are sampled; None keeps each file's own.
      stride: take every stride-th frame of that rate.
      require_captions: leave out videos without a caption.
      flip: mirror half of the clips; not for captions that name left and right.
      memory_gb: memory for frames, in 1e9 bytes; where those of all videos fit at a bucket's size,
        each video is decoded once.
    """

    kind: str = "video_folder"
    path: str | None = None
    split: str = "train"
    held_out_fraction: float = 0.05
    hold_out: str = "files"
    seconds_per_clip: float | None = 4.0
    fps: float | None = None
    stride: int = 1
    require_captions: bool = True
    flip: bool = False
    memory_gb: float = 1.0

    def __post_init__(self):
        choose("hold_out", self.hold_out, HOLD_OUT)

    def held_out(self) -> "VideoFolderConfig":
        """Return the configuration of the clips that training does not see.

        Raises:
          UserError: no clips are held out.
        """
        if not self.held_out_fraction:
            raise UserError(NOTHING_HELD_OUT)
        # Each clip is read once.
        return dataclasses.replace(self, split="held_out", memory_gb=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """A folder of latents that launch/encode.py wrote.

    Its clips are held out, or not, as those of the folder that was encoded.

    Attributes:
      kind: `latents`.
      path: of the folder; may be left to a flag.
      split: `train` or `held_out` clips, or `all`.
    """

    kind: str = "latents"
    path: str | None = None
    split: str = "train"

    def held_out(self) -> "LatentsConfig":
        """Return the configuration of the clips that training does not see."""
        return dataclasses.replace(self, split="held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """A folder of curated clips; see `data.sources.shards.ShardSource`.

    Attributes:
      kind: `shards`.
      path: of the folder that launch/curate.py wrote; may be left to a flag.
      split: `train` or `held_out` clips, or `all`; which are held out was decided when packing.
      fps: frames a second at which clips are sampled; None keeps each clip's own.
      stride: take every stride-th frame of that rate.
      require_captions: refuse shards without a single caption.
      flip: mirror half of the clips; not for captions that name left and right.
    """

    kind: str = "shards"
    path: str | None = None
    split: str = "train"
    fps: float | None = None
    stride: int = 1
    require_captions: bool = True
    flip: bool = False

    def held_out(self) -> "ShardsConfig":
        """Return the configuration of the clips that training does not see."""
        return dataclasses.replace(self, split="held_out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDSConfig:
    """A data set of TensorFlow Datasets; see `data.sources.tfds.TFDSSource`.

    Attributes:
      kind: `tfds`.
      path: `tfds:NAME` or `tfds:NAME:SPLIT`, where SPLIT is TFDS's own, e.g. `test` or
        `train[:10%]`, and `train` by default; may be left to a flag.
      data_dir: folder of prepared data sets; None for TFDS's own, ~/tensorflow_datasets.
      split: `train` or `held_out` clips of that split of TFDS, or `all`.
      held_out_fraction: part of its clips, the last, that training never sees, in [0, 1).
      video: name of the feature with the frames; None for the first.
      caption: name of the feature with the caption; None for the first text or class label.
      frame_rate: frames a second of the videos; None where it is not known.
      stride: take every stride-th frame.
      flip: mirror half of the clips; not for captions that name left and right.
    """

    kind: str = "tfds"
    path: str | None = None
    data_dir: str | None = None
    split: str = "train"
    held_out_fraction: float = 0.05
    video: str | None = None
    caption: str | None = None
    frame_rate: float | None = None
    stride: int = 1
    flip: bool = False

    def held_out(self) -> "TFDSConfig":
        """Return the configuration of the clips that training does not see.

        Raises:
          UserError: no clips are held out.
        """
        if not self.held_out_fraction:
            raise UserError(NOTHING_HELD_OUT)
        return dataclasses.replace(self, split="held_out")


SourceConfig = SyntheticConfig | VideoFolderConfig | LatentsConfig | ShardsConfig | TFDSConfig
KINDS: dict[str, type[SourceConfig]] = {
    kind.kind: kind
    for kind in (SyntheticConfig, VideoFolderConfig, LatentsConfig, ShardsConfig, TFDSConfig)
}
TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Clips, their buckets, and the threads that prepare batches.

    Attributes:
      source: of the clips; one class a kind, chosen by `kind` in a dict.
      seed: of all random numbers here, 0 or more.
      buckets: clip shapes and their batches.
      fit: each clip goes to the one bucket that it fits (see `buckets.fit`). If False, every clip
        goes to every bucket, in proportion to their weights, and is enlarged if it is too small or
        repeats its last frame if it is too short; images go to buckets of one frame only.
      num_threads: threads that prepare batches, one batch each; 0 prepares them in the caller.
      prefetch: batches that are prepared in advance; fewer than threads would leave some idle.
      prefetch_gb: memory of a process for them, in 1e9 bytes: there are fewer where this many of
        the largest do not fit, but always one.
    """

    source: SourceConfig
    seed: int = 0
    buckets: tuple[Bucket, ...]
    fit: bool = False
    num_threads: int = 2
    prefetch: int = 2
    prefetch_gb: float = 4.0

    def __post_init__(self):
        if not self.buckets:
            raise UserError("the data needs at least one bucket")
        if not 0 < self.prefetch_gb < math.inf:
            raise UserError(
                "data.prefetch_gb, the memory for batches prepared in advance, must be above 0, "
                f"not {self.prefetch_gb}; to prepare none, give --config.data.num_threads=0"
            )
        for name in ("seed", "num_threads", "prefetch"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UserError(f"{name} must be a whole number of 0 or more, not {value!r}")


def kind_of_folder(path: str) -> str:
    """Return the kind of source that a path means: "tfds" where it begins with `tfds:`, else what
    lies in the folder, "latents", "shards" or "video_folder"."""
    if path.startswith(TFDS_PREFIX):
        return TFDSConfig.kind
    for name in ("manifest.json", "settings.json"):
        file = pathlib.Path(path, name)
        try:
            if file.is_file() and "shard_size" in read_json(file):
                return LatentsConfig.kind
        except UserError:  # not JSON, so not written by this library
            continue
    return ShardsConfig.kind if find_shards(path) else VideoFolderConfig.kind


# What is said of a path that holds a kind of clips, and of one that does not.
_HOLDS = {
    LatentsConfig.kind: ("holds latents", "holds no latents"),
    ShardsConfig.kind: ("holds shards of clips", "holds no shards of clips"),
    TFDSConfig.kind: ("is a data set of TFDS", "is no data set of TFDS"),
}
# What a source needs that is no folder, and the flag to give it.
_NEEDS = {TFDSConfig.kind: ("a data set", PATH_FLAG.replace("FOLDER", "tfds:NAME"))}


def source_folder(source: VideoFolderConfig | LatentsConfig | ShardsConfig | TFDSConfig) -> str:
    """Return the path of a source, once it is sure not to hold another kind of clips.

    Raises:
      UserError: no path is given, or it holds another kind.
    """
    if not source.path:
        what, flag = _NEEDS.get(source.kind, ("a folder", PATH_FLAG))
        raise UserError(f"data.source.kind={source.kind!r} needs {what}: give {flag}")
    there = kind_of_folder(source.path)
    known = there == TFDSConfig.kind or pathlib.Path(source.path).is_dir()
    if known and there != source.kind:
        holds = _HOLDS[there][0] if there in _HOLDS else _HOLDS[source.kind][1]
        raise UserError(
            f"{source.path} {holds}, and data.source.kind={source.kind!r}: give "
            f"--config.data.source.kind={there}, or another path"
        )
    return source.path


def as_written(data: dict[str, Any]) -> dict[str, Any]:
    """Return the `data` of a config.json, as `nest_source` gives it, with what older releases did
    where newer keys have another default."""
    source = data.get("source")
    if isinstance(source, dict) and source.get("kind") == VideoFolderConfig.kind:
        source = {"held_out_fraction": 0.0, "seconds_per_clip": None, **source}
        return {**data, "source": source}
    return data


# Keys of sources that stood in `data` itself, next to `source`, which was the kind's name.
OLD_KEYS = ("path", "split", "num_clips", "style", "fps", "stride", "require_captions", "flip")
_DEFAULTS = {
    field.name: field.default for kind in KINDS.values() for field in dataclasses.fields(kind)
}


def nest_source(
    data: Mapping[str, Any], say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Return the keys of `data` with those of the source in `source`, chosen by what is there.

    Keys of older releases stand in `data` itself: {"source": "latents", "path": ...}. A `path`
    decides the kind where none but the default is named, see `kind_of_folder`. Keys of another kind
    are dropped if they may be: configurations list those of several.

    Args:
      data: as a configuration file or a config.json has it; it is not changed.
      say: called with a line for each key that has another name now.

    Raises:
      UserError: a kind that is not known; a key under both names; a frame rate, stride or flip for
        clips that can have none.
    """
    data = dict(data)
    old = {key: data.pop(key) for key in OLD_KEYS if key in data}
    named = data.get("source")
    if isinstance(named, str) or (named is None and old.get("path")):
        source = old | ({"kind": named} if named else {})
        old = {}
    elif isinstance(named, dict):
        source = dict(named)
    else:  # None, or a mistake that the caller reports
        return data
    flat = not isinstance(named, dict)
    for key, value in old.items():
        if value is None:
            continue
        if source.get(key, value) not in (value, None, _DEFAULTS[key]):
            raise UserError(
                f"data.{key} is called data.source.{key} now, and both are given; leave out the old"
            )
        source[key] = value
        if say:
            say(f"data.{key} is called data.source.{key} now")

    kind = choose("data.source.kind", source.get("kind", SyntheticConfig.kind), KINDS)
    path = source.get("path")
    if kind == SyntheticConfig.kind and path and isinstance(path, str):
        # The synthetic clips have no folder: a path means the clips in it.
        kind = kind_of_folder(path)
    source["kind"] = kind
    known = {field.name for field in dataclasses.fields(KINDS[kind])}
    foreign = [key for key in source if key in _DEFAULTS and key not in known]
    for key in foreign:
        value = source.pop(key)
        if key not in ("fps", "stride", "flip") or value in (None, _DEFAULTS[key]):
            continue
        if kind == LatentsConfig.kind:
            raise UserError(
                f"{key}={value} cannot be changed once clips are latents; give --{key} when "
                "encoding"
            )
        if kind == TFDSConfig.kind:
            raise UserError(
                f"data.source.{key}={value} is for videos with times; of frames of TFDS give "
                "data.source.frame_rate and data.source.stride"
            )
        if not flat:  # older releases had every key in every configuration, and looked at few
            raise UserError(f"data.source.{key}={value} is for videos; give {PATH_FLAG}")
    return {**data, "source": source}
