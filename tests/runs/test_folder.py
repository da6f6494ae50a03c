"""Run folders: what overwriting removes, and in which order."""

import json
import shutil

import pytest

from xgen_jax.errors import UserError
from xgen_jax.runs.folder import RunFolder
from xgen_jax.testing import VIDVAE, tiny_run


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
