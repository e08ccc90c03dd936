"""The index page of a profile's results, made from its report: what came out, how sure it is, what it shows and what not, every figure.

The page needs no network and has no script. Names of files, folders, tasks and centres are data, and the template escapes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from vfmgl_lib.base.files import write_text
from vfmgl_lib.tools.batch.findings import CHANCE, with_limits
from vfmgl_lib.tools.batch.report import Log, gather_report
from vfmgl_lib.tools.batch.story import in_words

TEMPLATE = Path(__file__).with_suffix(".html")
REPORT = "report.json"
Shown = Callable[[Sequence[Mapping[str, Any]]], str]


def _plain(numbers: Sequence[Mapping[str, Any]]) -> str:
    return with_limits(numbers[0])


def _lead(numbers: Sequence[Mapping[str, Any]]) -> str:
    return with_limits(numbers[0], "+z.2f")


def _share(numbers: Sequence[Mapping[str, Any]]) -> str:
    return with_limits(numbers[0], ".1%" if abs(numbers[0]["value"] or 1) < 0.1 else ".0%")


def _gain(numbers: Sequence[Mapping[str, Any]]) -> str:
    points = {name: None if numbers[0][name] is None else 100 * numbers[0][name] for name in ("value", "lo", "hi")}
    return with_limits(points, "+z.1f")


def _images(numbers: Sequence[Mapping[str, Any]]) -> str:
    images, patients = (number["value"] for number in numbers)
    return "–" if images is None else f"{images:.0f}" if patients is None else f"{images:.0f} ({patients:.0f})"


def _each(unit: str, scale: float, digits: int, names: Sequence[str]) -> Shown:
    """ "11.2 M student · 85.8 M teacher", without those that are not there."""

    def shown(numbers: Sequence[Mapping[str, Any]]) -> str:
        pairs = zip(names, numbers, strict=True)
        return " · ".join(f"{name} {n['value'] * scale:,.{digits}f} {unit}" for name, n in pairs if n["value"] is not None)

    return shown


class Line(NamedTuple):
    """A row of the table: its title, the measures that it shows, how, and a name for what it is of, in the notes below the table."""

    title: str
    keys: tuple[str, ...]
    shown: Shown = _plain
    whiskers: bool = False  # drawn beside the number


BOTH, ALL = ("student", "teacher"), ("student", "exported", "teacher")
NAMED = ("student", "student as ONNX", "teacher")
TABLE: dict[str, tuple[Line, ...]] = {
    "Images (patients)": (
        Line("for training", ("train_images", "train_patients"), _images),
        Line("for validation", ("val_images", "val_patients"), _images),
        Line("for the test", ("test_images", "test_patients"), _images),
    ),
    "At home": (
        Line("VFMGL", ("vfmgl",), whiskers=True),
        Line("local training", ("local",), whiskers=True),
        Line("FedAvg", ("fedavg",), whiskers=True),
        Line("trivial baseline", ("trivial",), whiskers=True),
    ),
    "Lead of VFMGL": (
        Line("over local training", ("ahead_of_local",), _lead, whiskers=True),
        Line("over FedAvg", ("ahead_of_fedavg",), _lead, whiskers=True),
        Line("over the trivial baseline", ("ahead_of_trivial",), _lead, whiskers=True),
    ),
    "Parts of the method": (
        Line("batches kept by DDBL (least to most in a round)", ("kept_share",), _share),
        Line("movement of λ, in spreads between pairs", ("lambda_moved",), _plain),
    ),
    "Activation maps: energy inside the lesion": (
        Line("trained models", ("cam_inside",), _share),
        Line("models with random weights", ("cam_inside_random_weights",), _share),
        Line("chance: the lesion's share of the image", ("cam_chance",), _share),
        Line("lead over chance, points", ("cam_gain",), _gain),
        Line("lead over other patients' maps there, points", ("cam_gain_over_place",), _gain),
    ),
    "Networks at the paper's size, one image": (
        Line("parameters", tuple(f"{one}_parameters" for one in BOTH), _each("M", 1e-6, 1, BOTH)),
        Line("multiply-accumulates", tuple(f"{one}_macs" for one in BOTH), _each("G", 1e-9, 2, BOTH)),
        Line("median time on the processor", tuple(f"{one}_latency" for one in ALL), _each("ms", 1, 0, NAMED)),
        Line("peak memory of the process", tuple(f"{one}_memory" for one in ALL), _each("MiB", 1, 0, NAMED)),
    ),
}
WIDE = ("Networks at the paper's size, one image",)  # of the task as a whole: no centre has its own
WIDTH, INSET = 150.0, 8.0  # of the drawn interval, px


def write_index(results: Path, log: Log) -> Path:
    """Writes `report.json` and `index.html` into a profile's results folder, each atomically.

    Args:
        results, log: as for `report.gather_report`.
    Returns: the page's path.
    """
    report = gather_report(results, log)
    write_text(results / REPORT, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    target = results / "index.html"
    write_text(target, page_of(report))
    return target


def page_of(report: Mapping[str, Any]) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["duration"] = duration
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(report=report, tasks=[task | _table(task) | {"story": _story(task)} for task in report["tasks"]])


def _story(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notebooks with their figures: those that the notebook's text gives a title, and the others."""
    parts = [dict(notebook) for notebook in task["notebooks"]]
    known = {part["name"] for part in parts}
    parts += [
        {"name": name, "title": in_words(name) or "More figures", "status": None, "page": "", "source": ""}
        for name in dict.fromkeys(figure["notebook"] for figure in task["figures"] if figure["notebook"] not in known)
    ]
    for part in parts:
        own = [figure for figure in task["figures"] if figure["notebook"] == part["name"]]
        part["figures"], part["others"] = ([f for f in own if bool(f["about"]) is told] for told in (True, False))
    return parts


def _table(task: Mapping[str, Any]) -> dict[str, Any]:
    """`groups` of rows, each with its cells, or one row that says why there are none; `notes`, why single numbers are missing."""
    centers, measures = task["centers"]["training"], task["measures"]
    pages = {notebook["name"]: notebook["page"] for notebook in task["notebooks"]}
    groups: list[dict[str, Any]] = []
    notes: dict[str, list[str]] = {}
    for title, lines in TABLE.items():
        of_metric = title in ("At home", "Lead of VFMGL") and task["metric"]
        shown = [measures[key] for line in lines for key in line.keys]
        reasons = {measure["all"]["reason"] for measure in shown if measure["all"]["value"] is None}
        missing = all(one["value"] is None for measure in shown for one in (measure["all"], *measure["centers"].values()))
        scale = _scale([measures[line.keys[0]]["all"] for line in lines if line.whiskers], task["metric"], title)
        rows = [] if missing else [_row(line, measures, centers, scale) for line in lines]
        where = [pages[name] for name in dict.fromkeys(measure["notebook"] for measure in shown) if pages.get(name)]
        head = f"{title}: {task['metric_title']} per {task['metric_unit']}" if of_metric else title
        why = "; ".join(sorted(filter(None, reasons))) if missing else ""
        groups.append({"title": head, "pages": where, "rows": rows, "why": why, "wide": title in WIDE})
        for line in () if missing else lines:
            _note(notes, line, measures, centers)
    return {"groups": groups, "notes": [f"{'; '.join(places)}: {reason}" for reason, places in notes.items()]}


def _row(
    line: Line, measures: Mapping[str, Any], centers: Sequence[str], scale: tuple[float, float, float | None] | None
) -> dict[str, Any]:
    none = {"value": None, "lo": None, "hi": None}
    whole = [measures[key]["all"] for key in line.keys]
    cells = [line.shown([measures[key]["centers"].get(center, none) for key in line.keys]) for center in centers]
    drawn = _whiskers(whole[0], scale) if line.whiskers and scale else None
    return {"title": line.title, "all": line.shown(whole) or "–", "cells": cells, "drawn": drawn}


def _note(notes: dict[str, list[str]], line: Line, measures: Mapping[str, Any], centers: Sequence[str]) -> None:
    """Adds why a number or an interval of a row is not there: reason -> the rows and centres."""
    for key in line.keys:
        measure = measures[key]
        if reason := measure["all"]["reason"]:
            notes.setdefault(reason, []).append(line.title)
        for center in centers:
            number = measure["centers"].get(center)
            if number and number["reason"] and number["reason"] not in measure["all"]["reason"]:
                notes.setdefault(number["reason"], []).append(f"{line.title}, {center}")


def _scale(numbers: Sequence[Mapping[str, Any]], metric: str | None, title: str) -> tuple[float, float, float | None] | None:
    """The least and the greatest number that is drawn, and where the line of no effect is."""
    middle = 0.0 if title.startswith("Lead") else CHANCE.get(metric or "")
    ends = [number[end] for number in numbers for end in ("value", "lo", "hi") if number[end] is not None]
    ends += [middle] if ends and middle is not None else []
    return (min(ends), max(ends), middle) if ends and max(ends) > min(ends) else None


def _whiskers(number: Mapping[str, Any], scale: tuple[float, float, float | None]) -> dict[str, float | None]:
    low, high, middle = scale

    def place(value: float | None) -> float | None:
        return None if value is None else round(INSET + (value - low) / (high - low) * (WIDTH - 2 * INSET), 1)

    return {"value": place(number["value"]), "lo": place(number["lo"]), "hi": place(number["hi"]), "middle": place(middle)}


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "3 min 05 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
