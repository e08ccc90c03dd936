"""Figures of HGKT."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation import hgkt_tables
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
                (r, f"c{c}", block, stage, weights[m, n], weights[:, n].mean(), int(n in frozen), 0.1 * r + 0.01 * m - 0.2 * n)
                for m, block in enumerate(BLOCKS)
                for n, stage in enumerate(STAGES)
            ]
    columns = ["round", "center", "teacher_block", "student_stage", "pair_weight", "stage_score", "critical", "r2"]
    return pd.DataFrame(rows, columns=columns)


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


@pytest.mark.parametrize(("centers", "rounds"), [(1, 1), (2, 3), (8, 2)])
def test_losses(centers: int, rounds: int, tmp_path):
    table = hgkt_tables.stage_one_steps(steps(centers, rounds))
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
    heatmaps = panels(figure)[: len(shown)]
    assert [axis.get_title(loc="left") for axis in heatmaps] == [f"round {number}" for number in shown]
    assert len({axis.collections[0].get_clim() for axis in heatmaps}) == 1
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
    axis = panels(transfer.pair_weights(table))[2]
    wide = table.pivot(index=["teacher_block", "student_stage"], columns="round", values="pair_weight")
    change = (wide[3] - wide[1]).unstack().reindex(index=BLOCKS, columns=STAGES)
    assert axis.get_title(loc="left") == "change, 1 to 3"
    np.testing.assert_allclose(axis.collections[0].get_array(), change)
    low, high = axis.collections[0].get_clim()
    assert -low == high == change.abs().to_numpy().max()
    assert [text.get_text() for text in axis.texts] == [f"{value:+.2f}" for value in change.to_numpy().ravel()]


@pytest.mark.parametrize(("part", "untouched"), [(0.09, True), (0.11, False)])
def test_as_initialised_means_less_than_a_tenth_of_the_spread(part: float, untouched: bool):
    table = stages(1, 1)
    moved = table.assign(round=2, pair_weight=table["pair_weight"])
    moved.loc[0, "pair_weight"] += part * table["pair_weight"].std()
    both = pd.concat([table, moved])
    assert hgkt_tables.movement(both)["largest change"] == pytest.approx(part * table["pair_weight"].std())
    assert hgkt_tables.as_initialised(both) == untouched
    titles = [axis.get_title(loc="left") for axis in panels(transfer.pair_weights(both))]
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


def _rounds(centers: int, rounds: int) -> pd.DataFrame:
    rows = [(r, f"c{c}", "I", 0.5, 100.0 / (r + c)) for r in range(1, rounds + 1) for c in range(centers)]
    second = pd.DataFrame({"round": [2], "center": ["c0"], "stage": ["II"], "task_loss": [9.0], "match_loss": [np.nan]})
    return pd.concat([pd.DataFrame(rows, columns=second.columns), second])


def test_balance_compares_losses_fit_and_movement():
    pairs = stages(2, 3)
    table = hgkt_tables.balance(_rounds(2, 3), pairs).set_index(["center", "round"])
    assert table["match_to_task"].tolist() == pytest.approx([200, 100, 200 / 3, 100, 200 / 3, 50])
    assert len(table) == 6 and table.loc[("c0", 1), "moved"] == 0
    one = pairs[pairs["center"] == "c1"]
    wide = one.pivot(index=["teacher_block", "student_stage"], columns="round", values="pair_weight")
    moved = (wide[3] - wide[1]).abs().mean() / wide[1].std()
    assert table.loc[("c1", 3), "moved"] == pytest.approx(moved)
    assert table.loc[("c1", 3), "spread"] == pytest.approx(hgkt_tables.movement(one)["spread"])
    low, middle, high = one[one["round"] == 2]["r2"].agg(["min", "median", "max"])
    assert table.loc[("c1", 2), ["r2_low", "r2", "r2_high"]].tolist() == pytest.approx([low, middle, high])


def test_balances_draw_every_centre_in_three_panels():
    table = hgkt_tables.balance(_rounds(2, 3), stages(2, 3))
    figure = transfer.balances(table)
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear", "linear"]
    for axis, column in zip(figure.axes, transfer.BALANCE_PANELS, strict=True):
        curves = [line for line in axis.lines if line.get_label() in ("c0", "c1")]
        assert [list(line.get_ydata()) for line in curves] == [table.loc[table["center"] == c, column].tolist() for c in ("c0", "c1")]


def test_pair_fit_prints_every_pair_and_what_was_not_measured():
    table = stages(1, 3)
    table.loc[0, "r2"] = np.nan
    heatmaps = panels(transfer.pair_fit(table))
    assert [axis.get_title(loc="left") for axis in heatmaps] == ["round 1", "round 3"]
    for axis, number in zip(heatmaps, (1, 3), strict=True):
        shown = table.loc[table["round"] == number, "r2"].map("{:.2f}".format).replace("nan", "n/a")
        assert [text.get_text() for text in axis.texts] == shown.tolist()
    assert heatmaps[0].texts[0].get_text() == "n/a" and heatmaps[0].texts[0].get_color() == transfer.MUTED


def test_steps_without_a_hypergradient_are_left_out_of_their_curves():
    table = hgkt_tables.stage_one_steps(steps(1, 2))
    table.loc[table["step"] % 2 == 1, ["outer_loss", "hypergradient_norm"]] = np.nan
    curves = [axis.lines[-1] for axis in transfer.losses(table).axes]
    assert [len(curve.get_xdata()) for curve in curves] == [6, 6, 4, 4]


def test_a_trajectory_begins_where_the_start_is_known():
    table = stages(1, 3)
    drawn = hgkt_tables.trajectory(table, "random")
    assert sorted(drawn["round"].unique()) == [1, 2, 3] and list(drawn["pair_weight"]) == list(table["pair_weight"])
    known = hgkt_tables.trajectory(table, "zero")
    assert sorted(known["round"].unique()) == [0, 1, 2, 3] and (known.loc[known["round"] == 0, "pair_weight"] == 1).all()
    pd.testing.assert_frame_equal(known[known["round"] > 0].reset_index(drop=True), drawn)
    figure = transfer.trajectories(known)
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(BLOCKS)
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 4]
    assert len(lines) == len(STAGES) and all(line.get_ydata()[0] == 1 for line in lines)
    last = table[(table["teacher_block"] == BLOCKS[1]) & (table["student_stage"] == STAGES[2]) & (table["round"] == 3)]
    assert lines[2].get_ydata()[3] == last["pair_weight"].item()
    with pytest.raises(ValueError, match="one center"):
        transfer.trajectories(stages(2, 2))


def test_how_often_a_stage_was_chosen_is_counted_over_seeds_and_centers():
    runs = pd.concat([stages(2, 2).assign(seed=seed) for seed in range(3)])
    runs["critical"] = ((runs["student_stage"] == "stem") | ((runs["seed"] == 1) & (runs["center"] == "c1"))).astype(int)
    table = hgkt_tables.times_chosen(runs)
    assert list(table["student_stage"]) == list(STAGES) * 2 and set(table["runs"]) == {6}
    assert list(table["chosen"]) == [6, 1, 1] * 2
    assert table["share"].tolist() == pytest.approx([1, 1 / 6, 1 / 6] * 2)
    axis = panels(transfer.chosen_stages(table))[0]
    assert [text.get_text() for text in axis.texts] == ["6", "6", "1", "1", "1", "1"]
