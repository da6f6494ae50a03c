"""The page of a curation: its contents, what it escapes, and its size."""

import base64
import dataclasses

import numpy as np
import pytest
from html_page import Page, check_scripts

from xgen_jax.curation import selection
from xgen_jax.curation.config import CurationConfig, TextConfig
from xgen_jax.errors import UserError
from xgen_jax.evaluation import chart, curation_report, page

EVIL = '<script>alert("x")</script><img src=https://evil.example/x>&\'.mp4'
FACTS = {
    "commit": "0123abc",
    "clips packed": 7,
    "machine": "2 cores <small>",
    "command": "python launch/curate.py --videos='a & b'",
    "next": {"train on them": "python launch/train.py --config.data.source.path=shards"},
}


def make_table(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "clip_id": np.array([f"id{i}" for i in range(count)], object),
        "source": np.array([f"film{i // 5}.mp4" for i in range(count)], object),
        "start_s": np.arange(count) % 5 * 8.0,
        "end_s": np.arange(count) % 5 * 8.0 + rng.uniform(2, 8, count),
        "height": rng.choice([480, 720, 1080], count),
        "width": np.full(count, 1280),
        "fps": rng.choice([24.0, 25.0, 30000 / 1001], count),
        "piqe": rng.uniform(10, 80, count),
        "sharpness": rng.uniform(0, 1, count),
        "aesthetic": np.full(count, np.nan),
        "text_area": np.where(rng.random(count) < 0.5, 0, rng.exponential(0.03, count)),
        "motion": rng.lognormal(1, 2, count),
        "changed": rng.exponential(0.02, count),
        "flow": rng.lognormal(-2, 2, count),
        "duplicate_of": np.array(
            [f"id{i - 1}" if i % 7 == 6 else "" for i in range(count)], object
        ),
        "caption": np.array([f"A cat walks {i}." for i in range(count)], object),
    }


def picture(clip, size=300):
    """What stands for a JPEG file; a clip's pictures are known by their bytes."""
    return b"\xff\xd8" + f"clip {clip:06d} ".encode() * (size // 12)


def write(folder, table, errors=(), thumbnails=None, config=None, facts=FACTS):
    config = config or CurationConfig()
    decided = selection.decide(table, config)
    rows = selection.funnel(table, decided, 100, len(errors))
    path = curation_report.write_curation_report(
        *(folder / "page.html", table, decided, rows),
        *(thumbnails or (lambda clip: [picture(clip)] * 4), errors, facts, config),
    )
    text = path.read_text(encoding="utf-8")
    return decided, Page(text), text


def test_page_says_what_was_kept_and_why_not(tmp_path):
    decided, html, text = write(tmp_path, make_table(300))
    for title in (
        *(
            "Funnel",
            "Kept clips",
            "Thresholds",
            "Dropped clips",
            "Captions",
            "Settings",
            "Commands",
        ),
        *("Lengths, sizes, frame rates", "Files with errors"),
    ):
        assert f"<h2>{title}</h2>" in text
    assert f"{decided.keep.sum():,}" in html.words and "64.2%" in html.text
    for flag in ("text.max_area=0.02", "quality.max_piqe=65", "motion.min_motion=1"):
        assert f"--config.{flag}" in html.text
    assert "(not measured)" in html.text and "Not measured." in html.text  # aesthetics
    assert "Just dropped" in html.text and "Just kept" in html.text
    for fact in ("2 cores <small>", "0123abc", "clips packed 7"):
        assert fact in html.flat
    assert "--videos='a & b' \\ --config.text" in html.flat
    assert "--config.data.source.path=shards" in html.text and "Train on them" in html.text
    assert "1280×720" in html.text and "29.97" in html.text


def test_numbers_on_each_side_of_a_threshold(tmp_path):
    table = make_table(300)
    decided, html, _ = write(tmp_path, table)
    above = table["text_area"] > 0.02
    rule = next(rule for rule in selection.THRESHOLDS if rule.reason == "text")
    alone = (above & ~decided.dropped_by_others(rule)).sum()
    assert f'{above.sum()} above, dropped as "text"' in html.text.replace("  ", " ")
    assert f"{alone} of them by no other rule" in html.text
    assert f"{300 - above.sum()} at or below" in html.text.replace("  ", " ")


def shown_between(text, first, last):
    """Clips whose pictures stand between two headings, in their order."""
    part = text[text.index(first) : text.index(last, text.index(first))]
    found = [base64.b64decode(x.split('"')[0]) for x in part.split("base64,")[1:]]
    return list(dict.fromkeys(int(data[7:13]) for data in found))


def test_clips_next_to_a_threshold_are_the_nearest_that_no_other_rule_drops(tmp_path):
    table = make_table(400)
    decided, _, text = write(tmp_path, table)
    rule = next(rule for rule in selection.THRESHOLDS if rule.reason == "quality")
    alone = ~decided.dropped_by_others(rule)
    dropped = shown_between(text, "Just dropped by <code>--config.quality", "Just kept")
    kept = shown_between(text, "Just kept by <code>--config.quality", "<h3>")
    piqe = table["piqe"]
    wanted = sorted(np.flatnonzero(alone & (piqe > 65)), key=lambda i: piqe[i])[:6]
    assert dropped == wanted
    assert kept == sorted(np.flatnonzero(alone & (piqe <= 65)), key=lambda i: -piqe[i])[:6]


def test_a_duplicate_is_next_to_the_clip_that_is_kept(tmp_path):
    table = make_table(8)
    table |= {"piqe": np.full(8, 20.0), "text_area": np.zeros(8), "changed": np.full(8, 0.1)}
    table |= {"flow": np.full(8, 0.1), "motion": np.full(8, 5.0)}
    _, html, text = write(tmp_path, table)
    assert shown_between(text, "<h3>Duplicate</h3>", "<h3>Quality</h3>") == [6, 5]
    table["duplicate_of"][6] = "gone"
    _, html, text = write(tmp_path, table)
    assert shown_between(text, "<h3>Duplicate</h3>", "<h3>Quality</h3>") == [6]
    assert "gone" in html.text


def test_contact_sheets_are_evenly_spaced_and_say_of_how_many(tmp_path):
    table = make_table(600)
    decided, html, text = write(tmp_path, table)
    shown = shown_between(text, "<h3>Text</h3>", "<h3>Static</h3>")
    clips = np.flatnonzero(decided.reason == "text")
    areas = table["text_area"][shown]
    assert len(shown) == 12 and (np.diff(areas) >= 0).all()
    assert areas[0] == table["text_area"][clips].min()
    assert areas[-1] == table["text_area"][clips].max()
    assert f"12 of {len(clips)}, evenly spaced over text." in html.text


def hostile_table():
    table = make_table(40)
    table["source"][:] = EVIL
    table["source"][1] = "name in latin 1: \udce9\ud800 \x00.mp4"
    table["caption"][:] = EVIL
    table["clip_id"][5] = EVIL
    table["duplicate_of"][6] = EVIL
    return table


def test_names_captions_and_reasons_are_text(tmp_path):
    errors = [
        (EVIL, EVIL),
        ("caf\udce9.mp4", "not a video: caf\udce9.mp4"),
        ("a" * 5000, "b" * 5000),
    ]
    facts = {EVIL: EVIL, "command": EVIL, "next": {EVIL: EVIL}}
    _, html, _ = write(tmp_path / f"{EVIL[:8]}&", hostile_table(), errors, facts=facts)
    tags = {tag for tag, _ in html.tags}
    assert not tags & {"link", "iframe", "object", "form", "small"}
    check_scripts(html)
    for _, attrs in html.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attrs.get("href", "#").startswith("#")
        assert "style" not in attrs
    assert EVIL in html.words and "caf\\udce9.mp4" in html.words
    assert "a" * 5000 not in html.text and "b" * 5000 not in html.text


def test_the_page_is_below_5_mb_whatever_is_in_it(tmp_path):
    table = make_table(10_000)
    table["source"] = np.array(["folder/" * 40 + f"{i}.mp4" for i in range(10_000)], object)
    table["caption"] = np.array(["word " * 300] * 10_000, object)
    errors = [(f"{i}" * 500, f"reason {i} " * 100) for i in range(10_000)]
    many = [picture(0, size=12_000)] * 4
    _, html, text = write(tmp_path, table, errors, lambda clip: many)
    assert 3e6 < len(text) < 5e6
    assert "9,800 others are not shown" in html.text and "no more fit on this page" in html.text
    _, html, text = write(tmp_path, table, errors, lambda clip: [picture(clip, 4_000_000)])
    assert not html.all("img") and len(text) < 1e6


def test_an_empty_curation_and_one_that_keeps_nothing(tmp_path):
    _, html, _ = write(tmp_path, make_table(0), [("a.mp4", "empty")])
    assert "no clip" in html.text and "No clips." in html.text and not html.all("img")
    table = make_table(20)
    table["piqe"][:] = 99.0
    _, html, _ = write(tmp_path, table)
    assert "No captions" in html.text


def test_without_captions_and_without_pictures(tmp_path):
    table = make_table(30)
    del table["caption"]
    _, html, _ = write(tmp_path, table, thumbnails=lambda clip: [])
    assert "No captions: see --config.captions." in html.text
    assert "no picture was stored" in html.text and not html.all("img")


def test_captions_are_counted(tmp_path):
    table = make_table(40)
    table["caption"] = np.array([" ".join(["word"] * 60)] * 20 + [""] * 20, object)
    decided, html, _ = write(tmp_path, table)
    with_one = decided.keep[:20].sum()
    assert with_one > 1
    assert f"{with_one} of {decided.keep.sum()} kept clips have one: 60.0 words" in html.text
    assert f"{with_one - 1} are the same as another" in html.text


def test_thresholds_of_the_configuration_are_drawn(tmp_path):
    config = dataclasses.replace(CurationConfig(), text=TextConfig(max_area=0.0456))
    _, html, _ = write(tmp_path, make_table(50), config=config)
    assert "--config.text.max_area=0.0456" in html.text and "0.0456" in html.words


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file", make_table(3))


def draw(plot):
    return page.macro("chart", plot)


def bars(svg):
    """(class, left, width, height) of a histogram's bars."""
    rects = [attrs for attrs in Page(svg).all("rect") if attrs["class"] != "frame"]
    return [(r["class"], float(r["x"]), float(r["width"]), float(r["height"])) for r in rects]


@pytest.mark.parametrize("log", [False, True])
def test_bars_are_on_one_side_of_a_threshold(log):
    # At a threshold is kept; one step beyond is dropped.
    values = [0.003, 1.0] * 3
    assert {name for name, *_ in bars(draw(chart.histogram(values, "x", 0.003, 1.0, log)))} == {
        "kept"
    }
    values = [np.nextafter(0.003, 0), np.nextafter(1.0, 2)] * 3
    shown = bars(draw(chart.histogram(values, "x", 0.003, 1.0, log)))
    assert {name for name, *_ in shown} == {"dropped"}
    lines = Page(draw(chart.histogram(values, "x", 0.003, 1.0, log))).all("line")
    assert len([attrs for attrs in lines if attrs["class"] == "threshold"]) == 2


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[0.0], [0.0] * 9, [5.0] * 9, [1e-12, 1e12], [0.0, np.nan, np.inf, 3.0], np.arange(1000.0)],
)
@pytest.mark.parametrize(("low", "high"), [(None, None), (0.0, None), (None, 0.02), (0.003, 1.0)])
def test_any_values_can_be_plotted(values, low, high, log):
    svg = draw(chart.histogram(values, "a <label>", low, high, log))
    assert "nan" not in svg and "inf" not in svg and "a &lt;label&gt;" in svg
    assert bars(svg)
    for _, left, width, height in bars(svg):
        assert left >= chart.LEFT - 0.1 and left + width <= chart.WIDTH - chart.RIGHT + 1
        assert 0 < height <= chart.HEIGHT - chart.TOP - chart.BOTTOM


def test_no_values_are_said():
    assert "no values" in draw(chart.histogram([np.nan], "x"))
