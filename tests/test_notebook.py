"""The notebook runs from top to bottom at smoke size, and is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_a_badge_and_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert "colab-badge.svg" in notebook.cells[0].source
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the Jupyter machinery, which is not ours to mend
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_at_smoke_size(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    switches = [cell for cell in notebook.cells if "SMOKE = False" in cell.source]
    assert len(switches) == 1
    switches[0].source = switches[0].source.replace("SMOKE = False", "SMOKE = True")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    shown = str(notebook.cells[-1].outputs)
    assert "mimic_all - baseline" in shown and "mimic_all - control" in shown
