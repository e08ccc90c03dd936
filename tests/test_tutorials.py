"""The tutorials: their form, and that they run to their end by papermill from any folder."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from tests.own_tasks import CLASSIFICATION, write_classes, write_task
from tests.test_notebooks import LONGEST_CELL, code_cells, parsed
from vfmgl_lib.tools.batch.execution import kernel_environment

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


def run(folder: Path, **parameters: object) -> subprocess.CompletedProcess:
    """own_data by papermill, started in `folder`."""
    words = [str(ROOT / "notebooks" / "tutorials" / "own_data.ipynb"), "out.ipynb", "--no-progress-bar"]
    given = {"runs": folder / "runs", "profile": ROOT / "tests" / "smallest.yaml"} | parameters
    words += [word for name, value in given.items() for word in ("-p", name, str(value))]
    with kernel_environment():
        return subprocess.run([sys.executable, "-m", "papermill", *words], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_own_data(tmp_path: Path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    home = tmp_path / "runs" / "tutorial"
    table = pd.read_csv(home / "images" / "samples.csv")
    assert sorted(table.groupby("center")["patient"].nunique()) == [24, 24, 24] and set(table["label"]) == {"disc", "ring", "bars"}
    results = pd.read_csv(next(tmp_path.glob("runs/smallest/shapes-images/figures/tutorial/results.csv")))
    assert set(results["method"]) == {"local", "fedavg", "vfmgl"}
    assert {"auc", "auc[disc]", "auc[ring]", "auc[bars]", "kappa"} <= set(results["metric"])
    assert len(list((home / "predictions" / "overlays").glob("*.png"))) == 6


@pytest.mark.slow
def test_own_data_with_a_folder_and_a_task_of_one_s_own(tmp_path: Path):
    """The first run writes a table and stops at what is missing in it; the next one takes the table as it then is."""
    images, task = write_classes(tmp_path / "images"), write_task(tmp_path / "moles.yaml", CLASSIFICATION, "pad")
    (images / "North" / "traindata" / "benign").rename(images / "North" / "traindata" / "unnamed")
    done = run(tmp_path, images=images, task=task)
    assert done.returncode and "label is empty, expected one of benign, malign" in done.stderr
    table = pd.read_csv(images / "samples.csv", dtype=str, keep_default_na=False)
    table["label"] = np.where(table["image"].str.contains("/malign/"), "malign", "benign")
    table.to_csv(images / "samples.csv", index=False)
    done = run(tmp_path, images=images, task=task)
    assert done.returncode == 0, done.stderr[-3000:]
    results = pd.read_csv(tmp_path / "runs" / "smallest" / "moles-images" / "figures" / "tutorial" / "results.csv")
    assert set(results["method"]) == {"local", "fedavg", "vfmgl"} and "auc" in set(results["metric"])
