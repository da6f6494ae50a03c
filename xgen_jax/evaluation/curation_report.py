"""HTML page of a curation: its funnel, its thresholds with clips on both sides, what it kept.

Thresholds are chosen by looking. So the page shows, for each, how the score is distributed, clips
just kept and just dropped, and the flag that changes it. The page has a bounded size.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xgen_jax.config.build import flat
from xgen_jax.curation.caption_text import length_statistics
from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.meter import Columns
from xgen_jax.curation.selection import (
    REASONS,
    RULES,
    THRESHOLDS,
    Decided,
    FunnelRow,
    ThresholdRule,
    unmeasured,
)
from xgen_jax.evaluation import page
from xgen_jax.evaluation.chart import histogram
from xgen_jax.evaluation.clips import Sheet
from xgen_jax.evaluation.contact_sheets import SCORES, ContactSheets, evenly

# Bytes of all JPEG files before base64, which adds a third: the page stays below 5 MB.
PICTURE_BUDGET = 3_300_000
NEAR = 6  # clips on each side of a threshold
MAX_KEPT = 24
MAX_DROPPED = 12  # clips of each reason
MAX_CAPTIONS = 12
MAX_ERRORS = 200
ERRORS_IN_SIGHT = 12
MAX_ROWS = 12  # sizes and frame rates
PAPER_WORDS = 84.4  # a caption, on average; arXiv 2408.12590, section 3
PAPER_SECONDS = 6.9  # a kept clip
HEAD = ("commit", "machine", "command", "next")  # facts that stand elsewhere
STAGES = {
    "videos read": "files that could be read",
    "clips": "clips cut from them",
    "duplicates": "not a duplicate",
    "quality": "technical quality",
    "aesthetics": "aesthetics",
    "text": "little text",
    "motion": "neither static nor wild",
    "kept": "kept, of all clips",
}


def write_curation_report(
    out: str | os.PathLike,
    table: Columns,
    decided: Decided,
    funnel: Sequence[FunnelRow],
    thumbnails: Callable[[int], Sequence[bytes]],
    errors: Sequence[tuple[str, str]],
    facts: Mapping[str, Any],
    config: CurationConfig,
) -> pathlib.Path:
    """Write the page, atomically.

    Args:
      out: the page's path.
      table: of clips; see `curation.selection`. A column "caption" of str objects, "" where there
        is none, may be among its columns.
      decided: what the rules say of the clips.
      funnel: see `curation.selection.funnel`.
      thumbnails: a clip's JPEG files by its index in the table, in increasing time; few or none.
      errors: names of files that could not be read, and why.
      facts: what to say of the run, by name: machine, commit. "command" is the one that was
        given; "next", a mapping from what to do next to its command.
      config: of the curation.

    Returns:
      The page's path.

    Raises:
      UserError: the page cannot be written.
    """
    out = pathlib.Path(out)
    measured = sum(bool(rule.measured(table).any()) for rule in THRESHOLDS)
    with_caption = _with_caption(table, decided)
    count = 2 * measured + len(REASONS) + (1 if with_caption.size else 0) + 1
    sheets = ContactSheets(table, decided, thumbnails, PICTURE_BUDGET, count)
    thresholds = _thresholds(table, decided, sheets, config)
    dropped = _dropped(table, decided, sheets)
    captions = _captions(table, with_caption, sheets)
    kept = np.flatnonzero(decided.keep)  # last: it takes the bytes that the others left
    kept_sheet = sheets.sheet(
        evenly(kept, MAX_KEPT), len(kept), "evenly spaced over the table", pictures=3
    )
    others = {name: facts[name] for name in facts if name not in HEAD}
    seconds = np.asarray(table["end_s"], np.float64) - np.asarray(table["start_s"], np.float64)
    return page.write_page(
        out,
        "curation",
        f"Curation of {out.resolve().parent.name}",
        "img",
        facts=page.facts(*([str(facts.get(name, ""))] for name in ("machine", "commit"))),
        others=others,
        paper_seconds=PAPER_SECONDS,
        rows={row.stage: row for row in funnel},
        stages=STAGES,
        remarks={row.stage: unmeasured(row).strip() for row in funnel},
        kept=kept_sheet,
        thresholds=thresholds,
        dropped=dropped,
        lengths=histogram(seconds[decided.keep], "seconds", what="kept clips"),
        occurrences=_occurrences(table, decided) if len(decided.keep) else (),
        captions=captions,
        errors=_errors(errors),
        settings=flat(dataclasses.asdict(config)),
        command=str(facts.get("command") or "python launch/curate.py ..."),
        flag=_flag(next(rule for rule in THRESHOLDS if rule.reason == "text"), config),
        go_on=facts.get("next", {}),
    )


# Thresholds.


def _flag(rule: ThresholdRule, config: CurationConfig) -> str:
    return f"--config.{rule.key}={rule.threshold(config):g}"


def _thresholds(
    table: Columns, decided: Decided, sheets: ContactSheets, config: CurationConfig
) -> list[dict[str, Any]]:
    """Return, for each score, its histogram, and counts and clips on both sides of thresholds."""
    parts = []
    for name, score in SCORES.items():
        if name not in table:
            continue
        values = np.asarray(table[name], np.float64)
        rules = [rule for rule in THRESHOLDS if rule.score == name]
        part: dict[str, Any] = {"title": f"{score.name}: {score.meaning}", "rules": []}
        parts.append(part)
        part["without"] = int(np.isnan(values).sum())
        part["measured"] = len(values) > part["without"]
        if part["measured"]:
            low, high = (
                next((rule.threshold(config) for rule in rules if rule.above is above), None)
                for above in (False, True)
            )
            part["chart"] = histogram(values, score.name, low, high, score.log)
            part["rules"] = [_sides(rule, table, decided, sheets, config) for rule in rules]
    return parts


def _sides(
    rule: ThresholdRule,
    table: Columns,
    decided: Decided,
    sheets: ContactSheets,
    config: CurationConfig,
) -> dict[str, Any]:
    """Return how many clips are on each side of a threshold, and those nearest to it."""
    scores = np.asarray(table[rule.score], np.float64)
    dropped, measured = decided.dropped_by(rule), rule.measured(table)
    alone = measured & ~decided.dropped_by_others(rule)
    distance = np.abs(scores - rule.threshold(config))
    near = []
    for side in (dropped, ~dropped):
        clips = np.flatnonzero(alone & side)
        nearest = clips[np.argsort(distance[clips], kind="stable")][:NEAR]
        how = f"the nearest to {rule.threshold(config):g} first"
        near.append(sheets.sheet(nearest, len(clips), how, rule.score))
    drops, keeps = int(dropped.sum()), int((measured & ~dropped).sum())
    return {
        "flag": _flag(rule, config),
        "reason": rule.reason,
        "above": rule.above,
        "drops": drops,
        "keeps": keeps,
        "fraction": drops / max(drops + keeps, 1),
        "alone": int((dropped & alone).sum()),
        "near": dict(zip(("Just dropped", "Just kept"), near)),
    }


def _dropped(table: Columns, decided: Decided, sheets: ContactSheets) -> dict[str, Sheet]:
    """Return clips by the first reason for which they were dropped."""
    parts = {}
    for reason in REASONS:
        clips = np.flatnonzero(decided.reason == reason)
        rule = next(rule for rule in RULES if rule.reason == reason)
        how, score = "evenly spaced over the table", None
        if isinstance(rule, ThresholdRule):
            score = rule.score
            values = np.asarray(table[score], np.float64)[clips]
            clips = clips[np.argsort(values, kind="stable")]
            how = f"evenly spaced over {SCORES[score].name}"
        parts[reason] = sheets.sheet(
            evenly(clips, MAX_DROPPED),
            len(clips),
            how,
            score,
            pictures=3 if rule.stage == "motion" else 1,  # motion is not seen in one
            pairs=rule.stage == "duplicates",
        )
    return parts


# What was kept.


def _occurrences(table: Columns, decided: Decided) -> dict[str, list[tuple[str, int, int, float]]]:
    """Return (value, how many clips, how many of them kept, fraction of all) by what they are."""
    every = {
        "size": [f"{w:.0f}×{h:.0f}" for w, h in zip(table["width"], table["height"])],
        "frames a second": [f"{fps:.4g}" for fps in table["fps"]],
    }
    found = {}
    for name, values in every.items():
        count = collections.Counter(values)
        kept = collections.Counter(np.array(values)[decided.keep].tolist())
        common = count.most_common(MAX_ROWS)
        found[name] = [(value, n, kept[value], n / len(values)) for value, n in common]
        if rest := len(count) - len(common):
            others = len(values) - sum(n for _, n in common)
            others_kept = int(decided.keep.sum()) - sum(kept[value] for value, _ in common)
            found[name].append((f"{rest:,} others", others, others_kept, others / len(values)))
    return found


def _with_caption(table: Columns, decided: Decided) -> np.ndarray:
    """Return the kept clips that have a caption, int (N,)."""
    if "caption" not in table:
        return np.zeros(0, int)
    there = [bool(str(caption or "").strip()) for caption in table["caption"]]
    return np.flatnonzero(decided.keep & np.array(there, bool))


def _captions(table: Columns, clips: np.ndarray, sheets: ContactSheets) -> dict[str, Any] | None:
    if not len(clips):
        return None
    captions = [str(table["caption"][clip]) for clip in clips]
    words = np.array([len(caption.split()) for caption in captions])
    how = "evenly spaced over the table"
    return {
        "count": len(captions),
        "lengths": length_statistics(captions),
        "paper_words": PAPER_WORDS,
        "same": len(captions) - len(set(captions)),
        "chart": histogram(words, "words", what="captions"),
        "sheet": sheets.sheet(evenly(clips, MAX_CAPTIONS), len(clips), how, pictures=3),
    }


# Errors.


def _errors(errors: Sequence[tuple[str, str]]) -> dict[str, Any]:
    reasons = collections.Counter(reason for _, reason in errors).most_common(8)
    return {
        "count": len(errors),
        "common": [(reason, n) for reason, n in reasons if n > 1],
        "in_sight": errors[:ERRORS_IN_SIGHT],
        "folded": errors[ERRORS_IN_SIGHT:MAX_ERRORS],
        "beyond": max(len(errors) - MAX_ERRORS, 0),
    }
