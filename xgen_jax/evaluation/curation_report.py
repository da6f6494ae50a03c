"""HTML page of a curation: its funnel, its thresholds with clips on both sides, what it kept.

Thresholds are chosen by looking. So the page shows, for each, how the score is distributed, clips
just kept and just dropped, and the flag that changes it. The page is one file of a bounded size
that loads nothing from the network and holds no scripts; see `page`.
"""

import collections
import dataclasses
import json
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
from xgen_jax.evaluation.contact_sheets import SCORES, ContactSheets, evenly
from xgen_jax.evaluation.page import escape
from xgen_jax.evaluation.report_style import CURATION_STYLE
from xgen_jax.files import write_text
from xgen_jax.training.metric_writers import duration

SOURCES = "img-src data:"
# Bytes of all JPEG files before base64, which adds a third: the page stays below 5 MB.
PICTURE_BUDGET = 3_300_000
NEAR = 6  # clips on each side of a threshold
MAX_KEPT = 24
MAX_DROPPED = 12  # clips of each reason
MAX_CAPTIONS = 12
MAX_ERRORS = 200
ERRORS_IN_SIGHT = 12
MAX_REASON = 300  # characters
MAX_ROWS = 12  # sizes and frame rates
PAPER_WORDS = 84.4  # a caption, on average; arXiv 2408.12590, section 3
PAPER_SECONDS = 6.9  # a kept clip
STAGES = {
    "videos read": "files that could be read",
    "clips": "clips cut from them",
    "duplicates": "not a duplicate",
    "quality": "technical quality",
    "aesthetics": "aesthetics",
    "text": "little text",
    "motion": "neither static nor wild",
    "kept": "<strong>kept, of all clips</strong>",
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
      facts: what to say of the run, by name: date, machine, commit. "command" is the one that was
        given; "next", a mapping from what to do next to its command.
      config: of the curation.

    Returns:
      The page's path.

    Raises:
      UserError: the page cannot be written.
    """
    out = pathlib.Path(out)
    title = f"Curation of {out.resolve().parent.name}"
    measured = sum(bool(rule.measured(table).any()) for rule in THRESHOLDS)
    count = 2 * measured + len(REASONS) + (1 if _with_caption(table, decided).size else 0) + 1
    sheets = ContactSheets(table, decided, thumbnails, PICTURE_BUDGET, count)
    thresholds = _thresholds(table, decided, sheets, config)
    dropped = _dropped(table, decided, sheets)
    captions = _captions(table, decided, sheets)
    kept = np.flatnonzero(decided.keep)  # last: it takes the bytes that the others left
    kept_sheet = sheets.sheet(
        evenly(kept, MAX_KEPT), len(kept), "evenly spaced over the table", pictures=3
    )
    sections = {
        "Funnel": _funnel(funnel),
        "Kept clips": kept_sheet,
        "Thresholds": thresholds,
        "Dropped clips": dropped,
        "Lengths, sizes, frame rates": _distributions(table, decided),
        "Captions": captions,
        "Files with errors": _errors(errors),
        "Settings": _settings(config),
        "Other thresholds, and how to go on": _commands(facts, config),
    }
    body = _header(title, facts) + _tiles(funnel, errors) + page.contents(sections)
    body += "".join(page.section(name, content) for name, content in sections.items())
    write_text(out, page.document(f"xgen_jax: {title}", body, SOURCES, CURATION_STYLE))
    return out


def _header(title: str, facts: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(name),
            escape(value if isinstance(value, str) else json.dumps(value, default=str)),
        )
        for name, value in facts.items()
        if name not in ("command", "next")
    ]
    command = f"<pre>{escape(str(facts['command']))}</pre>" if facts.get("command") else ""
    return (
        f"<header><p>xgen_jax</p><h1>{escape(title)}</h1><p>From raw videos to clips for training: "
        "which clips were kept, why the others were not, and what other thresholds would do."
        f"</p></header>{command}{page.table((), rows) if rows else ''}"
    )


def _tiles(funnel: Sequence[FunnelRow], errors: Sequence[tuple[str, str]]) -> str:
    rows = {row.stage: row for row in funnel}
    kept, videos = rows["kept"], rows["videos read"]
    kept_s = kept.after_s or 0.0
    mean = f"{kept_s / kept.after:.1f} s a clip" if kept.after else "no clip"
    return page.tiles(
        [
            ("Clips kept", f"{kept.after:,}", f"of {kept.before:,} ({_percent(kept.fraction)})"),
            ("Video kept", duration(kept_s), f"{mean}; {PAPER_SECONDS} s in the paper"),
            ("Videos read", f"{videos.after:,}", f"of {videos.before:,}; {len(errors):,} errors"),
        ]
    )


def _percent(fraction: float | None) -> str:
    return page.figure(fraction, ".1%")


def _funnel(funnel: Sequence[FunnelRow]) -> str:
    rows = []
    for row in funnel:
        remark = unmeasured(row)
        ours = "" if row.fraction is None else f"{_percent(row.fraction)} {page.bar(row.fraction)}"
        paper = ""
        if row.paper is not None:
            paper = f"{_percent(row.paper)} {page.bar(row.paper, 'paper')}"
        video = ""
        if row.after_s is not None:
            video = f'<p class="line note">{duration(row.after_s)}</p>'
        rows.append(
            (
                STAGES.get(row.stage, escape(row.stage))
                + (f' <span class="note">({remark.strip()})</span>' if remark else ""),
                f'<p class="line">{row.before:,} → {row.after:,}</p>{video}',
                f'<p class="line">{ours}</p><p class="line note">{paper}</p>',
            )
        )
    head = ("stage", "in → out", "kept (grey: in the paper)")
    return page.table(head, rows) + (
        '<p class="note">The paper is arXiv 2408.12590, section 3; it names no other numbers. What '
        "videos it began with is not known, so yours may well differ. A clip that several rules "
        "drop is counted at the first; one that was not measured stays.</p>"
    )


# Thresholds.


def _flag(rule: ThresholdRule, config: CurationConfig) -> str:
    return f"--config.{rule.key}={rule.threshold(config):g}"


def _thresholds(
    table: Columns, decided: Decided, sheets: ContactSheets, config: CurationConfig
) -> str:
    parts = [
        '<p class="note">All clips that have the score, duplicates too. Clips next to a threshold '
        "are those that no other rule drops: they are what a change of this threshold "
        "changes.</p>"
    ]
    for name, score in SCORES.items():
        if name not in table:
            continue
        values = np.asarray(table[name], np.float64)
        rules = [rule for rule in THRESHOLDS if rule.score == name]
        parts.append(f"<h3>{score.name}: {score.meaning}</h3>")
        if np.isnan(values).all():
            parts.append(page.missing("Not measured."))
            continue
        low, high = (
            next((rule.threshold(config) for rule in rules if rule.above is above), None)
            for above in (False, True)
        )
        chart = histogram(values, score.name, low, high, score.log)
        counts = "".join(_counts(rule, table, decided, config) for rule in rules)
        without = int(np.isnan(values).sum())
        if without:
            counts += f'<p class="note">{without:,} clips were not measured.</p>'
        parts.append(
            f'<div class="sides"><div class="charts"><div>{chart}</div></div>'
            f'<div class="counts">{counts}</div></div>'
        )
        parts += [_near(rule, table, decided, sheets, config) for rule in rules]
    return "".join(parts)


def _counts(rule: ThresholdRule, table: Columns, decided: Decided, config: CurationConfig) -> str:
    dropped, measured = decided.dropped_by(rule), rule.measured(table)
    alone = int((dropped & ~decided.dropped_by_others(rule)).sum())
    drops, keeps = int(dropped.sum()), int((measured & ~dropped).sum())
    side, other = ("above", "at or below") if rule.above else ("below", "at or above")
    return (
        f"<p><code>{_flag(rule, config)}</code></p><ul>"
        f'<li><span class="dropped-count">{drops:,}</span> {side}, dropped as "{rule.reason}" '
        f"({_percent(drops / max(drops + keeps, 1))}), {alone:,} of them by no other rule</li>"
        f'<li><span class="kept-count">{keeps:,}</span> {other}</li></ul>'
    )


def _near(
    rule: ThresholdRule,
    table: Columns,
    decided: Decided,
    sheets: ContactSheets,
    config: CurationConfig,
) -> str:
    """Return the clips on both sides of a threshold that are nearest to it."""
    scores = np.asarray(table[rule.score], np.float64)
    alone = rule.measured(table) & ~decided.dropped_by_others(rule)
    distance = np.abs(scores - rule.threshold(config))
    parts = []
    for name, side in (
        ("Just dropped", decided.dropped_by(rule)),
        ("Just kept", ~decided.dropped_by(rule)),
    ):
        clips = np.flatnonzero(alone & side)
        nearest = clips[np.argsort(distance[clips], kind="stable")][:NEAR]
        how = f"the nearest to {rule.threshold(config):g} first"
        sheet = sheets.sheet(nearest, len(clips), how, rule.score)
        parts.append(f"<div><h4>{name} by <code>{_flag(rule, config)}</code></h4>{sheet}</div>")
    return f'<div class="sides">{"".join(parts)}</div>'


def _dropped(table: Columns, decided: Decided, sheets: ContactSheets) -> str:
    parts = ['<p class="note">Each clip under the first reason; its card names all that hold.</p>']
    first = decided.reason
    for reason in REASONS:
        clips = np.flatnonzero(first == reason)
        rule = next(rule for rule in RULES if rule.reason == reason)
        how, score = "evenly spaced over the table", None
        if isinstance(rule, ThresholdRule):
            score = rule.score
            values = np.asarray(table[score], np.float64)[clips]
            clips = clips[np.argsort(values, kind="stable")]
            how = f"evenly spaced over {SCORES[score].name}"
        sheet = sheets.sheet(
            evenly(clips, MAX_DROPPED),
            len(clips),
            how,
            score,
            pictures=3 if rule.stage == "motion" else 1,  # motion is not seen in one
            pairs=rule.stage == "duplicates",
        )
        parts.append(f"<h3>{reason.capitalize()}</h3>{sheet}")
    return "".join(parts)


# What was kept.


def _distributions(table: Columns, decided: Decided) -> str:
    keep = decided.keep
    if not len(keep):
        return page.missing("No clips.")
    seconds = np.asarray(table["end_s"], np.float64) - np.asarray(table["start_s"], np.float64)
    sizes = [f"{w:.0f}×{h:.0f}" for w, h in zip(table["width"], table["height"])]
    rates = [f"{fps:.4g}" for fps in table["fps"]]
    chart = histogram(seconds[keep], "seconds", what="kept clips")
    return (
        f'<div class="charts"><div>{chart}</div></div>'
        + _table_of("size", sizes, keep)
        + _table_of("frames a second", rates, keep)
    )


def _table_of(name: str, values: Sequence[str], keep: np.ndarray) -> str:
    """Return a table of how often values occur among all clips and the kept ones."""
    count, kept = collections.Counter(values), collections.Counter(np.array(values)[keep].tolist())
    common = count.most_common(MAX_ROWS)
    rows = [(value, f"{n:,}", f"{kept[value]:,}", page.bar(n / len(values))) for value, n in common]
    if len(count) > len(common):
        others = len(values) - sum(n for _, n in common)
        rest = int(keep.sum()) - sum(kept[value] for value, _ in common)
        rows.append((f"{len(count) - len(common):,} others", f"{others:,}", f"{rest:,}", ""))
    return page.table((name, "clips", "kept", ""), rows)


def _with_caption(table: Columns, decided: Decided) -> np.ndarray:
    """Return the kept clips that have a caption, int (N,)."""
    if "caption" not in table:
        return np.zeros(0, int)
    there = [bool(str(caption or "").strip()) for caption in table["caption"]]
    return np.flatnonzero(decided.keep & np.array(there, bool))


def _captions(table: Columns, decided: Decided, sheets: ContactSheets) -> str:
    clips = _with_caption(table, decided)
    if not len(clips):
        return page.missing("No captions: see --config.captions.")
    captions = [str(table["caption"][clip]) for clip in clips]
    words = np.array([len(caption.split()) for caption in captions])
    lengths = length_statistics(captions)
    usual = _percent(lengths["within_50_120"])
    same = len(captions) - len(set(captions))
    chart = histogram(words, "words", what="captions")
    sheet = sheets.sheet(
        evenly(clips, MAX_CAPTIONS),
        len(clips),
        "evenly spaced over the table",
        pictures=3,
        captions=True,
    )
    return (
        f"<p>{len(clips):,} of {decided.keep.sum():,} kept clips have one: "
        f"{lengths['mean_words']:.1f} words on average ({PAPER_WORDS} in the paper), 5 to 95% of "
        f"them {lengths['p5']:.0f} to {lengths['p95']:.0f}, {usual} of 50 to 120 words (about 87% "
        f"in the paper). {same:,} are the same as another.</p>"
        f'<div class="charts"><div>{chart}</div></div>{sheet}'
    )


# Errors, settings, commands.


def _errors(errors: Sequence[tuple[str, str]]) -> str:
    if not errors:
        return "<p>None.</p>"
    rows = [
        (page.file_name(file), page.shortened(reason, MAX_REASON))
        for file, reason in errors[:MAX_ERRORS]
    ]
    reasons = collections.Counter(reason for _, reason in errors)
    common = [
        (page.shortened(reason, MAX_REASON), f"{n:,}")
        for reason, n in reasons.most_common(8)
        if n > 1
    ]
    parts = [f"<p>{len(errors):,} files.</p>"]
    if common:
        parts.append(page.table(("reason", "files"), common))
    parts.append(page.table(("file", "reason"), rows[:ERRORS_IN_SIGHT]))
    if len(rows) > ERRORS_IN_SIGHT:
        more = rows[ERRORS_IN_SIGHT:]
        beyond = len(errors) - len(rows)
        summary = f"{len(more):,} more" + (f"; {beyond:,} others are not shown" if beyond else "")
        parts.append(page.folded(summary, page.table(("file", "reason"), more)))
    return "".join(parts)


def _settings(config: CurationConfig) -> str:
    rows = [
        (f"<code>--config.{escape(name)}</code>", f"<code>{escape(json.dumps(value))}</code>")
        for name, value in flat(dataclasses.asdict(config)).items()
    ]
    return page.folded(f"{len(rows)} settings", page.table(("flag", "value"), rows))


def _commands(facts: Mapping[str, Any], config: CurationConfig) -> str:
    command = str(facts.get("command") or "python launch/curate.py ...")
    flag = _flag(next(rule for rule in THRESHOLDS if rule.reason == "text"), config)
    commands = {
        "the funnel with another threshold; nothing is decoded or written": (
            f"{command} \\\n  {flag} --dry_run"
        ),
        "the same for good: decides again, writes the shards and this page": (
            f"{command} \\\n  {flag}"
        ),
        **facts.get("next", {}),
    }
    lines = "\n\n".join(f"# {what}\n{line}" for what, line in commands.items())
    return (
        "<p>Every score is stored, so other thresholds cost no decoding. Put another number into "
        "the flag, and add as many flags as you like; each threshold above names its own.</p>"
        f"<pre>{escape(lines)}</pre>"
    )
