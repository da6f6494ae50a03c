"""Lab notes of all configurations: command, hardware, time and result."""

import ast
import pathlib
import re

import pytest

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(
    path
    for path in CONFIGS.rglob("*")
    if path.suffix == ".flags" or (path.suffix == ".py" and "def get_config(" in path.read_text())
)
WORDS = ("command", "hardware", "time", "expect")


def lab_note(path):
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(path.read_text())) or ""
    return "\n".join(
        line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")
    )


def test_there_are_configurations():
    assert {path.suffix for path in FILES} == {".py", ".flags"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_configuration_says_each_thing_once_and_in_order(path):
    assert tuple(re.findall(rf"^({'|'.join(WORDS)})\b", lab_note(path), re.MULTILINE)) == WORDS
