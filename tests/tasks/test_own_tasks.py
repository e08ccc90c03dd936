"""A task of one's own: a YAML file anywhere, short where its kind says the rest, refused with file, line and remedy where it is wrong."""

import json

import pytest

from tests.own_tasks import CLASSIFICATION, SEGMENTATION, write_classes, write_task
from vfmgl_lib import config
from vfmgl_lib.config import ConfigError, task_names
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.methods.settings import changed_settings, checked_settings, load_settings
from vfmgl_lib.tasks import records
from vfmgl_lib.tasks.prepare import prepare, read_prepared
from vfmgl_lib.tasks.records import TASKS, TaskError, TaskRecord, find_task, read_task

SHORT = "use: tells a from b\nkind: classification\nclasses: [a, b]\n"


def test_a_minimal_file_gets_the_rest_from_its_kind(tmp_path):
    (tmp_path / "moles.v2.yaml").write_text(SHORT)
    record = read_task(tmp_path / "moles.v2.yaml")
    assert (record.name, record.student, record.loss, record.folders) == ("moles.v2", "resnet18", "cross_entropy", "class_folders")
    assert record.settings_like == "camelyon17" and record.image_resize == "stretch" and not record.is_built_in
    assert record.reader is None and record.phantom is None
    (tmp_path / "cysts.yaml").write_text("name: cysts_of_2024\n" + SHORT.replace("classification", "segmentation"))
    record = read_task(tmp_path / "cysts.yaml")
    assert (record.name, record.student, record.loss) == ("cysts_of_2024", "unet", "dice")
    assert (record.folders, record.settings_like) == ("mask_folders", "nuclei")
    assert find_task(record) is record and find_task("nuclei") is TASKS["nuclei"] and "cysts_of_2024" not in TASKS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys of a task, got NoneType"),
        ("- a\n", "expected keys of a task, got list"),
        ("kind: [a\n", "not valid YAML, line 2"),
        ("1: a\n", "key 1 is no text"),
        (SHORT + "kind: segmentation\n", "line 4: 'kind' is in this table twice, the first time in line 2"),
        (SHORT + "clases: [a, b]\n", r"line 4: clases: Extra inputs are not permitted.*; did you mean classes\?"),
        (SHORT + "qqqqqq: 1\n", "line 4: qqqqqq: Extra inputs are not permitted, got 1; the keys are name, order, use, kind"),
        (SHORT.replace("[a, b]", "[a]"), r"line 3: classes: 1 \(a\), expected at least two"),
        (SHORT.replace("[a, b]", "[a, a]"), "line 3: classes: 'a' is there twice"),
        (SHORT.replace("[a, b]", "[a, b/c]"), "line 3: classes: 'b/c' is no name"),
        (SHORT.replace("[a, b]", "[no, yes]"), "line 3: classes.0: Input should be a valid string, got False; write it in quotes"),
        (SHORT.replace("[a, b]", "ab"), "line 3: classes: Input should be a valid tuple"),
        (
            SHORT.replace("classification", "regression"),
            "line 2: kind: Input should be 'classification' or 'segmentation', got 'regression'",
        ),
        (SHORT + "image_resize: fill\n", "line 4: image_resize: Input should be 'stretch', 'pad' or 'crop', got 'fill'"),
        (SHORT + "class_folders: ['0']\n", "line 4: class_folders: 0, expected 2 names, one for each class"),
        (SHORT + "settings: {data: {layout: nuclei}}\n", "line 4: settings: data.layout is this very task; leave it out"),
        (SHORT + "settings: {data: }\n", "line 4: settings.data: Input should be a valid dictionary, got None"),
        ("kind: classification\n", "use: Field required; add this key$"),
        ("kind: segmentation\nuse: x\n", "classes: a segmentation names them"),
        ("name: nuclei\n" + SHORT, "name 'nuclei' is taken by a built-in task; give another with the key `name`"),
        ("name: a/b\n" + SHORT, "name 'a/b' is no name of a task"),
        ("name: ..\n" + SHORT, "name '..' is no name of a task"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(TaskError, match=rf"(?s)mine\.yaml: {message}"):
        find_task(file)


def test_a_file_that_is_not_there_and_one_with_code_beside_it(tmp_path):
    with pytest.raises(TaskError, match="no such task file, expected a YAML file; `vfmgl data new-task` writes one"):
        find_task(tmp_path / "none.yaml")
    with pytest.raises(TaskError, match=r"unknown task 'none', expected one of endometrial, .* or a YAML file of your own"):
        find_task("none")
    folder = tmp_path / "squares"
    folder.mkdir()
    (folder / "task.yaml").write_text(SHORT)
    assert read_task(folder / "task.yaml").name == "squares"
    (folder / "reader.py").write_text("FORMATS = ()\n")
    with pytest.raises(TaskError, match=f"set the environment variable VFMGL_TASKS={tmp_path} and name the task 'squares'"):
        read_task(folder / "task.yaml")


def test_the_settings_carry_the_record(tmp_path):
    """So another process, or a reader of config.json, needs no file."""
    file = write_task(tmp_path / "moles.yaml", CLASSIFICATION, "pad")
    settings = load_settings(file, "smoke")
    assert settings.task == settings.data.layout == "moles" and settings.data.record.image_resize == "pad"
    assert (settings.data.image_size, settings.student.width, settings.student.name) == (32, 4, "resnet18")
    assert settings.optimizer.lr == load_settings("camelyon17", "smoke").optimizer.lr, "the profile's lines of the task that it starts from"
    file.unlink()
    written = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert checked_settings(written) == settings and changed_settings(settings, {"optimizer.lr": 0.5}).data == settings.data
    assert "moles" not in task_names("smoke")
    shown = settings.deviations().set_index("setting")["here"]
    assert shown["data.image_size"] == 32 and "data.layout" not in shown, "held against the task that it starts from"


def test_what_changes_numbers_changes_the_study_s_name(tmp_path):
    def key(text: str) -> str:
        return load_settings(write_task(tmp_path / "moles.yaml", text), "smoke").key()

    first = key(CLASSIFICATION)
    assert key(CLASSIFICATION.replace("use: tells dark", "use: tells very dark")) == first, "a text"
    assert key(CLASSIFICATION + "stained: true\npatient_rule: another\n") == first
    changes = {"[benign, malign]": "[malign, benign]", "{resize}": "pad", "black": "white", "image_size: 32": "image_size: 64"}
    keys = [key(CLASSIFICATION.replace(before, after)) for before, after in changes.items()]
    assert len({first, *keys}) == 1 + len(changes)


def test_the_names_of_built_in_studies_are_as_they_were():
    """Nothing of a record is in the settings of a built-in task; keys of 0.2.0 before there were tasks of one's own."""
    for task in ("endometrial", "nuclei"):
        data = load_settings(task, "smoke").model_dump(mode="json")["data"]
        assert "own_task" not in data and data["layout"] == task


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("optimiser: {lr: 0.01}", r"mine.yaml: line 5: optimiser: Extra inputs are not permitted, got .*; did you mean optimizer\?"),
        ("optimizer:\n    lr: 0.01\n    batchsize: 4", r"mine.yaml: line 7: optimizer.batchsize: Extra .*; did you mean batch_size\?"),
        ("transfer: {qqqq: 1}", r"mine.yaml: line 5: transfer.qqqq: .*; the keys are .*beta"),
        ("optimizer: {lr: fast}", r"mine.yaml: line 5: optimizer.lr: .*valid number.*got 'fast'"),
        ("data: {split: {train: 1.5, seed: 1}}", r"mine.yaml: line 5: data.split.train: Input should be less than 1"),
    ],
)
def test_a_wrong_setting_of_a_record_names_file_and_line_and_not_the_profile(settings, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SHORT + f"settings:\n  {settings}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_settings(file, "smoke")
    assert "profile" not in str(error.value) and str(error.value).startswith(str(file))
    with pytest.raises(ConfigError, match=r"task mine, profile smoke: seed: .*, got -1") as error:
        load_settings(file, "smoke", seed=-1)
    assert str(error.value).count("mine.yaml: line") == 1, "what a call gave is not looked for in a file"


def test_a_wrong_setting_of_a_task_s_folder_names_its_file(tmp_path, monkeypatch):
    (tmp_path / "squares").mkdir()
    content = SHORT + "student: resnet18\nloss: cross_entropy\nsettings_like: camelyon17\nsettings: {optimiser: {lr: 0.01}}\n"
    (tmp_path / "squares" / "task.yaml").write_text(content)
    monkeypatch.setattr(records, "TASKS", dict(records.TASKS))
    for module in (config, records):
        monkeypatch.setattr(module, "TASKS", records.TASKS)
    records.add_tasks_from(tmp_path)
    with pytest.raises(ConfigError, match=r"squares.task.yaml: line 7: optimiser: .*; did you mean optimizer\?"):
        load_settings("squares", "smoke")


def test_a_wrong_setting_of_a_profile_names_its_file_and_line(tmp_path):
    (tmp_path / "mine.yaml").write_text(SHORT)
    (tmp_path / "own.yaml").write_text("all:\n  optimizer: {lr: fast}\ntasks:\n  camelyon17:\n    data: {image_sise: 32}\n")
    with pytest.raises(ConfigError, match=r"own.yaml: line 5: data.image_sise: .*; did you mean image_size\?") as error:
        load_settings(tmp_path / "mine.yaml", tmp_path / "own.yaml")
    assert "mine.yaml: line" not in str(error.value)


def test_another_name_in_the_settings_is_refused(tmp_path):
    values = load_settings(write_task(tmp_path / "moles.yaml", CLASSIFICATION), "smoke").model_dump(mode="json")
    values["data"]["layout"] = "nuclei"
    with pytest.raises(ValueError, match=r"data.own_task is 'moles', expected that of data.layout, 'nuclei'"):
        checked_settings(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings_like: lungs", "settings_like must name a task of the paper, one of endometrial"),
        ("settings: {optimizer: {lrr: 1}}", "lrr"),
    ],
)
def test_settings_of_a_record_are_checked(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(SHORT + text + "\n")
    with pytest.raises(ValueError, match=f"mine.*{message}"):
        load_settings(tmp_path / "mine.yaml", "smoke")


def test_class_folders_that_are_called_otherwise(tmp_path):
    data = write_classes(tmp_path / "data", ("0", "1"), patients=8)
    text = CLASSIFICATION + 'class_folders: ["1", "0"]\n'
    manifest = prepare(write_task(tmp_path / "moles.yaml", text), data, tmp_path / "out", progress=False).manifest
    assert manifest.classes == ("benign", "malign")
    assert set(zip(manifest.table["path"].str.split("/").str[2], manifest.table["label"], strict=True)) == {("1", 0), ("0", 1)}


def test_folders_that_are_no_class_and_classes_without_folders(tmp_path):
    data = write_classes(tmp_path / "data", ("benign", "malignant"), patients=8)
    with pytest.raises(ManifestError) as error:
        prepare(write_task(tmp_path / "moles.yaml", CLASSIFICATION), data, tmp_path / "out", progress=False)
    wrong = (
        "class folder 'malignant' (center North, South, West) is no class of moles, expected one of benign, malign, or their numbers 0 to 1"
    )
    assert wrong in str(error.value)
    assert "class 'malign' has no folder at any center, expected images of it, or a task without it" in str(error.value)


def test_a_prepared_set_of_another_record_of_the_same_name_is_refused(tmp_path):
    data = write_classes(tmp_path / "data", patients=8)
    first = read_task(write_task(tmp_path / "moles.yaml", CLASSIFICATION))
    prepare(first, data, tmp_path / "out", progress=False)
    assert read_prepared(tmp_path / "out", first).reused and prepare(first, data, tmp_path / "out", progress=False).reused
    other = TaskRecord(**(first.model_dump() | {"classes": ("malign", "benign")}))
    with pytest.raises(ManifestError, match=r"was prepared with another record of moles: classes \['benign', 'malign'\], now \['malign'"):
        read_prepared(tmp_path / "out", other)
    with pytest.raises(ManifestError, match="holds a set prepared otherwise: record"):
        prepare(other, data, tmp_path / "out", progress=False)
    with pytest.raises(ManifestError, match="holds a set of the task moles, expected one of nuclei"):
        read_prepared(tmp_path / "out", "nuclei")
    text = TaskRecord(**(first.model_dump() | {"use": "another text", "image_resize": "pad"}))
    assert read_prepared(tmp_path / "out", text).reused, "what the set does not depend on"


def test_a_segmentation_reads_mask_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"not recognised as cysts.*<center>/\{train,val,test\}/\{images,labels\}"):
        prepare(write_task(tmp_path / "cysts.yaml", SEGMENTATION), tmp_path / "empty", tmp_path / "out", progress=False)
