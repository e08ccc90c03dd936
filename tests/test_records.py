"""Tasks and methods are records: a toy of each, in a temporary folder, runs a study without touching the library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.methods.record import Method
from vfmgl_lib.methods.registry import METHODS, add_methods, add_methods_from
from vfmgl_lib.tasks.prepare import formats_of, prepare
from vfmgl_lib.tasks.records import TASKS, TaskError, add_tasks_from, earlier_reading, find_task

ROOT = Path(__file__).resolve().parent.parent
TASK = """
order: 50
use: tells bright squares from dark ones
kind: classification
student: resnet18
loss: cross_entropy
folders: class_folders
patient_rule: the patient is the name of the folder that holds the images,
settings_like: endometrial
settings:
  data: {image_size: 32, validation_share: 0.25, workers: 0}
  student: {width: 4, weights: none}
  optimizer: {lr: 0.02, batch_size: 4}
  federation: {rounds: 2, match_updates: false}
"""
READER = """
import pandas as pd
from vfmgl_lib.data.manifest import COLUMNS
from vfmgl_lib.tasks.cases import Format

FORMATS = (Format("list", "anything", lambda source: True, manifest=lambda source, findings: pd.DataFrame(columns=list(COLUMNS))),)
"""
METHOD = '''
"""FedAvg whose clients add a share of the squared norm of their weights to the loss."""

from pydantic import Field

from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.methods.record import Method


class DecaySettings(Settings):
    share: float = Field(default=0.25, ge=0, description="weight of the squared norm")


class DecayClient(Client):
    def training_loss(self, images, target, batch):
        task, _ = super().training_loss(images, target, batch)
        return task, task + self.settings.comparators.fed_decay.share * sum((p**2).sum() for p in self.student.parameters())


METHODS = (
    Method(
        "fed_decay",
        "FedAvg with decay",
        "a test's",
        order=45,
        color="#123456",
        line="dashed",
        marker="o",
        switches=Switches(sends=True, adopts=True),
        client=DecayClient,
        settings=DecaySettings,
    ),
)
'''
STUDY = """
import json, sys
import torch
from vfmgl_lib.figures.style import method_style
from vfmgl_lib.methods import METHODS
from vfmgl_lib.study.workspace import open_workspace

data, runs = sys.argv[1:]
workspace = open_workspace("squares", data=data, runs=runs)
studies = {name: open_workspace("squares", data=data, runs=runs, **changes).run(method, progress=False)
           for name, method, changes in (("plain", "fedavg", {}), ("decay", "fed_decay", {}),
                                         ("none", "fed_decay", {"comparators__fed_decay__share": 0.0}))}
norms = {name: sum(float((p**2).sum()) for p in study.student("shared", "shared").parameters()) for name, study in studies.items()}
states = {name: study.student("shared", "shared").state_dict() for name, study in studies.items()}
print(json.dumps({
    "norms": norms,
    "equal": all(torch.equal(states["plain"][key], states["none"][key]) for key in states["plain"]),
    "folders": [study.folder.name for study in studies.values()],
    "auc": studies["decay"].metrics.query("metric == 'auc'")["value"].notna().any().item(),
    "deviations": studies["none"].settings.deviations()["setting"].tolist(),
    "style": method_style(METHODS)["fed_decay"]["color"],
    "order": list(METHODS),
}))
"""


def write_squares(root: Path) -> Path:
    """Two centres, six patients of each class, two images each."""
    for center in ("A", "B"):
        for split, patients in (("traindata", range(4)), ("testdata", range(4, 6))):
            for label, level in (("bright", 200), ("dark", 60)):
                for patient in patients:
                    folder = root / center / split / label / f"{center}{label}{patient}"
                    folder.mkdir(parents=True)
                    for image in range(2):
                        noise = np.random.default_rng([patient, image, level, ord(center)]).integers(0, 40, (40, 40, 3))
                        Image.fromarray((level - 20 + noise).astype(np.uint8)).save(folder / f"{image}.png")
    return root


@pytest.fixture
def toys(tmp_path):
    (tmp_path / "tasks" / "squares").mkdir(parents=True)
    (tmp_path / "tasks" / "squares" / "task.yaml").write_text(TASK)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "fed_decay.py").write_text(METHOD)
    return tmp_path


@pytest.mark.slow
def test_a_toy_task_and_a_toy_method_run_a_study(toys):
    data = write_squares(toys / "data")
    environment = os.environ | {"VFMGL_TASKS": str(toys / "tasks"), "VFMGL_METHODS": str(toys / "methods"), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", STUDY, str(data), str(toys / "runs")]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False, cwd=toys)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["norms"]["decay"] < found["norms"]["plain"], "the toy's own loss acts"
    assert found["equal"], "without its share it is FedAvg, to the bit"
    assert len(set(found["folders"])) == 3, "the toy's settings are part of what names a study"
    assert found["auc"] and "comparators.fed_decay.share" in found["deviations"] and found["style"] == "#123456"
    assert found["order"].index("fed_decay") == found["order"].index("fedprox") + 1
    listed = [sys.executable, "-m", "vfmgl_lib.cli", "data", "prepare", "--help"]
    said = subprocess.run(listed, env=environment, capture_output=True, text=True, check=True, cwd=toys).stdout
    assert "squares      folders: <center>/{traindata,testdata}/<class>/<patient>/<images>" in said


def test_the_built_in_tasks_are_complete():
    assert list(TASKS) == ["endometrial", "camelyon17", "prostate", "nuclei"]
    for name, record in TASKS.items():
        assert record.reader and record.phantom and formats_of(record) and find_task(name) is record
        assert record.student == ("unet" if record.is_segmentation else "resnet18")
    assert [earlier_reading(name).background for name in (*TASKS, "another")] == ["black", "white", "black", "white", "white"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss: x", "use: Field required.*kind: Field required.*student: Field required"),
        (
            TASK.replace("kind: classification", "kind: regression"),
            "kind: Input should be 'classification' or 'segmentation', got 'regression'",
        ),
        (TASK.replace("kind: classification", "kind: segmentation"), "classes: a segmentation names them, the background first"),
        (TASK + "classes: [bright]\n", "classes: 1 .bright., expected at least two to tell apart"),
        (TASK + "classes: [bright, dark, bright]\n", "classes: 'bright' is there twice"),
        (
            TASK.replace("kind: classification", "kind: segmentation\nclasses: [back, front]\nordinal: true"),
            "ordinal: a segmentation's classes have no order",
        ),
        (TASK + "colour: red\n", "colour: Extra inputs are not permitted, got 'red'"),
        (TASK + "loss: again\n", "'loss' is in this table twice"),
        ("- a\n", "expected keys of a task, got list"),
    ],
)
def test_a_wrong_record_is_named(text, message, tmp_path):
    (tmp_path / "squares").mkdir()
    (tmp_path / "squares" / "task.yaml").write_text(text)
    with pytest.raises(TaskError, match=rf"(?s)squares.task\.yaml: .*{message}"):
        add_tasks_from(tmp_path)
    assert "squares" not in TASKS


def test_a_reader_that_lists_images_needs_the_record_s_classes(tmp_path, monkeypatch):
    (tmp_path / "squares").mkdir()
    (tmp_path / "squares" / "task.yaml").write_text(TASK)
    (tmp_path / "squares" / "reader.py").write_text(READER)
    add_tasks_from(tmp_path)
    try:
        with pytest.raises(ManifestError, match=r"reader lists images by number of class, but task\.yaml names no classes"):
            prepare("squares", tmp_path / "squares", tmp_path / "out", progress=False)
    finally:
        del TASKS["squares"]


def test_a_taken_name_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(TaskError, match=r"no task there, expected a folder a task with task\.yaml"):
        add_tasks_from(tmp_path)
    with pytest.raises(ConfigError, match="no Python file there, expected one a method"):
        add_methods_from(tmp_path)
    (tmp_path / "nuclei").mkdir()
    (tmp_path / "nuclei" / "task.yaml").write_text(TASK)
    with pytest.raises(TaskError, match=r"the name 'nuclei' is taken by .*tasks.nuclei.task\.yaml"):
        add_tasks_from(tmp_path)
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"empty\.py: has no METHODS, expected"):
        add_methods_from(tmp_path)


def test_a_method_s_name_is_its_own_and_a_control_has_its_parent():
    known = list(METHODS)
    toy = {"title": "T", "source": "s", "order": 5, "color": "#000000", "line": "solid", "marker": "o"}
    with pytest.raises(ConfigError, match="method 'fedavg': the name is taken by FedAvg"):
        add_methods([Method("fedavg", **toy)])
    with pytest.raises(ConfigError, match="method 'toy': its parent 'nobody' is no method"):
        add_methods([Method("toy", parent="nobody", **toy)])
    assert list(METHODS) == known
