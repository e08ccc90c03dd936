"""The reporting checklists beside an exported model: TRIPOD+AI and CLAIM, filled as far as a study can tell, the rest marked as yours."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pandas as pd

from vfmgl_lib.base.strict_yaml import read_yaml
from vfmgl_lib.config.sections import FoldSettings
from vfmgl_lib.data.manifest import SPLITS
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study.study import Study
from vfmgl_lib.tasks.datasheets import datasheet_of
from vfmgl_lib.tasks.records import find_task
from vfmgl_lib.tools.export.model_card import markdown_table, what_left
from vfmgl_lib.tools.predict import Description

ITEMS = Path(__file__).with_suffix(".yaml")
TEMPLATE = Path(__file__).with_suffix(".md")
NO_DEVICE = "It is no medical device, and no diagnosis or treatment may rest on it."


def checklist(name: str, study: Study, about: Description, results: pd.DataFrame, doubts: list[str]) -> str:
    """Both lists as Markdown.

    Args:
        name: of the model.
        results: test_center, metric, value, low, high, interval, n, reason; of this very model.
        doubts: why nothing may be concluded, such as drawn images; [] if nothing is known.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    known, guidelines, states = facts(study, about, results), [], list[str]()
    for guideline in read_yaml(ITEMS):
        rows = []
        for one in guideline["items"]:
            answer = " ".join(environment.from_string(one.get("answer", "")).render(known).split())
            yours = one.get("yours", "")
            states.append("yours" if not answer else "part" if yours else "filled")
            rows.append([one["item"], one["asks"], answer, f"**{yours}**" if yours else ""])
        guidelines.append(guideline | {"table": markdown_table(["item", "asks for", "from the study", "yours"], rows)})
    counts = {state: states.count(state) for state in ("filled", "part", "yours")}
    page = environment.from_string(TEMPLATE.read_text("utf-8"))
    text = page.render(name=name, items=len(states), guidelines=guidelines, doubts=doubts, **counts)
    return text.replace("<", "&lt;") + "\n"  # as in the card


def facts(study: Study, about: Description, results: pd.DataFrame) -> dict[str, str]:
    """What the answers are made of: name -> sentences; "" where there is nothing to say."""
    settings, manifest, made = study.settings, study.manifest, about.study
    record, center = settings.data.record, str(made["model_center"])
    return {
        "use": (settings.data.own_task or find_task(about.task)).use,
        "no_device": NO_DEVICE,
        "key": study.folder.name,
        "seed": str(settings.seed),
        "start": f"start weights {settings.student.weights}",
        "input": f"{about.image_size} x {about.image_size} pixels, three channels",
        "loss": settings.loss.replace("_", " "),
        "deviations": ", ".join(settings.deviations()["setting"]) or "none",
        "code": f"VFMGL Workbook, vfmgl_lib {about.library}, Apache-2.0.",
        "left": what_left(settings, center),
        "subgroups": ", but for those of the patient table in notebook 06, where it was run" if record.patient_table else "",
        **_of_data(study, about),
        **_of_model(study, about),
        **_of_results(center, about, results, list(manifest.training_centers)),
    }


def _of_data(study: Study, about: Description) -> dict[str, str]:
    manifest, data = study.manifest, study.settings.data
    table, training = manifest.table, list(manifest.training_centers)
    sheet = datasheet_of(data.layout) if "PHANTOM" not in about.data else None
    sizes = [f"{split} {_size(table[table['split'] == split])}" for split in SPLITS if (table["split"] == split).any()]
    places = []
    for center in manifest.centers:
        own = table[table["center"] == center]
        splits = ", ".join(f"{split} {_count(own[own['split'] == split])}" for split in SPLITS if (own["split"] == split).any())
        places.append(f"{center}{'' if center in training else ' (external)'}: {splits}")
    seed = f", seed {data.split.seed}" if data.split else ""
    if isinstance(data.split, FoldSettings):
        division = f"Cross-validation, fold {data.split.fold} of {data.split.folds}{seed}."
    else:
        division = f"Divided anew, {data.split.train:.0%} to train{seed}." if data.split else "Divided as the prepared set says."
    if data.validation_share:
        division += f" {data.validation_share:.0%} of the training patients are the validation set, seed {study.settings.seed}."
    drawn = ", ".join(f"{split} {count}" for split, count in data.per_center.items() if count)
    some = f"At most so many images a centre, drawn evenly over classes and patients with the study's seed: {drawn}."
    prepared = [f"{key}: {text}" for key, text in about.preprocessing.items() if key != "volume" or "volume" in about.reads]
    by_image = "**By image: images of one patient may lie in several splits.**"
    return {
        "training_centers": ", ".join(training),
        "center_count": f"{len(manifest.centers)} centres",
        "data": f"{about.data[0].upper()}{about.data[1:]}.",
        "source": f" {sheet.source} {sheet.images}" if sheet else "",
        "access": sheet.access if sheet else "",
        "by_center": "; ".join(places),
        "sizes": f"{'; '.join(sizes)}.",
        "division": division,
        "disjoint": "By patient." if manifest.split_unit == "patient" else by_image,
        "subset": some if drawn else "All images of the set take part.",
        "outcome": f"{'The class of an image' if about.kind == 'classification' else 'A mask'}: {', '.join(about.classes)}.",
        "classes": _class_counts(table, about) if about.kind == "classification" else "",
        "preprocessing": f"{'; '.join(prepared)}.",
    }


def _size(rows: pd.DataFrame) -> str:
    return f"{len(rows)} images of {rows[['center', 'patient']].drop_duplicates().shape[0]} patients"


def _count(rows: pd.DataFrame) -> str:
    return f"{len(rows)} ({rows['patient'].nunique()})"


def _class_counts(table: pd.DataFrame, about: Description) -> str:
    parts = []
    for split in (split for split in SPLITS if (table["split"] == split).any()):
        labels = table.loc[table["split"] == split, "label"]
        parts.append(f"{split}: " + ", ".join(f"{title} {(labels == number).sum()}" for number, title in enumerate(about.classes)))
    return f"Images a class: {'; '.join(parts)}."


def _of_model(study: Study, about: Description) -> dict[str, str]:
    settings, made, method = study.settings, about.study, METHODS[study.settings.method]
    optimizer, federation = settings.optimizer, settings.federation
    start = json.loads((study.folder / "environment.json").read_text("utf-8"))[-1]
    packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items() if version)
    validated = ((study.manifest.table["split"] == "val") & (study.manifest.table["center"] == made["model_center"])).any()
    of_what = "each class" if len(about.classes) > 2 else about.classes[1]
    is_last, classifies = made["round"] == study.last_round, about.kind == "classification"
    start_weights = f"{settings.student.network}, start weights {settings.student.weights}"
    return {
        "model": f"{method.title} ({method.source}), model of {made['model_center']}; network {start_weights}; teacher: {about.teacher}.",
        "training": f"{optimizer.name}, rate {optimizer.lr:g}, momentum {optimizer.momentum:g}, weight decay {optimizer.weight_decay:g}, "
        f"batches of {optimizer.batch_size}, rounds {study.last_round}, local epochs a round {federation.epochs}, "
        f"augmentation {settings.data.augmentation}.",
        "selection": f"Stage {made['stage']} of round {made['round']}, {'the last' if is_last else 'which the call named'}; this program "
        f"chooses no round by its results. {'There is a validation set.' if validated else 'There is no validation set.'}",
        "software": f"vfmgl_lib {about.library}, Python {start['python']}, {packages}.",
        "output": f"A probability of {of_what}, per {about.unit}." if classifies else f"A probability of {of_what} for each pixel.",
        "cutoff": f"Cutoff{f' {about.cutoff:.6g}' if about.cutoff is not None else ''}: {about.cutoff_from}.",
        "explanation": "Class activation maps, from the file itself (`vfmgl predict --overlay`); more in notebook 07."
        if classifies
        else "The map of probabilities as an overlay (`vfmgl predict --overlay`); Grad-CAM in notebook 07.",
    }


def _of_results(center: str, about: Description, results: pd.DataFrame, training: list[str]) -> dict[str, str]:
    by_place = {place: _sentence(str(place), rows) for place, rows in results.groupby("test_center", sort=True)}
    external = [text for place, text in by_place.items() if place not in training]
    others = [text for place, text in by_place.items() if place != center]
    kinds = sorted({kind for kind in results["interval"].dropna() if kind})
    names = ", ".join(dict.fromkeys(results["metric"]))
    return {
        "metrics": f"Metrics: {names}." if names else "",
        "intervals": f"95 % intervals: {', '.join(kinds)}." if kinds else "",
        "results": by_place.get(center, ""),
        "elsewhere": " ".join(others),
        "external": " ".join(external) or "No external centre.",
    }


def _sentence(place: str, rows: pd.DataFrame) -> str:
    words = []
    for row in rows.itertuples():
        if pd.isna(row.value):
            words.append(f"{row.metric} undefined ({row.reason})")
        else:
            words.append(f"{row.metric} {row.value:.3f}" + (f" ({row.low:.3f} to {row.high:.3f})" if pd.notna(row.low) else ""))
    return f"{place}, n = {rows['n'].iloc[0]:.0f}: {', '.join(words)}."
