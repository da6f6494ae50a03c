"""Encodes a data set once, so that a transformer trains on latents read from disk: what
`launch/encode.py` does.

Clip k of video i is a function of (seed, i, k, bucket) alone, and a shard of its clips alone, so it
does not matter how often the work was interrupted. See `data.latent_shards` for what lies in the
folder.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from xgen_jax.data.buckets import (
    COMMON_ASPECTS,
    STAGES,
    Bucket,
    Shape,
    make_buckets,
    parse_shapes,
    shape_name,
)
from xgen_jax.data.latent_shards import DTYPES, LatentWriter
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.latent_statistics import latent_statistics
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.runs.load import load_embedder
from xgen_jax.runs.text_encoders import ByteCaptions, T5Captions, load_captions
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Params

SYNTHETIC = "synthetic"
STATISTICS_CLIPS = 256
NumberedClip = tuple[
    int, dict[str, Any] | str
]  # in place of a clip that cannot be read, the reason
_SHOWN = 10


def encode_dataset(
    *,
    embedder: str | None,
    data: str | None,
    out: str | None,
    buckets: str | None = None,
    stage: str | None = None,
    aspects: str | None = None,
    clips_per_video: int = 1,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    shard_size: int = 1024,
    dtype: str = "float32",
    compute_dtype: str = "float32",
    text_encoder: str | None = None,
    text_length: int | None = None,
    fps: float | None = None,
    stride: int = 1,
    require_captions: bool = True,
) -> dict[str, Any]:
    """Encodes the clips of a folder of videos, or of the world of moving shapes, into the folder
    `out`.

    Called again it makes the shards that are not there. An embedder without latent statistics
    (converted weights) gets them from the first clips, before anything is encoded.

    Args:
      embedder: run folder of a VidVAE or a REGEN.
      data: folder of videos and, for shapes of one frame, images; or the word "synthetic".
      out: folder for the latents.
      buckets: clip shapes, "9x32x32,1x32x32" (frames x height x width); by default those the
        embedder was trained on. Every video is encoded in every shape, every image in those of one
        frame.
      stage: instead of shapes, a table of `data.buckets.STAGES`: a clip is encoded in the one
        bucket that it fits, for training with data.fit.
      aspects: of the stage's buckets, "9:16,1:1,16:9" (height:width) by default.
      clips_per_video: of each shape, at random places.
      count: how many clips of the synthetic world, in which clip i is the one that training sees as
      clip i.
      seed: of the places and crops, or of the synthetic world.
      batch_size: clips encoded at once; after running out of memory a rerun may take less.
      shard_size: clips a shard.
      dtype: what latents and text embeddings are stored as: "float32", "bfloat16" or "float16".
      compute_dtype: what the networks compute in, "float32" or "bfloat16".
      text_encoder: folder of a T5 (see `weights.t5`), or of a VDiT run, whose text encoder embeds
        the captions. Tokens are stored, no padding.
      text_length: tokens a caption, of a T5's folder; 250 by default, and longer captions are cut
      and counted.
      fps, stride, require_captions: see `VideoFolderSource`.

    Raises:
      UserError: missing or contradicting arguments, a shape the embedder cannot take, a folder that
        holds latents encoded otherwise, latents that are not finite.
    """
    started = time.monotonic()
    for name, value in (("embedder", embedder), ("data", data), ("out", out)):
        if not value:
            raise UserError(f"give --{name}")
    for name, value in (
        ("clips_per_video", clips_per_video),
        ("batch_size", batch_size),
        ("shard_size", shard_size),
    ):
        if value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}")
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if compute_dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"compute_dtype={compute_dtype!r} is not known; choose 'float32' or 'bfloat16'"
        )
    table = _stage_buckets(stage, buckets, aspects)
    if table:
        shapes = [bucket.shape for bucket in table]
    else:
        shapes = (
            parse_shapes(buckets.split(",")) if buckets else RunFolder(embedder).shapes("buckets")
        )
    network, params = load_embedder(embedder, np.dtype(compute_dtype), require_statistics=False)
    for shape in shapes:
        network.latent_shape(shape)
    if text_length is not None and (text_length < 1 or not text_encoder):
        raise UserError("text_length must be 1 or more, and is for --text_encoder")
    text = None
    if text_encoder:
        text = load_captions(text_encoder, np.dtype(compute_dtype), text_length, batch_size)

    images = any(frames == 1 for frames, _, _ in shapes)
    source = _source(data, clips_per_video, count, seed, fps, stride, require_captions, images)
    if report := source.report():
        print(report, file=sys.stderr)
    clips = _Clips(source=source, clips_per_video=clips_per_video, seed=seed)
    table = table or [Bucket(frames=t, height=h, width=w, batch_size=1) for t, h, w in shapes]
    members = _members(source, table, seed if stage else None)
    shapes = list(members)
    numbers = {
        shape: clips.numbers(videos) for shape, videos in members.items() if videos is not None
    }
    params = _with_statistics(embedder, network, params, clips, numbers, shapes, batch_size)
    settings = {
        "embedder": network.fingerprint(params),
        "text_encoder": text.fingerprint if text else None,
        "text_length": text.length if text else None,
        "text_width": text.width if text else None,
        "source": source.name,
        "source_fingerprint": source.fingerprint(),
        "buckets": [shape_name(shape) for shape in shapes],
        "stage": stage,
        "aspects": aspects,
        "clips": len(clips),
        "clips_per_video": clips_per_video,
        "seed": seed,
        "shard_size": shard_size,
        "dtype": dtype,
        "compute_dtype": compute_dtype,
        "fps": fps,
        "stride": stride,
        "require_captions": require_captions,
    }
    writer = LatentWriter(
        out, settings, {shape_name(shape): listed for shape, listed in numbers.items()}
    )
    encoder = _Encoder(embedder=network, params=params, text=text, dtype=dtype)
    kept = _write_shards(writer, shapes, clips, encoder, batch_size)
    manifest = writer.finish()
    left_out = _left_out(writer)
    for line in left_out[:_SHOWN]:
        print(f"left out: {line}", file=sys.stderr)
    if len(left_out) > _SHOWN:
        print(f"and {len(left_out) - _SHOWN} more; see {writer.path}/*/*.json", file=sys.stderr)
    if text and text.cut:
        print(
            f"{text.cut} captions were longer than {text.length} tokens and were cut",
            file=sys.stderr,
        )
    rows = [row for rows in manifest["shards"].values() for row in rows]
    return {
        "latents": str(writer.path),
        "embedder": settings["embedder"],
        "buckets": {
            bucket: sum(row["count"] for row in rows) for bucket, rows in manifest["shards"].items()
        },
        "shards": len(rows),
        "kept_shards": kept,
        "left_out": len(left_out),
        "captions_cut": text.cut if text else 0,
        "size_gb": round(sum(row["bytes"] for row in rows) / 2**30, 6),
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
        """The clips of some videos."""
        return (videos[:, None] * self.clips_per_video + np.arange(self.clips_per_video)).reshape(
            -1
        )

    def read(self, number: int, shape: Shape) -> dict[str, Any] | str:
        """A clip, or the reason why it cannot be read."""
        video, clip = divmod(number, self.clips_per_video)
        try:
            return self.source.read(
                video, np.random.default_rng((self.seed, video, clip, *shape)), *shape
            )
        except UserError as error:
            return str(error)

    def batches(
        self, numbers: Sequence[int], shape: Shape, batch_size: int
    ) -> Iterator[list[NumberedClip]]:
        """(number, clip) in order, `batch_size` at a time; the next batch is read while the caller
        has this one."""
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
    """Clips in, records out."""

    embedder: Embedder
    params: Params
    text: ByteCaptions | T5Captions | None
    dtype: str

    def __post_init__(self):
        encode = jax.jit(lambda params, video: self.embedder.encode(params, to_unit_range(video)))
        object.__setattr__(self, "_encode", encode)

    def __call__(self, clips: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
        """Encodes up to `batch_size` clips."""
        # A batch that is not full repeats its last clip: every batch of a shape runs the same
        # compiled program.
        rows = [clips[min(row, len(clips) - 1)] for row in range(batch_size)]
        latents = self._stored(
            np.asarray(self._encode(self.params, np.stack([row["video"] for row in rows])))
        )
        texts = self.text([clip["caption"] for clip in clips]) if self.text else []
        records = [
            {"caption": clip["caption"], "fps": clip.get("fps", 0.0), "latents": latents[row]}
            for row, clip in enumerate(clips)
        ]
        for record, tokens in zip(records, texts):
            record["text"] = self._stored(tokens)
        return records

    def _stored(self, column: np.ndarray) -> np.ndarray:
        column = column.astype(np.float32).astype(DTYPES[self.dtype])
        if not np.all(np.isfinite(column.astype(np.float32))):
            raise UserError(
                f"the networks give values that are not finite as {self.dtype}; their weights are damaged"
            )
        return column


def _source(
    data, clips_per_video: int, count: int | None, seed: int, fps, stride, require_captions, images
) -> Source:
    if data == SYNTHETIC:
        if count is None:
            raise UserError("give --count, how many clips of the synthetic world to encode")
        if clips_per_video != 1:
            raise UserError("clips_per_video is for folders of videos; give a larger --count")
        return SyntheticSource(seed=seed, num_clips=count)
    if count is not None:
        raise UserError(f"--count is for --data={SYNTHETIC}; of a folder every video is encoded")
    return VideoFolderSource(
        data,
        fps=fps,
        stride=stride,
        require_captions=require_captions,
        images=images,
        substitute=False,
    )


def _with_statistics(
    path,
    network: Embedder,
    params: Params,
    clips: _Clips,
    numbers: dict[Shape, np.ndarray],
    shapes: list[Shape],
    batch_size: int,
):
    """The parameters with the embedder's statistics, measured on the shape of most clips and stored
    if it has none."""
    folder = RunFolder(path)
    if (folder.path / LATENT_STATISTICS).exists():
        return params
    everything = range(len(clips))
    shape = max(shapes, key=lambda shape: len(numbers.get(shape, everything)))
    measured_on = numbers.get(shape, everything)[:STATISTICS_CLIPS]

    def videos():
        for batch in clips.batches(measured_on, shape, batch_size):
            readable = [clip["video"] for _, clip in batch if not isinstance(clip, str)]
            if readable:
                yield np.stack(readable)

    statistics = latent_statistics(network, params["model"], videos())
    folder.write_json(LATENT_STATISTICS, statistics)
    measured = f"measured over {len(measured_on)} clips of {shape_name(shape)} and stored there"
    print(f"{path} had no {LATENT_STATISTICS}; {measured}", file=sys.stderr)
    return network.bundle(
        params["model"], np.array(statistics["mean"]), np.array(statistics["std"])
    )


def _write_shards(
    writer: LatentWriter, shapes: list[Shape], clips: _Clips, encoder: _Encoder, batch_size: int
) -> int:
    """Makes the shards that are not there; returns how many were."""
    shards = [
        (shape, shard) for shape in shapes for shard in range(writer.shards(shape_name(shape)))
    ]
    todo = [
        (shape, shard) for shape, shard in shards if not writer.finished(shape_name(shape), shard)
    ]
    total = sum(writer.count(shape_name(shape)) for shape in shapes)
    done = total - sum(len(writer.clips(shape_name(shape), shard)) for shape, shard in todo)
    kept = len(shards) - len(todo)
    with contextlib.closing(ConsoleWriter(total, "encode", done, (), unit="clips")) as console:

        def encoded(shape, shard):
            nonlocal done
            size = min(batch_size, writer.count(shape_name(shape)))
            for batch in clips.batches(writer.clips(shape_name(shape), shard), shape, size):
                good = [clip for _, clip in batch if not isinstance(clip, str)]
                records = iter(encoder(good, size) if good else ())
                yield from (
                    (number, clip if isinstance(clip, str) else next(records))
                    for number, clip in batch
                )
                done += len(batch)
                console.progress(done, {})

        for shape, shard in todo:
            with contextlib.closing(encoded(shape, shard)) as records:
                writer.write(shape_name(shape), shard, records)
    return kept


def _left_out(writer: LatentWriter) -> list[str]:
    entries = (
        (bucket, writer.finished(bucket, shard))
        for bucket in writer.settings["buckets"]
        for shard in range(writer.shards(bucket))
    )
    return [
        f"clip {clip} of {bucket}: {why}"
        for bucket, entry in entries
        for clip, why in entry["left_out"].items()
    ]


def _stage_buckets(
    stage: str | None, buckets: str | None, aspects: str | None
) -> tuple[Bucket, ...]:
    """The buckets of a stage that keep clips or stop them; none where no stage is given."""
    if stage is None:
        if aspects:
            raise UserError("--aspects is for --stage")
        return ()
    if buckets:
        raise UserError("give --stage or --buckets, not both")
    if stage not in STAGES:
        raise UserError(f"stage={stage!r} is not known; choose one of {', '.join(STAGES)}")
    return make_buckets(STAGES[stage], aspects.split(",") if aspects else COMMON_ASPECTS, devices=1)


def _members(
    source: Source, table: Sequence[Bucket], seed: int | None
) -> dict[Shape, np.ndarray | None]:
    """The videos of each bucket that gets any, ascending; None where it gets all.

    With a seed each video goes to the bucket that it fits, without one to every bucket, images to
    those of one frame.
    """
    if seed is None:
        members = {bucket.shape: source.clips_for(bucket) for bucket in table}
        members = {
            shape: videos for shape, videos in members.items() if videos is None or len(videos)
        }
        if not members:
            raise UserError(
                f"{source.path} holds images alone, and no bucket has a single frame; add 1xHEIGHTxWIDTH"
            )
        return members
    fitting = source.fit(table, seed)
    members = {
        bucket.shape: videos for bucket, videos in zip(table, fitting, strict=True) if len(videos)
    }
    if not members:
        raise UserError(
            f"not one of {len(source)} videos fits a bucket; they are too small or too short for the stage"
        )
    count = len(np.unique(np.concatenate(fitting)))
    print(
        f"{count} of {len(source)} videos and images fit one of {len(members)} buckets",
        file=sys.stderr,
    )
    return members
