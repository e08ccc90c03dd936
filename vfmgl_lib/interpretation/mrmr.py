"""Selection of features by minimum redundancy and maximum relevance (mRMR).

Reference: Peng, Long and Ding, "Feature selection based on mutual information: criteria of max-dependency, max-relevance, and
min-redundancy", IEEE TPAMI 27(8), 2005, in the form of its package pymrmr 0.1.11.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import mutual_info_score

SCHEMES = ("MIQ", "MID")
ENGINES = ("fast", "pymrmr")
MIQ_OFFSET = 1e-4  # bits, added to the redundancy: pymrmr's constant
ROUNDING = 1e-13  # bits, no mutual information is off by more (measured: 5e-15 with 1e5 samples)


def mrmr(features: np.ndarray, labels: np.ndarray, k: int, scheme: str = "MIQ", engine: str = "fast") -> np.ndarray:
    """Selects k features, one after another, that tell most about the labels and least about each other.

    The first is the feature with the highest relevance I(feature; labels). Each following one has the highest score among the rest:
    "MIQ" relevance / (redundancy + 1e-4), "MID" relevance − redundancy, where redundancy is the mean of I(feature; selected) over
    the features selected so far. I is the mutual information in bits of the observed frequencies.

    Ties (scores that differ by no more than rounding, as those of duplicate columns do): the lower column index comes first. pymrmr
    takes them in the order of its heap sort, compares the first feature's relevance in single precision, and looks only at the 5000
    features of highest relevance; apart from that both engines give the same order.

    Args:
        features: (n, d) discrete values: whole numbers of any size and sign, few of them different; only which samples share a value
            matters. A constant feature has no information and is allowed.
        labels: (n,) whole numbers, at least two classes: with one, every relevance is 0 and there is nothing to select by.
        k: number of features, 1 to d.
        scheme: "MIQ" or "MID".
        engine: "fast" (numpy, here) or "pymrmr" (that package in a process of its own; minutes to hours for hundreds of features).
    Returns: (k,) int64 column indices in order of selection.
    Raises:
        ValueError: if shapes, values, k, scheme or engine are not as above; the message names the value.
        RuntimeError: if pymrmr fails or returns anything but k different features; the message holds what it wrote.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be (n, d) with at least one sample and one feature, got {features.shape}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must be (n,) = ({len(features)},) to fit features {features.shape}, got {labels.shape}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= features.shape[1]:
        raise ValueError(f"k must be an integer from 1 to d = {features.shape[1]}, got {k!r}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    ranks, class_ranks = _ranks(features, "features"), _ranks(labels[:, None], "labels")
    if not class_ranks.any():
        raise ValueError(f"labels must hold at least two classes, got {labels.flat[0]} in all {len(labels)} samples")
    if engine == "pymrmr":
        return pymrmr_orders([(ranks, class_ranks[:, 0], int(k), scheme)])[0]
    return _select(ranks, class_ranks[:, 0], int(k), scheme)


def shortfall(features: np.ndarray, labels: np.ndarray, order: Sequence[int], scheme: str = "MIQ") -> np.ndarray:
    """How far each choice of an order falls short of the best one that was left, given those before it: 0 in every mRMR order.

    Two engines may order ties differently and are both right; this tells them from a wrong one. Computed with scikit-learn's mutual
    information, apart from both engines; for tens of features.

    Args:
        features, labels, scheme: as for `mrmr`.
        order: (k,) column indices.
    Returns: (k,) best score − score of the choice, divided by 1 + the best; rounding leaves about 1e-9 (pymrmr's first choice: 1e-7, its
        relevance is in single precision).
    """
    features = np.asarray(features)
    relevance = np.array([mutual_info_score(column, labels) for column in features.T]) / np.log(2)
    redundancy, left, gaps = np.zeros_like(relevance), np.ones(len(relevance), bool), []
    for step, chosen in enumerate(order):
        mean = redundancy / max(step, 1)
        score = relevance if step == 0 else relevance - mean if scheme == "MID" else relevance / (mean + MIQ_OFFSET)
        best = score[left].max()
        gaps.append((best - score[chosen]) / (1 + abs(best)))
        left[chosen] = False
        redundancy += np.array([mutual_info_score(column, features[:, chosen]) for column in features.T]) / np.log(2)
    return np.array(gaps)


def pymrmr_orders(tables: Sequence[tuple[np.ndarray, np.ndarray, int, str]]) -> list[np.ndarray]:
    """Orders of selection by pymrmr, for several tables in one process of its own, whose printing and crashes stay outside ours.

    Args:
        tables: (features, labels, k, scheme) each, as for `mrmr` but with values from 0 to some hundreds: pymrmr counts in tables of
            range × range, and dies on large ones. It is not checked here; `mrmr(engine="pymrmr")` does it.
    Returns: one (k,) int64 array of column indices per table.
    Raises: RuntimeError: if pymrmr fails or its answer is not k different columns.
    """
    with tempfile.TemporaryDirectory(prefix="mrmr") as folder:
        question, answer = Path(folder) / "tables.npz", Path(folder) / "selected.json"
        np.savez(question, **{f"{part}{i}": table[part == "labels"] for i, table in enumerate(tables) for part in ("features", "labels")})
        calls = json.dumps([(k, scheme) for *_, k, scheme in tables])
        # pymrmr starts four threads that all do the same work: one is enough.
        environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
        command = [sys.executable, "-c", _PYMRMR_SCRIPT, str(question), str(answer), calls]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if run.returncode or not answer.is_file():
            raise RuntimeError(
                f"pymrmr failed with exit status {run.returncode} (negative: a signal); it wrote: {run.stderr.strip()[-2000:]}"
            )
        selected = json.loads(answer.read_text(encoding="utf-8"))
    orders = []
    for names, (features, _, k, _) in zip(selected, tables, strict=True):
        valid = {f"f{column}": column for column in range(features.shape[1])}
        if len(names) != k or len(set(names)) != k or not valid.keys() >= set(names):
            raise RuntimeError(f"pymrmr must return {k} different names from f0 to f{len(valid) - 1}, got {names}; it wrote: {run.stderr}")
        orders.append(np.array([valid[name] for name in names], dtype=np.int64))
    return orders


# The class goes first: pymrmr takes the first column for it.
_PYMRMR_SCRIPT = """
import json, sys
import numpy, pandas, pymrmr
tables = numpy.load(sys.argv[1])
selected = []
for i, (k, scheme) in enumerate(json.loads(sys.argv[3])):
    features = tables[f"features{i}"]
    table = pandas.DataFrame(features, columns=[f"f{column}" for column in range(features.shape[1])])
    table.insert(0, "class", tables[f"labels{i}"])
    selected.append(pymrmr.mRMR(table, scheme, k))
with open(sys.argv[2], "w", encoding="utf-8") as answer:
    json.dump(selected, answer)
"""


def _ranks(values: np.ndarray, name: str) -> np.ndarray:
    """Every column's values as dense ranks 0 … L−1, (n, d) int32: the same partition of the samples, so the same information."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be whole numbers, got dtype {values.dtype}")
    if values.dtype.kind == "f":
        wrong = np.argwhere(~np.isfinite(values) | (values != np.floor(values)))
        if len(wrong):
            where = tuple(int(i) for i in wrong[0][: 1 if name == "labels" else 2])
            raise ValueError(
                f"{name} must be whole numbers, got {values[tuple(wrong[0])]} at {where} ({len(wrong)} such values): discretise them first"
            )
    ranks = np.empty(values.shape, dtype=np.int32)
    for column in range(values.shape[1]):
        ranks[:, column] = np.unique(values[:, column], return_inverse=True)[1]
    return ranks


def _select(ranks: np.ndarray, class_ranks: np.ndarray, k: int, scheme: str) -> np.ndarray:
    information = _Information(ranks)
    relevance = information.about(class_ranks)
    order = [_first_of_the_best(relevance, np.full_like(relevance, ROUNDING))]
    redundancy_sum = np.zeros_like(relevance)
    while len(order) < k:
        redundancy_sum += information.about(ranks[:, order[-1]])
        redundancy = redundancy_sum / len(order)
        if scheme == "MIQ":
            score = relevance / (redundancy + MIQ_OFFSET)
            doubt = ROUNDING * (1 + np.abs(score)) / (redundancy + MIQ_OFFSET)
        else:
            score = relevance - redundancy
            doubt = np.full_like(score, 2 * ROUNDING)
        score[order] = -np.inf
        doubt[order] = 0
        order.append(_first_of_the_best(score, doubt))
    return np.array(order, dtype=np.int64)


def _first_of_the_best(score: np.ndarray, doubt: np.ndarray) -> int:
    """Lowest index whose score (± doubt) may be the highest: an exact tie is not to be decided by the order of some addition."""
    best = int(np.argmax(score))
    return int(np.argmax(score + doubt >= score[best] - doubt[best]))


class _Information:
    """Mutual information between every feature of a table and one discrete variable, from exact counts.

    n·I(x; y) = Σ c log c over the joint table + n log n − Σ c log c over either margin. Samples are bits, 64 a word. The time grows with
    the number of the features' values times that of the variable's: here three times three at most.
    """

    def __init__(self, ranks: np.ndarray):
        self.samples, self.features = ranks.shape
        counts = np.arange(self.samples + 1, dtype=float)
        self.c_log_c = counts * np.log2(np.maximum(counts, 1))  # bits; 0 log 0 = 0
        self.masks = [_bit_masks(ranks == value) for value in range(int(ranks.max()) + 1)]
        # Joint with a constant, a feature's table is its own margin.
        self.margin = self._joint(np.zeros(self.samples, dtype=np.int32))

    def about(self, ranks: np.ndarray) -> np.ndarray:
        """I(feature; variable) in bits, (d,), for a variable given as dense ranks (n,)."""
        own = self.c_log_c[np.bincount(ranks)].sum()
        return (self._joint(ranks) + self.c_log_c[-1] - self.margin - own) / self.samples

    def _joint(self, ranks: np.ndarray) -> np.ndarray:
        """Σ c log c over each feature's joint table with the variable, (d,) bits."""
        total = np.zeros(self.features)
        for value in range(int(ranks.max()) + 1):
            having = _bit_masks((ranks == value)[:, None])
            for masks in self.masks:
                total += self.c_log_c[np.bitwise_count(masks & having).sum(axis=0, dtype=np.intp)]
        return total


def _bit_masks(member: np.ndarray) -> np.ndarray:
    """(n, d) bool → (words, d) uint64, the samples' bits, padded with zeros."""
    packed = np.packbits(member.T, axis=1)
    padded = np.zeros((packed.shape[0], -(-packed.shape[1] // 8) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return np.ascontiguousarray(padded.view(np.uint64).T)
