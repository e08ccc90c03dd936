"""The datasheets in `data_manifests/`: what is known of a task's data, where it is had, and whether a manifest agrees."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from vfmgl_lib.base.places import DELIVERED
from vfmgl_lib.base.strict_yaml import StrictModel, YamlError, problems, read_yaml
from vfmgl_lib.data.manifest import Manifest

FOLDER = DELIVERED / "data_manifests"
EXPECTED_SPLITS = ("train", "val", "test", "external")


def _check_counts(counts: dict | str) -> dict | str:
    for center, split, title, number in _flat(counts) if isinstance(counts, dict) else ():
        place = ".".join(str(key) for key in (center, split, title) if key is not None)
        if not all(isinstance(key, str | None) for key in (center, split, title)):
            raise ValueError(f"{place} has a key that is no text, expected names (in quotes if they look like numbers)")
        if split is not None and split not in EXPECTED_SPLITS:
            raise ValueError(f"{place}: unknown split, expected one of {', '.join(EXPECTED_SPLITS)}")
        if type(number) is not int or number < 0:
            raise ValueError(f"{place} is {number!r}, expected a whole number from 0")
    return counts


_Text = Annotated[str, Field(min_length=1)]
# center: n, or center: {split: n}, or center: {split: {class: n}}; or text where nothing is published.
Counts = Annotated[dict | str, AfterValidator(_check_counts)]


class DatasheetError(ValueError):
    """A datasheet is missing or wrong; the message names the file, the key, and what would have been right."""


class _Entry(StrictModel):
    model_config = ConfigDict(str_strip_whitespace=True)


class Download(_Entry):
    """One file to be downloaded or, where `gated`, one set that a person has to ask for.

    Attributes:
        name: how it is called, e.g. by `fetch --only`.
        url: http or https; of the file or, where gated, of the page (may be left out).
        file: the name that it gets in the folder; none where gated.
        licence: as its publisher states it.
        gated: it is not to be had by a program: a login, a form, an email.
        request: where gated, what to ask whom for.
        sha256: of the file, where its publisher states it.
    """

    name: _Text
    url: str = ""
    file: str = ""
    licence: _Text
    gated: bool = False
    request: str = ""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _fits_together(self) -> "Download":
        if (self.url or not self.gated) and not re.match(r"https?://[^/]+", self.url):
            raise ValueError(f"url {self.url!r} must begin with http:// or https://")
        if self.gated and (self.file or not self.request):
            raise ValueError("a gated download has a request (what to ask whom for) and no file")
        if not self.gated and not re.fullmatch(r"\w[^/\\:]*", self.file):
            raise ValueError(f"file {self.file!r} must be a plain name, without a folder")
        return self


class StandIn(_Entry):
    """A small public set that lies like the task's own."""

    model_config = ConfigDict(extra="allow")

    what: _Text
    source: _Text
    licence: _Text
    centers: Any
    images: Counts | None = None
    patients: Counts | None = None


class Datasheet(_Entry):
    """What `data_manifests/<task>.yaml` says; further keys than these are kept (`model_extra`)."""

    model_config = ConfigDict(extra="allow")

    name: _Text
    task: Literal["classification", "segmentation"]
    question: _Text
    images: _Text
    source: _Text
    access: _Text
    layout: _Text
    folders: Any
    centers: dict[str, Any] = Field(min_length=1)
    split: _Text
    expected_images: Counts | None = None
    expected_patients: Counts | None = None
    downloads: tuple[Download, ...] = ()
    notes: tuple[str, ...] = ()
    transparent: Literal["white", "black"] = "white"  # what lies behind transparent pixels
    max_value: float | None = Field(default=None, gt=0)  # what is white in images of more than 8 bits that do not say it
    stand_in: StandIn | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "Datasheet":
        for counts in (self.expected_images, self.expected_patients):
            if isinstance(counts, dict) and (unknown := sorted(counts.keys() - self.centers.keys())):
                raise ValueError(f"counts are given for {', '.join(unknown)}, the centers are {', '.join(self.centers)}")
        for key in ("name", "file"):
            given = Counter(getattr(download, key) for download in self.downloads)
            if again := sorted(value for value, count in given.items() if value and count > 1):
                raise ValueError(f"downloads have the same {key} {again[0]!r}, expected one each")
        # Other keys are free, but a misspelt one of these would silently be no check at all.
        if wrong := sorted(key for key in self.model_extra or {} if key.startswith(("expected", "download"))):
            raise ValueError(f"unknown key {wrong[0]!r}, expected expected_images, expected_patients or downloads")
        return self


def read_datasheet(task: str, folder: Path | str = FOLDER) -> Datasheet:
    """The datasheet of a task, validated.

    Raises: DatasheetError: an unknown task, a file that is not YAML, a key that is missing or of the wrong kind.
    """
    path = Path(folder) / f"{task}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in Path(folder).glob("*.yaml"))) or "none"
        raise DatasheetError(f"no datasheet for {task!r} in {folder}, there are: {names}")
    try:
        content = read_yaml(path)
    except (OSError, YamlError) as error:
        raise DatasheetError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise DatasheetError(f"{path}: holds {type(content).__name__}, expected keys and values")
    try:
        sheet = Datasheet(**{str(key): value for key, value in content.items()})
    except ValidationError as error:
        raise DatasheetError(f"{path}: " + "; ".join(problems(error, "datasheet"))) from error
    if sheet.name != task:
        raise DatasheetError(f"{path}: name is {sheet.name!r}, expected {task!r} as the file is called")
    return sheet


def datasheet_of(task: str) -> Datasheet | None:
    """The datasheet of a task; None: it has none, as a task of one's own may."""
    return read_datasheet(task) if (FOLDER / f"{task}.yaml").is_file() else None


def compare_counts(manifest: Manifest, datasheet: Datasheet, stand_in: bool = False) -> list[str]:
    """Where a manifest differs from its datasheet: centres, images and patients per centre and, where known, split and class.

    Validation samples count as training where the datasheet knows no validation set of that centre; all samples of a
    centre count where it is external. A count that the datasheet does not have is not compared.

    Args:
        stand_in: compare with the datasheet's stand-in instead.
    Returns: one line a difference; none if all agrees.
    Raises: ValueError: a stand-in that the datasheet does not have.
    """
    who, own = "the datasheet's stand-in" if stand_in else "the datasheet", datasheet.stand_in
    if not stand_in:
        known, images, patients = datasheet.centers, datasheet.expected_images, datasheet.expected_patients
    elif own:
        known, images, patients = own.centers, own.images, own.patients
    else:
        raise ValueError(f"the datasheet {datasheet.name!r} has no stand_in")
    findings = []
    if isinstance(known, dict):
        findings += [f"center {name!r}: missing, {who} has it" for name in known if name not in manifest.centers]
        listed = ", ".join(known)
        findings += [f"center {name!r}: unknown, {who} has {listed}" for name in manifest.centers if name not in known]
    for unit, counts in (("images", images), ("patients", patients)):
        if isinstance(counts, dict):
            findings += _differences(manifest, counts, unit, who)
    return findings


def _differences(manifest: Manifest, counts: dict, unit: str, who: str) -> Iterator[str]:
    titles = class_titles(manifest.classes)
    expected_titles = {title for _, _, title, _ in _flat(counts) if title is not None}
    by_class = expected_titles <= set(titles)
    if not by_class:
        yield f"classes are {', '.join(titles)}, {who} has {', '.join(sorted(expected_titles))}: {unit} are compared without them"
    for center, split, title, number in _flat(counts if by_class else _without_classes(counts)):
        if center not in manifest.centers:
            continue  # reported as missing
        rows = manifest.select(center)
        if split and split != "external":
            known = counts[center]
            rows = rows[rows["split"].isin([split, "val"] if split == "train" and "val" not in known else [split])]
        if title:
            rows = rows[rows["label"] == titles.index(title)]
        found = len(rows) if unit == "images" else rows["patient"].nunique()
        if found != number:
            place = ", ".join(filter(None, (f"center {center!r}", split, title)))
            yield f"{place}: {found} {unit}, {who} expects {number}"


def _flat(counts: dict) -> Iterator[tuple[str, str | None, str | None, int]]:
    for center, splits in counts.items():
        for split, classes in splits.items() if isinstance(splits, dict) else [(None, splits)]:
            for title, number in classes.items() if isinstance(classes, dict) else [(None, classes)]:
                yield center, split, title, number


def _without_classes(counts: dict) -> dict:
    def total(value: int | dict) -> int:
        return sum(value.values()) if isinstance(value, dict) else value

    return {
        center: {split: total(value) for split, value in splits.items()} if isinstance(splits, dict) else splits
        for center, splits in counts.items()
    }


def class_titles(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names without a leading number, which only orders the folders: "0_NMI" is NMI."""
    return tuple(re.sub(r"^[0-9]+_", "", name) for name in classes)
