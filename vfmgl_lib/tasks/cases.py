"""What a reader of an official download hands over: cases, their pictures, and what it found on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.scan import SourceError as SourceError  # every reader of a source takes it from here


@dataclass(frozen=True)
class Picture:
    """One image as it is written: a PNG of 8 bits a channel, in a segmentation with a mask beside it (`data.label_masks`).

    Attributes:
        name: unique within its case; "" where a case has one picture only.
        image: (H, W) or (H, W, 3) uint8.
        mask: (H, W) uint8 of class indices, or None in a classification.
        spacing: mm per pixel (row, column), or None where the source does not say.
        remarks: what was done to it (`images.read_image`).
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None = None
    spacing: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """What is read from a source at once: a volume, a tile with its annotations, a DICOM series.

    Attributes:
        name: unique within its centre; a picture's file is named <case> or <case>_<picture>.
        center: the centre's name.
        patient: unique per person in the whole set.
        files: what it is read from; a case whose files have not changed is not converted again.
        read: decodes and converts it; raises SourceError.
        label: the class's name in a classification, "" in a segmentation.
        split: "train", "val" or "test" as the source says; "": the task's split rule decides, by patient.
        group: what its patient stays together with in one split; "": nobody.
        spacing: of all its pictures, as the manifest writes it, where a table says it; "": as each picture says.
        line: of the table that lists it, for messages; 0: none does.
    """

    name: str
    center: str
    patient: str
    files: tuple[Path, ...]
    read: Callable[[], list[Picture]]
    label: str = ""
    split: str = ""
    group: str = ""
    spacing: str = ""
    line: int = 0


@dataclass
class Findings:
    """What a reader found: `problems` stop the preparation (all are reported together), `warnings` are said and kept.

    Attributes:
        reading: how the set's images are to be read, for the reader.
        lines: path of an image -> its line in the table that somebody wrote, if there is one.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reading: Reading = PLAIN
    lines: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One form in which a task's images are handed out.

    Attributes:
        name: how a user names it, e.g. "wilds".
        description: what it looks like on disk, for messages.
        recognise: whether a folder looks like it, from names alone; never raises.
        cases: lists what is to be converted to PNG, without decoding it; None where the images are read in place.
        manifest: lists images that are read in place, a row of `COLUMNS` each; None where they are converted.
    """

    name: str
    description: str
    recognise: Callable[[Path], bool]
    cases: Callable[[Path, Findings], list[Case]] | None = None
    manifest: Callable[[Path, Findings], pd.DataFrame] | None = None
