"""Tables as `evaluation` hands them to the figures of the comparison, with made-up numbers."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

CLASSIFICATION = ("auc", "accuracy", "sensitivity", "specificity", "ppv", "npv")
SEGMENTATION = ("dice", "dice_mean_of_classes", "iou", "ppv", "sensitivity", "specificity", "assd", "hd95")
ONE_CLASS = "only one class: 0 positive, 40 negative"
# Those of 0.1.0: what the layouts are tested with; figures of more methods are given those that are to be read.
TEN = ("local", "fedavg", "fedprox", "harmofl", "metafed", "frozen_probe", "logit_kd", "hgkt", "hgkt_kd", "vfmgl")
SHARED = ("fedavg", "fedprox", "harmofl", "hgkt_kd", "vfmgl", "logit_kd")
ONE_BUDGET = ("frozen_probe", "hgkt", "hgkt_kd", "vfmgl")  # the same model at both
Maker = Callable[..., pd.DataFrame]


def results_table(
    centers: Sequence[str],
    methods: Sequence[str] = TEN,
    *,
    metrics: Sequence[str] = CLASSIFICATION,
    seeds: int = 1,
    external: Sequence[str] = (),
    split_ids: Sequence[str] = ("own",),
    one_class: str = "",
    level: float = 0.75,
) -> pd.DataFrame:
    """Every model on every test set; at the centre `one_class` all but accuracy and specificity is undefined."""
    random = np.random.default_rng(0)
    rows = []
    for seed, split_id, (place, method), budget in product(range(seeds), split_ids, enumerate(methods), ("rounds", "updates")):
        if method in ONE_BUDGET and budget == "updates":
            continue
        models = [*centers, "shared"] if method in SHARED else list(centers)
        for model, center, metric in product(models, [*centers, *external], metrics):
            home = model == center
            value = level + 0.012 * place - 0.06 * (not home) + random.normal(0, 0.03)
            value = float(np.clip(value, 0, 0.995)) if metric not in ("assd", "hd95") else 8 * (1 - level) + random.random()
            lost = center == one_class and metric not in ("accuracy", "specificity")
            half = 0.02 + 0.09 * random.random()
            about = (method, seed, split_id, budget, model, center, "test", metric)
            unit = "px" if metric in ("assd", "hd95") else "image"
            number = [np.nan] * 3 if lost else [value, value - half, value + half if unit == "px" else min(1, value + half)]
            interval = "" if lost else "DeLong" if metric == "auc" else "Wilson"
            rows.append((*about, unit, *number, interval, 40, np.nan, np.nan, ONE_CLASS if lost else ""))
        if "accuracy" in metrics:
            about = (method, seed, split_id, budget, "all", "all", "test", "accuracy", "image")
            n = 40 * len(centers)
            rows.append((*about, level, level - 0.03, level + 0.03, "Wilson", n, round(level * n), n, ""))
    columns = ["method", "seed", "split_id", "budget", "model_center", "test_center", "split", "metric", "unit", "value", "low", "high"]
    table = pd.DataFrame(rows, columns=[*columns, "interval", "n", "numerator", "denominator", "reason"])
    same = table[table["method"].isin(ONE_BUDGET)].assign(budget="updates")
    return pd.concat([table, same], ignore_index=True)


def predictions(
    centers: Sequence[str], methods: Sequence[str] = TEN, *, seeds: int = 1, external: Sequence[str] = (), one_class: str = ""
) -> pd.DataFrame:
    """Final predictions of a classification: 40 images of 20 patients a test set, of own models and at external centres."""
    random = np.random.default_rng(1)
    rows = []
    for seed, (place, method), model in product(range(seeds), enumerate(methods), centers):
        for center in (model, *external):
            label = np.repeat(np.arange(20) % 3 == 0, 2).astype(int) * (center != one_class)
            signal = 1.2 + 0.15 * place - 0.7 * (center != model)
            probability = 1 / (1 + np.exp(-(signal * (label - 0.4) + random.normal(0, 1, 40))))
            about = {"method": method, "seed": seed, "split_id": "own", "budget": "rounds", "model_center": model}
            ids = {"id": [f"{center}/{i}" for i in range(40)], "patient": [f"{center}-{i // 2}" for i in range(40)]}
            rows.append(pd.DataFrame({**about, "test_center": center, "split": "test", **ids, "probability": probability, "label": label}))
    return pd.concat(rows, ignore_index=True)


def decision_table(centers: Sequence[str], methods: Sequence[str] = TEN, one_class: str = "") -> pd.DataFrame:
    """Net benefits of normal scores, n = 40."""
    random = np.random.default_rng(2)
    thresholds = np.linspace(0.01, 0.99, 99)
    odds = thresholds / (1 - thresholds)
    rows = []
    for center in centers:
        label = (np.arange(40) % 3 == 0) & (center != one_class)
        share = label.mean()
        curves = {"treat all": share - (1 - share) * odds, "treat none": 0 * odds}
        for place, method in enumerate(methods):
            score = 1 / (1 + np.exp(-((1.5 + 0.1 * place) * (label - 0.6) + random.normal(0, 0.8, 40))))
            called = score[None] >= thresholds[:, None]
            curves[method] = (called & label).mean(1) - (called & ~label).mean(1) * odds
        for method, benefit in curves.items():
            about = {
                "method": method,
                "seed": 0,
                "split_id": "own",
                "budget": "rounds",
                "center": center,
                "threshold": thresholds,
                "net_benefit": benefit,
                "reason": "",
            }
            rows.append(pd.DataFrame({**about, "n": 40, "positives": int(label.sum())}))
    return pd.concat(rows, ignore_index=True)


def paired_tests(centers: Sequence[str], methods: Sequence[str] = TEN, metric: str = "auc", one_class: str = "") -> pd.DataFrame:
    rows = []
    for budget, center, (place, method) in product(("rounds", "updates"), centers, enumerate(methods)):
        if method != "vfmgl":
            lost = center == one_class
            p = np.nan if lost else 10.0 ** -(place + 1)
            numbers = (0.05, 0.01, 0.09, p, min(1, 9 * p)) if not lost else (np.nan,) * 5
            test, reason = ("", ONE_CLASS) if lost else ("paired DeLong", "")
            rows.append((0, "own", budget, center, metric, method, "vfmgl", *numbers, test, 40, reason))
    names = [
        "seed",
        "split_id",
        "budget",
        "center",
        "metric",
        "method",
        "reference",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
        "test",
        "n",
        "reason",
    ]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def make_results() -> Maker:
    return results_table


@pytest.fixture
def make_predictions() -> Maker:
    return predictions


@pytest.fixture
def make_decisions() -> Maker:
    return decision_table


@pytest.fixture
def make_tests() -> Maker:
    return paired_tests


def colliding(figure: Figure) -> list[tuple[str, ...]]:
    """Pairs of texts that overlap, and texts that leave the figure: of axes, their titles and labels, legends and the footnote."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = {text for axis in figure.axes if not axis.axison for text in axis.findobj(Text) if text not in axis.texts}
    for side in (side for axis in figure.axes for side in (axis.xaxis, axis.yaxis)):
        low, high = sorted(side.get_view_interval())
        hidden |= {text for tick in side.get_major_ticks() if not low <= tick.get_loc() <= high for text in (tick.label1, tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible() and text not in hidden]
    air = np.array([1, 1, -1, -1])  # a pixel of each side
    corners = air + [text.get_window_extent(canvas.get_renderer()).extents for text in texts]
    outside = (corners[:, :2] < 0).any(1) | (corners[:, 2:] > canvas.get_width_height()).any(1)
    overlap = (corners[:, None, :2] < corners[None, :, 2:]).all(2)
    pairs = np.argwhere(np.triu(overlap & overlap.T, 1))
    return [(texts[i].get_text(),) for i in np.flatnonzero(outside)] + [(texts[i].get_text(), texts[j].get_text()) for i, j in pairs]


@pytest.fixture
def collisions() -> Callable[[Figure], list]:
    return colliding
