"""Figures of HGKT."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.figures import transfer
from vfmgl_lib.figures.style import save_figure

STAGES, BLOCKS = ("stem", "layer1", "layer2"), ("block 1", "block 12")


def steps(centers: int, rounds: int, batches: int = 3) -> pd.DataFrame:
    rows = [
        {"round": r, "center": f"c{c}", "stage": stage, "step": s, "task_loss": 1 / (r + s), "match_loss": 8.0, "outer_loss": 0.5}
        for r in range(1, rounds + 1)
        for c in range(centers)
        for stage in ("I", "II")[: 1 if r == 1 else 2]
        for s in range(batches)
    ]
    return pd.DataFrame(rows).assign(hypergradient_norm=0.1)


def stages(centers: int, rounds: int) -> pd.DataFrame:
    rows = []
    for r in range(1, rounds + 1):
        for c in range(centers):
            weights = np.random.default_rng([r, c]).uniform(0, 6, (len(BLOCKS), len(STAGES)))
            frozen = np.argsort(-weights.mean(0))[:1]
            rows += [
                (r, f"c{c}", block, stage, weights[m, n], weights[:, n].mean(), int(n in frozen))
                for m, block in enumerate(BLOCKS)
                for n, stage in enumerate(STAGES)
            ]
    return pd.DataFrame(rows, columns=["round", "center", "teacher_block", "student_stage", "pair_weight", "stage_score", "critical"])


@pytest.mark.parametrize(("centers", "rounds"), [(1, 1), (2, 3), (8, 2)])
def test_losses(centers: int, rounds: int, tmp_path):
    table = transfer.stage_one_steps(steps(centers, rounds))
    assert set(table["stage"]) == {"I"}
    assert table.groupby("center")["total_step"].agg(list).map(lambda x: x == list(range(1, 3 * rounds + 1))).all()
    figure = transfer.losses(table)
    assert len(figure.axes) == 4
    for axis, column in zip(figure.axes, transfer.STEP_PANELS, strict=True):
        curves = [line for line in axis.lines if len(line.get_xdata()) == 3 * rounds]
        assert len(curves) == centers
        assert len(axis.lines) == centers + rounds - 1  # the rounds' ends
        assert list(curves[0].get_ydata()) == table.loc[table["center"] == "c0", column].tolist()
        assert axis.get_ylabel()
    save_figure(figure, table, tmp_path, "losses", "Teacher: RANDOM weights")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("rounds", "shown"), [(1, [1]), (2, [1, 2]), (10, [1, 10])])
def test_pair_weights_share_one_scale_and_mark_critical_stages(rounds: int, shown: list[int]):
    table = stages(1, rounds)
    figure = transfer.pair_weights(table)
    heatmaps = [axis for axis in figure.axes if axis.images][: len(shown)]
    assert [axis.get_title(loc="left") for axis in heatmaps] == [f"round {number}" for number in shown]
    assert len({axis.images[0].get_clim() for axis in heatmaps}) == 1
    for axis, number in zip(heatmaps, shown, strict=True):
        part = table[table["round"] == number]
        critical = set(part.loc[part["critical"] == 1, "student_stage"])
        labels = [text.get_text() for text in axis.get_xticklabels()]
        assert labels == [f"★ {stage}" if stage in critical else stage for stage in STAGES]
        assert len(axis.patches) == len(critical) == 1
        printed = [text.get_text() for text in axis.texts]
        assert printed == [f"{value:.2f}" for value in part["pair_weight"]]


def test_the_change_has_a_scale_of_its_own_around_zero():
    table = stages(1, 3)
    axis = [axis for axis in transfer.pair_weights(table).axes if axis.images][2]
    wide = table.pivot(index=["teacher_block", "student_stage"], columns="round", values="pair_weight")
    change = (wide[3] - wide[1]).unstack().reindex(index=BLOCKS, columns=STAGES)
    assert axis.get_title(loc="left") == "change, 1 to 3"
    np.testing.assert_allclose(axis.images[0].get_array(), change)
    low, high = axis.images[0].get_clim()
    assert -low == high == change.abs().to_numpy().max()
    assert [text.get_text() for text in axis.texts] == [f"{value:+.2f}" for value in change.to_numpy().ravel()]


@pytest.mark.parametrize(("part", "untouched"), [(0.09, True), (0.11, False)])
def test_as_initialised_means_less_than_a_tenth_of_the_spread(part: float, untouched: bool):
    table = stages(1, 1)
    moved = table.assign(round=2, pair_weight=table["pair_weight"])
    moved.loc[0, "pair_weight"] += part * table["pair_weight"].std()
    both = pd.concat([table, moved])
    assert transfer.movement(both)["largest change"] == pytest.approx(part * table["pair_weight"].std())
    assert transfer.as_initialised(both) == untouched
    titles = [axis.get_title(loc="left") for axis in transfer.pair_weights(both).axes if axis.images]
    assert titles[1] == ("round 2 (as initialised)" if untouched else "round 2")


def test_pair_weights_of_several_centres_are_refused():
    with pytest.raises(ValueError, match=r"one center, got \['c0', 'c1'\]"):
        transfer.pair_weights(stages(2, 1))


@pytest.mark.parametrize("centers", [1, 2, 5, 8])
def test_stage_scores_have_a_panel_a_centre(centers: int):
    table = stages(centers, 2)
    figure = transfer.stage_scores(table)
    visible = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title(loc="left") for axis in visible] == [f"centre c{i}" for i in range(centers)]
    # Per stage a line, its open dots, its filled dots: the third is what was critical. Two more lines are the legend's.
    filled = visible[0].lines[2 : 3 * len(STAGES) : 3]
    marked = sum(len(line.get_xdata()) for line in filled)
    expected = table.query("center == 'c0'").drop_duplicates(["round", "student_stage"])["critical"].sum()
    assert marked == expected == 2
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["critical (frozen in stage II)", "free"]
    for axis in visible:
        assert sorted(text.get_text() for text in axis.texts) == sorted(STAGES)


def test_names_at_the_lines_ends_do_not_overlap():
    axis = transfer.stage_scores(stages(1, 2).assign(stage_score=[1.0, 1.0, 3.0] * 4)).axes[0]
    heights = sorted(text.xy[1] for text in axis.texts)
    assert heights == pytest.approx([0.89, 1.11, 3.0])
