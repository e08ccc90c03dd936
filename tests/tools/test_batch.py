"""The notebook runner, on notebooks of two cells made here."""

import csv
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from vfmgl_lib import __version__
from vfmgl_lib.models import teachers
from vfmgl_lib.models.teacher_names import resolve_teacher
from vfmgl_lib.tools.batch import settings as settings_module
from vfmgl_lib.tools.batch.__main__ import main
from vfmgl_lib.tools.batch.execution import KERNEL, kernel_environment
from vfmgl_lib.tools.batch.runner import COLUMNS, check_parameters, find_notebooks, folder_name, read_log, run_batch
from vfmgl_lib.tools.batch.settings import BatchError, BatchSettings, read_settings

PARAMETERS = """task: str = "nuclei"  # the task
profile: str = "smoke"  # name or file
data: str = ""  # "" for phantoms
teacher: str = ""  # "" for the profile's
device: str = "cpu"  # cpu or cuda
seed: int = 0  # study seed
runs: str = "../runs"  # results"""


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a parameters cell and the given code cells."""
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    notebook.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A notebooks folder with no notebook yet, in a path with a blank and braces."""
    notebooks = tmp_path / "note {books}"
    notebooks.mkdir()
    return notebooks


def log_rows(results: Path) -> list[dict[str, str]]:
    with (results / "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_good_and_failing_notebooks(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = "import pathlib, sys; out = pathlib.Path(runs, profile, task, 'figures'); out.mkdir(parents=True)"
    write_notebook(
        folder / "01_fails.ipynb",
        "answer = 41\nif task == 'nuclei':\n    raise ValueError('center <b>A</b> has no samples')",
    )
    write_notebook(
        folder / "02_good.ipynb",
        figures + "; (out / 'a <b>&.png').write_bytes(b'png'); (out / 'a <b>&.csv').write_text('x')",
        "block = bytearray(80 * 2**20); import time; time.sleep(0.6)",
        "print(sys.executable, pathlib.Path.cwd(), seed, task)",
    )
    runs = tmp_path / "runs"

    status = main(["--task", "nuclei", "--runs", str(runs), "--seed", "7"], notebooks=folder)

    assert status == 1
    said = capsys.readouterr().out
    assert "FAILED: 01_fails, task nuclei" in said
    assert "ValueError: center <b>A</b> has no samples" in said
    assert "1 of 2 notebooks" in said
    executed = runs / "smoke" / "nuclei" / "notebooks"
    failed = nbformat.read(executed / "01_fails.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in failed.cells for output in cell.get("outputs", []))
    good = nbformat.read(executed / "02_good.ipynb", as_version=4)
    assert good.cells[-1].outputs[0].text.split("\n")[0] == f"{sys.executable} {folder} 7 nuclei"
    assert "ValueError" in (executed / "01_fails.html").read_text()
    assert sorted(path.name for path in executed.iterdir()) == [
        "01_fails.html",
        "01_fails.ipynb",
        "02_good.html",
        "02_good.ipynb",
    ]
    rows = log_rows(runs / "smoke")
    assert [(row["notebook"], row["status"]) for row in rows] == [("01_fails", "failed"), ("02_good", "ok")]
    assert float(rows[1]["seconds"]) > 0.6
    assert int(rows[1]["peak_memory_mib"]) > 80
    page = (runs / "smoke" / "index.html").read_text()
    assert "A &lt;b&gt;&amp;" in page and "a%20%3Cb%3E%26.png" in page and "a%20%3Cb%3E%26.csv" in page
    assert "<b>A</b>" not in page and "A <b>" not in page and "a <b>" not in page
    assert "nuclei/notebooks/01_fails.html" in page


def test_every_task_in_an_unchanged_environment(folder: Path, tmp_path: Path, monkeypatch):
    for name in ("JUPYTER_PATH", "PYDEVD_DISABLE_FILE_VALIDATION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    write_notebook(folder / "01_one.ipynb", "import os; assert os.environ['OMP_NUM_THREADS'] == '3'")
    before = dict(os.environ)
    done = run_batch(folder, BatchSettings(runs=tmp_path / "runs"), progress=False)
    assert [(run.task, run.status) for run in done] == [("endometrial", "ok"), ("nuclei", "ok")]
    assert dict(os.environ) == before


def test_the_message_of_a_failed_notebook_comes_before_its_traceback(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The whole message, also where it has several lines, of which the last alone would say nothing."""
    write_notebook(folder / "01_fails.ipynb", "raise ValueError('set: 2 problems\\n  - class a\\n  - class b')")
    assert main(["--task", "nuclei", "--runs", str(tmp_path / "runs")], notebooks=folder) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    said = "ValueError: set: 2 problems - class a - class b"
    assert lines[:2] == ["FAILED: 01_fails, task nuclei", said]
    assert "  - class b" in lines[3:], "and the traceback below"
    assert log_rows(tmp_path / "runs" / "smoke")[0]["error"] == said
    assert said in (tmp_path / "runs" / "smoke" / "index.html").read_text()


def test_dead_kernel_is_a_failure(folder: Path, tmp_path: Path):
    write_notebook(folder / "01_dies.ipynb", "import os; os._exit(3)")
    done = run_batch(folder, BatchSettings(tasks=("nuclei",), runs=tmp_path / "runs"), progress=False)
    assert [run.status for run in done] == ["failed"]
    assert "Kernel died" in done[0].error
    assert (tmp_path / "runs" / "smoke" / "nuclei" / "notebooks" / "01_dies.html").exists()


def test_misspelt_parameter_stops_before_anything_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_notebook(folder / "01_good.ipynb", "1")
    bad = write_notebook(folder / "02_bad.ipynb", "1", parameters=PARAMETERS.replace("device:", "devise:"))
    with pytest.raises(BatchError, match=r"02_bad\.ipynb has no parameter device; valid are task, profile, data, teacher, devise"):
        check_parameters(bad, BatchSettings().parameters("nuclei"))
    assert main(["--runs", str(tmp_path / "runs")], notebooks=folder) == 2
    assert "02_bad.ipynb has no parameter device" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_notebook_without_parameters_cell(folder: Path):
    path = write_notebook(folder / "01_none.ipynb", "1", parameters="")
    with pytest.raises(BatchError, match="has no parameters"):
        check_parameters(path, {"task": "nuclei"})
    path.write_text("no notebook")
    with pytest.raises(BatchError, match=r"01_none\.ipynb is not a notebook"):
        check_parameters(path, {"task": "nuclei"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "nuclei", "--data", "nowhere"], "nowhere does not exist"),
        (["--task", "nuclei", "--data", "empty"], "empty is empty"),
        (["--task", "nuclei", "--data", "weights.pth"], "is a file, not a folder"),
        (["--task", "nucleii"], "task 'nucleii' is not in profile smoke; it has camelyon17, endometrial, nuclei, prostate"),
        (["--data", "full"], "belongs to one task, got endometrial, nuclei"),
        (["--all-tasks", "--data", "full"], "belongs to one task"),
        (["--profile", "smok"], "give one of evidence, paper, pocket_teacher, quick, results, smoke"),
        (["--profile", "mine.yaml"], r"mine\.yaml does not exist"),
        (["--profile", "list.yaml"], r"top-level keys must be 'all' and 'tasks', got \[1\]"),
        (["--teacher", "nowhere.safetensors"], r"nowhere\.safetensors cannot be read: No such file"),
        (["--teacher", "vit_tiny=nowhere.pth"], r"nowhere\.pth cannot be read"),
        (["--teacher", "./full"], "full is no file with weights"),
        (["--only", "7"], "no notebook 7 in .*; there are 01"),
        (["--seed", "-1"], "seed: .*greater than or equal to 0, got -1"),
    ],
)
def test_bad_arguments(folder: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str):
    write_notebook(folder / "01_one.ipynb", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "image.png").write_bytes(b"")
    (tmp_path / "weights.pth").write_bytes(b"")
    (tmp_path / "list.yaml").write_text("- 1\n")
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--runs", "runs"], notebooks=folder) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def test_unknown_options_exit_with_2(folder: Path):
    for arguments in (["--devise", "cpu"], ["--device", "tpu"], ["--seed", "one"], ["nuclei"], ["--jobs", "0"], ["--jobs", "two"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments, notebooks=folder)
        assert exit_.value.code == 2


def test_paths_are_made_absolute(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    absolute = str(tmp_path / "w.safetensors")
    assert resolve_teacher("w.safetensors", tmp_path) == absolute
    assert resolve_teacher("resnet18=w.safetensors", tmp_path) == f"resnet18={absolute}"
    for name in ("vit_base_patch14_dinov2.lvd142m", "random:vit_tiny_patch16_224", "pocket_vit"):
        assert resolve_teacher(name, tmp_path) == name
    assert resolve_teacher("resnet18=w.safetensors else pocket_vit", tmp_path) == f"resnet18={absolute} else pocket_vit"


def test_data_folders_of_one_name_are_kept_apart(tmp_path: Path):
    first, second = tmp_path / "a" / "nuclei", tmp_path / "b" / "nuclei"
    log = [{"folder": "nuclei-nuclei", "data": str(first)}]
    assert folder_name("nuclei", None, log) == "nuclei"
    assert folder_name("nuclei", first, log) == "nuclei-nuclei"
    assert folder_name("nuclei", second, log).startswith("nuclei-nuclei-")
    assert folder_name("nuclei", second, []) == "nuclei-nuclei"


def test_only_by_number_and_name(folder: Path):
    paths = [write_notebook(folder / f"{name}.ipynb", "1") for name in ("01_one", "02_two", "04_four")]
    (folder / "notes.ipynb").write_text("not numbered")
    assert find_notebooks(folder) == paths
    assert find_notebooks(folder, ["4", "01"]) == [paths[0], paths[2]]
    assert find_notebooks(folder, ["02_two"]) == [paths[1]]


def test_a_kernel_of_another_environment_is_not_used(folder: Path, tmp_path: Path, monkeypatch):
    """A kernel registered under the same name elsewhere must not win over this interpreter."""
    foreign = tmp_path / "foreign" / "kernels" / KERNEL
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text('{"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "foreign"))
    write_notebook(folder / "01_one.ipynb", "1")
    done = run_batch(folder, BatchSettings(tasks=("nuclei",), runs=tmp_path / "runs"), progress=False)
    assert [run.status for run in done] == ["ok"]


def test_log_of_another_form_is_refused(folder: Path, tmp_path: Path):
    write_notebook(folder / "01_one.ipynb", "1")
    log = tmp_path / "runs" / "smoke" / "runs.csv"
    log.parent.mkdir(parents=True)
    log.write_text("time,name\n1,2\n")
    with pytest.raises(BatchError, match="has columns"):
        run_batch(folder, BatchSettings(runs=tmp_path / "runs"), progress=False)
    assert log.read_text() == "time,name\n1,2\n"


def test_what_another_version_ran_is_named_as_such(folder: Path, tmp_path: Path):
    """A log of 0.1.0, which wrote no version, is gone on with; the page says what is of which."""
    for name in ("01_one", "02_two"):
        write_notebook(folder / f"{name}.ipynb", "1")
    run_batch(folder, BatchSettings(tasks=("nuclei",), runs=tmp_path / "runs"), progress=False)
    log, page = tmp_path / "runs" / "smoke" / "runs.csv", tmp_path / "runs" / "smoke" / "index.html"
    assert "made with" not in page.read_text()
    rows = read_log(log)
    with log.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "version"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    run_batch(folder, BatchSettings(tasks=("nuclei",), runs=tmp_path / "runs", only=("02",)), progress=False)
    assert [row["version"] for row in read_log(log)] == ["0.1.0", "0.1.0", __version__]
    items = [item for item in page.read_text().split("</li>") if "made with vfmgl_lib 0.1.0, as are its figures" in item]
    assert len(items) == 1 and "01_one" in items[0]


def test_the_engine_is_for_the_notebook_of_the_rounds_alone():
    settings = BatchSettings(engine="flower")
    assert settings.parameters("nuclei", "04_federated_rounds")["engine"] == "flower"
    assert "engine" not in settings.parameters("nuclei", "03_ddbl")
    with pytest.raises(BatchError, match="engine flower is for notebook 04, which --only leaves out"):
        read_settings(
            profile="smoke", tasks=[], data=None, teacher="", device="cpu", seed=0, runs=None, only=["03"], engine="flower", here=Path.cwd()
        )


def test_all_notebooks_of_a_batch_get_the_one_of_two_teachers_that_could_be_had_first(tmp_path: Path, monkeypatch):
    reach = [True]
    monkeypatch.setattr(teachers, "is_cached", lambda repository: False)
    monkeypatch.setattr(teachers, "_hub_refusal", lambda repository: "" if reach[0] else "the hub is out of reach")
    common = {"tasks": ["nuclei"], "data": None, "teacher": "", "device": "cpu", "seed": 0, "runs": None, "only": [], "here": tmp_path}
    settings_module._available.cache_clear()
    quick = read_settings(profile="quick", **common)
    first = quick.parameters("nuclei", "02_hgkt")["teacher"]
    reach[0] = False
    assert first == quick.parameters("nuclei", "03_ddbl")["teacher"] == quick.teacher_of("nuclei") == "vit_base_patch14_dinov2.lvd142m"
    settings_module._available.cache_clear()
    assert quick.parameters("nuclei")["teacher"] == "pocket_vit"
    assert read_settings(profile="smoke", **common).parameters("nuclei")["teacher"] == "", "one teacher: the profile's own"
    mistyped = read_settings(profile="quick", **(common | {"teacher": "vit_bse else pocket_vit"}))
    with pytest.raises(BatchError, match="'vit_bse' is not a timm model"):
        mistyped.parameters("nuclei")
    settings_module._available.cache_clear()


def test_kernels_do_not_depend_on_the_home_or_on_a_backend_of_the_user(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    with kernel_environment():
        assert os.environ["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"
        folders = [Path(os.environ[name]) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR")]
        assert all(os.access(folder.parent, os.W_OK) and Path.home() not in folder.parents for folder in folders)
    assert os.environ["MPLBACKEND"] == "TkAgg" and "IPYTHONDIR" not in os.environ


def test_a_list_of_runs_that_a_spreadsheet_has_saved(tmp_path: Path):
    row = dict.fromkeys(COLUMNS, "Mü")
    text = ",".join(COLUMNS) + "\r\n" + ",".join(row.values()) + "\r\n"
    (tmp_path / "runs.csv").write_bytes(text.encode("utf-8-sig"))
    assert read_log(tmp_path / "runs.csv") == [row]
    for damaged, message in ((text.encode("latin-1"), "is not in UTF-8 any more"), (text.replace(",", ";").encode(), "has columns")):
        (tmp_path / "runs.csv").write_bytes(damaged)
        with pytest.raises(BatchError, match=f"{message}.*move it away"):
            read_log(tmp_path / "runs.csv")


def test_a_folder_of_results_that_cannot_be_made_is_one_line(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--only", "01", "--task", "nuclei", "--runs", str(tmp_path / "file" / "runs")]) == 2
    assert re.search("vfmgl run: .*Not a directory", capsys.readouterr().err)
