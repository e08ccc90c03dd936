"""The paper's numbers and ours, drawn."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.paper import COLUMNS, headline, paper_rows
from vfmgl_lib.evaluation.saved_runs import read_paper
from vfmgl_lib.figures.paper import beside_paper, names_of_rows, states
from vfmgl_lib.figures.style import save_figure


def rows(count: int = 3) -> pd.DataFrame:
    table = pd.DataFrame({name: [np.nan] * count for name in COLUMNS})
    text = ("task", "data", "center", "split", "method", "metric", "status", "because", "protocol", "where", "counts", "paper_counts")
    table = table.astype(dict.fromkeys(text, object)).assign(**dict.fromkeys(text, ""))
    return table.assign(
        task="nuclei",
        center=[*"ABCDEFGH"][:count],
        split="test",
        method="VFMGL",
        metric="dice",
        paper=0.75,
        measured=0.6,
        status="compared",
    )


def drawn(figure, label: str) -> list:
    return [line for line in figure.axes[0].lines if line.get_label() == label]


def markers(figure, marker: str) -> list:
    return [line for line in figure.axes[0].lines if line.get_marker() == marker and len(line.get_xdata())]


def test_every_row_has_both_numbers(tmp_path):
    table = rows()
    table.loc[1, ["low", "high"]] = [0.5, 0.7]
    figure = beside_paper(table)
    assert [float(line.get_xdata()[0]) for line in markers(figure, "D")] == [0.75] * 3
    assert [float(line.get_xdata()[0]) for line in markers(figure, "o")] == [0.6] * 3
    intervals = [list(line.get_xdata()) for line in figure.axes[0].lines if list(line.get_xdata()) == [0.5, 0.7]]
    assert len(intervals) == 1
    table.loc[2, ["std", "paper_std"]] = [0.1, 0.05]
    spreads = [list(np.round(line.get_xdata(), 6)) for line in beside_paper(table).axes[0].lines if len(line.get_xdata()) == 2]
    assert [0.5, 0.7] in spreads and spreads.count([0.5, 0.7]) == 2 and [0.7, 0.8] in spreads
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["A, test, Dice", "B, test, Dice", "C, test, Dice"]
    save_figure(figure, table, tmp_path, "beside")
    assert len(list(tmp_path.iterdir())) == 3


def test_other_data_are_hollow_and_missing_ones_are_said():
    table = rows()
    table.loc[0, "status"] = "not comparable"
    table.loc[1, ["status", "measured"]] = ["not measurable here", np.nan]
    figure = beside_paper(table)
    fills = [line.get_markerfacecolor() for line in markers(figure, "o")]
    assert fills[0] == "white" and fills[2] != "white"
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measurable"]


def test_other_scales_stay_out_and_are_counted():
    table = rows()
    table.loc[2, ["metric", "paper", "measured"]] = ["assd", 5.9, 3.0]
    figure = beside_paper(table)
    assert len(markers(figure, "D")) == 2 and "1 further numbers" in figure.get_supxlabel()


def test_names_say_the_method_unless_it_is_vfmgl():
    table = rows(2)
    table.loc[1, ["method", "metric"]] = ["VFMGL model A", "auc_gain"]
    assert names_of_rows(table) == ["A, test, Dice", "B, test, VFMGL model A, AUC gain"]


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_are_drawn(count: int):
    assert len(markers(beside_paper(rows(count) if count else rows(1).iloc[:0]), "D")) == count


def test_states_add_up():
    counted = headline(paper_rows(read_paper(), []))
    figure = states(counted)
    assert sum(patch.get_width() for patch in figure.axes[0].patches) == counted["rows"].sum()
    assert len(figure.axes[0].get_yticklabels()) == 5
