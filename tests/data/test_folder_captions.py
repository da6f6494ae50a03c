"""Captions of a folder: every form that is read, and what is wrong with lines of each."""

import json
import time
import unicodedata

import pytest

from xgen_jax.data.captions import read_captions
from xgen_jax.data.problems import Problems
from xgen_jax.errors import UserError

FILES = ["a.mp4", "sub/b.mp4", "sub/c.mp4"]


def read(folder, files=FILES, required=True):
    problems = Problems()
    return read_captions(folder, files, problems, required), problems.by_kind()


def write_rows(folder, *rows):
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_may_have_several_captions(tmp_path):
    write_rows(
        tmp_path,
        {"file": "a.mp4", "caption": ["one", "two  words", ""]},
        {"file": "sub/b.mp4", "caption": "first"},
        {"file": "sub/b.mp4", "caption": "second"},
        {"file": "sub/b.mp4", "caption": "first"},
    )
    captions, problems = read(tmp_path)
    assert captions == {"a.mp4": ("one", "two words"), "sub/b.mp4": ("first", "second")}
    assert problems == {"video without a caption": ["sub/c.mp4"]}
    assert read(tmp_path, required=False)[0]["sub/c.mp4"] == ("",)


@pytest.mark.parametrize("header", ["file,caption", "path,text", "id, Caption ,file"])
def test_a_table_is_read(tmp_path, header):
    rows = {"file": "sub/b.mp4", "caption": '"A dog, running"'}
    rows |= {"path": rows["file"], "text": rows["caption"], "id": "7"}
    line = ",".join(rows[name.strip().lower()] for name in header.split(","))
    (tmp_path / "captions.csv").write_text(f"\ufeff{header}\r\n{line}\r\n", encoding="utf-8")
    assert read(tmp_path)[0] == {"sub/b.mp4": ("A dog, running",)}


def test_text_files_are_read_where_nothing_else_names_a_video(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text(" A red\n ball. ")
    (tmp_path / "sub" / "b.txt").write_text("a hill", encoding="utf-16")
    (tmp_path / "sub" / "c.txt").write_text("")
    captions, problems = read(tmp_path)
    assert captions == {"a.mp4": ("A red ball.",)}
    assert problems["broken text file"] == ["b.txt: not UTF-8 (byte 0)"]
    assert problems["video without a caption"] == ["sub/b.mp4", "sub/c.mp4"]
    write_rows(tmp_path, {"file": "sub/c.mp4", "caption": "of the line"})
    (tmp_path / "sub" / "c.txt").write_text("of the text file")
    assert read(tmp_path)[0] == {"a.mp4": ("A red ball.",), "sub/c.mp4": ("of the line",)}


def test_files_are_found_by_the_names_people_give_them(tmp_path):
    composed = unicodedata.normalize("NFC", "caf\u00e9.mp4")
    apart = unicodedata.normalize("NFD", composed)
    assert composed != apart
    write_rows(
        tmp_path,
        {"file": composed, "caption": "coffee"},
        {"file": "./a.mp4", "caption": "dot"},
        {"file": "sub\\b.mp4", "caption": "of Windows"},
        {"file": str(tmp_path / "sub" / "c.mp4"), "caption": "absolute"},
        {"file": "/elsewhere/c.mp4", "caption": "outside"},
    )
    captions, problems = read(tmp_path, [apart, *FILES])
    assert captions == {
        apart: ("coffee",),
        "a.mp4": ("dot",),
        "sub/b.mp4": ("of Windows",),
        "sub/c.mp4": ("absolute",),
    }
    assert problems == {"caption without its video": ["/elsewhere/c.mp4"]}


def test_tables_that_cannot_be_read_are_refused(tmp_path):
    table = tmp_path / "captions.csv"
    for text, message in (
        ("", "header line with the columns file and caption, and has none"),
        ("a.mp4,a ball\n", "and has a.mp4, a ball"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    table.write_bytes(b"file,caption\na.mp4,\xff")
    with pytest.raises(UserError, match="not UTF-8.*save it as UTF-8"):
        read(tmp_path)
    table.write_text("file,caption\na.mp4\nsub/b.mp4,fine\n")
    captions, problems = read(tmp_path)
    assert captions == {"sub/b.mp4": ("fine",)}
    assert problems["broken line in captions.csv"] == ["line 2: has fewer columns than the header"]
    write_rows(tmp_path, {"file": "a.mp4", "caption": "x"})
    with pytest.raises(UserError, match="both captions.jsonl and captions.csv; keep one"):
        read(tmp_path)


def test_no_caption_at_all_is_refused_where_they_are_required(tmp_path):
    with pytest.raises(UserError, match="no captions.jsonl; .*txt file.*require_captions=False"):
        read(tmp_path)
    assert read(tmp_path, required=False) == (dict.fromkeys(FILES, ("",)), {})


def test_lines_without_a_file_cost_no_more_than_others(tmp_path):
    lines = 40_000
    rows = (f'{{"file": "gone{i}.mp4", "caption": "x"}}\n' for i in range(lines))
    (tmp_path / "captions.jsonl").write_text("".join(rows))
    files = [f"{i}.mp4" for i in range(lines)]
    begun = time.process_time()
    _, problems = read(tmp_path, files)
    # Quadratic time was a hundred times as much as this bound.
    assert time.process_time() - begun < 5
    assert {kind: len(items) for kind, items in problems.items()} == {
        "caption without its video": lines,
        "video without a caption": lines,
    }
