"""A shard of videos: what was measured of it, and the clips that follow from that.

Measuring decodes every video once, in a worker process. Clips and their scores are arithmetic on
the tables, so that other thresholds cost seconds.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from xgen_jax.curation import aesthetics, duplicates, motion, quality, shots, text
from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.isolation import shared_worker
from xgen_jax.curation.measure import Measured, ThumbnailMeter, measure
from xgen_jax.curation.meter import Columns, Meter, between
from xgen_jax.curation.selection import THRESHOLDS
from xgen_jax.curation.store import SourceFile, SourceShard, Table, digest
from xgen_jax.errors import UserError

FILES = "files"  # the table of the videos themselves
# What clips are scored by; NaN where it was not measured.
SCORES = (
    *("motion", "changed", "moved", "drift", "flow", "text_area", "text_boxes"),
    *("piqe", "sharpness", "brightness", "contrast", "aesthetic"),
)
_FILES_VERSION = 1
_CLIPS_VERSION = 1
_VIDEOS = b"videos"  # in the metadata of a table of clips, see `is_clipped`

# How each stage's meter is made.
METERS: dict[str, Callable[[CurationConfig], Meter]] = {
    "shots": lambda config: shots.ShotsMeter(config.shots),
    "motion": lambda config: motion.MotionMeter(config.motion),
    "hashes": lambda config: duplicates.HashMeter(config.duplicates),
    "quality": lambda config: quality.QualityMeter(config.quality),
    "text": lambda config: text.TextMeter(config.text),
    "thumbnails": lambda config: ThumbnailMeter(config.thumbnail_every_s),
    "features": lambda config: aesthetics.FeatureMeter(config.aesthetics),
}


def stage_keys(config: CurationConfig) -> dict[str, str]:
    """Return for each stage that measures the key of what decides its table."""
    keys = {
        FILES: digest(_FILES_VERSION),
        "shots": config.shots.key(),
        "motion": config.motion.key(),
        "hashes": config.duplicates.key(),
        "quality": config.quality.key(),
        "text": config.text.key(),
        "thumbnails": digest(config.thumbnail_every_s),
    }
    if config.aesthetics.clip_dir:
        keys["features"] = digest(
            config.aesthetics.key(), aesthetics.weights_digest(config.aesthetics)
        )
    return keys


def clips_key(config: CurationConfig) -> str:
    """Return the key of what decides the clips and their scores."""
    thresholds = {rule.key for rule in THRESHOLDS}  # which are applied to the scores afterwards
    deciding = {
        f"{stage}.{name}": value
        for stage in ("shots", "motion", "quality", "text", "aesthetics")
        for name, value in dataclasses.asdict(getattr(config, stage)).items()
        if f"{stage}.{name}" not in thresholds
    }
    return digest(_CLIPS_VERSION, stage_keys(config), deciding)


def tables(out: pathlib.Path, config: CurationConfig) -> dict[str, Table]:
    """Return the tables of the stages that measure, by stage."""
    return {
        stage: Table(out / "measured" / f"{stage}-{key}")
        for stage, key in stage_keys(config).items()
    }


def clips_table(out: pathlib.Path, config: CurationConfig) -> Table:
    """Return the table of clips."""
    return Table(out / f"clips-{clips_key(config)}")


def measure_video(path: str, stages: tuple[str, ...], config: CurationConfig) -> Measured:
    """Measure a video for some stages; see `measure`. It runs in a worker."""
    meters = {stage: METERS[stage](config) for stage in stages if stage != FILES}
    return measure(path, meters, config.limits)


def is_measured(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig, errors: bool = True
) -> bool:
    """Return whether `measure_shard` has nothing to do.

    Args:
      shard: of the videos.
      out: of the curation.
      config: of the curation.
      errors: whether a table with errors counts. One whose errors arose under other limits never
        does: these may be why.
    """
    return all(_is_done(table, shard, config, errors) for table in tables(out, config).values())


def _is_done(table: Table, shard: SourceShard, config: CurationConfig, errors: bool = True) -> bool:
    if not table.has(shard):
        return False
    found, limits = _errors(table.read(shard, []))
    return not found or (errors and limits == _limits(config))


def _limits(config: CurationConfig) -> str:
    return digest(repr(config.limits))


def _errors(part: pa.Table) -> tuple[dict[str, str], str]:
    """Return the reasons why videos are not in a table, and the limits under which they arose."""
    about = part.schema.metadata or {}
    return json.loads(about.get(b"errors", b"{}")), about.get(b"limits", b"").decode()


def measure_shard(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig, errors_count: bool = True
) -> dict[str, float]:
    """Measure for a shard what no table has yet, and write the tables.

    Args:
      shard: of the videos.
      out: of the curation.
      config: of the curation.
      errors_count: whether a table with errors counts; see `is_measured`.

    Returns:
      Seconds of processor time of each stage and of "decode"; "seconds", those of the videos.
    """
    missing = {
        stage: table
        for stage, table in tables(out, config).items()
        if not _is_done(table, shard, config, errors_count)
    }
    cpu_s: dict[str, float] = collections.defaultdict(float)
    found: dict[str, list[pa.Table]] = {stage: [] for stage in missing}
    errors: dict[str, str] = {}
    rows = []
    worker = shared_worker(config.limits.memory_gb)
    for file in shard.files:
        try:
            measured = worker.run(
                measure_video,
                *(file.path, tuple(missing), config),
                silent_s=config.limits.seconds,
            )
        except UserError as error:
            errors[file.name] = _without_path(str(error), file)
            continue
        rows.append({"file": file.name, **measured.facts})
        for stage, columns in measured.tables.items():
            found[stage].append(_as_table(file.name, columns))
        for stage, seconds in measured.cpu_s.items():
            cpu_s[stage] += seconds
        cpu_s["seconds"] += float(measured.facts["seconds"])
    found.pop(FILES, None)
    for stage, table in missing.items():
        parts = [_files(rows)] if stage == FILES else found[stage]
        whole = pa.concat_tables(parts) if parts else _as_table("", _empty(stage, config))
        about = {b"errors": json.dumps(errors).encode(), b"limits": _limits(config).encode()}
        table.write(shard, whole.replace_schema_metadata(about))
    return cpu_s


def unfit(facts: Mapping[str, Any], config: CurationConfig) -> str:
    """Return why a video that could be read has no clips; empty if it may have some."""
    side, least = min(facts["width"], facts["height"]), config.shots.min_side
    if side < least:
        return f"its shorter side has {side} pixels (--config.shots.min_side={least})"
    if facts["fps"] < config.shots.min_fps:
        return (
            f"it has {facts['fps']:g} frames a second (--config.shots.min_fps="
            f"{config.shots.min_fps:g})"
        )
    return ""


def shard_facts(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return (facts of the videos that can be used, reasons why the others cannot), by name."""
    names = {file.name for file in shard.files}
    facts, errors = {}, {}
    for stage, table in tables(out, config).items():
        part = table.read(shard, None if stage == FILES else [])
        errors |= _errors(part)[0]
        if stage == FILES:
            facts = {row["file"]: row for row in part.to_pylist()}
    reasons = {name: reason for name, reason in errors.items() if name in names}
    for name in names & facts.keys() - reasons.keys():
        if reason := unfit(facts[name], config):
            reasons[name] = reason
    usable = {name: row for name, row in facts.items() if name in names and name not in reasons}
    return usable, dict(sorted(reasons.items()))


def is_clipped(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig, facts: Mapping[str, Any]
) -> bool:
    """Return whether the clips of a shard are there, of the videos that can be used now.

    Args:
      shard, out, config: as of `clip_shard`.
      facts: of the videos, see `shard_facts`.
    """
    table = clips_table(out, config)
    if not table.has(shard):
        return False
    return (table.read(shard, []).schema.metadata or {}).get(_VIDEOS) == _videos(facts)


def _videos(facts: Mapping[str, Any]) -> bytes:
    """Return what tells videos from others: their names and bytes."""
    return digest(sorted((name, row["sha256"]) for name, row in facts.items())).encode()


def clip_shard(
    shard: SourceShard, out: pathlib.Path, config: CurationConfig, facts: Mapping[str, Any]
) -> None:
    """Write the clips of a shard that was measured, with their scores.

    Args:
      shard: of the videos.
      out: of the curation.
      config: of the curation.
      facts: of the videos, see `shard_facts`.

    Columns: clip_id, source (the video's name), sha256 (of its bytes), start_s, end_s, width,
    height, fps, bitrate (bytes a second of the file), the scores of each stage, lists of hashes
    with hash_time_s and hash_quality, and feature (a list, where CLIP is given).
    """
    by_file = {
        stage: _by_file(table.read(shard))
        for stage, table in tables(out, config).items()
        if stage in METERS
    }
    rows = []
    for file in shard.files:
        if file.name in facts:
            parts = {stage: of(file.name) for stage, of in by_file.items()}
            rows += _clips_of(facts[file.name], parts, config)
    table = pa.Table.from_pylist(rows, clip_schema(config))
    clips_table(out, config).write(shard, table.replace_schema_metadata({_VIDEOS: _videos(facts)}))


def _clips_of(
    facts: Mapping[str, Any], parts: Mapping[str, Columns], config: CurationConfig
) -> list[dict[str, Any]]:
    """The clips of one video."""
    found = shots.find_shots(parts["shots"], config.shots, facts["seconds"])
    rows = []
    for whole in shots.clips_of(found, config.shots):
        cut = motion.recut(parts["motion"], *whole, config.shots, config.motion)
        if cut is None:
            continue
        start_s, end_s = cut
        here = {stage: between(columns, start_s, end_s) for stage, columns in parts.items()}
        row = {
            "clip_id": clip_id(facts["sha256"], start_s, end_s),
            "source": facts["file"],
            **{name: facts[name] for name in ("sha256", "width", "height", "fps")},
            "bitrate": facts["bytes"] / facts["seconds"],
            "start_s": start_s,
            "end_s": end_s,
            **motion.motion_scores(here["motion"]),
            **text.text_scores(here["text"]),
            **quality.quality_scores(here["quality"]),
            "hashes": [each.tobytes() for each in here["hashes"]["hash"]],
            "hash_time_s": here["hashes"]["time_s"].tolist(),
            "hash_quality": here["hashes"]["quality"].tolist(),
        }
        if "features" in here:
            row |= aesthetics.aesthetics_scores(here["features"], config.aesthetics)
            row["feature"] = _listed(aesthetics.mean_feature(here["features"]))
        rows.append(row)
    return rows


def clip_id(sha256: str, start_s: float, end_s: float) -> str:
    """Return the name of a clip: it follows from the bytes of its video and its times alone."""
    span = round(start_s * 1e6), round(end_s * 1e6)
    return hashlib.sha256(f"{sha256}:{span[0]}:{span[1]}".encode()).hexdigest()[:20]


def clip_schema(config: CurationConfig) -> pa.Schema:
    """Return the columns of the table of clips."""
    fields = {
        **dict.fromkeys(("clip_id", "source", "sha256"), pa.string()),
        **dict.fromkeys(("start_s", "end_s", "fps", "bitrate"), pa.float64()),
        **dict.fromkeys(("width", "height"), pa.int64()),
        **dict.fromkeys(SCORES, pa.float64()),
        "hashes": pa.list_(pa.binary(duplicates.HASH_BYTES)),
        "hash_time_s": pa.list_(pa.float64()),
        "hash_quality": pa.list_(pa.int64()),
    }
    if config.aesthetics.clip_dir:
        fields["feature"] = pa.list_(pa.float32())
    return pa.schema(list(fields.items()))


def _files(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the table of the videos themselves."""
    fields = {
        **dict.fromkeys(("file", "sha256"), pa.string()),
        **dict.fromkeys(("bytes", "width", "height", "frames"), pa.int64()),
        **dict.fromkeys(("fps", "seconds"), pa.float64()),
    }
    return pa.Table.from_pylist(list(rows), pa.schema(list(fields.items())))


def _as_table(file: str, columns: Columns) -> pa.Table:
    """Return what a meter measured of a video, with the video's name."""
    arrays = {name: _as_arrow(values) for name, values in columns.items()}
    names = pa.array([file] * len(arrays["time_s"]), pa.string())
    return pa.table({"file": names.dictionary_encode(), **arrays})


def _as_arrow(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values) if isinstance(values, np.ndarray) else values


def _as_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as `_as_arrow` was given it, lists as objects."""
    kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        flat = b"".join(column.to_pylist())
        return np.frombuffer(flat, np.uint8).reshape(-1, kind.byte_width)
    if pa.types.is_fixed_size_list(kind):
        flat = column.combine_chunks().flatten()
        return flat.to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_binary(kind):
        values = np.empty(len(column), object)
        values[:] = column.to_pylist()
        return values
    return column.to_numpy()


def _by_file(table: pa.Table) -> Callable[[str], dict[str, np.ndarray]]:
    """Return a function that gives the rows of a video."""
    columns = {name: _as_numpy(table[name]) for name in table.column_names if name != "file"}
    files = np.array(table["file"].to_pylist(), object)
    # A video's rows follow each other.
    starts = [0, *(np.flatnonzero(files[1:] != files[:-1]) + 1).tolist(), len(files)]
    spans = {files[a]: (a, b) for a, b in zip(starts, starts[1:]) if b > a}

    def of(file: str) -> dict[str, np.ndarray]:
        first, last = spans.get(file, (0, 0))
        return {name: values[first:last] for name, values in columns.items()}

    return of


def _empty(stage: str, config: CurationConfig) -> Columns:
    return METERS[stage](config).columns()


def _without_path(reason: str, file: SourceFile) -> str:
    """Shorten what a reader says of a file, whose name stands next to it in tables."""
    return reason.removeprefix(f"cannot read {file.path}: ").replace(file.path, file.name)


def _listed(feature: np.ndarray | None) -> list[float] | None:
    return None if feature is None else feature.tolist()
