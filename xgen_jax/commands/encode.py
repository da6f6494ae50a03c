"""Encode a data set once, so that a transformer trains on latents read from disk.

A clip is a function of its video, the seed and the bucket alone, and a shard of its clips alone:
an interrupted encoding ends with the same bytes. After videos or captions were added or corrected,
what is new is encoded and the rest is kept. `data.latent_shards` describes the folder.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xgen_jax.data.buckets import COMMON_ASPECTS, STAGES, Bucket, Shape, make_buckets, parse_shapes
from xgen_jax.data.config import ShardsConfig, TFDSConfig, kind_of_folder
from xgen_jax.data.latent_shards import DTYPES
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.shards import ShardSource
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.tfds import TFDSSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.errors import UserError, choose
from xgen_jax.files import locked
from xgen_jax.inference.chunks import encode_clips
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.latent_statistics import latent_statistics
from xgen_jax.parallel.memory import GB
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.runs.load import load_embedder
from xgen_jax.runs.text_encoders import ByteCaptions, T5Captions, load_captions
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Params

SYNTHETIC = "synthetic"
COMPUTE_DTYPES = ("float32", "bfloat16")
STATISTICS_CLIPS = 256
# A clip's number, and the clip or the reason why it cannot be read.
NumberedClip = tuple[int, dict[str, Any] | str]
_SHOWN = 10
# Values that decide the bytes, besides the networks, the source and the buckets.
_DECIDING = ("stage", "aspects", "clips_per_video", "seed", "shard_size", "dtype")
_DECIDING += ("compute_dtype", "fps", "stride", "require_captions")
_OF_FOLDERS = ("fps", "stride", "require_captions", "seconds_per_clip", "held_out_fraction")


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
      fps, stride, require_captions, seconds_per_clip, held_out_fraction: see `VideoFolderSource`.
        The clips that are held out are encoded too, for evaluation while training.

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
            self._refuse(("seconds_per_clip", "held_out_fraction"), "it was decided when packing")
            options = {name: getattr(self, name) for name in ("fps", "stride", "require_captions")}
            return ShardSource(self.data, **options)
        if kind == TFDSConfig.kind:
            self._refuse(("fps", "seconds_per_clip"), "frames of TFDS have no times")
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


def encode_dataset(request: EncodeRequest) -> dict[str, Any]:
    """Encode the requested clips; called again, write only the missing shards.

    Returns:
      The summary: folder, fingerprint of the embedder, clips by bucket, shards, clips left out.

    Raises:
      UserError: a shape the embedder cannot take, a folder that holds latents encoded otherwise,
        latents that are not finite.
    """
    started = time.monotonic()
    table, dtype = request.table(), np.dtype(request.compute_dtype)
    network, params = load_embedder(request.embedder, dtype, require_statistics=False)
    for bucket in table:
        network.latent_shape(bucket.shape)
    text = None
    if request.text_encoder:
        text = load_captions(request.text_encoder, dtype, request.text_length, request.batch_size)
    source = request.source(images=any(bucket.frames == 1 for bucket in table))
    if report := source.report():
        print(report, file=sys.stderr)
    clips = _Clips(source=source, clips_per_video=request.clips_per_video, seed=request.seed)
    videos = _fit(source, table, request.seed) if request.stage else _assign(source, table)
    members = {bucket: clips.numbers(some) for bucket, some in videos.items() if some is not None}
    params = _with_statistics(request, network, params, clips, members, list(videos))
    settings = {
        "embedder": network.fingerprint(params),
        "text_encoder": text.fingerprint if text else None,
        "text_length": text.length if text else None,
        "text_width": text.width if text else None,
        "source": source.name,
        "source_fingerprint": source.fingerprint(),
        "buckets": [bucket.name for bucket in videos],
        "clips": len(clips),
        **{name: getattr(request, name) for name in _DECIDING},
    }
    with locked(request.out, "encodes into"):
        writer = LatentWriter(
            request.out,
            settings,
            {bucket.name: listed for bucket, listed in members.items()},
            clips.numbers(source.held_out_clips()),
            clips.identity,
        )
        encoder = _Encoder(embedder=network, params=params, text=text, dtype=request.dtype)
        kept, reused = _write_shards(writer, list(videos), clips, encoder, request.batch_size)
        manifest = writer.finish()
    if text and text.cut:
        print(f"{text.cut} captions had more than {text.length} tokens; cut", file=sys.stderr)
    rows = [row for rows in manifest["shards"].values() for row in rows]
    return {
        "latents": str(writer.path),
        "embedder": settings["embedder"],
        "buckets": {
            bucket: sum(row["count"] for row in rows) for bucket, rows in manifest["shards"].items()
        },
        "shards": len(rows),
        "kept_shards": kept,
        "reused_clips": reused,
        "left_out": _report_left_out(writer),
        "captions_cut": text.cut if text else 0,
        "size_gb": round(sum(row["bytes"] for row in rows) / GB, 6),
        "wall_s": round(time.monotonic() - started, 1),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Clips:
    """The clips to encode: clip k of video i has number i x clips_per_video + k."""

    source: Source
    clips_per_video: int
    seed: int

    def __len__(self) -> int:
        return len(self.source) * self.clips_per_video

    def numbers(self, videos: np.ndarray) -> np.ndarray:
        """Return the numbers of the clips of some videos."""
        first = videos * self.clips_per_video
        return (first[:, None] + np.arange(self.clips_per_video)).reshape(-1)

    def read(self, number: int, shape: Shape) -> dict[str, Any] | str:
        """Return a clip, or the reason why it cannot be read."""
        video, _ = divmod(number, self.clips_per_video)
        try:
            sample = self.source.read(video, self._rng(number, shape), *shape)
        except UserError as error:
            return str(error)
        return {**sample, "identity": self.identity(number)}

    def _rng(self, number: int, shape: Shape) -> np.random.Generator:
        # By what the video is where that is known, so that one more does not change the others.
        video, clip = divmod(number, self.clips_per_video)
        mark = self.source.identity(video)
        return np.random.default_rng((self.seed, int(mark, 16) if mark else video, clip, *shape))

    def identity(self, number: int) -> str:
        """Return the identity of a clip; see `Source.identity`."""
        video, clip = divmod(number, self.clips_per_video)
        mark = self.source.identity(video)
        return f"{mark}-{clip}" if mark else ""

    def caption(self, number: int, shape: Shape) -> str | None:
        """Return the caption that `read` gives, without reading the video."""
        video, _ = divmod(number, self.clips_per_video)
        return self.source.caption(video, self._rng(number, shape))

    def batches(
        self, numbers: Sequence[int] | np.ndarray, shape: Shape, batch_size: int
    ) -> Iterator[list[NumberedClip]]:
        """Yield (number, clip) in order, `batch_size` at a time; the next batch is read while the
        caller has this one."""
        pool = concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        ahead: list = []
        try:
            for first in range(0, len(numbers) + batch_size, batch_size):
                reading = [
                    (number, pool.submit(self.read, number, shape))
                    for number in numbers[first:][:batch_size]
                ]
                if ahead:
                    yield [(number, clip.result()) for number, clip in ahead]
                ahead = reading
        finally:
            pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoder:
    """Encodes clips to records, a compiled program for each bucket."""

    embedder: Embedder
    params: Params
    text: ByteCaptions | T5Captions | None
    dtype: str

    def __call__(self, clips: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
        """Encode up to `batch_size` clips."""
        # A batch that is not full repeats its last clip: every batch of a shape runs the same
        # compiled program.
        rows = [clips[min(row, len(clips) - 1)] for row in range(batch_size)]
        video = np.stack([row["video"] for row in rows])
        latents = self._stored(np.asarray(encode_clips(self.embedder, self.params, video)))
        texts = self.embed([clip["caption"] for clip in clips])
        records = [
            {
                "caption": clip["caption"],
                "fps": clip.get("fps", 0.0),
                "latents": latents[row],
                "identity": clip["identity"],
            }
            for row, clip in enumerate(clips)
        ]
        return [record | text for record, text in zip(records, texts, strict=True)]

    def embed(self, captions: list[str]) -> list[dict[str, np.ndarray]]:
        """Return {"text": tokens} of each caption; {} where captions are not embedded."""
        if self.text is None:
            return [{} for _ in captions]
        return [{"text": self._stored(tokens)} for tokens in self.text(captions)]

    def _stored(self, column: np.ndarray) -> np.ndarray:
        column = column.astype(np.float32).astype(DTYPES[self.dtype])
        if not np.all(np.isfinite(column.astype(np.float32))):
            raise UserError(
                f"the networks give values that are not finite as {self.dtype}; "
                "their weights are damaged"
            )
        return column


def _assign(source: Source, table: Sequence[Bucket]) -> dict[Bucket, np.ndarray | None]:
    """Return the buckets that get videos, with their numbers, ascending; None for all videos."""
    members = {bucket: source.clips_for(bucket) for bucket in table}
    members = {b: videos for b, videos in members.items() if videos is None or len(videos)}
    if not members:
        raise UserError(
            f"source {source.name!r} has images alone, and no bucket has a single frame; "
            "add 1xHEIGHTxWIDTH to --buckets"
        )
    return members


def _fit(source: Source, table: Sequence[Bucket], seed: int) -> dict[Bucket, np.ndarray | None]:
    """Return the buckets that some videos fit, with their numbers, ascending."""
    fitting = source.fit(table, seed)
    members: dict[Bucket, np.ndarray | None] = {
        bucket: videos for bucket, videos in zip(table, fitting, strict=True) if len(videos)
    }
    if not members:
        raise UserError(
            f"not one of {len(source)} videos fits a bucket; they are too small or too short for "
            "the stage"
        )
    count = len(np.unique(np.concatenate(fitting)))
    print(
        f"{count} of {len(source)} videos and images fit one of {len(members)} buckets",
        file=sys.stderr,
    )
    return members


def _with_statistics(
    request: EncodeRequest,
    network: Embedder,
    params: Params,
    clips: _Clips,
    members: dict[Bucket, np.ndarray],
    buckets: list[Bucket],
) -> Params:
    """Return the parameters with latent statistics: those in the embedder's folder, or measured on
    the bucket with the most clips and stored there."""
    folder = RunFolder(request.embedder)
    if (folder.path / LATENT_STATISTICS).exists():
        return params
    everything = range(len(clips))
    bucket = max(buckets, key=lambda bucket: len(members.get(bucket, everything)))
    numbers = members.get(bucket, everything)[:STATISTICS_CLIPS]

    def videos():
        for batch in clips.batches(numbers, bucket.shape, request.batch_size):
            readable = [clip["video"] for _, clip in batch if not isinstance(clip, str)]
            if readable:
                yield np.stack(readable)

    statistics = latent_statistics(network, params["model"], videos())
    folder.write_json(LATENT_STATISTICS, statistics)
    print(
        f"{request.embedder} had no {LATENT_STATISTICS}; measured over {len(numbers)} clips of "
        f"{bucket.name} and stored there",
        file=sys.stderr,
    )
    return network.bundle(
        params["model"], np.array(statistics["mean"]), np.array(statistics["std"])
    )


def _write_shards(
    writer: LatentWriter, buckets: list[Bucket], clips: _Clips, encoder: _Encoder, batch_size: int
) -> tuple[int, int]:
    """Write the missing shards.

    Returns:
      The number of shards that were there, and of clips whose latents were taken from an encoding
      of the same folder before it changed.
    """
    reused = 0
    shards = [(bucket, shard) for bucket in buckets for shard in range(writer.shards(bucket.name))]
    missing = [each for each in shards if not writer.finished(each[0].name, each[1])]
    total = sum(writer.count(bucket.name) for bucket in buckets)
    done = total - sum(len(writer.clips(bucket.name, shard)) for bucket, shard in missing)
    with contextlib.closing(ConsoleWriter(total, "encode", done, (), unit="clips")) as console:

        def encoded(bucket: Bucket, numbers: Sequence[int]):
            size = min(batch_size, writer.count(bucket.name))
            for batch in clips.batches(numbers, bucket.shape, size):
                good = [clip for _, clip in batch if not isinstance(clip, str)]
                records = iter(encoder(good, size) if good else ())
                for number, clip in batch:
                    yield number, clip if isinstance(clip, str) else next(records)

        def samples(bucket: Bucket, shard: int, fresh: Iterator, known: Mapping[int, str]):
            nonlocal done, reused
            for number in writer.clips(bucket.name, shard):
                if number in known:
                    record = writer.reuse(bucket.name, known[number])
                    record["identity"] = known[number]
                    caption = clips.caption(number, bucket.shape)
                    if caption is not None and caption != record["caption"]:
                        record["caption"] = caption
                        record.update(encoder.embed([caption])[0])
                    reused += 1
                    yield number, record
                else:
                    yield next(fresh)
                done += 1
                console.progress(done, {})

        for bucket, shard in missing:
            marks = {n: clips.identity(n) for n in writer.clips(bucket.name, shard)}
            known = {n: mark for n, mark in marks.items() if writer.reusable(bucket.name, mark)}
            numbers = [number for number in marks if number not in known]
            with contextlib.closing(encoded(bucket, numbers)) as fresh:
                writer.write(bucket.name, shard, samples(bucket, shard, fresh, known))
    return len(shards) - len(missing), reused


def _report_left_out(writer: LatentWriter) -> int:
    """Print the first clips that could not be read; return their number."""
    lines = [
        f"clip {clip} of {bucket}: {why}"
        for bucket in writer.settings["buckets"]
        for shard in range(writer.shards(bucket))
        if (entry := writer.finished(bucket, shard))
        for clip, why in entry["left_out"].items()
    ]
    for line in lines[:_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if len(lines) > _SHOWN:
        print(f"and {len(lines) - _SHOWN} more; see {writer.path}/*/*.json", file=sys.stderr)
    return len(lines)
