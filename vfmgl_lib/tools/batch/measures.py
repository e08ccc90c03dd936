"""The numbers of a run that its page opens with, read from the tables that the notebooks save. Nothing is computed here but sums.

A measure that is not there has None and the reason: the notebook has not been run, it failed, its tables are another version's, or what
the table itself says.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vfmgl_lib import __version__
from vfmgl_lib.config import FIRST_VERSION
from vfmgl_lib.evaluation.home_means import MEAN, TRIVIAL

Row = Mapping[str, str]
Number = dict[str, Any]  # value, lo, hi, n, reason
VERSION = re.compile(r" vfmgl_lib (\S+)$")  # at the end of what a table says of its source (`figures.style.save_table`)
METHODS = {"vfmgl": "VFMGL", "local": "local training", "fedavg": "FedAvg", TRIVIAL: "the trivial baseline"}
OF_PATIENTS = "95 % interval for other test patients of these centres"
DATA, COMPARISON, DDBL = "01_data_preparation", "05_comparison", "03_ddbl"
MAPS, LIGHT = "07_interpretability", "08_lightweight"


@dataclass(frozen=True)
class Measure:
    """A number of every centre, or of the task, in one of the saved tables.

    Attributes:
        title: in words.
        notebook, table: where it is saved: figures/<notebook>/<table>.csv.
        read: the table's rows -> center ("" for the task as a whole) -> number.
        unit: "" of a share or a metric.
        limits: what lo and hi are; "": it has none.
        if_empty: why the table has no such row.
        if_absent: why the notebook did not save the table though it ran to its end; "": it always does.
    """

    title: str
    notebook: str
    table: str
    read: Callable[[Sequence[Row]], dict[str, Number]]
    unit: str = ""
    limits: str = ""
    if_empty: str = ""
    if_absent: str = ""


def number(value: float | None, lo: float | None = None, hi: float | None = None, n: float | None = None, reason: str = "") -> Number:
    """A number as the report holds it: None, not NaN, for what is not there."""
    clean = [None if one is None or not math.isfinite(one) else one for one in (value, lo, hi, n)]
    whole = None if clean[3] is None else int(clean[3])
    return {"value": clean[0], "lo": clean[1], "hi": clean[2], "n": whole, "reason": reason}


def to_float(text: str) -> float:
    """A cell as a number; NaN where it is empty."""
    return float(text) if text else math.nan


def _counts(rows: Sequence[Row], split: str, column: str) -> dict[str, Number]:
    found = {row["center"]: number(to_float(row[column])) for row in rows if row["split"] == split}
    return {"": number(sum(one["value"] for one in found.values()))} | found if found else {}


def _at_home(rows: Sequence[Row], method: str, columns: tuple[str, str, str, str, str]) -> dict[str, Number]:
    value, low, high, n, reason = columns
    own = [row for row in rows if row["method"] == method]
    return {
        "" if row["place"] == MEAN else row["center"]: number(
            to_float(row[value]), to_float(row[low]), to_float(row[high]), to_float(row[n]), row[reason]
        )
        for row in sorted(own, key=lambda row: row["place"] != MEAN)
    }


def _kept(rows: Sequence[Row]) -> dict[str, Number]:
    """Of all batches, and of each centre's; lo and hi are the lowest and the highest share of a round at a centre."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault("", []).append(row)
        groups.setdefault(row["center"], []).append(row)
    found = {}
    for center, own in groups.items():
        shares, batches = [to_float(row["kept_share"]) for row in own], [to_float(row["batches"]) for row in own]
        kept = sum(round(share * count) for share, count in zip(shares, batches, strict=True))
        found[center] = number(kept / sum(batches), min(shares), max(shares), sum(batches))
    return found


def _moved(rows: Sequence[Row]) -> dict[str, Number]:
    """After the last round; lo and hi of all centres together are the least and the most of a centre."""
    last = max((to_float(row["round"]) for row in rows), default=math.nan)
    found = {}
    for row in rows:
        if to_float(row["round"]) == last:
            moved = to_float(row["moved"])
            alike = "" if math.isfinite(moved) else f"all pairs started alike; λ changed by {to_float(row['change']):.3g} on average"
            found[row["center"]] = number(moved, reason=alike)
    values = [one["value"] for one in found.values()]
    if None in values or not values:
        return ({"": number(None, reason=next(one["reason"] for one in found.values() if one["reason"]))} if values else {}) | found
    return {"": number(sum(values) / len(values), min(values), max(values))} | found


def _localised(rows: Sequence[Row], columns: tuple[str, str, str], model: str = "trained") -> dict[str, Number]:
    own = [row for row in rows if row["model"] == model]
    named = {"" if row["center"] == "all" and len(own) > 2 else row["center"]: row for row in own}
    if len(named) == 1:  # one centre is all there are
        named = {"": own[0]} | named
    found = {}
    for center in sorted(named, key=lambda center: center != ""):
        row = named[center]
        value, lo, hi = (to_float(row[name]) if name else None for name in columns)
        found[center] = number(value, lo, hi, to_float(row["patients"]), row["reason"])
    return found


def _of_model(rows: Sequence[Row], column: str, wanted: Row, scale: float = 1.0) -> dict[str, Number]:
    """The first row that has what is wanted, for the task as a whole."""
    chosen = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return {"": number(to_float(chosen[0][column]) * scale)} if chosen else {}


_VALUE, _LEAD = ("value", "low", "high", "n", "reason"), ("ahead", "ahead_low", "ahead_high", "patients", "ahead_reason")
_GAIN, _PLACE = ("gain", "low", "high"), ("gain_over_place", "place_low", "place_high")
_MAPPED = partial(Measure, notebook=MAPS, table="localisation", if_absent="nobody has outlined the lesions of these images")

MEASURES: dict[str, Measure] = {
    **{
        f"{split}_{column}": Measure(
            f"{column} for {word}",
            DATA,
            "counts",
            partial(_counts, split=split, column=column),
            unit=column,
            if_empty=f"no images for {word}",
        )
        for split, word in (("train", "training"), ("val", "validation"), ("test", "the test"))
        for column in ("images", "patients")
    },
    **{
        key: Measure(
            title,
            COMPARISON,
            "home_means",
            partial(_at_home, method=key, columns=_VALUE),
            limits=OF_PATIENTS,
            if_empty=f"{title} is not in this profile's comparison",
        )
        for key, title in METHODS.items()
    },
    **{
        f"ahead_of_{key}": Measure(
            f"lead of VFMGL over {title}",
            COMPARISON,
            "home_means",
            partial(_at_home, method=key, columns=_LEAD),
            limits=f"paired {OF_PATIENTS}",
            if_empty=f"{title} is not in this profile's comparison",
        )
        for key, title in METHODS.items()
        if key != "vfmgl"
    },
    "kept_share": Measure(
        "share of the batches that DDBL kept",
        DDBL,
        "kept_share",
        _kept,
        limits="lowest and highest share of a round at a centre",
        if_empty="stage II starts in round 2: no batch was kept or dropped",
    ),
    "lambda_moved": Measure(
        "movement of λ, mean over pairs, in units of their spread at the start",
        MAPS,
        "lambda_balance",
        _moved,
        limits="least and most of a centre",
        if_empty="no round was recorded",
    ),
    "cam_inside": _MAPPED("share of the activation map's energy inside the lesion", read=partial(_localised, columns=("inside", "", ""))),
    "cam_chance": _MAPPED("the lesion's share of the image, what chance gives", read=partial(_localised, columns=("area", "", ""))),
    "cam_inside_random_weights": _MAPPED(
        "the same share with random weights", read=partial(_localised, columns=("inside", "", ""), model="random weights")
    ),
    "cam_gain": _MAPPED(
        "lead of the energy inside over chance", read=partial(_localised, columns=_GAIN), limits="95 % interval, bootstrap over patients"
    ),
    "cam_gain_over_place": _MAPPED(
        "lead over what the maps of other patients have at that place",
        read=partial(_localised, columns=_PLACE),
        limits="95 % interval, bootstrap over patients",
    ),
    **{
        f"{model}_{key}": Measure(
            f"{title} of the {model}, at the paper's size",
            LIGHT,
            "counts",
            partial(_of_model, column=key, wanted={"model": model, "settings": "paper"}),
            unit=unit,
        )
        for model in ("student", "teacher")
        for key, title, unit in (("parameters", "parameters", ""), ("macs", "multiply-accumulates of one image", "MACs"))
    },
    **{
        f"{key}_{name}": Measure(
            f"{title} of the {model}, one image, at the paper's size",
            LIGHT,
            "latency",
            partial(_of_model, column=column, scale=scale, wanted={"model": model, "device": "cpu", "batch": "1"}),
            unit=unit,
        )
        for key, model in (("student", "student"), ("teacher", "teacher"), ("exported", "student, exported"))
        for name, column, title, scale, unit in (
            ("latency", "p50_ms", "median time", 1.0, "ms"),
            ("memory", "peak_bytes", "peak memory of the whole process", 2.0**-20, "MiB"),
        )
    },
}


def read_measures(folder: Path, failures: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every measure of a task.

    Args:
        folder: runs/<profile>/<folder>.
        failures: notebook -> its error, "" where it ran to its end; those that have not been run are not there.
    Returns: in the order of `MEASURES`, key -> title, unit, limits, notebook, table (its path below the profile's folder, "" where there is
        none), all (the number of the task, with the reason where it has no value) and centers (center -> number).
    """
    tables: dict[tuple[str, str], tuple[list[Row], str]] = {}
    found = {}
    for key, measure in MEASURES.items():
        file = folder / "figures" / measure.notebook / f"{measure.table}.csv"
        place = measure.notebook, measure.table
        if place not in tables:
            tables[place] = read_saved(file, failures)
        rows, reason = tables[place]
        try:
            numbers = measure.read(rows)
        except (KeyError, ValueError) as error:  # somebody has changed the table: the page tells so, and the rest of it is written
            numbers, reason = {}, f"{file.name} is not as notebook {measure.notebook} saves it: {error!r}"
        absent = reason or (measure.if_empty if file.is_file() else measure.if_absent) or f"notebook {measure.notebook} did not save it"
        whole = numbers.pop("", None) or number(None, reason=absent)
        found[key] = {
            "title": measure.title,
            "unit": measure.unit,
            "limits": measure.limits,
            "notebook": measure.notebook,
            "table": file.relative_to(folder.parent).as_posix() if file.is_file() else "",
            "all": whole,
            "centers": numbers,
        }
    return found


def read_saved(file: Path, failures: Mapping[str, str]) -> tuple[list[Row], str]:
    """The rows of a table that a notebook has saved, all cells as text, or none and why.

    Args:
        file: .../figures/<notebook>/<table>.csv.  failures: as for `read_measures`.
    """
    notebook = file.parent.name
    if failures.get(notebook):
        return [], f"notebook {notebook} failed: {failures[notebook]}"
    if not file.is_file():
        return [], "" if notebook in failures else f"notebook {notebook} has not been run"
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows: list[Row] = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:  # a spreadsheet has saved it in another encoding
        return [], f"{file.name} cannot be read: {error}"
    sources = {row["source"] for row in rows if row.get("source")}
    made_with = {named[1] if (named := VERSION.search(source)) else FIRST_VERSION for source in sources}
    if other := sorted(made_with - {__version__}):
        return [], f"vfmgl_lib {other[0]} saved {file.name}, this is {__version__}: run notebook {notebook} again"
    return rows, ""
