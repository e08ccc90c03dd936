"""The notebooks: their form, and that they run to their end for all tasks on the smallest profile."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.own_tasks import CLASSIFICATION, write_classes, write_task
from vfmgl_lib.evaluation.saved_runs import TABLES
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.batch.execution import kernel_environment
from vfmgl_lib.tools.batch.preflight import planned
from vfmgl_lib.tools.batch.runner import run_batch
from vfmgl_lib.tools.batch.schedule import ALONE, NEEDS
from vfmgl_lib.tools.batch.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
PARAMETERS = {"task": "str", "profile": "str", "data": "str", "teacher": "str", "device": "str", "seed": "int", "runs": "str"}
EXTRA = {
    "02_hgkt": {"seeds": "int"},
    "04_federated_rounds": {"engine": "str"},
    "05_comparison": {"processes": "int"},
    "06_generalization": {"margin": "float"},
}
SECTIONS = ("1 · Parameters", "2 · Setup", "3 · Data", "4 · Method", "5 · Run", "6 · Result", "7 · Checks", "8 · Deviations and limits")
LONGEST_CELL = 25
QUIET = ("02_hgkt", "05_comparison", "07_interpretability")  # the library chooses what a task has
LONGEST_QUIET_CELL, FEW = 12, 3  # lines; so many longer cells a notebook: those with the imports, mostly
READERS = {"Path", "open", "read_csv", "read_table", "read_text", "glob"}  # functions whose first word is a place
FOLDERS = [path.name for path in (*ROOT.iterdir(), *(ROOT / "notebooks").iterdir()) if path.is_dir()]
RELATIVE = re.compile(rf"^(\.\.?/|\.\.$|({'|'.join(map(re.escape, FOLDERS))})/)")
FIRST = NAMES[:2]  # they need no study but the second's own
OF_ONE_STUDY = [*NAMES[2:4], "07_interpretability", "08_lightweight"]


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=NAMES)
def notebook(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parsed(cell) -> ast.Module:
    lines = [line for line in cell.source.splitlines() if not line.startswith("%")]
    return ast.parse("\n".join(lines))


def test_all_four_are_there():
    assert NAMES[:4] == ["01_data_preparation", "02_hgkt", "03_ddbl", "04_federated_rounds"]


def test_every_notebook_has_its_place_in_the_schedule():
    assert [*NEEDS, *ALONE] == NAMES and {name for needed in NEEDS.values() for name in needed} <= set(NAMES)


def test_format_ids_and_kernel(notebook):
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "vfmgl"
    assert notebook.metadata.kernelspec.display_name == "VFMGL Workbook"


def test_committed_without_outputs(notebook):
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell["id"]


def test_one_parameters_cell_of_annotated_literals(notebook, request):
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    found = {}
    for statement, line in zip(parsed(tagged[0]).body, tagged[0].source.splitlines(), strict=True):
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant), line
        assert line.partition("  # ")[2].strip(), f"no text beside {line}"
        found[statement.target.id] = ast.unparse(statement.annotation)
    assert found == PARAMETERS | EXTRA.get(request.node.callspec.id, {})


def test_anatomy(notebook):
    assert notebook.cells[0].source.startswith("# ")
    assert "**The claim.**" in notebook.cells[0].source and "Time and memory" in notebook.cells[0].source
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = [line[3:] for text in prose for line in text.splitlines() if line.startswith("## ")]
    assert [heading[: len(section)] for heading, section in zip(headings, SECTIONS, strict=True)] == list(SECTIONS)


def test_cells_are_short_and_hold_no_class_no_function_and_no_training(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell["id"]
        for node in ast.walk(parsed(cell)):
            assert not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.While), cell["id"]
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"backward", "zero_grad"}, cell["id"]


@pytest.mark.parametrize("notebook", [path for path in NOTEBOOKS if path.stem in QUIET], ids=QUIET, indirect=True)
def test_quiet_notebooks_leave_choices_to_the_library(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(parsed(cell)):
            if isinstance(node, ast.If | ast.IfExp):
                chosen_by = ast.unparse(node.test)
                assert not re.search("segmentation|task", chosen_by), f"{cell['id']}: {chosen_by}"
    long = [cell["id"] for cell in code_cells(notebook) if len(cell.source.splitlines()) > LONGEST_QUIET_CELL]
    assert len(long) <= FEW, long


def relative_paths(cell) -> list[str]:
    """Texts of a code cell that name a file or folder by where the notebook is started."""
    found = []
    for node in ast.walk(parsed(cell)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and RELATIVE.match(node.value):
            found.append(node.value)
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = node.args[0].value
            if called in READERS and isinstance(place, str) and not Path(place).is_absolute():
                found.append(place)
    return found


@pytest.mark.parametrize(
    "line",
    ['x = "../runs"', 'x = f"./{name}"', 'Path("..")', 'pd.read_csv("table.csv")', 'open("a.txt")', 'x = "data_manifests/nuclei.yaml"'],
)
def test_a_relative_path_is_found(line: str):
    assert relative_paths(nbformat.v4.new_code_cell(line))


def test_only_the_parameters_hold_a_relative_path(notebook):
    for cell in code_cells(notebook):
        if "parameters" not in cell.metadata.get("tags", []):
            assert relative_paths(cell) == [], f"{cell['id']}: where the notebook is started is not known; the library knows its files"


def saved_names(path: Path) -> set[str]:
    """What a notebook's calls of save_figure, save_table and their like give as a name."""
    calls = [
        node
        for cell in code_cells(nbformat.read(path, nbformat.NO_CONVERT))
        for node in ast.walk(parsed(cell))
        if isinstance(node, ast.Call)
    ]
    saving = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("save_")]
    return {argument.value for call in saving for argument in call.args if isinstance(argument, ast.Constant)}


@pytest.mark.parametrize(("table", "notebook"), [(table, name) for table, names in TABLES.items() for name in names])
def test_what_the_comparison_with_the_paper_reads_is_saved(table: str, notebook: str):
    assert table in saved_names(ROOT / "notebooks" / f"{notebook}.ipynb")


def test_checks_assert_something(notebook):
    places = [index for index, cell in enumerate(notebook.cells) if cell.source.startswith(("## 7", "## 8"))]
    checks = [cell for cell in notebook.cells[places[0] : places[1]] if cell.cell_type == "code"]
    assert sum(isinstance(node, ast.Assert) for cell in checks for node in ast.walk(parsed(cell))) >= 4


def run_notebooks(task: str, names: list[str], runs: Path, data: Path | None = None) -> None:
    settings = read_settings(
        profile=str(ROOT / "tests" / "smallest.yaml"),
        tasks=[task],
        data=None if data is None else str(data),
        teacher="",
        device="cpu",
        seed=0,
        runs=str(runs),
        only=[name[:2] for name in names],
        here=ROOT,
    )
    done = run_batch(ROOT / "notebooks", settings, progress=False)
    assert [(run.notebook, run.status, run.traceback) for run in done] == [(name, "ok", "") for name in names]


@pytest.mark.slow
def test_papermill_runs_a_notebook_from_any_folder(tmp_path: Path):
    """As the README says it; results go where the parameter `runs` points from there."""
    here = tmp_path / "elsewhere"
    here.mkdir()
    notebook = ROOT / "notebooks" / "09_paper_vs_measured.ipynb"
    words = [str(notebook), "out.ipynb", "-p", "task", "nuclei", "-p", "profile", str(ROOT / "tests" / "smallest.yaml")]
    with kernel_environment():
        done = subprocess.run([sys.executable, "-m", "papermill", *words, "--no-progress-bar"], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (here / "out.ipynb").is_file()
    assert (tmp_path / "runs" / "smallest" / "nuclei" / "figures" / "09_paper_vs_measured" / "paper_and_measured.csv").is_file()


def check_report(results: Path, missing: set[str]) -> None:
    """Every measure of the notebooks that ran is there, and no other; every figure has its notebook's title and links to its cell.

    Args:
        missing: measures that these data do not have, though their notebook ran.
    """
    (task,) = json.loads((results / "report.json").read_text("utf-8"))["tasks"]
    ran = {notebook["name"] for notebook in task["notebooks"]}
    for key, measure in task["measures"].items():
        number = measure["all"]
        if measure["notebook"] in ran and key not in missing:
            assert number["value"] is not None, (key, number["reason"])
        else:
            assert number["value"] is None and number["reason"], key
    for figure in task["figures"]:
        assert figure["anchor"] and figure["csv"] and figure["pdf"], figure["name"]
        assert figure["about"] or figure["name"].endswith("/examples") or figure["notebook"].startswith("09"), figure["name"]
    page = (results / "index.html").read_text("utf-8")
    assert page.count("<figure>") == len(task["figures"]) and "What it does not show" in page


def check_plan(task: str, names: list[str], runs: Path) -> None:
    """The studies that `vfmgl run --check` counts are those that the notebooks trained."""
    workspace = open_workspace(task, ROOT / "tests" / "smallest.yaml", runs=runs)
    foretold = {study.folder.name for name in names for study in planned(workspace, name)}
    assert foretold == {folder.name for folder in (workspace.folder / "studies").iterdir()}


def figures_of(folder: Path) -> set[str]:
    """Names of a notebook's figures, each with its PDF and its numbers."""
    drawn = {path.stem for path in folder.glob("*.png")}
    for stem in drawn:
        assert (folder / f"{stem}.pdf").stat().st_size > 1000
        assert (folder / f"{stem}.csv").stat().st_size > 0
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("endometrial", FIRST),
        ("endometrial", OF_ONE_STUDY),
        ("nuclei", FIRST),
        ("nuclei", OF_ONE_STUDY),
        ("camelyon17", [NAMES[0], NAMES[3]]),
        ("prostate", [NAMES[0], NAMES[3]]),
    ],
)
def test_every_notebook_runs(task: str, names: list[str], tmp_path: Path):
    run_notebooks(task, names, tmp_path)
    for name in names:
        assert len(figures_of(tmp_path / "smallest" / task / "figures" / name)) >= 4, name
    check_report(tmp_path / "smallest", set())
    check_plan(task, names, tmp_path)
    # 03 trains the study that 04, 07 and 08 read; a second one would mean that they ask for different things.
    assert len(list((tmp_path / "smallest" / task / "studies").glob("vfmgl-*"))) == (NAMES[3] in names)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["endometrial", "nuclei"])
def test_comparison_generalization_and_the_papers_numbers(task: str, tmp_path: Path):
    names = ["05_comparison", "06_generalization", "09_paper_vs_measured"]
    run_notebooks(task, names, tmp_path)
    check_plan(task, names, tmp_path)
    check_report(tmp_path / "smallest", set())
    folder = tmp_path / "smallest" / task
    compared, generalized, beside = (folder / "figures" / name for name in names)
    main, other = ("auc", "accuracy") if task == "endometrial" else ("dice", "assd")
    assert figures_of(compared) >= {f"{main}_at_both_budgets", f"{other}_at_both_budgets", "radar"}
    of_one_kind = [{"overlays"}, {"roc", "decision_curves", "reliability"}]
    there, absent = of_one_kind[::-1] if task == "endometrial" else of_one_kind
    assert figures_of(compared) >= there and not figures_of(compared) & absent, "what does not apply is said, not saved"
    outside = {"external"} if task == "endometrial" else set()
    assert figures_of(generalized) >= {"cross_centers", "divisions", "ablation_matrices"} | outside
    assert figures_of(beside) == {"states", "paper_and_measured"}
    # Every method of the profile once on the data's own division, which 06 loads, and VFMGL on two others.
    methods = load_settings(task, ROOT / "tests" / "smallest.yaml").comparison.methods
    assert sorted(path.name.split("-")[0] for path in (folder / "studies").iterdir()) == sorted([*methods, "vfmgl", "vfmgl"])
    results = pd.read_csv(compared / "results.csv", keep_default_na=False)
    assert set(results["method"]) == set(methods) and set(results["budget"]) == {"rounds", "updates", "hgkt_updates"}
    for budget, name in {"rounds": "matched_rounds", "updates": "matched_updates", "hgkt_updates": "hgkt_updates"}.items():
        tex = (compared / f"statistics_at_{name}.tex").read_text()
        there = {method for method in methods if budget in report_rounds(load_settings(task, method=method))}
        assert {method for method in methods if f"{METHODS[method].title} &" in tex} == there, "a budget is named only where it holds"
    tests = pd.read_csv(compared / "tests.csv").groupby("budget")["reference"].unique().map(list)
    assert tests.to_dict() == {"rounds": ["vfmgl"], "updates": ["vfmgl"], "hgkt_updates": ["hgkt"]}
    for name in ("leads_over_controls", "leads_over_seeds"):
        leads = pd.read_csv(compared / f"{name}.csv")
        assert leads.groupby("method")["reference"].unique().map(list).to_dict() == {"hgkt_beta0": ["hgkt"], "vfmgl_random": ["vfmgl"]}
        # At the paper's kappa so short a run drops nothing, and the random drops are VFMGL's own run.
        none = leads[leads["method"] == "vfmgl_random"]
        assert none["reason"].str.startswith("nothing was dropped: no comparison").all() and none["low"].isna().all()
    rows = pd.read_csv(beside / "all_rows.csv")
    printed = pd.read_csv(ROOT / "data_manifests" / "paper_results.csv")
    assert len(rows) == len(printed)
    assert rows.loc[rows["task"] == task, "measured"].notna().sum() >= 5


@pytest.mark.slow
def test_a_task_of_one_s_own_runs_from_its_file(tmp_path: Path):
    """All nine run with both kinds; here those that know most of the paper's tasks, on images that are not square."""
    task = write_task(tmp_path / "moles.yaml", CLASSIFICATION, "pad")
    names = ["01_data_preparation", "04_federated_rounds", "08_lightweight", "09_paper_vs_measured"]
    run_notebooks(str(task), names, tmp_path / "runs", write_classes(tmp_path / "images"))
    figures = tmp_path / "runs" / "smallest" / "moles-images" / "figures"
    assert not (figures / names[0] / "stains.csv").exists() and not (figures / names[0] / "table_one.csv").exists()
    beside = pd.read_csv(figures / names[1] / "paper_and_measured.csv")
    assert (beside["comparable"] == "no: not in the paper").all() and beside["paper"].isna().all() and len(beside) == 2
    assert set(pd.read_csv(figures / names[3] / "this_task.csv")["task"]) == {"lightweight"}
    shown = (tmp_path / "runs" / "smallest" / "moles-images" / "notebooks" / f"{names[3]}.ipynb").read_text()
    assert "Not in the paper: it prints no such number of the task moles." in shown
