"""Reliability diagrams."""

import pandas as pd
import pytest

from vfmgl_lib.evaluation.curves import reliability
from vfmgl_lib.figures.calibration import reliability_diagrams
from vfmgl_lib.methods.registry import METHODS

FOUR, TWO = ["A", "B", "C", "D"], ["University hospital of the north", "Łódź $1"]


@pytest.mark.parametrize(("centers", "unit"), [(FOUR, "patient"), (TWO, "image")])
def test_every_bin_is_a_point_and_the_reference_has_bars_and_sizes(centers, unit, make_predictions, collisions):
    table = reliability(make_predictions(centers, one_class=centers[-1]), unit=unit)
    figure = reliability_diagrams(table)
    *axes, empty = figure.axes
    for axis, center in zip(axes, centers, strict=False):
        own = table[(table["center"] == center) & (table["method"] == "vfmgl")]
        (line,) = [line for line in axis.lines if line.get_label() == METHODS["vfmgl"].title]
        assert line.get_xdata().tolist() == own["probability"].tolist() and line.get_ydata().tolist() == own["share"].tolist()
        assert len(axis.lines) == 1 + 6, "the diagonal and the paper's methods"
        sizes = [text.get_text() for text in axis.texts]
        assert sizes[1:] == [str(n) for n in own["n"]] and f"of {own['n'].sum()}" in sizes[0]
        (bars,) = axis.collections
        assert len([path for path in bars.get_paths()]) == len(own)
    assert not empty.lines and "only one class" in empty.texts[0].get_text().replace("\n", " ")
    said = figure.get_supxlabel().replace("\n", " ")
    assert f"{own['brier'].iloc[0]:.3f}" in said and "in bins of five patients or more" in said
    assert not collisions(figure)


def test_without_the_reference_there_are_no_bars_and_several_seeds_are_refused(make_predictions):
    final = make_predictions(["A", "B"], ["local", "fedavg"])
    table = reliability(final, unit="image")
    figure = reliability_diagrams(table, ["fedavg", "vfmgl"])
    assert "Bars" not in figure.get_supxlabel() and "not drawn: VFMGL." in figure.get_supxlabel().replace("\n", " ")
    with pytest.raises(ValueError, match="of one seed, got 0, 1"):
        reliability_diagrams(pd.concat([table, table.assign(seed=1)]))
