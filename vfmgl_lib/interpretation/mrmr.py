"""Selection of features by minimum redundancy and maximum relevance (mRMR).

Reference: Peng, Long and Ding, "Feature selection based on mutual information: criteria of max-dependency, max-relevance, and
min-redundancy", IEEE TPAMI 27(8), 2005, in the form of its package pymrmr 0.1.11.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SCHEMES = ("MIQ", "MID")
ENGINES = ("fast", "pymrmr")
MIQ_OFFSET = 1e-4  # bits, added to the redundancy: pymrmr's constant
ROUNDING = 1e-13  # bits, no mutual information is off by more (measured: 5e-15 with 1e5 samples)
NO_PYMRMR = (
    "pymrmr is not installed; with a C++ compiler: pip install cython numpy pandas setuptools wheel, "
    "then pip install --no-build-isolation pymrmr==0.1.11"
)
LEVELS = (-1, 0, 1)  # of a feature, as `correlation.discretised` makes them


def mrmr(features: np.ndarray, labels: np.ndarray, k: int, scheme: str = "MIQ", engine: str = "fast") -> np.ndarray:
    """Selects k features, one after another, that tell most about the labels and least about each other.

    The first is the feature with the highest relevance I(feature; labels). Each following one has the highest score among the rest:
    "MIQ" relevance / (redundancy + 1e-4), "MID" relevance − redundancy, where redundancy is the mean of I(feature; selected) over
    the features selected so far. I is the mutual information in bits of the observed frequencies.

    Ties (scores that differ by no more than rounding, as those of duplicate columns do): the lower column index comes first. pymrmr
    takes them in the order of its heap sort, compares the first feature's relevance in single precision, and looks only at the 5000
    features of highest relevance; apart from that both engines give the same order.

    Args:
        features: (n, d), each value -1, 0 or 1; only which samples share a value matters. A constant feature has no information and is
            allowed.
        labels: (n,) whole numbers, at least two classes: with one, every relevance is 0 and there is nothing to select by.
        k: number of features, 1 to d.
        scheme: "MIQ" or "MID".
        engine: "fast" (numpy, here) or "pymrmr" (that package in a process of its own; minutes to hours for hundreds of features).
    Returns: (k,) int64 column indices in order of selection.
    Raises:
        ValueError: if shapes, values, k, scheme or engine are not as above; the message names the value.
        RuntimeError: if pymrmr is not installed, fails or returns anything but k different features; the message holds what it wrote.
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
    wrong = np.argwhere(~np.isin(features, LEVELS))
    if len(wrong):
        row, column = wrong[0].tolist()
        found = f"{features[row, column]} at ({row}, {column}) ({len(wrong)} such values)"
        raise ValueError(f"features must be -1, 0 or 1, got {found}: discretise them first")
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels must be whole numbers, got dtype {labels.dtype}")
    names, classes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"labels must hold at least two classes, got {names[0]} in all {len(labels)} samples")
    if engine == "pymrmr":
        return pymrmr_orders([(features.astype(np.int32) + 1, classes, int(k), scheme)])[0]
    return _select(features, classes, int(k), scheme)


def shortfall(features: np.ndarray, labels: np.ndarray, order: Sequence[int] | np.ndarray, scheme: str = "MIQ") -> np.ndarray:
    """How far each choice of an order falls short of the best one that was left, given those before it: 0 in every mRMR order.

    Two engines may order ties differently and are both right; this tells them from a wrong one. Computed with scikit-learn's mutual
    information, apart from both engines; for tens of features.

    Args:
        features, labels, scheme: as for `mrmr`.
        order: (k,) column indices.
    Returns: (k,) best score − score of the choice, divided by 1 + the best; rounding leaves about 1e-9 (pymrmr's first choice: 1e-7, its
        relevance is in single precision).
    """
    from sklearn.metrics import mutual_info_score

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


def has_pymrmr() -> bool:
    """Whether the package is installed: it is an extra, vfmgl-workbook[mrmr], and everything but the cross-check runs without."""
    return importlib.util.find_spec("pymrmr") is not None


def pymrmr_orders(tables: Sequence[tuple[np.ndarray, np.ndarray, int, str]]) -> list[np.ndarray]:
    """Orders of selection by pymrmr, for several tables in one process of its own, whose printing and crashes stay outside ours.

    Args:
        tables: (features, labels, k, scheme) each, as for `mrmr` but with values from 0 to some hundreds: pymrmr counts in tables of
            range × range, and dies on large ones. It is not checked here; `mrmr(engine="pymrmr")` does it.
    Returns: one (k,) int64 array of column indices per table.
    Raises: RuntimeError: if pymrmr is not installed, fails, or its answer is not k different columns.
    """
    if not has_pymrmr():
        raise RuntimeError(NO_PYMRMR)
    with tempfile.TemporaryDirectory(prefix="mrmr") as folder:
        question, answer = Path(folder) / "tables.npz", Path(folder) / "selected.json"
        arrays = {f"{part}{i}": table[part == "labels"] for i, table in enumerate(tables) for part in ("features", "labels")}
        np.savez(question, allow_pickle=False, **arrays)
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


def _select(features: np.ndarray, classes: np.ndarray, k: int, scheme: str) -> np.ndarray:
    members = _bits(np.stack([features == level for level in LEVELS]))
    relevance = _information(members, _bits(np.arange(classes.max() + 1)[:, None, None] == classes[:, None]), len(features))
    order = [_first_of_the_best(relevance, np.full_like(relevance, ROUNDING))]
    redundancy_sum = np.zeros_like(relevance)
    while len(order) < k:
        redundancy_sum += _information(members, members[:, :, order[-1:]], len(features))
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


def _bits(member: np.ndarray) -> np.ndarray:
    """(levels, n, features) bool, is a sample at the level? → (words, levels, features) uint64, a bit a sample, padded with zeros."""
    packed = np.packbits(member, axis=1)
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8), (0, 0)))
    return np.ascontiguousarray(np.ascontiguousarray(padded.transpose(0, 2, 1)).view(np.uint64).transpose(2, 0, 1))


def _information(members: np.ndarray, variable: np.ndarray, samples: int) -> np.ndarray:
    """I(feature; variable) in bits for every feature, (d,), from exact counts:

        n·I(x; y) = Σ c log c over the joint table + n log n − Σ c log c over either margin

    Args:
        members: of the features, (words, 3, d) as `_bits` makes them.  variable: of one variable, (words, its levels, 1).
    """
    numbers = np.arange(samples + 1)
    c_log_c = numbers * np.log2(np.maximum(numbers, 1))  # 0 log 0 = 0

    def total(bits: np.ndarray) -> np.ndarray:
        return c_log_c[np.bitwise_count(bits).sum(axis=0, dtype=np.int32)].sum(axis=0)

    joint = sum(total(members & variable[:, [level]]) for level in range(variable.shape[1]))
    return (joint + c_log_c[-1] - total(members) - total(variable)) / samples
