"""Prompts to files: what is there is kept, an interrupted run goes on, mistakes are named."""

import pytest

from xgen_jax.errors import UserError
from xgen_jax.inference.sample_files import parse_size, read_prompts, sample_files

PROMPTS = ["a red circle moving left", "a blue square moving up", "a green triangle moving down"]


def test_a_file_of_prompts_goes_on_where_it_stopped(tiny_runs, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    arguments = {"model": str(tiny_runs / "vdit"), "prompt": None, "prompts_file": str(prompts)}
    result = sample_files(**arguments, out=str(tmp_path / "whole"))
    assert (result["drawn"], result["kept"]) == (3, 0)
    sample_files(**arguments, out=str(tmp_path / "cut"))
    (tmp_path / "cut" / "00002.mp4").unlink()
    result = sample_files(**arguments, out=str(tmp_path / "cut"))
    assert (result["drawn"], result["kept"]) == (1, 2)
    for name in ("00001.mp4", "00002.mp4", "00003.mp4"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_file_that_is_there_is_not_replaced_unasked(tiny_runs, tmp_path):
    out = tmp_path / "circle.mp4"
    arguments = {"model": str(tiny_runs / "vdit"), "prompt": PROMPTS[0], "prompts_file": None, "out": str(out)}
    assert sample_files(**arguments)["shape"] == [5, 16, 16, 3]
    with pytest.raises(UserError, match="exists; choose another --out"):
        sample_files(**arguments)
    before = out.read_bytes()
    sample_files(**arguments, overwrite=True, seed=7)
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None, "prompt": "x", "prompts_file": None, "out": "x.mp4"}, "give --model"),
        ({"model": "m", "prompt": None, "prompts_file": None, "out": "x.mp4"}, "one of --prompt and --prompts_file"),
        ({"model": "m", "prompt": "x", "prompts_file": "y", "out": "x.mp4"}, "one of --prompt and --prompts_file"),
        ({"model": "m", "prompt": "x", "prompts_file": None, "out": "x.mov"}, "must end with"),
        ({"model": "m", "prompt": "x", "prompts_file": None, "out": "x.mp4"}, "there is no folder m"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        sample_files(**arguments)


def test_prompts_file_mistakes(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")
    bad = tmp_path / "prompts.txt"
    bad.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(bad)
    bad.write_text("one\n\nthree\n")
    with pytest.raises(UserError, match="no prompt in line 2"):
        read_prompts(bad)


def test_sizes():
    assert parse_size("32x48") == (32, 48)
    for wrong in ("32", "x", "0x3", "ax3", "1x2x3"):
        with pytest.raises(UserError, match="HEIGHTxWIDTH"):
            parse_size(wrong)
