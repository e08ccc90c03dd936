"""The tutorials: their form, and that they run to their end by papermill from any folder."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.test_notebooks import LONGEST_CELL, code_cells, parsed
from vfmgl_lib.tools.batch.runner import kernel_environment

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "notebooks" / "tutorials").glob("*.ipynb"))
MOST_CELLS = 20


@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_form(file: Path):
    notebook = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    assert len(notebook.cells) <= MOST_CELLS
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.kernelspec.name == "vfmgl"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell["id"]
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell["id"]
        for node in ast.walk(parsed(cell)):
            assert not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.While), cell["id"]


@pytest.mark.slow
def test_own_data(tmp_path: Path):
    notebook = ROOT / "notebooks" / "tutorials" / "own_data.ipynb"
    call = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", "--no-progress-bar", "-p", "runs", str(tmp_path / "runs")]
    call += ["-p", "profile", str(ROOT / "tests" / "smallest.yaml")]
    with kernel_environment():
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    home = tmp_path / "runs" / "tutorial"
    table = pd.read_csv(home / "images" / "samples.csv")
    assert sorted(table.groupby("center")["patient"].nunique()) == [24, 24, 24] and set(table["label"]) == {"disc", "ring", "bars"}
    results = pd.read_csv(next(tmp_path.glob("runs/smallest/shapes-images/figures/tutorial/results.csv")))
    assert set(results["method"]) == {"local", "fedavg", "vfmgl"}
    assert {"auc", "auc[disc]", "auc[ring]", "auc[bars]", "kappa"} <= set(results["metric"])
    predictions = list((home / "predictions" / "overlays").glob("*.png"))
    assert len(predictions) == 6
