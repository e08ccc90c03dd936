"""What the paper prints in one place beside ours: a metric at the centres, the lightweight claims, Table 1. `paper` has all."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vfmgl_lib.tasks.datasheets import FOLDER
from vfmgl_lib.tasks.patients import FIGO, HISTOLOGY, KEYS, QUANTITIES, SETS

# The paper's method and metric -> quantity in notebook 08's table; its "flops" are multiply-accumulates.
VFM, SMALL, ANY = "VFM (DINOv2 ViT-B/14)", "VFMGL (ResNet18)", "VFMGL"
LIGHTWEIGHT = {
    (VFM, "parameters"): "teacher: parameters",
    (VFM, "flops"): "teacher: MACs without the products inside attention",
    (SMALL, "parameters"): "student: parameters",
    (SMALL, "flops"): "student: MACs",
    (ANY, "memory_bytes_upper"): "student: peak memory, bytes",
}
PAPER_TABLE = FOLDER / "table1_endometrial_patients.csv"


def _with_difference(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(difference=table["measured"] - table["paper"])


def centers_beside_paper(measured: pd.DataFrame, paper: pd.DataFrame, *, task: str, metric: str, obstacle: str = "") -> pd.DataFrame:
    """Paper | measured | difference per centre.

    Args:
        measured: center, value.
        paper: data_manifests/paper_results.csv.
        metric: the metric's name in `paper`.
        obstacle: why the two cannot be compared, e.g. "phantoms"; then no difference is given.
    Returns: centre, paper, measured, difference, comparable ("same name", or "no: " and why).
        Centres are matched by name, with or without "Site" before it. Of a task that the paper does not have: "no: not in the paper".
    """
    chosen = (paper["task"] == task) & (paper["metric"] == metric) & (paper["split"] == "test") & (paper["method"] == "VFMGL")
    values = paper[chosen & (paper["center"] != "all")].set_index("center")["value"].astype(float)
    table = pd.DataFrame({"centre": measured["center"], "measured": measured["value"]})
    table.insert(1, "paper", [values.get(c.removeprefix("Site"), np.nan) for c in measured["center"]])
    table = _with_difference(table)
    if obstacle:
        table["difference"] = np.nan
    if not (paper["task"] == task).any():
        return table.assign(comparable="no: not in the paper")
    missing = np.where(table["paper"].isna(), "no: the paper has no such centre", "same name")
    table["comparable"] = f"no: {obstacle}" if obstacle else missing
    return table


def lightweight_beside_paper(counts: pd.DataFrame, footprints: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Paper | measured | difference of the lightweight claims.

    Args:
        counts: of the paper's settings, from `complexity.counted`.
        footprints: from `complexity.measured`; the student's memory is that of the exported model, one image at a time.
        paper: data_manifests/paper_results.csv.
    Returns: quantity, paper, measured, difference, relative, remark; paper is NaN where it says nothing of this student (it gives the
        ResNet18's numbers only).
    """
    printed = paper[paper["task"] == "lightweight"].set_index(["method", "metric"])["value"].astype(float)
    pair = counts.set_index("model")
    teacher, student = pair.loc["teacher"], pair.loc["student"]
    inside = teacher["attention_macs"]
    peak = footprints.query("model == 'student, exported' and batch == 1 and device == 'cpu'")["peak_bytes"].iloc[0]
    known = 1.0 if student["network"].startswith("resnet18") else float("nan")
    rows = [
        (LIGHTWEIGHT[VFM, "parameters"], printed[VFM, "parameters"], teacher["parameters"], ""),
        ("teacher: MACs", printed[VFM, "flops"], teacher["macs"], f"{inside / 1e9:.2f} G of them inside attention"),
        (LIGHTWEIGHT[VFM, "flops"], printed[VFM, "flops"], teacher["macs"] - inside, "what the paper's number matches"),
        (LIGHTWEIGHT[SMALL, "parameters"], known * printed[SMALL, "parameters"], student["parameters"], ""),
        (LIGHTWEIGHT[SMALL, "flops"], known * printed[SMALL, "flops"], student["macs"], "the paper calls them FLOPs"),
        ("teacher : student, parameters", known * 8, teacher["parameters"] / student["parameters"], 'paper: "approximately 1:8"'),
        ("teacher : student, MACs", known * 12, teacher["macs"] / student["macs"], 'paper: "a factor of 1:12"'),
        (LIGHTWEIGHT[ANY, "memory_bytes_upper"], printed[ANY, "memory_bytes_upper"], peak, 'paper: "less than 500 MiB"; whole process'),
    ]
    table = _with_difference(pd.DataFrame(rows, columns=["quantity", "paper", "measured", "remark"]))
    table["relative"] = table["difference"] / table["paper"]
    return table[["quantity", "paper", "measured", "difference", "relative", "remark"]]


def patients_beside_paper(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 1 beside one of ours, matched by centre, set and class.

    Args:
        table: from `tasks.patients.table_one`.
    Returns: columns center, set, label, quantity, paper, here (both float64); NaN on the side that has no such row.
    """
    sides = [
        side.melt(list(KEYS), list(QUANTITIES), "quantity", name).astype({name: "float64"})
        for name, side in (("paper", pd.read_csv(PAPER_TABLE)), ("here", table))
    ]
    both = sides[0].merge(sides[1], on=[*KEYS, "quantity"], how="outer", sort=False)
    order = {name: position for position, name in enumerate((*SETS, *QUANTITIES))}
    # Within a set the negative class comes first in the paper, and its name sorts last.
    return both.sort_values(
        [*KEYS, "quantity"],
        key=lambda column: column.map(order) if column.name in ("set", "quantity") else column,
        ascending=[True, True, False, True],
        ignore_index=True,
    )


def groups_beside_paper(both: pd.DataFrame) -> pd.DataFrame:
    """The groups of patients that the paper's Table 1 and ours both have, in a few numbers.

    Args:
        both: from `patients_beside_paper`.
    Returns: one row a group, index center, set, label; columns in two levels: "patients", "mean age (years)", "FIGO stage I",
        "histologic type I" (the last two as shares of the patients with a row, 0 to 1), each as "paper" and "measured".
        No row where no centre, set and class has the same name in both.
    """
    wide = both.pivot(index=list(KEYS), columns="quantity", values=["paper", "here"]).rename(columns={"here": "measured"}, level=0)
    found = {}
    for side in ("paper", "measured"):
        one = wide[side]
        staged, typed = one[[f"figo_{s}" for s in FIGO]].sum(axis=1), one[[f"histology_{kind}" for kind in HISTOLOGY]].sum(axis=1)
        found["patients", side], found["mean age (years)", side] = one["n"], one["age_mean"]
        found["FIGO stage I", side], found["histologic type I", side] = one["figo_I"] / staged, one["histology_I"] / typed
    table = pd.DataFrame(found)[[(name, side) for name in dict.fromkeys(name for name, _ in found) for side in ("paper", "measured")]]
    order = both.drop_duplicates(list(KEYS)).set_index(list(KEYS)).index
    return table.reindex(order)[lambda rows: rows["patients"].notna().all(axis=1)]
