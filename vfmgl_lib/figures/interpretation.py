"""What the models look at and what their features share: overlays, localisation, sanity, PCA, scores and correlation heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.figures.mask_colors import class_entries, has_classes, outline_classes
from vfmgl_lib.figures.style import (
    COLORS,
    DIVERGING,
    DOUBLE,
    MM,
    MUTED,
    bare,
    center_style,
    footnote,
    grid,
    heatmap,
    journal,
    names,
    new_figure,
    write_in_panel,
)

OUTLINE = "#FFD400"
OPACITY = 0.75  # of a map's strongest place
SPLITS = {"train": "training", "test": "test"}
SCALE = "evidence (share of the centre's strongest)"


def class_color(label: int) -> str:
    """Of two classes blue the negative and orange the positive one; of a segmentation's images (−1) green."""
    return COLORS[label % len(COLORS)] if label >= 0 else COLORS[2]


def _printed(classes: Sequence[str], label: int) -> str:
    name = classes[label]
    return (f"class {name}" if name.isdigit() else name).replace("$", r"\$")


def draw_map(axis: Axes, image: np.ndarray, found: np.ndarray, strongest: float, lesion: np.ndarray | None = None) -> None:
    """An image with its map over it: purple speaks for the class, of two the positive one, orange against it; strongest, most opaque.

    Args:
        image: (S, S, 3) in [0, 1].  found: (S, S), enlarged.  strongest: the value of full colour, > 0.
        lesion: (S, S) bool, drawn as an outline, or None.
    """
    share = np.clip(found / strongest, -1, 1)
    grey = image.mean(axis=2)
    axis.imshow(np.repeat(grey[..., None], 3, axis=2), vmin=0, vmax=1)
    colored = matplotlib.colormaps[DIVERGING]((share + 1) / 2)
    colored[..., 3] = OPACITY * np.sqrt(np.abs(share))
    axis.imshow(colored)
    if lesion is not None and lesion.any() and not lesion.all():
        axis.contour(lesion, levels=[0.5], colors=OUTLINE, linewidths=0.7)
    bare(axis)


@journal
def overlays(cases: pd.DataFrame, classes: Sequence[str], score: str = "score") -> Figure:
    """Fig. 7a: per centre a case of each class, of two the positive one first, the image beside its map.

    Args:
        cases: center, label, id, score, image (S, S, 3), map (S, S) enlarged, lesion (S, S) bool or None.
        classes: names, in the order of their numbers.
        score: what the scores are called.
    """
    centers, printed = list(dict.fromkeys(cases["center"])), names(sorted(cases["center"].unique()))
    shown = sorted((int(label) for label in cases["label"].unique()), reverse=True)
    cell = min(28 * MM, (DOUBLE - 24 * MM) / (2 * len(shown)))
    figure = new_figure(2 * len(shown) * cell + 24 * MM, len(centers) * cell + 20 * MM, layout="compressed")
    axes = figure.subplots(len(centers), 2 * len(shown), squeeze=False)
    for line, center in zip(axes, centers, strict=True):
        own = cases[cases["center"] == center].set_index("label")
        strongest = max(max(np.abs(found).max() for found in own["map"]), 1e-12)
        for place, label in enumerate(shown):
            left, right = line[2 * place : 2 * place + 2]
            if label not in own.index:
                bare(left)
                write_in_panel(left, "no such case")
                right.set_axis_off()
                continue
            case = own.loc[label]
            left.imshow(case["image"], vmin=0, vmax=1)
            bare(left)
            draw_map(right, case["image"], case["map"], strongest, case["lesion"])
            right.set_xlabel(f"{score} {case['score']:.2f}", labelpad=1.5)
        line[0].set_ylabel(printed[center], rotation=0, ha="right", va="center", weight="bold", labelpad=4)
    for place, label in enumerate(shown):
        axes[0][2 * place].set_title(_printed(classes, label))
    _evidence_bar(figure, axes, SCALE)
    spoken = "the positive class" if len(classes) == 2 else "the image's own class against the others"
    footnote(figure, f"Purple speaks for {spoken}, orange against it. Yellow outline: the lesion, where its place is known.")
    return figure


def _evidence_bar(figure: Figure, axes: np.ndarray, label: str) -> None:
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), DIVERGING)
    bar = figure.colorbar(scale, ax=axes, shrink=max(0.2, 0.7 / len(axes) ** 0.5), pad=0.02, aspect=18, label=label)
    bar.set_ticks([-1, 0, 1], labels=["against", "0", "for"])


@journal
def localisation(summary: pd.DataFrame) -> Figure:
    """How much more of a map's energy is in the lesion than chance gives, per model and centre, with 95 % intervals.

    Left against the lesion's share of the image (an even map); right against what maps of other patients have at the same place.

    Args:
        summary: from `interpretation.cam.localisation_summary`.
    """
    models = list(dict.fromkeys(summary["model"]))
    centers = [c for c in dict.fromkeys(summary["center"]) if c != "all"]
    rows = [*centers, *(["all"] if (summary["center"] == "all").any() else [])]
    printed = names(centers) | {"all": "all centres"}
    figure = new_figure(DOUBLE, (26 + 8 * len(rows)) * MM)
    axes = figure.subplots(1, 2, sharey=True, sharex=True)
    panels = (
        ("gain", "low", "high", "against an even map"),
        ("gain_over_place", "place_low", "place_high", "against other patients' maps"),
    )
    for axis, (value, low, high, title) in zip(axes, panels, strict=True):
        axis.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        for order, model in enumerate(models):
            part = summary[summary["model"] == model].set_index("center").reindex(rows)
            y = np.arange(len(rows)) + 0.5 * (order - (len(models) - 1) / 2) / max(len(models), 2)
            color, marker = COLORS[order % len(COLORS)], "oDs^v"[order % 5]
            axis.hlines(y, 100 * part[low], 100 * part[high], color=color, linewidth=1.2)
            axis.plot(100 * part[value], y, marker, color=color, label=model, linestyle="none")
        axis.set(title=title, xlabel="energy in the lesion minus chance (percentage points)")
        grid(axis, "x")
    axes[0].set(yticks=range(len(rows)), yticklabels=[printed[row] for row in rows], ylim=(len(rows) - 0.4, -0.6))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
    shares = summary[summary["model"] == models[0]].set_index("center")["area"].reindex(rows)
    areas = ", ".join(f"{printed[row]} {100 * share:.1f} %" for row, share in shares.items() if np.isfinite(share))
    footnote(figure, f"Bars: 95 % intervals, over patients (at least five). Mean share of the image that the lesion takes: {areas}.")
    undefined = summary[(summary["center"] == rows[-1]) & (summary["undefined"] > 0)]
    told = ", ".join(f"{row.model} {row.undefined}" for row in undefined.itertuples())
    footnote(figure, f"Maps without any positive evidence, left out: {told}." if told else "")
    return figure


@journal
def cascade(table: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Rank correlation of the maps with the trained model's, while weights are drawn anew from the head down to the first stage.

    Args:
        table: from `interpretation.cam.cascade`, of one or more centres.
    """
    steps = table.drop_duplicates("step").sort_values("step")
    styles, printed = center_style(table["center"], all_centers), names(sorted(table["center"].unique()))
    figure = new_figure(120 * MM, 68 * MM)
    axis = figure.subplots()
    axis.axhline(0, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.plot(0, 1, "*", color=MUTED, markersize=7, label="trained")
    for order, (center, part) in enumerate(table.groupby("center")):
        quantiles = part.groupby("step")["correlation"].quantile([0.25, 0.5, 0.75]).unstack()
        x = quantiles.index + 0.09 * (order - (len(printed) - 1) / 2)
        color = styles[center]["color"]
        axis.vlines(x, quantiles[0.25], quantiles[0.75], color=color, linewidth=1)
        axis.plot(x, quantiles[0.5], label=printed[center], linestyle="-", linewidth=0.6, color=color, marker=styles[center]["marker"])
    axis.set_xticks([0, *steps["step"]], ["nothing", *(f"+ {name}" for name in steps["randomised"])], rotation=30, ha="right")
    axis.set(ylim=(-1.05, 1.08), xlabel="weights drawn anew", ylabel="rank correlation of maps")
    grid(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="centre")
    footnote(figure, "Of the maps with the trained model's. Markers: median over images and draws of weights; bars: the middle half.")
    return figure


@journal
def principal_components(points: pd.DataFrame, explained: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Fig. 7b: the features of every centre's local model on its own images, before (stage I) and after (stage II) DDBL.

    Args:
        points: stage, center, split, label, pc1, pc2, from `interpretation.features.principal_components`.
        explained: stage, center, component, explained, explained_test.
        classes: names, negative first; a segmentation's images (label −1) have one colour.
    """
    stages, centers = list(dict.fromkeys(points["stage"])), sorted(points["center"].unique())
    printed = names(centers)
    figure = new_figure(DOUBLE, (14 + 44 * len(stages)) * MM)
    axes = figure.subplots(len(stages), len(centers), squeeze=False)
    for line, stage in zip(axes, stages, strict=True):
        for axis, center in zip(line, centers, strict=True):
            own = points[(points["stage"] == stage) & (points["center"] == center)]
            for (label, split), dots in own[own["split"].isin(SPLITS)].groupby(["label", "split"]):
                color = class_color(label)
                face = color if split == "train" else "none"
                axis.scatter(dots["pc1"], dots["pc2"], s=9, marker="o^"[split == "test"], facecolor=face, edgecolor=color, linewidth=0.6)
            axis.set_title(f"{printed[center]}, stage {stage}" if len(stages) > 1 else printed[center])
            share = explained[(explained["stage"] == stage) & (explained["center"] == center)].set_index("component")["explained"]
            axis.set(xlabel=f"PC 1 ({share['pc1']:.0%})", ylabel=f"PC 2 ({share['pc2']:.0%})")
            axis.tick_params(labelbottom=False, labelleft=False, length=0)
    figure.legend(handles=_class_handles(points, classes), loc="outside upper center", ncols=4)
    footnote(figure, "In brackets: share of the training images' variance. Each panel has axes of its own, fitted on its training images.")
    return figure


def _class_handles(points: pd.DataFrame, classes: Sequence[str]) -> list[Line2D]:
    labels = sorted(points["label"].unique())
    handles = []
    for label in labels:
        color, name = class_color(label), _printed(classes, label) if label >= 0 else "image"
        for split, title in SPLITS.items():
            face, marker = (color, "o") if split == "train" else ("none", "^")
            handles.append(
                Line2D([], [], linestyle="none", marker=marker, color=color, markerfacecolor=face, markersize=4, label=f"{name}, {title}")
            )
    return handles


@journal
def center_predictability(table: pd.DataFrame) -> Figure:
    """Balanced accuracy with which an image's centre can be told from its features, per model and stage, with 95 % interval and chance.

    Args:
        table: model, stage, balanced_accuracy, low, high, chance: one row a model and stage.
    """
    models, stages = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["stage"]))
    printed = names(models)
    figure = new_figure(120 * MM, (28 + 7 * len(models)) * MM)
    axis = figure.subplots()
    axis.axvline(table["chance"].iloc[0], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), label="chance")
    of_model = table.groupby("model")["stage"].agg(list)
    for order, stage in enumerate(stages):
        part = table[table["stage"] == stage].set_index("model")
        # A model's stages lie around its row, whichever they are.
        beside = [of_model[model].index(stage) - (len(of_model[model]) - 1) / 2 for model in part.index]
        y = np.array([models.index(model) for model in part.index]) + 0.22 * np.array(beside)
        label = stage if stage == "shared" else f"stage {stage}"
        axis.hlines(y, part["low"], part["high"], color=COLORS[order], linewidth=1.2)
        axis.plot(part["balanced_accuracy"], y, "oDs^"[order % 4], color=COLORS[order], linestyle="none", label=label)
    axis.set(yticks=range(len(models)), yticklabels=[printed[m] for m in models], ylim=(len(models) - 0.5, -0.5), xlim=(0, 1.02))
    axis.set(xlabel="balanced accuracy of telling the centre", ylabel="features of the model of")
    grid(axis, "x")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(stages) + 1)
    return figure


@journal
def score_charts(scores: pd.DataFrame, tests: pd.DataFrame, classes: Sequence[str], seed: int = 0) -> Figure:
    """Fig. 7c: scores of both classes per centre, training above test; mean ± SD beside the dots, p above them.

    Of more than two classes so for each class against the others, one below another.

    Args:
        scores: center, split, label, score (and class), of one stage, from `interpretation.features.score_table`.
        tests: from `interpretation.features.score_tests` of the same rows.
        seed: of the sideways scatter, which means nothing.
    """
    centers = sorted(scores["center"].unique())
    splits = [split for split in SPLITS if (scores["split"] == split).any()]
    printed, rng = names(centers), np.random.default_rng(seed)
    named = list(dict.fromkeys(scores["class"])) if "class" in scores else [""]
    lines = [(name, split) for name in named for split in splits]
    figure = new_figure(DOUBLE, (16 + 42 * len(lines)) * MM)
    axes = figure.subplots(len(lines), len(centers), sharey=True, squeeze=False)
    for line, (name, split) in zip(axes, lines, strict=True):
        sides = ("others", name) if name else classes
        for axis, center in zip(line, centers, strict=True):
            own, found = (
                table[(table["split"] == split) & (table["center"] == center) & (not name or table.get("class") == name)]
                for table in (scores, tests)
            )
            for label in (0, 1):
                values = own.loc[own["label"] == label, "score"].to_numpy()
                x = label - 0.1 + rng.uniform(-0.18, 0.18, len(values))
                axis.scatter(x, values, s=7, color=class_color(label), alpha=0.6, linewidth=0)
                if len(values):
                    spread = values.std(ddof=1) if len(values) > 1 else 0
                    axis.errorbar(label + 0.25, values.mean(), spread, fmt="_", color="black", capsize=2, linewidth=1)
            n = [int((own["label"] == label).sum()) for label in (0, 1)]
            axis.set_xticks([0, 1], [f"{_printed(sides, label)}\nn = {n[label]}" for label in (0, 1)])
            axis.set(xlim=(-0.5, 1.5), ylim=(-0.02, 1.12), yticks=np.arange(0, 1.01, 0.25))
            axis.set_title(f"{printed[center]}, {SPLITS[split]}")
            axis.text(0.5, 1.06, _p_text(found.iloc[0]) if len(found) else "", ha="center", va="center", fontsize=6.5)
            grid(axis)
        line[0].set_ylabel(f"probability of {_printed(sides, 1)}" if name else "score (probability)")
    paired = tests["test"].eq("paired t").any()
    kind = "two-tailed paired t-test of the patients' two means" if paired else "independent two-tailed t-test, pooled variance"
    footnote(figure, f"Bars: mean ± SD. p: {kind}.")
    for reason, rows in tests[(tests["reason"] != "") & tests["split"].isin(splits)].groupby("reason"):
        of_class = [f" {name}" for name in rows["class"]] if "class" in rows else [""] * len(rows)
        places = ", ".join(
            f"{printed[row.center]} {SPLITS[row.split]}{which}" for row, which in zip(rows.itertuples(), of_class, strict=True)
        )
        footnote(figure, f"No test ({reason}): {places}.")
    return figure


def _p_text(test: pd.Series) -> str:
    if not np.isfinite(test["p"]):
        return "no test"
    return f"p = {test['p']:.1e}" if test["p"] < 0.001 else f"p = {test['p']:.3f}"


@journal
def correlation_heatmaps(maps: pd.DataFrame, title: str = "") -> Figure:
    """Fig. 8: Pearson's r between the chosen features of all centres; rows stage and split as the paper's a to h, columns adaptive, common.

    One colour scale from −1 to 1 for all panels; lines part the centres; grey: a constant feature, no correlation.

    Args:
        maps: of one class, from `interpretation.correlation.correlation_maps`, with a column `stage`.
        title: over the figure, e.g. the class.
    """
    stages, kinds = list(dict.fromkeys(maps["stage"])), ("adaptive", "common")
    lines = [(stage, split) for stage in stages for split in ("test", "train")]
    first = maps[(maps["stage"] == stages[0]) & (maps["kind"] == kinds[0]) & (maps["split"] == "train")]
    side = round(len(first) ** 0.5)
    per_center = first["row_center"].iloc[::side].value_counts(sort=False)
    printed = names(list(per_center.index))
    edges = np.concatenate([[0], np.cumsum(per_center)])
    panel = min(62 * MM, (DOUBLE - 30 * MM) / 2)
    figure = new_figure(2 * panel + 34 * MM, len(lines) * panel + 14 * MM)
    axes = figure.subplots(len(lines), 2, squeeze=False)
    middles = (edges[:-1] + edges[1:]) / 2
    for row, (stage, split) in enumerate(lines):
        for column, kind in enumerate(kinds):
            axis = axes[row, column]
            here = maps[(maps["stage"] == stage) & (maps["kind"] == kind) & (maps["split"] == split)]
            values = pd.DataFrame(here["r"].to_numpy().reshape(side, side), columns=[""] * side)
            picture = heatmap(axis, values, DIVERGING, (-1, 1), size=0, bare="#BDBDBD")
            axis.set_aspect("equal")
            for edge in edges[1:-1]:
                axis.axhline(edge, color="black", linewidth=0.6)
                axis.axvline(edge, color="black", linewidth=0.6)
            axis.set_xticks(middles, [printed[c] for c in per_center.index], rotation=0)
            axis.set_yticks(middles, [printed[c] for c in per_center.index], rotation=90, va="center")
            axis.set_title(f"{'abcdefgh'[2 * row + column]}  {kind}, stage {stage}, {SPLITS[split]}")
    figure.colorbar(picture, ax=axes, shrink=0.4, pad=0.02, aspect=35, label="Pearson's r")
    if title:
        figure.suptitle(title.replace("$", r"\$"))
    footnote(figure, f"{per_center.iloc[0]} features of each centre's local model, over the same images of all centres.")
    return figure


@journal
def case_sheet(
    cases: pd.DataFrame, neighbors: pd.DataFrame, classes: Sequence[str], score: str = "score", mask_classes: Sequence[str] = ()
) -> Figure:
    """A row a case: image, map and the training images nearest to it in the local model's feature space.

    Of masks of more than two classes each is outlined on the image, in its colour.

    Args:
        cases: from `interpretation.cam.case_table`.
        neighbors: case (id), id, label, distance, image.
        classes: names, negative first.
        score: what the scores are called.
        mask_classes: names of the masks' classes, the background first, for the legend of more than two.
    """
    several = has_classes(cases["truth"])
    most = int(neighbors.groupby("case").size().max()) if len(neighbors) else 0
    cell = min(32 * MM, (DOUBLE - 34 * MM) / (2 + most))
    figure = new_figure((2 + most) * cell + 34 * MM, len(cases) * (cell + 8 * MM) + 16 * MM)
    axes = figure.subplots(len(cases), 2 + most, squeeze=False)
    printed = names(sorted(cases["center"].unique()))
    for line, case in zip(axes, cases.itertuples(), strict=True):
        strongest = max(np.abs(case.map).max(), 1e-12)
        line[0].imshow(case.image, vmin=0, vmax=1)
        if several:
            outline_classes(line[0], case.truth)
        draw_map(line[1], case.image, case.map, strongest, case.lesion)
        named = f", {_printed(classes, case.label)}" if case.label >= 0 else ""
        line[0].set_title(f"{printed[case.center]}{named}", fontsize=6.5)
        line[1].set_title(f"{score} {case.score:.2f}", fontsize=6.5)
        nearest = neighbors[neighbors["case"] == case.id]
        for axis, near in zip(line[2:], nearest.itertuples(), strict=False):
            axis.imshow(near.image, vmin=0, vmax=1)
            axis.set_title(
                " · ".join(filter(None, [_printed(classes, near.label) * (near.label >= 0), f"{near.distance:.2f}"])), fontsize=6
            )
        for axis in line:
            bare(axis)
        for axis in line[2 + len(nearest) :]:
            axis.set_axis_off()
        line[0].set_xlabel(str(case.id).replace("$", r"\$"), fontsize=4.5, color=MUTED, loc="left")
    _evidence_bar(figure, axes, "evidence")
    if several:
        entries = class_entries(mask_classes)
        figure.legend(handles=entries, loc="outside upper center", ncols=min(len(entries), 6))
    footnote(figure, "Right: nearest training images of other patients in feature space, with their distance (SDs per feature).")
    return figure
