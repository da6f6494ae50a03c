"""What `launch/encode.py` is asked for."""

import dataclasses
from collections.abc import Sequence

from xgen_jax.data.buckets import COMMON_ASPECTS, STAGES, Bucket, make_buckets, parse_shapes
from xgen_jax.data.config import HOLD_OUT, ShardsConfig, TFDSConfig, kind_of_folder
from xgen_jax.data.latent_shards import DTYPES
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.tfds import TFDSSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.errors import UserError, choose
from xgen_jax.runs.checkpoint import LATEST
from xgen_jax.runs.folder import RunFolder

SYNTHETIC = "synthetic"
COMPUTE_DTYPES = ("float32", "bfloat16")
_OF_FOLDERS = (
    *("fps", "stride", "require_captions"),
    *("seconds_per_clip", "held_out_fraction", "hold_out"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """A request to encode clips into a folder of latents.

    Attributes:
      embedder: run folder of a VidVAE or a REGEN. One without latent statistics (converted weights)
        gets them from the first clips, before anything is encoded.
      data: folder of videos and, for buckets of one frame, images; or of shards that
        launch/curate.py wrote; or "tfds:NAME"; or the word "synthetic".
      out: folder for the latents.
      buckets: clip shapes, "9x32x32,1x32x32" (frames x height x width in pixels); by default those
        that the embedder was trained on. Every video is encoded in every shape, every image in
        those of one frame.
      stage: in place of shapes, a table of `data.buckets.STAGES`: a clip is encoded in the one
        bucket that it fits, for training with data.fit.
      aspects: of the stage's buckets, "9:16,1:1,16:9" (height:width) by default.
      clips_per_video: of each shape, at random places.
      count: number of synthetic clips, of which clip i is the one that training sees as clip i.
      seed: of the places and crops, or of the synthetic clips.
      batch_size: clips encoded at once; after running out of memory a rerun may take fewer.
      shard_size: clips a shard.
      dtype: in which latents and text embeddings are stored: "float32", "bfloat16" or "float16".
      compute_dtype: in which the networks compute, "float32" or "bfloat16".
      text_encoder: folder of a T5 (see `weights.t5`), or of a VDiT run, whose text encoder embeds
        the captions. Tokens are stored without padding.
      text_length: tokens a caption, of a T5's folder; 250 by default. Longer captions are cut and
        counted.
      fps, stride, require_captions, seconds_per_clip, held_out_fraction, hold_out: see
        `VideoFolderSource`.
        The clips that are held out are encoded too, for evaluation while training.
      restore: checkpoint of the embedder: "latest", "latest_good", which steps over damaged ones,
        "best" (see `LoopConfig.keep_best`), or the number of a step.

    Raises:
      UserError: missing or contradicting values, by flag.
    """

    embedder: str
    data: str
    out: str
    buckets: str | None = None
    stage: str | None = None
    aspects: str | None = None
    clips_per_video: int = 1
    count: int | None = None
    seed: int = 0
    batch_size: int = 16
    shard_size: int = 1024
    dtype: str = "float32"
    compute_dtype: str = "float32"
    text_encoder: str | None = None
    text_length: int | None = None
    fps: float | None = None
    stride: int = 1
    require_captions: bool = True
    seconds_per_clip: float | None = 4.0
    held_out_fraction: float = 0.05
    hold_out: str = HOLD_OUT[0]
    restore: str = LATEST

    def __post_init__(self):
        for name in ("embedder", "data", "out"):
            if not getattr(self, name):
                raise UserError(f"give --{name}")
        for name in ("clips_per_video", "batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        choose("dtype", self.dtype, DTYPES)
        choose("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        if self.text_length is not None and (self.text_length < 1 or not self.text_encoder):
            raise UserError("text_length must be 1 or more, and is for --text_encoder")
        if self.stage is not None:
            choose("stage", self.stage, STAGES)
            if self.buckets:
                raise UserError("give --stage or --buckets, not both")
        elif self.aspects:
            raise UserError("--aspects is for --stage")
        if self.data != SYNTHETIC:
            if self.count is not None:
                raise UserError(
                    f"--count is for --data={SYNTHETIC}; of a folder every video is encoded"
                )
        elif self.count is None:
            raise UserError("give --count, the number of synthetic clips to encode")
        elif self.clips_per_video != 1:
            raise UserError("clips_per_video is for folders of videos; give a larger --count")
        else:
            self._refuse(_OF_FOLDERS, "moving shapes have none")

    def table(self) -> tuple[Bucket, ...]:
        """Return the buckets to choose from; their batches mean nothing here."""
        if self.stage is not None:
            aspects = self.aspects.split(",") if self.aspects else COMMON_ASPECTS
            return make_buckets(STAGES[self.stage], aspects, devices=1)
        shapes = (
            parse_shapes(self.buckets.split(","))
            if self.buckets
            else RunFolder(self.embedder).shapes("buckets")
        )
        return tuple(Bucket(frames=t, height=h, width=w, batch_size=1) for t, h, w in shapes)

    def source(self, images: bool) -> Source:
        """Return the clips; of a folder with its images or without."""
        if self.count is not None:  # given for synthetic clips, and for no others
            return SyntheticSource(seed=self.seed, num_clips=self.count)
        kind = kind_of_folder(self.data)
        if kind == ShardsConfig.kind:
            self._refuse(
                ("seconds_per_clip", "held_out_fraction", "hold_out"), "it was decided when packing"
            )
            options = {name: getattr(self, name) for name in ("fps", "stride", "require_captions")}
            return ShardSource(self.data, **options)
        if kind == TFDSConfig.kind:
            self._refuse(("fps", "seconds_per_clip", "hold_out"), "frames of TFDS have no times")
            options = {name: getattr(self, name) for name in ("stride", "held_out_fraction")}
            return TFDSSource(self.data, **options)
        return VideoFolderSource(
            self.data,
            **{name: getattr(self, name) for name in _OF_FOLDERS},
            images=images,
            substitute=False,
        )

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise UserError for flags that mean nothing for these clips."""
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} is for folders of videos: {reason}")
