"""The commands of the first chapters run as they stand, one after another, on tiny models: each
finds what those before it made."""

import pathlib

import numpy as np
import pytest
from doc_pages import ROOT, Command, blocks, call, loaded, split

from xgen_jax import write_video
from xgen_jax.files import read_json

# What makes a run tiny, by the configuration that it names.
TINY = ["loop.steps=1", "loop.log_every=1", "loop.evaluate_every=0", "optimizer.name=adamw"]
SIZES = {
    "vidvae": ["data.buckets=5x16x16x2", "model.channels=8", "model.blocks=1"],
    "vdit": ["data.buckets=5x16x16x2", "model.depth=1", "model.width=16", "model.heads=2"],
    "regen": ["data.buckets=9x16x16x2", "model.depth=1", "model.width=32", "model.heads=2"],
}
SIZES["vdit_lora"] = SIZES["vdit"]
SIZES["vdit_regen"] = ["data.buckets=9x16x16x2", *SIZES["vdit"][1:]]
# Of the suites of `evaluate`, and of `encode`: fewer clips.
FEWER = {"reconstruction": ["--count=2"], "captions": ["--count=2"]}

# Page, and a word of the block that is run.
CHAPTERS = [
    ("quickstart.md", "--suite=captions"),
    ("quickstart.md", "--out=circle.mp4"),
    ("generating.md", "--out=circle.mp4"),
    ("own_videos.md", "--suite=samples"),
    ("own_videos.md", "launch/encode.py"),
    ("lora.md", "--kind=lora"),
    ("resume.md", "--restore=latest_good"),
    ("training.md", "--config=quickstart/regen"),
]
# What the text around the blocks tells to change.
MORE = {
    # "put these two commands in the place of the second above": a folder of its own.
    ("own_videos.md", "--config.data.source.path=my_latents"): ["--overwrite"],
    # Written by the block before.
    ("generating.md", "--out=circle.mp4"): ["--overwrite"],
}


def smaller(command):
    """The arguments of a command for a tiny model."""
    arguments = command.arguments
    given = dict(word.lstrip("-").split("=", 1) for word in arguments if "=" in word)
    if command.name == "train":
        name = given["config"].partition("/")[2].partition(":")[0]
        keys = [*TINY, *SIZES[name], *(["sample_steps=2"] if name.startswith("vdit") else [])]
        arguments += [f"--config.{key}" for key in keys]
    if command.name == "evaluate":
        arguments += FEWER.get(given["suite"], [])
    for (page, word), more in MORE.items():
        if page == command.page and word in command.words:
            arguments += more
    return arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what a reader of these chapters has: films with captions, and prompts."""
    root = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for number in range(2):  # 85 s: an end of 4 s and more is held out
        picture = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
        film = np.roll(np.tile(picture, (680, 1, 1, 1)), number, axis=2)
        write_video(root / "my_videos" / f"{number}.mp4", film)
        (root / "my_videos" / f"{number}.txt").write_text(f"a film, number {number}")
    write_video(root / "any.mp4", rng.integers(0, 256, (18, 16, 16, 3), np.uint8))
    (root / "prompts.txt").write_text("a film\nanother film\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page, word", CHAPTERS, ids=lambda value: value.lstrip("-"))
def test_the_commands_of_a_chapter_run(page, word, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (block,) = [each for each in blocks(ROOT / "docs" / page, "bash") if word in each]
    for words in split(block):
        command = Command(page, words)
        if not command.name:
            assert words == ("source", ".venv/bin/activate")
            continue
        with loaded(command.name) as module:
            result = call(module, smaller(command), monkeypatch.setattr)
        assert result, command
        if command.name == "train":
            assert result["step"] == 1
        made = [result[key] for key in ("video", "page") if key in result]
        assert all(pathlib.Path(path).stat().st_size > 0 for path in made), command


@pytest.mark.slow
def test_the_chapters_leave_what_they_say(folder):
    for file in ("runs/quickstart/report.html", "runs/mine/report.html", "circle.mp4", "both.mp4"):
        assert (folder / file).stat().st_size > 0
    assert (folder / "runs/mine/lora/adapter.safetensors").exists()
    assert read_json(folder / "runs/merged/config.json")["objective"] == "vdit"
