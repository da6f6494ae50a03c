"""Encode a data set once, so that a transformer trains on latents read from disk.

A clip is a function of its video, the seed and the bucket alone, and a shard of its clips alone:
an interrupted encoding ends with the same bytes. After videos or captions were added or corrected,
what is new is encoded and the rest is kept. `data.latent_shards` describes the folder.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xgen_jax.commands.encode_request import EncodeRequest
from xgen_jax.commands.hosts import check_hosts
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.latent_shards import DTYPES
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.numbered_clips import NumberedClips
from xgen_jax.data.sources.base import Source
from xgen_jax.errors import UserError
from xgen_jax.files import locked
from xgen_jax.inference.chunks import encode_clips
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.latent_statistics import latent_statistics
from xgen_jax.parallel.agreement import check_equal, from_first, gather, is_first, together
from xgen_jax.parallel.memory import GB
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.runs.hub import is_address
from xgen_jax.runs.load import load_embedder
from xgen_jax.runs.text_encoders import ByteCaptions, T5Captions, load_captions
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Params

STATISTICS_CLIPS = 256
_SHOWN = 10
# Values that decide the bytes, besides the networks, the source and the buckets.
_DECIDING = ("stage", "aspects", "clips_per_video", "seed", "shard_size", "dtype")
_DECIDING += ("compute_dtype", "fps", "stride", "require_captions")


def encode_dataset(request: EncodeRequest) -> dict[str, Any]:
    """Encode the requested clips; called again, write only the missing shards.

    Several processes (`jax.process_count()`) divide the missing shards, and need a common folder;
    the bytes are those of one process.

    Returns:
      The summary: folder, fingerprint of the embedder, clips by bucket, shards, clips left out.

    Raises:
      UserError: a shape the embedder cannot take, a folder that holds latents encoded otherwise,
        latents that are not finite.
    """
    started = time.monotonic()
    check_hosts(dataclasses.asdict(request))
    with contextlib.ExitStack() as stack:
        with together():  # a mistake that one process finds ends all of them
            table, dtype = request.table(), np.dtype(request.compute_dtype)
            network, params = load_embedder(request.embedder, dtype, False, request.restore)
            for bucket in table:
                network.latent_shape(bucket.shape)
            text = None
            if request.text_encoder:
                length, size = request.text_length, request.batch_size
                text = load_captions(request.text_encoder, dtype, length, size)
            source = request.source(images=any(bucket.frames == 1 for bucket in table))
            if report := source.report():
                print(report, file=sys.stderr)
            clips = NumberedClips(
                source=source, clips_per_video=request.clips_per_video, seed=request.seed
            )
            videos = _fit(source, table, request.seed) if request.stage else _assign(source, table)
            members = {
                bucket: clips.numbers(some) for bucket, some in videos.items() if some is not None
            }
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
            check_equal({"encoded": settings})
            named = {bucket.name: listed for bucket, listed in members.items()}
            held_out = clips.numbers(source.held_out_clips())
            writer = None
            if is_first():  # it stands for all processes, and sets aside what has changed
                stack.enter_context(locked(request.out, "encodes into"))
                writer = LatentWriter(request.out, settings, named, held_out, clips.identity)
        with together():
            if writer is None:
                writer = LatentWriter(request.out, settings, named, held_out, clips.identity)
            encoder = _Encoder(embedder=network, params=params, text=text, dtype=request.dtype)
            kept, reused = _write_shards(writer, list(videos), clips, encoder, request.batch_size)
        reused, cut = (sum(own) for own in zip(*gather([reused, text.cut if text else 0])))
        manifest = from_first(writer.finish)
    if text and cut:
        print(f"{cut} captions had more than {text.length} tokens; cut", file=sys.stderr)
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
        "captions_cut": cut,
        "size_gb": round(sum(row["bytes"] for row in rows) / GB, 6),
        "wall_s": round(time.monotonic() - started, 1),
    }


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
    clips: NumberedClips,
    members: dict[Bucket, np.ndarray],
    buckets: list[Bucket],
) -> Params:
    """Return the parameters with latent statistics: those in the embedder's folder, or measured on
    the bucket with the most clips and stored there."""
    folder, everything = RunFolder(request.embedder), range(len(clips))
    if (folder.path / LATENT_STATISTICS).exists():
        return params
    bucket = max(buckets, key=lambda bucket: len(members.get(bucket, everything)))
    numbers = members.get(bucket, everything)[:STATISTICS_CLIPS]

    def videos():
        for batch in clips.batches(numbers, bucket.shape, request.batch_size):
            readable = [clip["video"] for _, clip in batch if not isinstance(clip, str)]
            if readable:
                yield np.stack(readable)

    if is_address(request.embedder):
        raise UserError(
            f"{request.embedder} holds no {LATENT_STATISTICS}, and they cannot be stored there: "
            "make a folder of it first, with launch/convert.py, and encode with that"
        )

    def measure() -> dict[str, Any]:
        statistics = latent_statistics(network, params["model"], videos())
        folder.write_json(LATENT_STATISTICS, statistics)
        print(
            f"{request.embedder} had no {LATENT_STATISTICS}; measured over {len(numbers)} clips of "
            f"{bucket.name} and stored there",
            file=sys.stderr,
        )
        return statistics

    statistics = from_first(measure)
    return network.bundle(
        params["model"], np.array(statistics["mean"]), np.array(statistics["std"])
    )


def _write_shards(
    writer: LatentWriter,
    buckets: list[Bucket],
    clips: NumberedClips,
    encoder: _Encoder,
    batch_size: int,
) -> tuple[int, int]:
    """Write this process's part of the missing shards.

    Returns:
      The number of shards that were there, and of clips whose latents this process took from an
      encoding of the same folder before it changed.
    """
    reused = 0
    shards = [(bucket, shard) for bucket in buckets for shard in range(writer.shards(bucket.name))]
    unfinished = from_first(
        lambda: [
            place
            for place, (bucket, shard) in enumerate(shards)
            if not writer.finished(bucket.name, shard)
        ]
    )
    own = unfinished[jax.process_index() :: jax.process_count()]
    missing = [shards[place] for place in own]
    # The first process shows its own part: the others are about as fast.
    others = {shards[place] for place in unfinished} - set(missing)
    total, left = (
        sum(len(writer.clips(bucket.name, shard)) for bucket, shard in some)
        for some in ([each for each in shards if each not in others], missing)
    )
    done = total - left
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
    return len(shards) - len(unfinished), reused


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
