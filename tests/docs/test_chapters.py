"""The commands of the first chapters run as they stand, one after another, on tiny models: each
finds what those before it made."""

import numpy as np
import pytest
from doc_pages import PAGES, ROOT, Command, blocks, call, commands, loaded, split

from xgen_jax import write_video

# What makes a run tiny, by the configuration that it names.
TINY = ["loop.steps=1", "loop.log_every=1", "loop.evaluate_every=0", "optimizer.name=adamw"]
SIZES = {
    "vidvae": [
        *("model.channels=4", "model.latent_channels=2", "model.kernels=((1,1,1),(1,1,1))"),
        *("model.blocks=1", "model.head_channels=0", "model.stem_hidden=0"),
    ],
    "vdit": [
        *("model.depth=1", "model.width=16", "model.heads=2", "model.text_width=16"),
        *("model.remat=none", "text.width=16", "text.depth=1", "text.heads=2", "sample_steps=2"),
    ],
}

# Page, and a word of the block that is run.
CHAPTERS = [
    ("quickstart.md", "--suite=captions"),
    ("quickstart.md", "--out=circle.mp4"),
    ("own_videos.md", "--suite=samples"),
    ("own_videos.md", "launch/encode.py"),
]
# What the text around the blocks tells to change.
MORE = {
    # "in the place of the second above": a run of its own.
    ("own_videos.md", "--config.data.source.path=my_latents"): ["--overwrite"],
}
# Pages whose commands are parsed alone.
PARSED_ONLY = {
    "README.md": "the quickstart, which takes minutes; its commands run here one by one",
    "index.md": "the same",
    "install.md": "installs packages",
    "config.md": "a training of minutes; tests/launch trains with --config.loop.steps",
    "curation.md": "tests/commands and tests/curation run it on footage that they make",
    "finetune.md": "large models; tests/configs takes a step of each, shrunk",
    "training.md": "the papers' models, others' weights; tests/configs and tests/weights",
    "regen.md": "trainings of minutes; tests/training/test_regen_run.py, tests/commands",
    "watch.md": "a training of minutes; tests/training/test_evaluation.py",
    "lora.md": "tests/training/test_lora_run.py",
    "resume.md": "tests/training/test_survival.py and test_fit.py kill and resume",
    "pods.md": "several machines; tests/parallel starts several processes of one",
    "plans.md": "compilers of other devices; tests/commands/test_plan.py",
    "vidvae.md": "trainings of minutes",
    "evaluation.md": "tests/evaluation",
    "fvd_and_vbench.md": "others' weights and prompts; tests/evaluation has small ones",
    "pages.md": "tests/evaluation",
    "demo.md": "a server; tests/commands drives it in a browser",
    "weights.md": "others' weights; tests/weights has small ones",
    "trackers.md": "tests/training/test_metric_writers.py",
    "sampling.md": "tests/diffusion and tests/commands/test_sample.py",
    "quality.md": "trainings of minutes",
}


def smaller(command):
    """The arguments of a command for a tiny model."""
    arguments = command.arguments
    given = dict(word.lstrip("-").split("=", 1) for word in arguments if "=" in word)
    if command.name == "train":
        name = given["config"].partition("/")[2].partition(":")[0]
        keys = [*TINY, "data.buckets=5x16x16x2", *SIZES[name]]
        arguments += [f"--config.{key}" for key in keys]
    if given.get("suite") in ("reconstruction", "captions") or "count" in given:
        arguments.append("--count=2")
    for (page, word), more in MORE.items():
        if page == command.page and word in command.words:
            arguments += more
    return arguments


def write_what_a_reader_has(root):
    """Films with captions, a video, and prompts."""
    rng = np.random.default_rng(0)
    for number in range(2):  # 85 s: an end of 4 s and more is held out
        picture = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
        film = np.roll(np.tile(picture, (680, 1, 1, 1)), number, axis=2)
        write_video(root / "my_videos" / f"{number}.mp4", film)
        (root / "my_videos" / f"{number}.txt").write_text(f"a film, number {number}")
    write_video(root / "any.mp4", rng.integers(0, 256, (18, 16, 16, 3), np.uint8))
    (root / "prompts.txt").write_text("a film\nanother film\n")


def test_each_page_with_commands_runs_here_or_says_why_not():
    pages = {page.name for page in PAGES if any(each.name for each in commands(page))}
    assert pages <= {page for page, _ in CHAPTERS} | set(PARSED_ONLY)


@pytest.mark.slow
def test_the_commands_of_the_first_chapters_run(tmp_path, monkeypatch):
    write_what_a_reader_has(tmp_path)
    monkeypatch.chdir(tmp_path)
    for page, word in CHAPTERS:
        (block,) = [each for each in blocks(ROOT / "docs" / page, "bash") if word in each]
        for words in split(block):
            command = Command(page, words)
            if not command.name:
                assert words == ("source", ".venv/bin/activate")
                continue
            with loaded(command.name) as module:
                result = call(module, smaller(command), monkeypatch.setattr)
            if command.name == "train":
                assert result["step"] == 1, command
            made = [result[key] for key in ("video", "page") if key in result]
            assert all((tmp_path / path).stat().st_size > 0 for path in made), command
    made = ("report.html", "red-circle.mp4", "vdit/config.json")
    assert all((tmp_path / "runs/quickstart" / file).stat().st_size > 0 for file in made)
    for file in ("runs/mine/report.html", "circle.mp4", "both.mp4", "my_latents/manifest.json"):
        assert (tmp_path / file).stat().st_size > 0
