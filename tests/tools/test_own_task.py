"""A task of one's own at the command lines: written by `new-task`, taken by run, sweep, data prepare and federation, refused as a whole."""

import json
from pathlib import Path

import pytest

from tests.own_tasks import CLASSIFICATION, write_classes, write_task
from tests.tools.test_batch import write_notebook
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.prepare import prepare, read_prepared
from vfmgl_lib.tasks.records import read_task
from vfmgl_lib.tools.batch.__main__ import main as batch_main
from vfmgl_lib.tools.batch.runner import folder_name
from vfmgl_lib.tools.batch.settings import BatchError, read_settings
from vfmgl_lib.tools.data.__main__ import main as data_main
from vfmgl_lib.tools.flower import deployment
from vfmgl_lib.tools.sweep.__main__ import main as sweep_main
from vfmgl_lib.tools.sweep.evidence import read_plan

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = str(ROOT / "tests" / "smallest.yaml")
GIVEN = {"profile": SMALLEST, "teacher": "", "device": "cpu", "seed": 0, "runs": None, "only": []}


def new_task(capsys, *words: str) -> tuple[int, str, str]:
    status = data_main(["new-task", *words])
    return status, *capsys.readouterr()


def test_new_task_writes_a_file_that_is_read_as_it_was_asked_for(tmp_path, capsys):
    file = tmp_path / "cysts.yaml"
    flags = ["--kind", "segmentation", "--classes", "no, yes", "--use", 'outlines "cysts": #1', "--image-resize", "pad"]
    status, said, _ = new_task(capsys, str(file), *flags, "--background", "black", "--stained", "--like", "prostate")
    record = read_task(file)
    assert status == 0 and said.startswith(f"{file}: written; next: vfmgl data template IMAGES --task {file}\n")
    assert f"./run_all.sh --task {file} --data IMAGES" in said and "<center>/{train,val,test}/{images,labels}" in said
    assert (record.name, record.classes, record.use) == ("cysts", ("no", "yes"), 'outlines "cysts": #1')
    assert (record.image_resize, record.background, record.stained, record.settings_like) == ("pad", "black", True, "prostate")
    assert load_settings(file, "smoke").data.layout == "cysts"
    assert file.read_text().count("#") >= 8, "with comments"


def test_a_new_segmentation_of_several_classes_says_where_masks_values_go(tmp_path, capsys):
    file, flags = tmp_path / "three.yaml", ("--kind", "segmentation", "--use", "outlines", "--classes")
    assert new_task(capsys, str(file), *flags, "rest,liver,cyst")[0] == 0
    assert "\n# mask_values: [0, 128, 255]  # " in file.read_text() and read_task(file).stored_mask_values == (0, 1, 2)
    file.write_text(file.read_text().replace("# mask_values", "mask_values"))
    assert read_task(file).stored_mask_values == (0, 128, 255)
    assert new_task(capsys, str(tmp_path / "two.yaml"), *flags, "rest,liver")[0] == 0
    assert "mask_values" not in (tmp_path / "two.yaml").read_text()


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_new_file_is_what_a_minimal_one_means(kind, tmp_path, capsys):
    assert new_task(capsys, str(tmp_path / "a.yaml"), "--kind", kind, "--classes", "a,b", "--use", "tells")[0] == 0
    (tmp_path / "b.yaml").write_text(f"name: a\nkind: {kind}\nclasses: [a, b]\nuse: tells\n")
    long, short = read_task(tmp_path / "a.yaml"), read_task(tmp_path / "b.yaml")
    assert long.model_dump(exclude={"settings"}) == short.model_dump(exclude={"settings"})
    assert load_settings(tmp_path / "a.yaml", "smoke").key() == load_settings(tmp_path / "b.yaml", "smoke").key()


def test_all_that_is_wrong_with_a_new_task_is_said_together(tmp_path, capsys):
    file = tmp_path / "nuclei.yaml"
    flags = ["--kind", "klass", "--classes", "a", "--like", "x", "--image-resize", "fill", "--background", "red"]
    status, said, errors = new_task(capsys, str(file), *flags)
    assert (status, said) == (1, "") and not file.exists() and f"{file}: 7 problems, nothing was written" in errors
    for part in (
        "the name 'nuclei' is taken by a built-in task",
        "--use is missing",
        "--kind 'klass', expected one of classification, segmentation",
        "--image-resize 'fill', expected one of stretch, pad, crop",
        "--background 'red', expected one of white, black",
        "--like 'x', expected one of endometrial",
        "--classes 'a': 1 class, expected at least two",
    ):
        assert f"  - {part}" in errors
    (tmp_path / "there.yaml").write_text("")
    assert "there.yaml is there already" in new_task(capsys, str(tmp_path / "there.yaml"))[2]
    assert "expected a name that ends in .yaml" in new_task(capsys, str(tmp_path / "mine.txt"))[2]


def test_on_a_terminal_it_asks_for_what_no_flag_says(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or ("dark,bright" if "classes" in question else "tells"))
    status, _, _ = new_task(capsys, str(tmp_path / "moles.yaml"), "--kind", "classification")
    assert status == 0 and len(asked) == 2 and read_task(tmp_path / "moles.yaml").classes == ("dark", "bright")


def test_a_batch_gives_every_notebook_the_file_s_absolute_place(tmp_path):
    file, data = write_task(tmp_path / "moles.yaml", CLASSIFICATION), write_classes(tmp_path / "data")
    settings = read_settings(tasks=["moles.yaml"], data="data", here=tmp_path, **GIVEN)
    assert settings.parameters(settings.tasks[0])["task"] == str(file) and settings.data == data
    assert folder_name(read_task(file).name, settings.data, []) == "moles-data"
    with pytest.raises(BatchError, match="moles has no phantoms: give --data DIR"):
        read_settings(tasks=["moles.yaml"], data=None, here=tmp_path, **GIVEN)
    with pytest.raises(BatchError, match=r"none\.yaml: no such task file"):
        read_settings(tasks=["none.yaml"], data="data", here=tmp_path, **GIVEN)


def test_a_batch_refuses_what_needs_no_training_before_a_notebook_starts(tmp_path, capsys):
    """A set of another task, another record of the name, a misspelt teacher, images without a class: the message alone, and status 2."""
    file, data = write_task(tmp_path / "moles.yaml", CLASSIFICATION), write_classes(tmp_path / "data")
    prepare(file, data, tmp_path / "set", progress=False)
    (tmp_path / "odd" / "North").mkdir(parents=True)
    notebooks, common = tmp_path / "notebooks", ["--profile", SMALLEST, "--runs", str(tmp_path / "runs")]
    notebooks.mkdir()
    write_notebook(notebooks / "01_one.ipynb", "raise AssertionError('a notebook was started')")
    open_workspace(file, SMALLEST, data=tmp_path / "set", runs=tmp_path / "runs")
    other = write_task(
        tmp_path / "other.yaml", "name: moles\n" + CLASSIFICATION.replace("background: black", "ordinal: true\nbackground: black")
    )
    own = ["--task", str(file), "--data", str(tmp_path / "set")]
    for words, message in (
        (["--task", "nuclei", "--data", str(tmp_path / "set")], "holds a set of the task moles, expected one of nuclei"),
        (["--task", str(other), "--data", str(tmp_path / "set")], "holds results of another record of this name: ordinal False before"),
        (["--task", str(file), "--data", str(tmp_path / "odd")], "odd"),
        ([*own, "--teacher", "vit_bse"], "teacher 'vit_bse' is not a timm model; similar names: "),
    ):
        capsys.readouterr()
        assert batch_main([*words, *common], notebooks=notebooks) == 2, words
        said = capsys.readouterr()
        assert message in said.err and said.err.startswith("vfmgl run: ") and "Traceback" not in said.err and not said.out
        assert not list((tmp_path / "runs").glob("**/*.ipynb"))
    assert batch_main([*own, *common], notebooks=notebooks) == 1 and "a notebook was started" in capsys.readouterr().out


def test_prepare_takes_the_file(tmp_path, capsys):
    file, data = write_task(tmp_path / "moles.yaml", CLASSIFICATION), write_classes(tmp_path / "data")
    assert data_main(["prepare", str(file), "--source", str(data), "--out", str(tmp_path / "out")]) == 0
    assert read_prepared(tmp_path / "out", file).manifest.classes == ("benign", "malign")
    rest = ["--source", str(data), "--out", str(tmp_path / "other")]
    with pytest.raises(SystemExit) as end:
        data_main(["prepare", "liver", *rest])
    assert end.value.code == 2 and "unknown task 'liver'" in capsys.readouterr().err
    (tmp_path / "wrong.yaml").write_text("kind: classification\nclases: [a, b]\nuse: tells\n")
    for wrong, message in (("none.yaml", "no such task file"), ("wrong.yaml", "clases")):
        assert data_main(["prepare", str(tmp_path / wrong), *rest]) == 1
        errors = capsys.readouterr().err
        assert message in errors and "usage" not in errors, "a file's problems are told alone"


@pytest.mark.slow
def test_a_sweep_runs_it_in_processes_of_its_own(tmp_path, capsys, monkeypatch):
    """The workers have the record from the settings alone: the file's relative name means nothing to them."""
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "moles.yaml", CLASSIFICATION, "crop")
    write_classes(tmp_path / "data")
    words = ["--profile", SMALLEST, "--methods", "local,fedavg", "--seeds", "0", "--processes", "2", "--threads", "1"]
    status = sweep_main(["--task", "moles.yaml", "--data", "data", "--runs", "runs", "--results", "results", *words])
    assert status == 0, capsys.readouterr().err
    assert len(list((tmp_path / "results" / "data").glob("metrics.csv"))) == 1
    assert sweep_main(["--task", "moles.yaml", "--runs", "runs", *words]) == 2
    assert "moles has no phantoms: give --data DIR" in capsys.readouterr().err


def test_a_plan_names_it_seen_from_its_own_folder(tmp_path):
    text = (ROOT / "results" / "PLAN.yaml").read_text().replace("task: camelyon17", "task: ../data_manifests/tasks/idc.yaml")
    (tmp_path / "PLAN.yaml").write_text(text)
    assert read_plan(tmp_path / "PLAN.yaml").sets["idc_patches"].task == str(tmp_path.parent / "data_manifests" / "tasks" / "idc.yaml")
    assert read_plan(ROOT / "results" / "PLAN.yaml").sets["nuclei"].task == "nuclei"


def test_a_federation_carries_the_record_to_every_centre(tmp_path):
    """The coordinator has the file, the centres have study.json; how images become squares is the study's, whoever prepared them."""
    file, data = write_task(tmp_path / "moles.yaml", CLASSIFICATION, "pad"), write_classes(tmp_path / "data")
    deployment.init(tmp_path / "made", str(file), SMALLEST, "fedavg", 0, "localhost", 9092, "")
    prepare(file, data, tmp_path / "made" / "site" / "data", progress=False)
    file.unlink()
    yaml = tmp_path / "made" / "site" / "site.yaml"
    yaml.write_text(yaml.read_text().replace("CENTRE ", "North "))
    given = deployment.read_site(tmp_path / "made" / "site")
    assert given.study.data.record.name == "moles" and given.study.data.record.classes == ("benign", "malign")
    own = deployment.own_data(given)
    assert own.reading.resize == "pad" and own.centers == ("North",)
    other = json.loads((tmp_path / "made" / "site" / "study.json").read_text())
    other["data"]["own_task"]["classes"] = ["malign", "benign"]
    (tmp_path / "made" / "site" / "study.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="was prepared with another record of moles: classes"):
        deployment.own_data(deployment.read_site(tmp_path / "made" / "site"))


def test_the_idc_patches_have_a_task_of_their_own():
    record = read_task(ROOT / "data_manifests" / "tasks" / "idc.yaml")
    assert record.classes == ("benign", "carcinoma") and record.class_folders == ("0", "1")
    mine = load_settings(ROOT / "data_manifests" / "tasks" / "idc.yaml", "results").model_dump(mode="json")
    posing = load_settings("camelyon17", "results").model_dump(mode="json")
    assert posing["data"].pop("layout") == "endometrial" and mine["data"].pop("layout") == "idc" and mine["data"].pop("own_task")
    assert mine | {"task": ""} == posing | {"task": ""}, "as the rows of results/idc_patches were made"
