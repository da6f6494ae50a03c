"""Which clips are kept, and why the others are not: rules on a table of clips, and their funnel.

The table of clips holds NumPy columns of equal length N:

    clip_id, source            names of a clip and of its video
    start_s, end_s             seconds since the start of the video
    height, width, fps         of the video, in pixels and frames a second
    duplicate_of               "" or the id of the clip that is kept instead
    piqe, aesthetic, text_area, motion, flow, changed    scores, float; NaN where not measured

A clip that was not measured is not dropped. The order of the rules is that of arXiv 2408.12590,
section 3, with technical quality, which the paper does not measure, before aesthetics. It decides
which reason a clip is counted under, never whether the clip is kept.
"""

import abc
import dataclasses
import operator
from collections.abc import Sequence

import numpy as np

from xgen_jax.curation.config import CurationConfig
from xgen_jax.curation.meter import Columns


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """A reason to drop clips.

    Attributes:
      reason: a word for it; rules may have it in common.
      stage: the row of the funnel in which its clips are dropped.
    """

    reason: str
    stage: str

    @abc.abstractmethod
    def rejected(self, table: Columns, config: CurationConfig) -> np.ndarray:
        """Return bool (N,), True for the clips that the rule drops."""

    @abc.abstractmethod
    def measured(self, table: Columns) -> np.ndarray:
        """Return bool (N,), True for the clips that the rule can decide on."""


@dataclasses.dataclass(frozen=True)
class DuplicateRule(Rule):
    """Drops clips that show the same as one that is kept."""

    def rejected(self, table: Columns, config: CurationConfig) -> np.ndarray:
        return np.array([bool(name) for name in table["duplicate_of"]], bool)

    def measured(self, table: Columns) -> np.ndarray:
        return np.ones(len(table["duplicate_of"]), bool)


@dataclasses.dataclass(frozen=True)
class ThresholdRule(Rule):
    """Drops clips with a score on one side of a threshold; a score equal to it is kept.

    Attributes:
      score: the column.
      key: of the threshold in CurationConfig: "text.max_area".
      above: whether clips above the threshold are dropped, or those below.
    """

    score: str
    key: str
    above: bool

    def threshold(self, config: CurationConfig) -> float:
        return operator.attrgetter(self.key)(config)

    def rejected(self, table: Columns, config: CurationConfig) -> np.ndarray:
        scores = np.asarray(table[self.score], np.float64)
        threshold = self.threshold(config)
        return scores > threshold if self.above else scores < threshold

    def measured(self, table: Columns) -> np.ndarray:
        return ~np.isnan(np.asarray(table[self.score], np.float64))


THRESHOLDS = (
    ThresholdRule("quality", "quality", "piqe", "quality.max_piqe", above=True),
    ThresholdRule("aesthetics", "aesthetics", "aesthetic", "aesthetics.min_score", above=False),
    ThresholdRule("text", "text", "text_area", "text.max_area", above=True),
    ThresholdRule("static", "motion", "motion", "motion.min_motion", above=False),
    ThresholdRule("wild", "motion", "flow", "motion.max_flow", above=True),
    ThresholdRule("wild", "motion", "changed", "motion.max_changed", above=True),
)
RULES: tuple[Rule, ...] = (DuplicateRule("duplicate", "duplicates"), *THRESHOLDS)
REASONS = tuple(dict.fromkeys(rule.reason for rule in RULES))
STAGES = tuple(dict.fromkeys(rule.stage for rule in RULES))

# Part of the clips that a stage of arXiv 2408.12590 (appendix, table 5) keeps. Its stages in a row
# keep 34.84 %.
PAPER = {"duplicates": 0.6418, "aesthetics": 0.9023, "text": 0.679, "motion": 0.886}
PAPER_KEPT = 0.3484


@dataclasses.dataclass(frozen=True)
class Decided:
    """What the rules say of each of N clips.

    Attributes:
      rules: uint32 (N,); bit i is set where RULES[i] drops the clip.
    """

    rules: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """bool (N,)."""
        return self.rules == 0

    @property
    def reason(self) -> np.ndarray:
        """str objects (N,): that of the first rule that drops the clip, "" for a kept clip."""
        reasons = np.full(len(self.rules), "", object)
        for index in reversed(range(len(RULES))):
            reasons[self.dropped_by(RULES[index])] = RULES[index].reason
        return reasons

    def reasons(self, clip: int) -> list[str]:
        """Return all reasons that hold for a clip, in the order of the rules."""
        bits = int(self.rules[clip])
        return list(dict.fromkeys(r.reason for i, r in enumerate(RULES) if bits >> i & 1))

    def dropped_by(self, rule: Rule) -> np.ndarray:
        """Return bool (N,), True where the rule drops the clip, and perhaps others too."""
        return (self.rules >> RULES.index(rule) & 1).astype(bool)

    def dropped_by_others(self, rule: Rule) -> np.ndarray:
        """Return bool (N,), True where any other rule drops the clip."""
        return self.rules & ~np.uint32(1 << RULES.index(rule)) != 0

    def dropped_in(self, stage: str) -> np.ndarray:
        """Return bool (N,), True where a rule of the stage drops the clip."""
        return np.any([self.dropped_by(rule) for rule in RULES if rule.stage == stage], axis=0)


def decide(table: Columns, config: CurationConfig) -> Decided:
    """Apply all rules to a table of clips."""
    rules = np.zeros(len(table["clip_id"]), np.uint32)
    for index, rule in enumerate(RULES):
        rules |= rule.rejected(table, config).astype(np.uint32) << np.uint32(index)
    return Decided(rules)


@dataclasses.dataclass(frozen=True)
class FunnelRow:
    """A stage of the funnel.

    Attributes:
      stage: its name.
      before, after: how many it was given and how many it kept: clips, or videos.
      fraction: after / before; None where they count different things, where before is 0, or where
        nothing could be measured.
      paper: the fraction that arXiv 2408.12590 reports; None where it reports none.
      after_s: seconds of the clips that it kept; None for videos.
      measured: how many of those it was given could be decided on; the others were kept.
    """

    stage: str
    before: int
    after: int
    fraction: float | None
    paper: float | None
    after_s: float | None
    measured: int


def funnel(table: Columns, decided: Decided, videos: int, unreadable: int) -> list[FunnelRow]:
    """Count what is left after each stage.

    Args:
      table: of clips; see this module.
      decided: see `decide`.
      videos: files that were found.
      unreadable: those of them that could not be read.

    Returns:
      Rows "videos read", "clips", one for each of STAGES, and "kept", which compares the clips kept
      with all clips.
    """
    read, clips = videos - unreadable, len(decided.rules)
    seconds = np.asarray(table["end_s"], np.float64) - np.asarray(table["start_s"], np.float64)
    left = np.ones(clips, bool)
    rows = [
        FunnelRow("videos read", videos, read, _fraction(read, videos), None, None, videos),
        FunnelRow("clips", read, clips, None, None, float(seconds.sum()), read),
    ]
    for stage in STAGES:
        able = np.any([rule.measured(table) for rule in RULES if rule.stage == stage], axis=0)
        before, measured = int(left.sum()), int((left & able).sum())
        left &= ~decided.dropped_in(stage)
        after, after_s = int(left.sum()), float(seconds[left].sum())
        fraction = _fraction(after, before) if measured else None
        paper = PAPER.get(stage)
        rows.append(FunnelRow(stage, before, after, fraction, paper, after_s, measured))
    after, after_s = int(left.sum()), float(seconds[left].sum())
    fraction = _fraction(after, clips)
    rows.append(FunnelRow("kept", clips, after, fraction, PAPER_KEPT, after_s, clips))
    return rows


def _fraction(after: int, before: int) -> float | None:
    return after / before if before else None


def funnel_text(rows: Sequence[FunnelRow]) -> str:
    """Format a funnel as lines for a terminal."""
    lines = [f"{'':12}{'in':>11}{'out':>11}{'kept':>8}{'paper':>8}{'hours':>9}"]
    for row in rows:
        fractions = ("–" if f is None else f"{f:.1%}" for f in (row.fraction, row.paper))
        hours = "" if row.after_s is None else f"{row.after_s / 3600:,.2f}"
        line = f"{row.stage:12}{row.before:11,}{row.after:11,}" + "".join(
            f"{cell:>8}" for cell in fractions
        )
        lines.append(f"{line}{hours:>9}{unmeasured(row)}".rstrip())
    return "\n".join(lines)


def unmeasured(row: FunnelRow) -> str:
    """Return what to say behind a row of which clips were not measured; "" if all were."""
    if row.measured == row.before:
        return ""
    return f"  {row.before - row.measured:,} not measured" if row.measured else "  not measured"
