"""What a task is: a record in `tasks/<task>/task.yaml`, beside its reader and its phantom. Whatever depends on the task reads it here.

A task of one's own is such a record in a YAML file anywhere (`read_task`). Its settings carry the record with them
(`DataSettings.own_task`), so that other processes, and whoever reads the study later, need no file.

    reader.py    FORMATS, the downloads that it reads beside folders of images (`tasks.cases.Format`); optionally
                 `image_order(source, center)`, a published order of images for the split rule "image", and
                 `volume_case(root, volume, mask, name, center, patient)`, for volumes that a table lists (`tasks.samples`)
    phantom.py   its generator (`tasks.phantoms`)

Both may be absent. A folder of such folders is added by `add_tasks_from`, or named by the environment variable VFMGL_TASKS.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from vfmgl_lib.base.strict_yaml import StrictModel, YamlError, key_line, problems, read_yaml
from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.label_masks import values_of
from vfmgl_lib.data.manifest import ManifestError

FILE = "task.yaml"
YAML_ENDINGS = (".yaml", ".yml")
# What a record of each kind has where it does not say it; nuclei and camelyon17 are the paper's public tasks of the two kinds.
DEFAULTS: dict[str, dict[str, str]] = {
    "classification": {"student": "resnet18", "loss": "cross_entropy", "folders": "class_folders", "settings_like": "camelyon17"},
    "segmentation": {"student": "unet", "loss": "dice", "folders": "mask_folders", "settings_like": "nuclei"},
}
# What of a record changes no number, and what the settings hold of it already; the rest is part of a study's name.
_NOT_NUMBERS = {
    "order",
    "use",
    "patient_rule",
    "patient_table",
    "reads",
    "default",
    "stained",
    "settings_like",
    "settings",
    "student",
    "loss",
    "stored",
}
_PREPARED_AS = {
    "name",
    "kind",
    "classes",
    "class_folders",
    "folders",
    "stored",
    "patient_rule",
    "patient_table",
    "mask_values",
    "channels",
    "series",
    "background",
}


class TaskError(ManifestError):
    """A task that is not there, or a record that is wrong; the message names file, key, and what would have been right."""


class TaskRecord(StrictModel):
    """A task.

    Attributes:
        name: as settings, datasheets and tables have it; of a built-in task its folder's.
        order: its place in lists; the paper's use cases are 1 to 4.
        use: what a trained model does, after "it ", for the model card.
        kind: what a sample's label is: a class, or a mask.
        classes: in the order of their numbers; of two the last is the positive one. None: the sorted names of the class folders.
        class_folders: what the folders of the classes are called, in the order of `classes`, where they are not called so.
        mask_values: of a segmentation, the value of each class in mask files, in the order of classes. None: 0 and 255 (or 0 and 1) of
            two classes, 0, 1, …, K - 1 of more.
        student, loss: as settings name them.
        folders: the layout of folders of images that it reads (`tasks.folders.LAYOUTS`); "": none.
        stored: the folder of a segmentation's converted images below a prepared set; {center} and {split} stand for the sample's own.
        patient_rule: what makes a file's patient in folders of images, and how to say it otherwise; in an error's words.
        patient_table: `patients.csv` beside the centres is read (`tasks.patients`).
        reads: what an exported model takes: images, volumes, or both.
        channels: rgb, a slice between its two neighbours, or up to three series of one case (`tasks.series`).
        series: with `channels: series` their names, as the files' names end in them: <case>_<series>.
        stained: pictures are of tissue stained with haematoxylin and eosin, whose shares notebook 01 shows.
        background: behind transparent pixels, where no datasheet says it, and around padded images; of sets, studies and models of
            0.1.0, which do not say it.
        default: `vfmgl run` takes it where no task is named.
        ordinal: the classes of a classification have an order, that of their numbers: Cohen's kappa has quadratic weights.
        settings: by section; laid over the paper's for this task, or over those of the task in `settings_like`.
        settings_like: a task of the paper whose settings this one starts from; "": its own.
        image_resize: how an image that is not square becomes the network's input (`data.preprocessing.RESIZES`).
    """

    name: str = Field(min_length=1)
    order: int = Field(default=1000, ge=1)
    use: str = Field(min_length=1)
    kind: Literal["classification", "segmentation"]
    classes: tuple[str, ...] | None = None
    class_folders: tuple[str, ...] | None = None
    mask_values: tuple[int, ...] | None = None
    student: str
    loss: str
    folders: Literal["", "class_folders", "mask_folders"] = ""
    stored: str = "{center}/{split}"
    patient_rule: str = ""
    patient_table: bool = False
    reads: tuple[Literal["image", "volume"], ...] = ("image",)
    channels: Literal["rgb", "neighbours", "series"] = "rgb"
    series: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], ...] = Field(default=(), max_length=3)
    stained: bool = False
    background: Literal["white", "black"] = "white"
    default: bool = False
    ordinal: bool = False
    settings_like: str = ""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    image_resize: Literal["stretch", "pad", "crop"] = "stretch"
    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits_together(self) -> TaskRecord:
        if self.kind == "segmentation" and self.classes is None:
            raise ValueError("classes: a segmentation names them, the background first")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError(f"classes: {len(self.classes)} ({', '.join(self.classes)}), expected at least two to tell apart")
        if self.classes is not None and (again := [name for name in self.classes if self.classes.count(name) > 1]):
            raise ValueError(f"classes: {again[0]!r} is there twice, expected a name for each class")
        if self.ordinal and self.is_segmentation:
            raise ValueError("ordinal: a segmentation's classes have no order")
        if self.mask_values is not None and not self.is_segmentation:
            raise ValueError("mask_values: a classification has no masks")
        if self.is_segmentation:
            values_of(len(self.classes or ()), self.mask_values)
        if self.class_folders is not None:
            wanted = len(self.classes or ())
            if self.kind == "segmentation" or not wanted:
                raise ValueError("class_folders: only a classification that names its classes has folders of classes")
            if len(set(self.class_folders)) != wanted:
                raise ValueError(f"class_folders: {', '.join(self.class_folders)}, expected {wanted} names, one for each class")
        if (self.channels == "series") != bool(self.series):
            raise ValueError("series: expected the names of one to three series with `channels: series`, and none without")
        if len({name.lower() for name in self.series}) < len(self.series):
            raise ValueError(f"series: {', '.join(self.series)}, expected every name once")
        if self.series and not self.folders:
            raise ValueError("folders: series are read from class_folders or mask_folders")
        if fixed := sorted({"layout", "own_task"} & set(self.settings.get("data", {}))):
            raise ValueError(f"settings: data.{fixed[0]} is this very task; leave it out")
        if unknown := [name for name in self.classes or () if not name.strip() or "/" in name]:
            raise ValueError(f"classes: {unknown[0]!r} is no name, expected a word that can name a folder")
        return self

    @property
    def stored_mask_values(self) -> tuple[int, ...]:
        """As `data.label_masks` has them; () of a classification."""
        return values_of(len(self.classes or ()), self.mask_values) if self.is_segmentation else ()

    @property
    def file(self) -> Path | None:
        """The task.yaml of a task that is in `TASKS`; None of a YAML file of one's own, and of a record out of settings."""
        return self._folder and self._folder / FILE

    @property
    def is_built_in(self) -> bool:
        return self._folder is not None and self._folder.parent == BUILT_IN

    @property
    def shown_channel(self) -> int | None:
        """The channel that pictures show in grey, where the three are no colours."""
        return {"rgb": None, "neighbours": 1, "series": 0}[self.channels]

    @property
    def identity(self) -> dict[str, Any]:
        """What of the record changes a study's numbers and stands nowhere else in its settings."""
        return self.model_dump(mode="json", exclude=_NOT_NUMBERS)

    @property
    def is_segmentation(self) -> bool:
        return self.kind == "segmentation"

    @property
    def prepared_as(self) -> dict[str, Any]:
        """What of the record a prepared set depends on."""
        return self.model_dump(mode="json", include=_PREPARED_AS)

    @cached_property
    def reader(self) -> ModuleType | None:
        return self._module("reader")

    @cached_property
    def phantom(self) -> ModuleType | None:
        return self._module("phantom")

    def _module(self, part: str) -> ModuleType | None:
        """A Python file of the task's folder; None where there is none, or the record came without its folder."""
        folder = self._folder or getattr(TASKS.get(self.name), "_folder", None)
        if folder is None:
            return None
        file = folder / f"{part}.py"
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
        record = _read(file, name=file.parent.name)
        record._folder = file.parent
        if record.name in TASKS:
            raise TaskError(f"{file}: the name {record.name!r} is taken by {TASKS[record.name]._folder}/{FILE}")
        TASKS[record.name] = record
    ordered = sorted(TASKS.values(), key=lambda record: record.order)
    TASKS.clear()
    TASKS.update({record.name: record for record in ordered})


def is_task_file(task: str | Path) -> bool:
    """Whether a task is named by its YAML file."""
    return str(task).lower().endswith(YAML_ENDINGS)


def find_task(task: str | Path | TaskRecord) -> TaskRecord:
    """The record of a task.

    Args:
        task: a name, a YAML file of one's own, or the record itself.
    Raises: TaskError: there is none of this name; as `read_task`.
    """
    if isinstance(task, TaskRecord):
        return task
    if is_task_file(task):
        return read_task(task)
    if task not in TASKS:
        raise TaskError(f"unknown task {str(task)!r}, expected one of {', '.join(TASKS)}, or a YAML file of your own such as my_task.yaml")
    return TASKS[str(task)]


def read_task(file: Path | str) -> TaskRecord:
    """A task of one's own from its YAML file. Its name is the key `name`, else the file's name without ending.

    What a minimal file leaves out is as `DEFAULTS` has it for its kind: name, kind, classes and use are enough.

    Raises: TaskError: no such file, a wrong record, a name that no folder can have or that is taken, code beside it.
    """
    file = Path(file)
    if not file.is_file():
        raise TaskError(f"{file}: no such task file, expected a YAML file; `vfmgl data new-task` writes one")
    record = _read(file, name=file.parent.name if file.name == FILE else file.stem, own=True)
    if problem := name_problem(record.name):
        raise TaskError(f"{file}: name {record.name!r} {problem}; give another with the key `name`")
    code = [name for name in ("reader.py", "phantom.py") if file.name == FILE and (file.parent / name).is_file()]
    if code:
        raise TaskError(
            f"{file}: {' and '.join(code)} beside it are not run by the name of this file; set the environment variable "
            f"VFMGL_TASKS={file.resolve().parents[1]} and name the task {file.parent.name!r}"
        )
    return record


def name_problem(name: str) -> str:
    """Why a task of one's own cannot be called so; "" if it can."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}", name) or name.endswith("."):
        return "is no name of a task, expected up to 60 letters, digits, '_', '-' and '.', a letter or digit first"
    return "is taken by a built-in task" if name in TASKS else ""


def earlier_reading(task: str) -> Reading:
    """Of sets, studies and models of 0.1.0, which do not say it: black behind radiology, white behind histology."""
    return Reading(background=TASKS[task].background) if task in TASKS else PLAIN


def _read(file: Path, name: str, own: bool = False) -> TaskRecord:
    try:
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise TaskError(f"{file}: expected keys of a task, got {type(content).__name__}")
        if wrong := [key for key in content if not isinstance(key, str)]:
            raise TaskError(f"{file}: key {wrong[0]!r} is no text, expected names such as kind or classes")
        if not own and content.get("name", name) != name:
            raise TaskError(f"{file}: name is {content['name']!r}, expected {name!r} as the folder is called; leave it out")
        kind = content.get("kind")
        defaults = DEFAULTS.get(kind, {}) if own and isinstance(kind, str) else {}
        return TaskRecord(**({"name": name} | defaults | content))
    except OSError as error:
        raise TaskError(f"{file}: cannot be read ({error.strerror or error})") from error
    except YamlError as error:
        raise TaskError(f"{file}: {error}") from error
    except ValidationError as error:
        raise TaskError(f"{file}: " + "; ".join(_explained(error, file, content))) from error


def _explained(error: ValidationError, file: Path, content: dict) -> list[str]:
    """What is wrong with a record, each with its line and what to do."""
    explained = []
    for text, found in zip(problems(error, "record", TaskRecord), error.errors(), strict=True):
        if not found["loc"] and "ctx" in found:  # of a check of the whole, which begins with its key
            text = str(found["ctx"]["error"])
        key = str(found["loc"][0]) if found["loc"] else text.partition(":")[0]
        place = f"line {key_line(file, [key])}: " if key in content else ""
        remedy = ""
        if found["type"] == "string_type":
            remedy = "; write it in quotes"
        elif found["type"] == "missing":  # what was got is the whole record
            text, remedy = f"{key}: {found['msg']}", "; add this key"
        explained.append(f"{place}{text}{remedy}")
    return explained


add_tasks_from(BUILT_IN)
for _folder in filter(None, os.environ.get("VFMGL_TASKS", "").split(os.pathsep)):
    add_tasks_from(_folder)
