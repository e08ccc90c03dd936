"""What a task is: a record in `tasks/<task>/task.yaml`, beside its reader and its phantom. Whatever depends on the task reads it here.

    reader.py    FORMATS, the downloads that it reads beside folders of images (`tasks.cases.Format`); optionally
                 `image_order(source, center)`, a published order of images for the split rule "image", and
                 `volume_case(root, volume, mask, name, center, patient)`, for volumes that a table lists (`tasks.samples`)
    phantom.py   its generator (`tasks.phantoms`)

Both may be absent. A folder of such folders is added by `add_tasks_from`, or named by the environment variable VFMGL_TASKS.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from vfmgl_lib.base.strict_yaml import YamlError, problems, read_yaml
from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.manifest import ManifestError

FILE = "task.yaml"


class TaskError(ManifestError):
    """A task that is not there, or a record that is wrong; the message names file, key, and what would have been right."""


class TaskRecord(BaseModel):
    """A task.

    Attributes:
        name: of its folder; as settings, datasheets and tables have it.
        order: its place in lists; the paper's use cases are 1 to 4.
        use: what a trained model does, after "it ", for the model card.
        kind: what a sample's label is: a class, or a mask.
        classes: in the order of their numbers; the last is the positive one. None: the sorted names of the class folders.
        student, loss: as settings name them.
        folders: the layout of folders of images that it reads (`tasks.folders.LAYOUTS`); "": none.
        stored: the folder of a segmentation's converted images below a prepared set; {center} and {split} stand for the sample's own.
        patient_rule: what makes a file's patient in folders of images, and how to say it otherwise; in an error's words.
        patient_table: `patients.csv` beside the centres is read (`tasks.patients`).
        reads: what an exported model takes: images, volumes, or both.
        channels: rgb, or a slice between its two neighbours.
        background: behind transparent pixels of sets, studies and models of 0.1.0, which do not say it.
        default: `vfmgl run` takes it where no task is named.
        settings: by section; laid over the paper's for this task, or over those of the task in `settings_like`.
        settings_like: a task of the paper whose settings this one starts from; "": its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    order: int = Field(ge=1)
    use: str = Field(min_length=1)
    kind: Literal["classification", "segmentation"]
    classes: tuple[str, ...] | None = None
    student: str
    loss: str
    folders: Literal["", "class_folders", "mask_folders"] = ""
    stored: str = "{center}/{split}"
    patient_rule: str = ""
    patient_table: bool = False
    reads: tuple[Literal["image", "volume"], ...] = ("image",)
    channels: Literal["rgb", "neighbours"] = "rgb"
    background: Literal["white", "black"] = "white"
    default: bool = False
    settings_like: str = ""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    _folder: Path = PrivateAttr()

    @model_validator(mode="after")
    def _fits_together(self) -> TaskRecord:
        if self.kind == "segmentation" and self.classes is None:
            raise ValueError("classes: a segmentation names them, the background first")
        return self

    @property
    def is_built_in(self) -> bool:
        return self._folder.parent == BUILT_IN

    @property
    def is_segmentation(self) -> bool:
        return self.kind == "segmentation"

    @cached_property
    def reader(self) -> ModuleType | None:
        return self._module("reader")

    @cached_property
    def phantom(self) -> ModuleType | None:
        return self._module("phantom")

    def _module(self, part: str) -> ModuleType | None:
        """A Python file of the task's folder; None where there is none."""
        file = self._folder / f"{part}.py"
        if not file.is_file():
            return None
        if self.is_built_in:
            return importlib.import_module(f"{__package__}.{self.name}.{part}")
        name = f"vfmgl_tasks_{self.name}_{part}"
        specification = importlib.util.spec_from_file_location(name, file)
        assert specification is not None and specification.loader is not None  # of a Python file
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        return module


BUILT_IN = Path(__file__).resolve().parent
TASKS: dict[str, TaskRecord] = {}


def add_tasks_from(folder: Path | str) -> None:
    """Adds the task of every folder below `folder` that holds a task.yaml. Its Python files are run when they are needed.

    Raises: TaskError: no task there, a wrong record, or a name that is taken.
    """
    files = sorted(Path(folder).resolve().glob(f"*/{FILE}"))
    if not files:
        raise TaskError(f"{folder}: no task there, expected a folder a task with {FILE}")
    for file in files:
        record = _read(file)
        if record.name in TASKS:
            raise TaskError(f"{file}: the name {record.name!r} is taken by {TASKS[record.name]._folder / FILE}")
        TASKS[record.name] = record
    ordered = sorted(TASKS.values(), key=lambda record: record.order)
    TASKS.clear()
    TASKS.update({record.name: record for record in ordered})


def find_task(name: str) -> TaskRecord:
    """Raises: TaskError: there is none of this name."""
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]


def earlier_reading(task: str) -> Reading:
    """Of sets, studies and models of 0.1.0, which do not say it: black behind radiology, white behind histology."""
    return Reading(background=TASKS[task].background) if task in TASKS else PLAIN


def _read(file: Path) -> TaskRecord:
    try:
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise TaskError(f"{file}: expected keys of a task, got {type(content).__name__}")
        record = TaskRecord(name=file.parent.name, **content)
    except YamlError as error:
        raise TaskError(f"{file}: {error}") from error
    except ValidationError as error:
        raise TaskError(f"{file}: " + "; ".join(problems(error, "record"))) from error
    record._folder = file.parent
    return record


add_tasks_from(BUILT_IN)
for _folder in filter(None, os.environ.get("VFMGL_TASKS", "").split(os.pathsep)):
    add_tasks_from(_folder)
