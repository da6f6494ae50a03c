"""Which clips are kept, the reasons of the others, and the funnel."""

import dataclasses

import numpy as np
import pytest

from xgen_jax.curation import selection
from xgen_jax.curation.config import CurationConfig, TextConfig

GOOD = {
    "piqe": 30.0,
    "aesthetic": 6.0,
    "text_area": 0.0,
    "motion": 25.0,
    "changed": 0.05,
    "flow": 0.1,
    "duplicate_of": "",
}


def clips(*changes):
    """A table of good clips of 4 s with the given changes."""
    rows = [GOOD | change for change in changes]
    count = len(rows)
    table = {name: np.array([row[name] for row in rows]) for name in GOOD}
    table["duplicate_of"] = np.array([row["duplicate_of"] for row in rows], object)
    return table | {
        "clip_id": np.array([f"clip{i}" for i in range(count)], object),
        "source": np.array(["a.mp4"] * count, object),
        "start_s": np.arange(count) * 4.0,
        "end_s": np.arange(count) * 4.0 + 4,
        "height": np.full(count, 720),
        "width": np.full(count, 1280),
        "fps": np.full(count, 25.0),
    }


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, []),
        ({"duplicate_of": "clip9"}, ["duplicate"]),
        ({"piqe": 65.1}, ["quality"]),
        ({"aesthetic": 4.4}, ["aesthetics"]),
        ({"text_area": 0.021}, ["text"]),
        ({"motion": 0.99}, ["static"]),
        ({"flow": 1.1}, ["wild"]),
        ({"changed": 0.9}, ["wild"]),
        ({"motion": 0.0, "flow": 1.1, "text_area": 1.0}, ["text", "static", "wild"]),
        ({"flow": 1.1, "duplicate_of": "x", "aesthetic": 0.0}, ["duplicate", "aesthetics", "wild"]),
        # A score equal to its threshold is kept.
        ({"piqe": 65.0, "aesthetic": 4.5, "text_area": 0.02, "motion": 1.0, "changed": 0.85}, []),
        ({"flow": 0.8}, []),
        # What was not measured drops nothing.
        (
            dict.fromkeys(("piqe", "aesthetic", "text_area", "motion", "changed", "flow"), np.nan),
            [],
        ),
        ({"aesthetic": np.nan, "flow": np.nan, "piqe": 99.0}, ["quality"]),
    ],
)
def test_reasons(change, reasons):
    decided = selection.decide(clips({}, change, {}), CurationConfig())
    assert decided.reasons(1) == reasons and decided.reasons(0) == []
    assert decided.reason.tolist() == ["", reasons[0] if reasons else "", ""]
    assert decided.keep.tolist() == [True, not reasons, True]


def test_thresholds_are_those_of_the_configuration():
    table = clips({"text_area": 0.03}, {"text_area": 0.05})
    config = dataclasses.replace(CurationConfig(), text=TextConfig(max_area=0.04))
    assert selection.decide(table, config).keep.tolist() == [True, False]
    texts = [rule.threshold(config) for rule in selection.THRESHOLDS if rule.reason == "text"]
    assert texts == [0.04]


def test_rules_alone_and_with_others():
    table = clips({"text_area": 1.0}, {"text_area": 1.0, "piqe": 99.0}, {"piqe": 99.0}, {})
    decided = selection.decide(table, CurationConfig())
    text = next(rule for rule in selection.RULES if rule.reason == "text")
    assert decided.dropped_by(text).tolist() == [True, True, False, False]
    assert decided.dropped_by_others(text).tolist() == [False, True, True, False]
    assert decided.dropped_in("quality").tolist() == [False, True, True, False]


def funnel_of(table, videos=3, unreadable=1):
    decided = selection.decide(table, CurationConfig())
    return decided, selection.funnel(table, decided, videos, unreadable)


def test_funnel_counts_each_clip_once():
    table = clips(
        {"duplicate_of": "x", "text_area": 1.0},
        {"text_area": 1.0, "flow": 9.0},
        {"flow": 9.0},
        {"aesthetic": np.nan},
        {},
    )
    decided, rows = funnel_of(table)
    counts = {row.stage: (row.before, row.after, row.measured) for row in rows}
    assert counts == {
        "videos read": (3, 2, 3),
        "clips": (2, 5, 2),
        "duplicates": (5, 4, 5),
        "quality": (4, 4, 4),
        "aesthetics": (4, 4, 3),
        "text": (4, 3, 4),
        "motion": (3, 2, 3),
        "kept": (5, 2, 5),
    }
    by_stage = {row.stage: row for row in rows}
    assert by_stage["clips"].fraction is None and by_stage["clips"].after_s == 20
    assert by_stage["duplicates"].fraction == 0.8 and by_stage["duplicates"].paper == 0.6418
    assert by_stage["quality"].paper is None and by_stage["kept"].after_s == 8
    assert by_stage["kept"].after == decided.keep.sum()


def test_the_papers_stages_together_keep_what_the_paper_says():
    product = np.prod(list(selection.PAPER.values()))
    assert product == pytest.approx(selection.PAPER_KEPT, abs=5e-5)


def test_funnel_as_text():
    _, rows = funnel_of(clips({"text_area": 1.0}, {}, {"aesthetic": np.nan}))
    lines = selection.funnel_text(rows).splitlines()
    assert lines[-1].split() == ["kept", "3", "2", "66.7%", "34.8%", "0.00"]
    assert lines[1].split() == ["videos", "read", "3", "2", "66.7%", "–"]
    assert lines[5].endswith("1 not measured") and lines[2].split()[:4] == ["clips", "2", "3", "–"]
    assert max(map(len, lines)) < 80
    _, rows = funnel_of(clips({"aesthetic": np.nan}))
    line = next(line for line in selection.funnel_text(rows).splitlines() if "aesth" in line)
    assert line.split() == ["aesthetics", "1", "1", "–", "90.2%", "0.00", "not", "measured"]


def test_no_clips_at_all():
    decided, rows = funnel_of(clips(), videos=0, unreadable=0)
    assert len(decided.keep) == 0 and len(decided.reason) == 0
    assert all(row.after == 0 and row.fraction is None for row in rows)
    assert "not measured" not in selection.funnel_text(rows)


def test_many_clips_at_once_agree_with_one_by_one():
    rng = np.random.default_rng(0)
    names = ("piqe", "aesthetic", "text_area", "motion", "flow", "changed")
    changes = [dict(zip(names, rng.uniform(0, (100, 10, 0.05, 5, 2, 1)))) for _ in range(200)]
    decided = selection.decide(clips(*changes), CurationConfig())
    for clip, row in enumerate(changes):
        good = row["piqe"] <= 65 and row["aesthetic"] >= 4.5 and row["text_area"] <= 0.02
        moving = row["motion"] >= 1 and row["flow"] <= 0.8 and row["changed"] <= 0.85
        assert decided.keep[clip] == (good and moving), row
        assert bool(decided.reasons(clip)) != decided.keep[clip]
    assert 0 < decided.keep.sum() < 200
