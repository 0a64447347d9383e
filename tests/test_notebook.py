"""The notebook runs from top to bottom at smoke size, and is committed without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

SHOWN = {  # by the last cell
    "quickstart": ("mimic_all - baseline", "mimic_all - control"),
    "own_data": ("digit 0/", "looks like digit "),
    "own_network_and_loss": ("holds another run: own_code.__main__:jensen_shannon was",),
    "which_rule": (" decides ", "of one teacher"),
    "decoupled_knowledge": ("DKEL - PCL ", "distance to its own teacher"),
}
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
    assert "jax.devices()" in switches[0].source and "Interrupted, the cell" in str(notebook.cells)
    shown = str(notebook.cells[-1].outputs)
    assert all(said in shown for said in SHOWN[path.stem]), shown


FIRST = """
from pathlib import Path
from tests import small
from mtkd_jax import experiment
from mtkd_jax.runs import logbook
into = Path("run")
"""
BROKEN_OFF = """
import os, signal
record = logbook.Logbook.record
def interrupted(*arguments):
    logbook.Logbook.record = record
    os.kill(os.getpid(), signal.SIGINT)
    return record(*arguments)
logbook.Logbook.record = interrupted
experiment.run(small.config(), into)
"""
AGAIN = """
first = experiment.run(small.config(), into)
begun = (into / "report.json").stat().st_mtime_ns
assert experiment.run(small.config(), into) == first
assert (into / "report.json").stat().st_mtime_ns == begun
print("read again")
"""
TYPO = 'experiment.run(small.config(**{"students.modes": ("mimic_al",)}), into)'


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cell_that_is_interrupted_says_so_in_a_line_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    cells = [nbformat.v4.new_code_cell(source) for source in (FIRST, BROKEN_OFF, AGAIN, TYPO)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    _, broken_off, again, typo = cells
    for cell, said in ((broken_off, "mtkd_jax: stopped; "), (typo, "did you mean 'mimic_all'")):
        (error,) = [output for output in cell.outputs if output.output_type == "error"]
        assert len(error.traceback) == 1 and said in error.traceback[0] and "\n" not in error.traceback[0]
    assert " saved" in broken_off.outputs[-1].traceback[0]
    assert any("read again" in str(output.get("text")) for output in again.outputs), again.outputs
    progress = "".join(output.get("text", "") for output in again.outputs if output.get("name") == "stderr")
    assert "\r[" in progress and not re.search(r"step \d+ of \d+\s*\n.*step", progress)
