"""Every command of README.md and docs/ is one that the code takes; those of the first chapters
run on tiny models."""

import importlib
import re
import subprocess

import doc_pages
import pytest
from doc_pages import PAGES, ROOT, Command, call, commands, loaded, targets

# Programs of pages that are not this project's: what they do is not checked.
OTHERS = {
    "source": "a shell's own",
    "mkdir": "makes a folder",
    "cd": "a shell's own",
    "git": "needs a remote repository",
    "tensorboard": "not a dependency",
    "mkdocs": "the site is built by launch/check.sh",
    ".venv/bin/mkdocs": "the site is built by launch/check.sh",
    "pre-commit": "installs a hook",
    "ssh": "needs another machine",
    "vbench": "another project's",
}
# Packages that pages install by themselves.
PACKAGES = {"torch"}
COMMANDS = [command for page in PAGES for command in commands(page)]
OWN = [command for command in COMMANDS if command.name]
NAMES = sorted({command.name for command in OWN})


EXTRAS = set(re.findall(r'^    "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))


def extras_of(words):
    """The extras that `pip install -e ".[A,B]"` names."""
    return re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(words))))


def test_pages_have_commands_of_every_kind():
    launched = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"command"}
    assert set(NAMES) == launched
    assert len(OWN) > 50


@pytest.mark.parametrize("name", NAMES)
def test_a_command_takes_the_flags_and_values_that_pages_give_it(name, monkeypatch):
    """Flags are parsed, configurations built and requests made; what they ask for is not done."""
    monkeypatch.chdir(ROOT)
    calls = []
    for module, function in targets(name):
        monkeypatch.setattr(
            importlib.import_module(module), function, lambda *given: calls.append(given)
        )
    monkeypatch.setattr("xgen_jax.environment.compile_only", lambda topology: None)
    with loaded(name) as module:
        for command in OWN:
            if command.name != name or "--help" in command.arguments:
                continue
            try:
                call(module, command.arguments, monkeypatch.setattr)
            except Exception as error:
                raise AssertionError(f"{command}\n{type(error).__name__}: {error}") from error
    assert calls


@pytest.mark.parametrize(
    "line, named",
    [
        (
            "python launch/train.py --config=quickstart/vidvae --workdir=x --config.loop.stepz=1",
            "stepz",
        ),
        ("python launch/train.py --config=quickstart/vidvea --workdir=x", "vidvea"),
        ("python launch/sample.py --model=x --prompt=y --out=z.mp4 --stepps=3", "stepps"),
        ("python -m xgen_jax evaluate --suite=captoins --model=x --out=y", "captoins"),
        ("python launch/encode.py --embedder=x --data=y", "out"),
        ("python launch/reconstruct.py any.mp4 --embedder=x --out=y.mp4", "any.mp4"),
    ],
)
def test_a_wrong_command_would_be_found(line, named, monkeypatch):
    (words,) = doc_pages.split(line)
    command = Command("a page", words)
    for module, function in targets(command.name):
        monkeypatch.setattr(importlib.import_module(module), function, lambda *given: None)
    with loaded(command.name) as module, pytest.raises(Exception, match=named):
        call(module, command.arguments, monkeypatch.setattr)


def test_other_programs_are_listed_and_files_exist():
    for command in COMMANDS:
        program, *rest = command.words
        if command.name or program in OTHERS:
            continue
        if program == "pip" and rest[:2] == ["install", "-e"]:
            assert set(extras_of(rest)) <= EXTRAS, command
        elif program == "pip":
            assert rest[0] == "install" and set(rest[1:]) <= PACKAGES, command
        elif program in ("bash", "sbatch"):
            subprocess.run(["bash", "-n", ROOT / rest[0]], check=True)
        elif program == "python" and rest[0] == "-c":
            compile(rest[1], str(command), "exec")
        elif program == "python" and rest != ["-m", "xgen_jax"]:
            source = (ROOT / rest[0]).read_text() + (ROOT / "benchmarks" / "rows.py").read_text()
            for flag in re.findall(r"--\w+", " ".join(rest[1:])):
                assert f'"{flag}"' in source, command
        elif program != "python":
            raise AssertionError(f"{command}: a program that tests/docs does not know")
