"""The notebooks run from top to bottom, and their two forms agree."""

import pathlib

import jupytext
import nbclient
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_forms_agree(path):
    script, notebook = jupytext.read(path), jupytext.read(path.with_suffix(".ipynb"))
    assert [cell.source for cell in script.cells] == [cell.source for cell in notebook.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # jupyter's own
def test_a_notebook_runs(path, tiny_runs, monkeypatch):
    monkeypatch.setenv("XGEN_JAX_MODEL", str(tiny_runs / "vdit"))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = jupytext.read(path)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(path.parents[1])}}
    ).execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("<video" in out.get("data", {}).get("text/html", "") for out in shown)
