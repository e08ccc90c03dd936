"""What every benchmark shares: interleaved timing, one table on the screen, one CSV.

A benchmark is a script, run from anywhere as `python benchmarks/NAME.py`:

    from measure import Row, command_line, measure, ratios, report

    arguments = command_line(__doc__).parse_args()
    seconds = measure({"reference": lambda: slow(x), "fast": lambda: fast(x)}, runs=arguments.runs)
    report(
        "matching",                                     # name of the benchmark
        "B=4 M=4 g=16",                                 # shape: what was worked on
        [Row(name, values) for name, values in seconds.items()] + [Row("ratio", ratios(seconds, "reference", "fast"), "x")],
        checks={"loss within 1e-6 of the reference": difference <= 1e-6},
        csv_file=arguments.csv,
    )

Checks are made by the benchmark itself on the very values it timed; a failed one stops the report before a number is shown.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).resolve().with_name("results.csv")
COLUMNS = ("name", "device", "shape", "metric", "unit", "p20", "p50", "p80", "versions", "commit")


class CheckFailed(RuntimeError):
    """The measured code gave a wrong result: its speed is of no interest."""


class Row(NamedTuple):
    """One line of the table: a metric and all its measured values (a single value is a list of one)."""

    metric: str
    values: Sequence[float]
    unit: str = "s"


def command_line(description: str, runs: int = 5) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks have: --runs (default `runs`) and --csv."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=runs, help=f"timed calls of each function (default {runs}; one more warms up)")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="file the rows are appended to (default: results.csv beside the scripts)")
    return parser


def measure(functions: Mapping[str, Callable[[], Any]], runs: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns (A B A B …), so that a slow minute of the machine falls on all of them.

    Args:
        functions: name → function without arguments; its result is discarded.
        runs: timed rounds, at least 1.
        warm_up: rounds before them whose times are not kept.
    Returns: name → `runs` wall times in seconds, in order; run i of one function stands beside run i of the others. On a GPU a time
        ends when the device has finished its work.
    Raises: ValueError: if there is no function or runs < 1.
    """
    if not functions:
        raise ValueError("functions is empty: name at least one function to measure")
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + runs):
        for name, function in functions.items():
            _wait_for_gpu()
            start = time.perf_counter()
            function()
            _wait_for_gpu()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> list[float]:
    """How many times longer `slow` took than `fast`, run by run (neighbours in time), dimensionless."""
    return [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]


def report(
    name: str,
    shape: str,
    rows: Sequence[Row],
    *,
    checks: Mapping[str, bool],
    device: str = "cpu",
    packages: Sequence[str] = ("numpy", "torch"),
    csv_file: Path = RESULTS,
) -> None:
    """Prints 20th, 50th and 80th percentile of each row and appends them to the CSV; refuses both if a check failed.

    Args:
        name: of the benchmark.
        shape: what was worked on, as "n=1000 d=512".
        rows: the table's lines.
        checks: what makes the numbers worth printing → whether it held; at least one.
        device: "cpu" or "cuda"; written down as the model's name.
        packages: whose versions belong to the numbers; Python's always does.
        csv_file: is made with its header if it does not exist.
    Raises:
        CheckFailed: if a check does not hold; the message names it.
        ValueError: if there is no check, no row or no value, or the CSV has other columns.
    """
    if not checks or not rows or not all(len(row.values) for row in rows):
        raise ValueError(f"{name} [{shape}]: a report needs a check, a row, and a value in every row, got checks={checks}, rows={rows}")
    failed = [what for what, held in checks.items() if not held]
    if failed:
        raise CheckFailed(f"{name} [{shape}]: nothing is reported, since this did not hold: {'; '.join(failed)}")
    machine = device_name(device)
    versions = "; ".join([f"python {platform.python_version()}", *(f"{package} {version(package)}" for package in packages)])
    state = commit()
    print(f"{name} | {shape} | {machine}")
    lines = []
    for row in rows:
        percentiles = [f"{value:.4g}" for value in np.percentile(np.asarray(row.values, dtype=float), (20, 50, 80))]
        p20, p50, p80 = percentiles
        print(f"  {row.metric:<32} p20 {p20:>9}  p50 {p50:>9}  p80 {p80:>9}  {row.unit}  ({len(row.values)} runs)")
        lines.append([name, machine, shape, row.metric, row.unit, *percentiles, versions, state])
    _append(csv_file, lines)


def device_name(device: str = "cpu") -> str:
    """Model of the GPU ("cuda"), or of the CPU with the threads that numeric libraries may use on it."""
    if device.startswith("cuda"):
        import torch  # only a benchmark on a GPU has loaded it anyway

        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", cores))
    return f"{_cpu_model()}, {threads} of {cores} cores"


def commit() -> str:
    """The checkout's commit, with "+" if files other than the results differ from it; "" outside a checkout."""
    git = ["git", "-C", str(RESULTS.parent)]
    others = ["--", ":/", ":(top,exclude)benchmarks/results.csv"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", *others], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" * bool(changed)


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _wait_for_gpu() -> None:
    # Only where the benchmark itself has touched CUDA: asking must neither import torch nor start a context.
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _append(file: Path, lines: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if file.exists() and file.stat().st_size:
        with open(file, encoding="utf-8", newline="") as existing:
            header = tuple(next(csv.reader(existing), ()))
        if header != COLUMNS:
            raise ValueError(f"{file}: columns must be {','.join(COLUMNS)}, got {','.join(header)}")
    else:
        writer.writerow(COLUMNS)
    writer.writerows(lines)
    # One write in append mode: two benchmarks that end together do not mix their lines.
    with open(file, "a", encoding="utf-8", newline="") as results:
        results.write(text.getvalue())
