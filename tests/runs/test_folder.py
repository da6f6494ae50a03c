"""Run folders: what overwriting removes, and in which order."""

import json
import pathlib
import shutil
import subprocess

import pytest

from xgen_jax.errors import UserError
from xgen_jax.runs import folder as runs
from xgen_jax.runs.folder import RunFolder
from xgen_jax.testing import VIDVAE, tiny_run

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """A run's folder with a checkpoint's name in it, and a file that is not the run's."""
    folder = RunFolder(tmp_path / "run")
    folder.create_or_resume(tiny_run(VIDVAE))
    (folder.path / "checkpoints" / "2").mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    return folder


def test_overwriting_removes_the_run_and_nothing_else(folder):
    longer = tiny_run(VIDVAE, loop={"seed": 5})
    with pytest.raises(UserError, match=r"loop\.seed: 0 -> 5"):
        folder.create_or_resume(longer)
    folder.create_or_resume(longer, overwrite=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "notes.txt"]
    assert folder.config() == longer


def test_an_overwriting_that_breaks_off_can_be_repeated(folder, monkeypatch):
    remove = shutil.rmtree

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    longer = tiny_run(VIDVAE, loop={"seed": 5})
    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(PermissionError):  # in silence the old state would go on as the new run
        folder.create_or_resume(longer, overwrite=True)
    assert json.loads((folder.path / "config.json").read_text())["loop"]["seed"] == 0
    monkeypatch.setattr(shutil, "rmtree", remove)
    folder.create_or_resume(longer, overwrite=True)
    assert not (folder.path / "checkpoints").exists()


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a checkout")
def test_the_commit_is_that_of_the_package_and_of_no_other_checkout(monkeypatch):
    head = subprocess.run(
        ["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    commit = runs.code_commit().removesuffix("+changes")
    assert len(commit) == 12 and head.startswith(commit)
    assert runs.describe_machine()["commit"].startswith(commit)
    inside = str(REPOSITORY / "docs" / "package" / "runs" / "folder.py")
    with monkeypatch.context() as patch:  # a package that is installed inside a checkout
        patch.setattr(runs, "__file__", inside)
        assert runs.code_commit() == ""
    monkeypatch.setenv("PATH", "")
    assert runs.code_commit() == ""
