"""The card beside an exported model: what it was trained on, how well it does, what it is for and where it ends (Mitchell et al. 2019)."""

from __future__ import annotations

import pandas as pd

from vfmgl_lib.config import StudySettings
from vfmgl_lib.data.manifest import SPLITS
from vfmgl_lib.evaluation.results import SHARED
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.two_models import TwoModelClient
from vfmgl_lib.models.teachers import doubts_about
from vfmgl_lib.study.study import Study
from vfmgl_lib.tasks.records import TASKS
from vfmgl_lib.tools.predict import Description


def model_card(
    study: Study, about: Description, files: pd.DataFrame, check: pd.DataFrame, int8: pd.DataFrame, counts: dict, results: pd.DataFrame
) -> str:
    """The card as Markdown.

    Args:
        files: file, bytes, sha256.  check: from `tools.export.compare_with_torch` and its like.  int8: from `export.int8_cost`, or empty.
        counts: from `evaluation.complexity.count`, at the model's input size.
        results: test_center, metric, value, low, high, interval, n, reason.
    """
    made = about.study
    doubts = ["PHANTOM images"] * ("PHANTOM" in about.data) + doubts_about(about.teacher)
    warning = [f"> **Not for any use on patients.** Trained with {' and '.join(doubts)}: it shows that the code works, no more.", ""]
    sections = [
        [f"# {about.task}: model of {made['model_center']}", ""],
        warning if doubts else [],
        _intended(about),
        _training(study, about),
        _data(study, made["model_center"]),
        _performance(made["model_center"], results),
        _int8(int8),
        _files(about, files, check, counts),
        _limits(about, made["model_center"]),
    ]
    text = "\n".join(line for section in sections for line in section).rstrip() + "\n"
    return text.replace("<", "&lt;")  # Markdown takes HTML as it is, and a centre or a class may have any name


def _intended(about: Description) -> list[str]:
    use = TASKS[about.task].use if about.task in TASKS else "tells " + " from ".join(about.classes)
    white = f" (more where white is declared{f', else white is {about.reading.max_value:g}' if about.reading.max_value else ''})"
    reads = f"PNG, JPEG, TIFF or BMP images of 8 bits a channel{white}" + (
        ", and NIfTI and MetaImage volumes (axial)" * ("volume" in about.reads)
    )
    return [
        "## Intended use",
        "",
        f"For research: it {use}, at the centres named below. Input: {reads}. Classes: {', '.join(about.classes)};"
        f" {about.classes[1]} is the positive one. It is no medical device, and no diagnosis or treatment may rest on it.",
        "",
    ]


def _training(study: Study, about: Description) -> list[str]:
    settings, made = study.settings, about.study
    method = METHODS[settings.method]
    student = f"{settings.student.name}, width {settings.student.width}, start weights {settings.student.weights}"
    rows = {
        "method": f"{method.title} ({method.source}), stage {made['stage']}, round {made['round']}",
        "network": f"{student}, input {about.image_size} x {about.image_size} px",
        "batch normalisation": about.batch_norm,
        "teacher": about.teacher,
        "study": f"{made['key']}, profile {made['profile']}, seed {made['seed']}, division {made['split_id']}",
        "settings that differ from the paper's": ", ".join(study.settings.deviations()["setting"]) or "none",
        "library": f"vfmgl_lib {about.library}",
    }
    return ["## Training", "", *_table(["", ""], rows.items()), ""]


def _data(study: Study, model_center: str) -> list[str]:
    table, manifest = study.manifest.table, study.manifest
    rows = []
    for center in manifest.centers:
        own = table[table["center"] == center]
        sizes = [f"{(own['split'] == split).sum()} ({own.loc[own['split'] == split, 'patient'].nunique()})" for split in SPLITS]
        role = "trained here" if center in manifest.training_centers else "external: test only"
        rows.append([center, *sizes, role])
    by = "" if manifest.split_unit == "patient" else " **Images of one patient may lie in several splits.**"
    return [
        "## Data",
        "",
        f"Images (patients) per centre and split; manifest {manifest.sha256[:16]}.{by} {what_left(study.settings, model_center)}",
        "",
        *_table(["centre", *SPLITS, ""], rows),
        "",
    ]


SENT = {  # by `Switches.keeps`
    "": "parameters and statistics of batch normalisation",
    "batch_norm": "parameters but those of batch normalisation, whose statistics stayed too",
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


def _performance(center: str, results: pd.DataFrame) -> list[str]:
    if results.empty:
        return ["## Performance", "", "The study kept no test results of this very model.", ""]
    rows = []
    order = results.assign(home=results["test_center"] != center).sort_values(["home", "test_center"], kind="stable")
    for row in order.itertuples():
        value = f"{row.value:.3f}" if pd.notna(row.value) else f"undefined: {row.reason}"
        interval = f"{row.low:.3f} to {row.high:.3f} ({row.interval})" if pd.notna(row.low) else "–"
        rows.append([f"{row.test_center}{' (own)' if row.test_center == center else ''}", row.metric, value, interval, f"{row.n:.0f}"])
    note = "95 % intervals." if results["low"].notna().any() else "Without intervals: the study kept no predictions of this round."
    return [
        "## Performance",
        "",
        f"On test sets, that nothing was chosen on. {note}",
        "",
        *_table(["test set", "metric", "value", "95 % interval", "n"], rows),
        "",
    ]


def _int8(int8: pd.DataFrame) -> list[str]:
    if int8.empty:
        return []
    shown = [[_number(value) if isinstance(value, float) else value for value in row] for row in int8.itertuples(index=False)]
    return [
        "## What int8 costs",
        "",
        "Decide on the validation set (val); the test set only reports.",
        "",
        *_table(list(int8.columns), shown),
        "",
    ]


def _files(about: Description, files: pd.DataFrame, check: pd.DataFrame, counts: dict) -> list[str]:
    rows = [[row.file, f"{row.bytes / 2**20:.2f} MiB", f"`{row.sha256}`"] for row in files.itertuples()]
    checks = [[_number(value) if isinstance(value, float) else value for value in row] for row in check.itertuples(index=False)]
    cutoff = f"{about.cutoff:.6f}" if about.cutoff is not None else "none"
    return [
        "## Files and checks",
        "",
        f"{counts['parameters']:,} parameters, {counts['macs'] / 1e9:.3f} G MACs an image ({counts['flops'] / 1e9:.3f} GFLOPs, two a MAC).",
        "",
        *_table(["file", "size", "sha256"], rows),
        "",
        "Greatest differences, on test images read as `tools.predict` reads them:",
        "",
        *_table(list(check.columns), checks),
        "",
        f"Cutoff: {cutoff} ({about.cutoff_from}). Images become input so: "
        + "; ".join(f"{name}: {text}" for name, text in about.preprocessing.items())
        + ".",
        "",
        f"    vfmgl predict {files['file'].iloc[0]} IMAGES --out DIR --overlay",
        "",
    ]


def _limits(about: Description, center: str) -> list[str]:
    lines = [
        f"- Trained for the images of {center}; other scanners, stains and populations change what it is worth: see the other test sets.",
        "- Test sets are small where n is: read the intervals, not the third decimal.",
        "- An image of any size is squashed to a square, as in training; a file of another kind of image gets an answer all the same.",
    ]
    if about.kind == "classification":
        lines.append(f"- The cutoff belongs to a {about.unit} and to {center}; elsewhere it has to be chosen anew, on training data.")
        lines.append("- An overlay shows where evidence lies (CAM), as coarsely as the last stage sees; it is no outline and no proof.")
    else:
        lines.append("- An overlay shows the probability of the foreground. Grad-CAM needs gradients, which an exported model cannot give.")
    if "volume" in about.reads:
        lines.append("- Of a volume the first and last slice have no two neighbours and stay empty.")
    return ["## Limits", "", *lines, ""]


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"


def _table(head, rows) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in ([*head], *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(cells[0]), *lines[1:]]
