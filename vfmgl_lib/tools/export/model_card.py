"""The card beside an exported model: what it was trained on, how well it does, what it is for and where it ends (Mitchell et al. 2019)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from vfmgl_lib.config import StudySettings
from vfmgl_lib.data.label_masks import class_color
from vfmgl_lib.data.manifest import SPLITS
from vfmgl_lib.evaluation.classification import NOBODY
from vfmgl_lib.evaluation.results import SHARED
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.two_models import TwoModelClient
from vfmgl_lib.models.teachers import doubts_about
from vfmgl_lib.study.study import Study
from vfmgl_lib.tasks.records import find_task
from vfmgl_lib.tools.predict import Description

TEMPLATE = Path(__file__).with_suffix(".md")


def model_card(
    study: Study, about: Description, files: pd.DataFrame, check: pd.DataFrame, int8: pd.DataFrame, counts: dict, results: pd.DataFrame
) -> str:
    """The card as Markdown, its head as the Hugging Face hub reads it.

    Args:
        files: file, bytes, sha256.  check: from `tools.export.compare_with_torch` and its like.  int8: from `export.int8_cost`, or empty.
        counts: from `evaluation.complexity.count`, at the model's input size.
        results: test_center, metric, value, low, high, interval, n, reason.
    """
    center = about.study["model_center"]
    tags = ["medical imaging", "federated learning", about.task, study.settings.method]
    card = ModelCard.from_template(
        ModelCardData(library_name="onnx", pipeline_tag=f"image-{about.kind}", tags=tags),
        template_path=str(TEMPLATE),
        about=about,
        center=center,
        unit=f"{'an' if about.unit == 'image' else 'a'} {about.unit}",
        doubts=doubts_of(about),
        use=(study.settings.data.own_task or find_task(about.task)).use,
        mask_values=markdown_table(["class", "value in masks", "colour of overlays"], _mask_values(about)),
        training=markdown_table(["", ""], _training(study, about).items()),
        manifest=study.manifest,
        what_left=what_left(study.settings, center),
        data=markdown_table(["centre", *SPLITS, ""], _data(study)),
        performance=markdown_table(["test set", "metric", "value", "95 % interval", "n"], _performance(center, results)),
        intervals=results["low"].notna().any(),
        int8=markdown_table(int8.columns, int8.itertuples(index=False)),
        counts=counts,
        files=markdown_table(
            ["file", "size", "sha256"], [[f.file, f"{f.bytes / 2**20:.2f} MiB", f"`{f.sha256}`"] for f in files.itertuples()]
        ),
        command=f"vfmgl predict {shlex.quote(files['file'].iloc[0])} IMAGES --out DIR --overlay",
        nobody=about.cutoff is not None and about.cutoff >= NOBODY,
        check=markdown_table(check.columns, check.itertuples(index=False)),
    )
    return card.content.replace("<", "&lt;") + "\n"  # Markdown takes HTML as it is, and a centre or a class may have any name


def doubts_of(about: Description) -> list[str]:
    """What a model was trained with that makes its numbers say nothing."""
    return ["PHANTOM images"] * ("PHANTOM" in about.data) + doubts_about(about.teacher)


def _mask_values(about: Description) -> list[list[str]]:
    """Of a segmentation with named values, a row a class."""
    colors = ["–", *map(class_color, range(1, len(about.classes)))] if len(about.classes) > 2 else ["–", "–"]
    return [[title, str(value), color] for title, value, color in zip(about.classes, about.mask_values, colors, strict=False)]


def _training(study: Study, about: Description) -> dict[str, str]:
    settings, made = study.settings, about.study
    method = METHODS[settings.method]
    student = f"{settings.student.network}, start weights {settings.student.weights}"
    return {
        "method": f"{method.title} ({method.source}), stage {made['stage']}, round {made['round']}",
        "network": f"{student}, input {about.image_size} x {about.image_size} px",
        "batch normalisation": about.batch_norm,
        "teacher": about.teacher,
        "study": f"{made['key']}, profile {made['profile']}, seed {made['seed']}, division {made['split_id']}",
        "settings that differ from the paper's": ", ".join(study.settings.deviations()["setting"]) or "none",
        "library": f"vfmgl_lib {about.library}",
    }


def _data(study: Study) -> list[list[str]]:
    table, rows = study.manifest.table, []
    for center in study.manifest.centers:
        own = table[table["center"] == center]
        sizes = [f"{(own['split'] == split).sum()} ({own.loc[own['split'] == split, 'patient'].nunique()})" for split in SPLITS]
        rows.append([center, *sizes, "trained here" if center in study.manifest.training_centers else "external: test only"])
    return rows


SENT = {  # by `Switches.keeps`
    "": "parameters and statistics of batch normalisation",
    "batch_norm": "parameters but those of the layers that normalise, whose statistics stayed too",
    "last_layer": "parameters but the last layer's, and statistics of batch normalisation",
}


def what_left(settings: StudySettings, center: str) -> str:
    """What left a centre for this model, in a sentence; `center`: whose model it is, or "shared"."""
    strategy = METHODS[settings.method].switches
    if not METHODS[settings.method].private:
        return "**Not private: the training images of all centres were put in one place.**"
    if not strategy.sends:
        return "Each centre trained alone: no image and no parameter left it."
    beside = issubclass(METHODS[settings.method].client, TwoModelClient) and center != SHARED
    model = "of a second model that learnt beside this one, which stayed: " * beside
    counts = "; the number of its images and its training loss" * settings.exchange.share_counts
    return f"What left a centre, {model}{SENT[strategy.keeps]}{counts}. No image did."


def _performance(center: str, results: pd.DataFrame) -> list[list[str]]:
    rows = []
    order = results.assign(home=results["test_center"] != center).sort_values(["home", "test_center"], kind="stable")
    for row in order.itertuples():
        value = f"{row.value:.3f}" if pd.notna(row.value) else f"undefined: {row.reason}"
        interval = f"{row.low:.3f} to {row.high:.3f} ({row.interval})" if pd.notna(row.low) else "–"
        if pd.isna(row.low) and pd.notna(row.value) and row.reason:
            interval += f" ({row.reason})"
        rows.append([f"{row.test_center}{' (own)' if row.test_center == center else ''}", row.metric, value, interval, f"{row.n:.0f}"])
    return rows


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def markdown_table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; "" without rows."""
    cells = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    head = list(head)
    return "\n".join([f"| {' | '.join(map(_cell, head))} |", "|" + "---|" * len(head), *cells]) if cells else ""
