"""The table of tasks is the only dispatch on the kind of a run."""

import pathlib
import re

import pytest

from xgen_jax.config.runs import Run
from xgen_jax.training.tasks import TASKS

PACKAGE = pathlib.Path(__file__).parents[2] / "xgen_jax"
# Questions about what kind of run, text encoder, embedder or source something is.
QUESTIONS = (
    r"\.objective\s*(==|!=|in\b|not in\b)",
    r"\.objective\.(startswith|endswith)",
    r"\.family\s*(==|in\b)",
    r"\.network\s*(==|in\b)",
    r"\.kind\s*(==|!=|in\b)",
    r"isinstance\((self\.)?_?(embedder|task|config\.\w+),",
    r"(getattr|hasattr)\((self\.)?_?(source|task|embedder|config\.\w+),",
    r"(getattr|hasattr)\((config|other), \"",
    r"_weights\"",
)

# Old names of kinds; the kinds of foreign files.
NOT_ASKING = ("build.py", "convert.py")


def test_every_kind_of_run_has_a_task_and_every_task_a_kind_of_run():
    assert TASKS.keys() == Run.known.keys()
    for name, task in TASKS.items():
        assert task.config_class is Run.known[name]


@pytest.mark.parametrize("question", QUESTIONS)
def test_nobody_asks_a_run_for_its_kind(question):
    asked = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(question, line) and path.name not in NOT_ASKING
    ]
    assert not asked
