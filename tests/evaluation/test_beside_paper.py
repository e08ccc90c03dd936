"""The paper's printed numbers beside ours."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.beside_paper import centers_beside_paper, lightweight_beside_paper
from vfmgl_lib.evaluation.complexity import counted
from vfmgl_lib.evaluation.saved_runs import PAPER_RESULTS
from vfmgl_lib.methods.settings import load_settings


@pytest.mark.parametrize(("obstacle", "difference"), [("", -0.1), ("phantoms", np.nan)])
def test_centres_are_matched_by_name(obstacle: str, difference: float):
    paper = pd.DataFrame(
        [
            ("nuclei", "A", "test", "VFMGL", "dice", 0.75),
            ("nuclei", "all", "test", "VFMGL", "dice", 0.5),
            ("nuclei", "A", "six splits", "VFMGL", "dice", 0.9),
            ("prostate", "A", "test", "VFMGL", "dice", 0.95),
        ],
        columns=["task", "center", "split", "method", "metric", "value"],
    )
    measured = pd.DataFrame({"center": ["SiteA", "SiteZ"], "value": [0.65, 0.6]})
    table = centers_beside_paper(measured, paper, task="nuclei", metric="dice", obstacle=obstacle).set_index("centre")
    assert table.loc["SiteA", "paper"] == 0.75 and np.isnan(table.loc["SiteZ", "paper"])
    assert table.loc["SiteA", "difference"] == pytest.approx(difference, nan_ok=True)
    assert table.loc["SiteA", "comparable"] == ("no: phantoms" if obstacle else "same name")


def test_the_lightweight_claims():
    counts = counted(load_settings("endometrial", "paper"), "paper")
    assert list(counts["model"]) == ["teacher", "student"] and set(counts["image_size"]) == {224}
    paper = pd.read_csv(PAPER_RESULTS)
    memory = pd.DataFrame({"model": ["student, exported"], "batch": [1], "device": ["cpu"], "peak_bytes": [3e8]})
    rows = lightweight_beside_paper(counts, memory, paper).set_index("quantity")
    assert rows.at["teacher : student, parameters", "measured"] == pytest.approx(86_579_712 / 11_177_538)
    assert rows.at["student: MACs", "relative"] == pytest.approx(0, abs=0.004)
    assert rows.at["teacher: MACs without the products inside attention", "relative"] == pytest.approx(0, abs=0.001)
    assert rows.at["student: peak memory, bytes", "difference"] == 3e8 - 500 * 2**20
    other = lightweight_beside_paper(counted(load_settings("nuclei", "paper"), "paper"), memory, paper).set_index("quantity")
    assert other["paper"].isna().sum() == 4, "the paper says nothing of the UNet"
