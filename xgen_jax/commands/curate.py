"""Curate a folder of raw videos: `launch/curate.py`.

Measuring, captions and packing are done shard by shard, by an engine. Between them stand two steps
over all clips, finding duplicates and selecting, which read the tables of clips alone.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from xgen_jax.config.keys import shown
from xgen_jax.curation.clip_table import Clips, prune, select
from xgen_jax.curation.clips import is_measured, measure_shard, tables
from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.engines import Engine, make_engine
from xgen_jax.curation.kept import (
    SHARDS,
    caption_shard,
    is_shard_packed,
    pack_shard,
    sent_requests,
    shard_captions,
    write_kept,
)
from xgen_jax.curation.meter import between
from xgen_jax.curation.selection import funnel, funnel_text
from xgen_jax.curation.shard_index import finish
from xgen_jax.curation.store import SourceShard, digest, divide
from xgen_jax.curation.webdataset import export_tars, import_tars
from xgen_jax.data.captions import read_captions
from xgen_jax.data.problems import Problems
from xgen_jax.errors import UserError
from xgen_jax.evaluation.curation_report import write_curation_report
from xgen_jax.files import locked
from xgen_jax.runs.folder import code_commit
from xgen_jax.training.metric_writers import ConsoleWriter

REPORT = "report.html"
_REASONS = 5  # that are printed, of clips without a caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurateRequest:
    """The flags of `launch/curate.py`.

    Attributes:
      config: of the curation.
      videos: folder of the raw videos.
      out: folder of the curation.
      import_tars: folder of tar files to unpack to `videos` first; see `webdataset.import_tars`.
      export_tars: folder for the packed clips as tar files; see `webdataset.export_tars`.
      retry_errors: try videos again that could not be read, and clips that could not be packed;
        without it they are tried again where their files or `limits` have changed.
      dry_run: print the funnel, and write no shards and no page.
      engine, task_index, task_count, ray_address: see `curation.engines.make_engine`.

    Raises:
      UserError: a folder that is not given, or `out` in `videos`.
    """

    config: CurationConfig = CurationConfig()
    videos: str = ""
    out: str = ""
    import_tars: str = ""
    export_tars: str = ""
    retry_errors: bool = False
    dry_run: bool = False
    engine: str = "inline"
    task_index: int | None = None
    task_count: int | None = None
    ray_address: str | None = None

    def __post_init__(self):
        missing = [name for name in ("videos", "out") if not getattr(self, name)]
        if missing:
            raise UserError(f"give {', '.join(f'--{name}=DIR' for name in missing)}")
        if self.dry_run and self.export_tars:
            raise UserError("--dry_run packs no clips that --export_tars could write")
        videos, out = pathlib.Path(self.videos).resolve(), pathlib.Path(self.out).resolve()
        if out.is_relative_to(videos) or videos.is_relative_to(out):
            raise UserError(
                f"--out={self.out} and --videos={self.videos} must not lie in each other: the next "
                "curation would read its own shards"
            )


def curate(request: CurateRequest) -> dict[str, Any]:
    """Measure, cut, select, caption and pack, or go on with what a run before left.

    Returns:
      Counts of videos, clips and kept clips; the paths of the page and of the shards. For a job of
      an array that waits for others, the number of shards that are not measured, or not packed.

    Raises:
      UserError: no videos, a folder that holds something else, an engine or endpoint that cannot
        be used.
    """
    started = time.monotonic()
    # Absolute, since a worker elsewhere may have another working folder.
    config, out = request.config, pathlib.Path(request.out).resolve()
    videos = pathlib.Path(request.videos).resolve()
    engine = make_engine(
        request.engine, request.task_index, request.task_count, request.ray_address
    )
    with contextlib.ExitStack() as stack:
        stack.callback(engine.close)
        if engine.alone:
            stack.enter_context(locked(out, "curates into"))
        if request.import_tars:
            imported = import_tars(_tars(request.import_tars), videos)
            print(f"unpacked to {videos}: {imported}", file=sys.stderr)
        shards = divide(videos, out, config.videos_per_shard)
        cpu_s = _measure(engine, shards, out, config, request.retry_errors)
        if waiting := sum(not is_measured(shard, out, config) for shard in shards):
            return _waits("measured", waiting, len(shards))
        clips = select(shards, out, config)
        text = funnel_text(funnel(clips.table, clips.decided, clips.videos, len(clips.errors)))
        print(text, file=sys.stderr)
        kept = int(clips.decided.keep.sum())
        summary: dict[str, Any] = {
            "videos": clips.videos,
            "unused_videos": len(clips.errors),
            "clips": len(clips.decided.keep),
            "kept": kept,
        }
        if request.dry_run:
            return {**summary, "wall_s": round(time.monotonic() - started, 2)}
        if not kept:
            report = _report(request, shards, clips, {}, cpu_s)
            raise UserError(f"no clip is kept; {report} shows why, and what to change")
        # A shard without videos is packed too, empty: their numbers have no gaps.
        by_number = {shard.number: shard for shard in shards}
        packing = [
            by_number.get(number, SourceShard(number, ())) for number in range(1 + max(by_number))
        ]
        for shard in packing:
            write_kept(shard, out, clips.table, clips.decided.keep)
        _caption(engine, shards, out, videos, config)
        counts = _pack(engine, packing, out, config, request.retry_errors)
        if waiting := sum(not is_shard_packed(shard, out, config) for shard in packing):
            return _waits("packed", waiting, len(packing))
        if not engine.first:
            print("all shards are packed; job 0 writes their index and the page", file=sys.stderr)
            return {**summary, **counts, "waiting": 0}
        if engine.alone and not counts["packed"]:
            why = (
                "none of them has a caption; run again, or give --config.captions=none"
                if counts["without_caption"]
                else "none of them could be cut from its video"
            )
            raise UserError(f"{kept} clips are kept, but {why}")
        manifest = finish(out / SHARDS, len(packing), config.pack, {"config": digest(repr(config))})
        report = _report(request, shards, clips, counts, cpu_s)
        if engine.alone:
            prune(out, config)
        if not manifest["clips"]["held_out"]:
            print(
                "no clip is held out of training: give a larger --config.pack.held_out_fraction "
                "to score what a model makes of others",
                file=sys.stderr,
            )
        if request.export_tars:
            summary["tars"] = len(export_tars(out / SHARDS, request.export_tars))
    return {
        **summary,
        **counts,
        "shards": str(out / SHARDS),
        "report": str(report),
        "held_out": manifest["clips"]["held_out"],
        "wall_s": round(time.monotonic() - started, 2),
    }


def _tars(folder: str) -> list[pathlib.Path]:
    tars = sorted(pathlib.Path(folder).rglob("*.tar"))
    if not tars:
        raise UserError(f"--import_tars={folder} holds no tar file")
    return tars


def _waits(what: str, waiting: int, total: int) -> dict[str, Any]:
    print(
        f"{waiting} of {total} shards are not {what} by the other jobs; submit the array again "
        "when these have ended",
        file=sys.stderr,
    )
    return {what: total - waiting, "shards": total, "waiting": waiting}


# Measuring.


def _measure(
    engine: Engine,
    shards: Sequence[SourceShard],
    out: pathlib.Path,
    config: CurationConfig,
    retry_errors: bool,
) -> dict[str, float]:
    """Measure what is missing; seconds of processor time by stage, and "seconds" of video."""
    count = not retry_errors
    missing = [shard for shard in shards if not is_measured(shard, out, config, count)]
    total: dict[str, float] = collections.defaultdict(float)
    with _bar("measure", sum(len(shard.files) for shard in missing), "videos") as show:
        done = 0
        for shard, cpu_s in engine.map(measure_shard, missing, out, config, count):
            done += len(shard.files)
            for name, seconds in cpu_s.items():
                total[name] += seconds
            show(done, total["seconds"])
    return dict(total)


@contextlib.contextmanager
def _bar(name: str, total: int, unit: str) -> Generator[Callable[[int, float | None], None]]:
    """Give a function that shows how many are done, and the seconds of video in them."""
    if not total:
        yield lambda done, video_s=None: None
        return
    with contextlib.closing(ConsoleWriter(total, name, show=("video_s",), unit=unit)) as console:

        def show(done: int, video_s: float | None = None) -> None:
            console.progress(done, {} if video_s is None else {"video_s": video_s})

        yield show


# Captions and packing.


def _caption(
    engine: Engine,
    shards: Sequence[SourceShard],
    out: pathlib.Path,
    videos: pathlib.Path,
    config: CurationConfig,
) -> None:
    """Get the captions that are missing, within the budget."""
    if not config.captions.WANTED:
        return
    given: Mapping[str, Sequence[str]] = {}
    if config.captions.OF_FILES:
        names = [file.name for shard in shards for file in shard.files]
        given = read_captions(videos, names, Problems(), required=True)
    budget = left = config.captions.most_requests()
    if left is not None:
        left = max(0, left - sum(sent_requests(shard, out, config) for shard in shards))
        left = engine.share(left)  # no job knows what the others spend
    mine = list(engine.mine(shards))
    with _bar("caption", len(mine), "shards") as show:
        for done, shard in enumerate(mine, 1):
            sent = caption_shard(shard, out, config, given, left)
            left = None if left is None else max(0, left - sent)
            show(done, None)
    reasons = collections.Counter(
        row["reason"]
        for shard in mine
        for row in shard_captions(shard, out, config).values()
        if row["caption"] is None
    )
    for reason, count in reasons.most_common(_REASONS):
        print(f"{count} clips have no caption: {reason}", file=sys.stderr)
    if left == 0:
        spent = f"the budget of {budget} requests is spent"
        later = "a later run with a larger --config.captions.budget"
        if engine.jobs > 1:
            spent = f"this job's share of the {budget} requests is spent"
            later = f"a later run, if other jobs have not spent theirs, or in {later[2:]}"
        print(f"{spent}; the other clips get their captions in {later}", file=sys.stderr)


def _pack(
    engine: Engine,
    shards: Sequence[SourceShard],
    out: pathlib.Path,
    config: CurationConfig,
    retry_errors: bool,
) -> dict[str, int]:
    """Pack every shard; counts of clips, see `pack_shard`."""
    counts = dict.fromkeys(("packed", "without_caption", "failed"), 0)
    with _bar("pack", len(shards), "shards") as show:
        packing = engine.map(pack_shard, shards, out, config, not retry_errors)
        for done, (_, packed) in enumerate(packing, 1):
            counts = {name: count + packed[name] for name, count in counts.items()}
            show(done, None)
    if counts["failed"]:
        print(
            f"{counts['failed']} clips could not be cut from their videos, see left_out in "
            f"{out / SHARDS}/shard-*.json; --retry_errors tries them again",
            file=sys.stderr,
        )
    return counts


# The page.


def _report(
    request: CurateRequest,
    shards: Sequence[SourceShard],
    clips: Clips,
    counts: Mapping[str, int],
    cpu_s: Mapping[str, float],
) -> pathlib.Path:
    config, out, table = request.config, pathlib.Path(request.out), clips.table
    captions = {}
    if config.captions.WANTED:
        for shard in shards:
            captions |= shard_captions(shard, out, config)
    texts = [(captions.get(name) or {}).get("caption") or "" for name in table["clip_id"]]
    pictures = tables(out, config)["thumbnails"]
    by_shard: dict[int, dict[str, dict[str, np.ndarray]]] = {}

    def thumbnails(clip: int) -> list[bytes]:
        number = int(table["shard"][clip])
        if number not in by_shard:
            by_shard.clear()  # of one shard at a time: the page asks for few, in any order
            by_shard[number] = _pictures(pictures.read(SourceShard(number, ())))
        rows = by_shard[number].get(table["source"][clip])
        if rows is None:
            return []
        return list(between(rows, table["start_s"][clip], table["end_s"][clip])["jpeg"])

    given = [f"--videos={request.videos}", f"--out={request.out}", *_changed(config)]
    facts = {
        "commit": code_commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "command": shlex.join(["python", "launch/curate.py", *given]),
        **{f"clips {name.replace('_', ' ')}": value for name, value in counts.items()},
        **_speed(cpu_s),
        "next": {
            "train on the shards": "python launch/train.py --config=finetune/vidvae:cpu "
            f"--workdir=RUN --config.data.source.path={shlex.quote(str(out / SHARDS))}",
        },
    }
    return write_curation_report(
        out / REPORT,
        {**table, "caption": np.array(texts, object)},
        clips.decided,
        funnel(table, clips.decided, clips.videos, len(clips.errors)),
        thumbnails,
        sorted(clips.errors.items()),
        facts,
        config,
    )


def _changed(group: Any, prefix: str = "--config") -> list[str]:
    """Return the flags for what differs from the defaults of `curation.config`."""
    flags = []
    for field in dataclasses.fields(group):
        value, flag = getattr(group, field.name), f"{prefix}.{field.name}"
        if not dataclasses.is_dataclass(value):
            flags += [] if value == field.default else [f"{flag}={shown(value)}"]
            continue
        if type(value) is not type(field.default):
            flags.append(f"{flag}={value.kind}")
        flags += _changed(value, flag)
    return flags


def _pictures(table: pa.Table) -> dict[str, dict[str, np.ndarray]]:
    """Return the rows of thumbnails of each video."""
    rows: dict[str, dict[str, list]] = {}
    for row in table.to_pylist():
        of = rows.setdefault(row["file"], {"time_s": [], "jpeg": []})
        of["time_s"].append(row["time_s"])
        of["jpeg"].append(row["jpeg"])
    return {
        name: {"time_s": np.array(of["time_s"]), "jpeg": np.array(of["jpeg"], object)}
        for name, of in rows.items()
    }


def _speed(cpu_s: Mapping[str, float]) -> dict[str, str]:
    """Say what measuring cost, per 10 seconds of video, where something was measured."""
    if not cpu_s.get("seconds"):
        return {}
    parts = {name: 10 * value / cpu_s["seconds"] for name, value in cpu_s.items()}
    del parts["seconds"]
    listed = ", ".join(f"{name} {value:.3f}" for name, value in parts.items())
    return {"processor seconds per 10 s of video": f"{sum(parts.values()):.2f} ({listed})"}
