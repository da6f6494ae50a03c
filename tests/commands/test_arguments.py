"""Command lines with names of configs, and old names of flags and keys."""

import pathlib

import pytest

from xgen_jax.commands.arguments import current_arguments, find_config, keys_as_flags
from xgen_jax.config import build
from xgen_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def current(*arguments, **renamed):
    said = []
    return current_arguments(list(arguments), renamed, said.append), said


@pytest.mark.parametrize(
    "name", ["quickstart/vidvae", "configs/quickstart/vidvae.py", "quickstart/vidvae.py"]
)
@pytest.mark.parametrize("argument", ["", ":16"])
def test_a_config_has_a_name_wherever_the_command_runs(name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = f"{ROOT / 'configs' / 'quickstart' / 'vidvae.py'}{argument}"
    assert current(f"--config={name}{argument}") == ([f"--config={path}"], [])
    assert current("--x=1", "--config", name + argument)[0] == ["--x=1", "--config", path]


def test_a_path_of_a_file_stays_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_config("mine.py:a:b") == "mine.py:a:b"


@pytest.mark.parametrize(
    "given,message",
    [
        (
            "quickstart/vidvea",
            r"quickstart/vidvea is not known \(did you mean quickstart/vidvae or ",
        ),
        ("vidvae", r"did you mean .*quickstart/vidvae"),
        ("mime.py", r"did you mean mine.py\?"),
        ("zzz", r"zzz is not known; give a file, or one of curation/default, "),
        ("vdit/stages", r"vdit/stages is not known"),  # a module that configs share
        ("common", r"common is not known"),
    ],
)
def test_a_misspelt_config_names_the_nearest(given, message, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_config(given)


def test_flag_files_have_names_too_and_what_they_hold_is_treated_alike(tmp_path):
    arguments, _ = current("--flagfile=sampling/720p_14s", "--model=x")
    assert arguments[-1] == "--model=x" and "--size=720x1280" in arguments
    (tmp_path / "mine.flags").write_text("--piece_frames=9\n")
    arguments, said = current(f"--flagfile={tmp_path / 'mine.flags'}", piece_frames="frames")
    assert arguments == ["--frames=9"] and len(said) == 1


def test_an_old_flag_is_the_new_one_and_says_so():
    renamed = {"piece_frames": "segment_frames", "told": "conditioned"}
    arguments, said = current(
        "--piece_frames=9", "-piece_frames", "9", "--notold", "--piece_framesx=1", "--", **renamed
    )
    assert arguments == [
        "--segment_frames=9",
        "-segment_frames",
        "9",
        "--noconditioned",
        "--piece_framesx=1",
        "--",
    ]
    assert said[0] == "--piece_frames is called --segment_frames now"
    assert said[2] == "--told is called --conditioned now"


def test_an_old_key_of_a_config_is_the_new_one_and_says_so(monkeypatch):
    monkeypatch.setattr(
        build,
        "RENAMED",
        {"loss.cond_drop_prob": "loss.cond_drop_prob", "data.source": "data.source.kind", "a": "b"},
    )
    arguments, said = current(
        "--config.loss.cond_drop_prob=0.2",
        "--noconfig.a.c",
        "--config.data.source=latents",
        "--config.data.source.kind=latents",
        "--config.loop.steps=3",
    )
    assert arguments == [
        "--config.loss.cond_drop_prob=0.2",
        "--noconfig.b.c",
        "--config.data.source.kind=latents",
        "--config.data.source.kind=latents",
        "--config.loop.steps=3",
    ]
    assert said == [
        "--config.loss.cond_drop_prob is called --config.loss.cond_drop_prob now",
        "--config.a.c is called --config.b.c now",
        "--config.data.source is called --config.data.source.kind now",
    ]


def test_keys_of_a_config_become_a_flag_of_their_own():
    given = ["--config=x", "--config.a.b=1=2", "--config.c", "-3", "--config.d", "--x=1"]
    given += ["--noconfig.e", "-config.f", "g h", "--config.h", "--", "--config.i=1"]
    assert keys_as_flags(given) == [
        "--config=x",
        "--config_key=a.b=1=2",
        "--config_key=c=-3",
        "--config_key=d=True",
        "--x=1",
        "--config_key=e=False",
        "--config_key=f=g h",
        "--config_key=h=True",
        "--",
        "--config.i=1",
    ]
