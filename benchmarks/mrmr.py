"""Selection of features by mRMR: vfmgl_lib.interpretation against pymrmr.

    OMP_NUM_THREADS=1 python benchmarks/mrmr.py          # one core; some minutes, most of them pymrmr's

Claim: 256 of 512 features from 1000 samples in at most 1 s on one core. pymrmr works on the same table only as far as is bearable;
its time includes the start of its process (the row "pymrmr, k=1" is mostly that). What it would take for the whole selection is
estimated from its number of mutual informations, and called so.
"""

from __future__ import annotations

import numpy as np
from measure import Row, command_line, measure, ratios, report

from vfmgl_lib.interpretation import MIQ_OFFSET, mrmr

SIZES = ((1000, 512, 256), (10_000, 512, 256), (10_000, 2048, 256))  # samples, features, k
CHECKED = 24  # selections compared with the plain form: it takes long, and a wrong count shows at once


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--pymrmr-k", type=int, default=8, help="features that pymrmr selects from the first size (default 8; 0: leave it out)"
    )
    arguments = parser.parse_args()
    packages = ("numpy", "pymrmr")
    for samples, count, k in SIZES:
        features, labels = table(samples, count)
        seconds = measure({"ours": lambda x=features, y=labels, k=k: mrmr(x, y, k)}, arguments.runs)
        same = np.array_equal(mrmr(features, labels, k)[:CHECKED], plain(features + 1, labels, CHECKED))
        shape = f"n={samples} d={count} k={k} values=3 MIQ"
        checks = {f"first {CHECKED} as by the plain form": same}
        report("mrmr", shape, [Row("ours", seconds["ours"])], checks=checks, packages=packages, csv_file=arguments.csv)
    if arguments.pymrmr_k:
        against_pymrmr(arguments.pymrmr_k, arguments.runs, packages, arguments.csv)


def against_pymrmr(k, runs, packages, csv_file) -> None:
    samples, count, whole = SIZES[0]
    features, labels = table(samples, count)
    functions = {
        "ours": lambda: mrmr(features, labels, k),
        "pymrmr": lambda: mrmr(features, labels, k, engine="pymrmr"),
        "pymrmr, k=1": lambda: mrmr(features, labels, 1, engine="pymrmr"),
        "ours, whole": lambda: mrmr(features, labels, whole),
    }
    seconds = measure(functions, runs, warm_up=1)
    one_more = [
        (a - b) / (informations(count, k) - informations(count, 1)) for a, b in zip(seconds["pymrmr"], seconds["pymrmr, k=1"], strict=True)
    ]
    estimate = [first + one * informations(count, whole) for first, one in zip(seconds["pymrmr, k=1"], one_more, strict=True)]
    rows = [
        Row("ours", seconds["ours"]),
        Row("pymrmr", seconds["pymrmr"]),
        Row("pymrmr, k=1", seconds["pymrmr, k=1"]),
        Row("ratio pymrmr/ours", ratios(seconds, "pymrmr", "ours"), "x"),
        Row(f"pymrmr, k={whole}, estimated", estimate),
        Row(f"ratio, k={whole}, estimated", [a / b for a, b in zip(estimate, seconds["ours, whole"], strict=True)], "x"),
    ]
    same = np.array_equal(mrmr(features, labels, k), mrmr(features, labels, k, engine="pymrmr"))
    shape = f"n={samples} d={count} k={k} values=3 MIQ"
    report("mrmr", shape, rows, checks={"order equals pymrmr's": same}, packages=packages, csv_file=csv_file)


def table(samples: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) of the levels -1, 0 and 1 that tell something about two classes and about each other, and the labels (n,)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, samples)
    groups = generator.integers(0, 3, (samples, 16))
    features = generator.integers(0, 3, (samples, count))
    shared = generator.random((samples, count)) < generator.uniform(0, 0.6, count)
    features = np.where(shared, groups[:, np.arange(count) % 16], features)
    told = generator.random((samples, count)) < generator.uniform(0, 0.3, count)
    return np.where(told, labels[:, None], features) - 1, labels


def plain(features: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """MIQ selection written down as it is defined, one contingency table after another."""
    relevance = np.array([information(column, labels) for column in features.T])
    order, redundancy = [int(relevance.argmax())], np.zeros(len(relevance))
    while len(order) < k:
        redundancy += [information(column, features[:, order[-1]]) for column in features.T]
        score = relevance / (redundancy / len(order) + MIQ_OFFSET)
        score[order] = -np.inf
        order.append(int(score.argmax()))
    return np.array(order)


def information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two discrete variables (values from 0), bits."""
    joint = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(-1, b.max() + 1) / len(a)
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return float((joint[joint > 0] * np.log2(joint[joint > 0] / independent[joint > 0])).sum())


def informations(count: int, k: int) -> int:
    """Mutual informations that pymrmr computes: relevance again for every candidate of every step, redundancy with each selected one."""
    return count + 1 + sum((count - selected) * (1 + selected) for selected in range(1, k))


if __name__ == "__main__":
    main()
