"""The tutorials: their form, and that they run to their end by papermill from any folder."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.own_tasks import write_classes
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
    page = (home / "report-shapes.html").read_text("utf-8")
    assert page.count('<img src="data:image/png;base64,') == 3 and "<script" not in page and "Intended use" in page


@pytest.mark.slow
def test_own_data_with_a_folder_and_a_list_of_one_s_own(tmp_path: Path):
    """The first run writes a table and stops in one line at what is missing; the next one takes the table as it then is."""
    images, listed = write_classes(tmp_path / "images"), tmp_path / "list.csv"
    folders = sorted({file.parent for file in images.rglob("*.png")})
    lines = [f"{place.parts[-4]};{place.name};{'Befund' if 'malign' in place.name else 'ohne Befund'}" for place in folders[1:]]
    listed.write_text("\n".join(["Klinik;Patient;Diagnose", *lines]), encoding="utf-8")
    given = {"images": images, "diagnoses": listed, "name": "moles"}
    done = run(tmp_path, **given)
    lacking = folders[0].relative_to(images).as_posix()
    assert done.returncode and f"Fill in label in 1 of 60 rows (e.g. of {lacking}/0.png) in {images / 'samples.csv'}" in done.stderr
    assert "own_images.py" not in done.stderr  # no traceback of the notebook's
    table = pd.read_csv(images / "samples.csv", dtype=str, keep_default_na=False)
    table["label"] = table["label"].where(table["label"] != "", "ohne Befund")
    table.to_csv(images / "samples.csv", index=False)
    done = run(tmp_path, **given)
    assert done.returncode == 0, done.stderr[-3000:]
    results = pd.read_csv(tmp_path / "runs" / "smallest" / "moles-images" / "figures" / "tutorial" / "results.csv")
    assert set(results["method"]) == {"local", "fedavg", "vfmgl"} and "auc" in set(results["metric"])
    page = (tmp_path / "runs" / "tutorial" / "report-moles.html").read_text("utf-8")
    assert page.count('<img src="data:image/png;base64,') == 2  # two classes: no matrix of confusions
    assert "Befund is the positive one" in page
