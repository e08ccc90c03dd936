"""Figures of DDBL."""

import math

import pandas as pd
import pytest

from vfmgl_lib.evaluation import ddbl_tables
from vfmgl_lib.figures import deduction
from vfmgl_lib.figures.style import save_figure
from vfmgl_lib.method.ddbl import margin_to_drop
from vfmgl_lib.methods.settings import load_settings

SETTINGS = load_settings("nuclei", "paper").deduction
KAPPA = SETTINGS.keep_ratio


def study(centers: int, rounds: int, high: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """steps and rounds; the last batch of each stage II has the divergence `high`, the others 0.01; l_task is 0.5."""
    steps, summary = [], []
    for number in range(1, rounds + 1):
        for center in (f"c{i}" for i in range(centers)):
            summary.append({"round": number, "center": center, "stage": "I", "task_loss": 0.5})
            steps.append({"round": number, "center": center, "stage": "I", "step": 0, "task_loss": 0.5})
            if number == 1:
                continue
            divergences = [0.0, 0.01, high]
            kept = [int(value <= KAPPA * 0.5) for value in divergences]
            summary.append({"round": number, "center": center, "stage": "II", "task_loss": 0.4, "kept_share": sum(kept) / 3})
            about = {"round": number, "center": center, "stage": "II", "task_loss": 0.4, "threshold": KAPPA * 0.5}
            steps += [{**about, "step": i, "divergence": d, "kept": k} for i, (d, k) in enumerate(zip(divergences, kept, strict=True))]
    columns = ["round", "center", "stage", "step", "task_loss", "divergence", "threshold", "kept"]
    return pd.DataFrame(steps).reindex(columns=columns), pd.DataFrame(summary).reindex(
        columns=["round", "center", "stage", "task_loss", "kept_share"]
    )


@pytest.mark.parametrize("centers", [2, 8])
def test_kept_and_dropped_lie_on_their_side_of_one(centers: int, tmp_path):
    batches = ddbl_tables.stage_two_batches(*study(centers, 3, high=7.0))
    assert len(batches) == centers * 2 * 3 and (batches["local_task_loss"] == 0.5).all()
    assert batches["ratio"].equals(batches["divergence"] / batches["threshold"])
    figure = deduction.divergence_over_threshold(batches, ddbl_tables.rule_in_words(SETTINGS))
    axes = [axis for axis in figure.axes if axis.axison]
    assert len(axes) == centers
    for axis in axes:
        threshold, kept, dropped = axis.lines
        assert set(threshold.get_ydata()) == {1}
        assert all(y <= 1 for y in kept.get_ydata()) and len(set(kept.get_xdata())) == 4
        assert list(dropped.get_ydata()) == [7.0 / (KAPPA * 0.5)] * 2
        assert [round(x) for x in dropped.get_xdata()] == [2, 3]
        assert (axis.get_yscale(), axis.get_title(loc="left")[9:]) == ("log", ": 4 of 6 kept")
    assert axes[0].get_ylabel() == "KL of the batch / threshold"
    save_figure(figure, batches, tmp_path, "divergence")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "divergence.csv"), batches, check_dtype=False, check_exact=True)


def test_equal_shares_are_drawn_side_by_side():
    _, rounds = study(3, 3, high=1.0)
    axis = deduction.kept_share(rounds).axes[0]
    starts = [line.get_xdata()[0] for line in axis.lines]
    assert len(axis.lines) == 3 and len(set(starts)) == 3
    assert all(list(line.get_ydata()) == [100, 100] for line in axis.lines)


def test_one_round_says_why_there_is_nothing(tmp_path):
    steps, rounds = study(2, 1, high=1.0)
    batches = ddbl_tables.stage_two_batches(steps, rounds)
    assert batches.empty
    for figure in (deduction.divergence_over_threshold(batches, ddbl_tables.rule_in_words(SETTINGS)), deduction.kept_share(rounds)):
        assert "starts in round 2" in figure.axes[0].texts[0].get_text()
        save_figure(figure, batches, tmp_path, "nothing")
    assert ddbl_tables.telling_batches(batches).empty
    assert "starts in round 2" in ddbl_tables.what_happened(batches)


@pytest.mark.parametrize(
    ("high", "said"), [(7.0, "2 of 6 batches were dropped"), (1.0, "No batch was dropped: this run does not exercise")]
)
def test_what_happened_says_plainly_when_nothing_was_dropped(high: float, said: str):
    text = ddbl_tables.what_happened(ddbl_tables.stage_two_batches(*study(2, 2, high)))
    assert text.startswith(said) and text.endswith("The median of KL / threshold is 0.005.")


@pytest.mark.parametrize(("high", "second"), [(7.0, "dropped, highest KL"), (1.0, "highest KL, kept as well")])
def test_telling_batches_say_whether_one_was_dropped(high: float, second: str):
    telling = ddbl_tables.telling_batches(ddbl_tables.stage_two_batches(*study(2, 2, high)))
    assert telling["shown"].tolist() == ["kept, lowest KL", second]
    assert telling["divergence"].tolist() == [0.0, high]


def test_all_dropped_shows_a_dropped_one_only():
    batches = ddbl_tables.stage_two_batches(*study(2, 2, 7.0)).query("kept == 0")
    assert ddbl_tables.telling_batches(batches)["shown"].tolist() == ["dropped, highest KL"]


def taught(scores: dict[str, list[float]], untrained: float = 0.3) -> pd.DataFrame:
    """rounds with stages II from round 2 on: center -> the shared model's scores; task loss 1 - score (0.7 without), untrained 0.6."""
    rows = [{"round": 1, "center": center, "stage": "I", "task_loss": 0.5} for center in scores]
    for center, values in scores.items():
        for number, value in enumerate(values, 2):
            worth = {
                "shared_task_loss": 0.7 if math.isnan(value) else 1 - value,
                "shared_score": value,
                "untrained_task_loss": 0.6,
                "untrained_score": untrained,
            }
            rows.append({"round": number, "center": center, "stage": "II"} | worth)
    return pd.DataFrame(rows)


def test_the_quantile_decides_by_the_kl_before_the_stage_and_says_what_it_is_not():
    steps, rounds = study(2, 2, high=7.0)
    before = steps.assign(divergence_before=[math.nan if stage == "I" else 1.0 for stage in steps["stage"]])
    batches = ddbl_tables.stage_two_batches(before, rounds)
    assert (batches["ratio"] == 1.0 / (KAPPA * 0.5)).all()
    text = ddbl_tables.what_happened(batches, "quantile")
    assert text.startswith("2 of 6 batches were dropped by construction, which is no evidence of heterogeneity.")
    quantile = SETTINGS.model_copy(update={"rule": "quantile"})
    assert "0.75 quantile" in ddbl_tables.rule_in_words(quantile) and "KL = 4 " in ddbl_tables.rule_in_words(SETTINGS)


@pytest.mark.parametrize("side", [None, 64])
def test_what_it_takes_has_the_runs_own_numbers(side):
    batches = ddbl_tables.stage_two_batches(*study(2, 3, high=1.0))
    text = ddbl_tables.what_it_takes(batches, SETTINGS, side)
    assert f"more than {margin_to_drop(SETTINGS, 0.5, side):.2g} (root mean square over {'samples' if side is None else 'pixels'}" in text
    assert text.endswith("The largest KL / (κℓ) of this run is 0.5.") and ("τ = 125" in text) == (side == 64)
    assert "no batch" in ddbl_tables.what_it_takes(batches.iloc[:0], SETTINGS, side)


@pytest.mark.parametrize("centers", [1, 5])
def test_gradient_ratios_show_what_was_measured(centers, tmp_path):
    steps, rounds = study(centers, 3, high=1.0)
    steps = steps.assign(gradient_ratio=steps["step"].map({1: 0.1}))
    batches = ddbl_tables.stage_two_batches(steps, rounds)
    figure = deduction.gradient_ratios(batches)
    axes = [axis for axis in figure.axes if axis.axison]
    assert len(axes) == centers
    for axis in axes:
        limit, dots = axis.lines
        assert set(limit.get_ydata()) == {1} and list(dots.get_ydata()) == [0.1, 0.1] and axis.get_yscale() == "log"
        assert axis.get_title(loc="left").endswith(": median 0.1")
    save_figure(figure, batches, tmp_path, "ratios")
    assert "gradient_every is 0" in deduction.gradient_ratios(batches.assign(gradient_ratio=math.nan)).axes[0].texts[0].get_text()


def test_the_worth_of_the_teacher_lies_beside_the_untrained_student(tmp_path):
    rounds = taught({"A": [0.4, 0.6], "B": [0.1, 0.2]})
    figure = deduction.teacher_worth(rounds, "Dice", ["A", "B", "C"])
    for axis, shared, untrained in zip(figure.axes, ([0.6, 0.4], [0.4, 0.6]), (0.6, 0.3), strict=True):
        line, dashed = axis.lines[:2]
        assert list(line.get_ydata()) == pytest.approx(shared) and set(dashed.get_ydata()) == {untrained}
        assert list(line.get_xdata()) == [2, 3] and dashed.get_linestyle() == "--" and dashed.get_color() == line.get_color()
    save_figure(figure, rounds, tmp_path, "worth")
    empty = deduction.teacher_worth(taught({"A": []}), "Dice")
    assert "No round" in empty.axes[0].texts[0].get_text()


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"A": [0.4, 0.6], "B": [0.3, 0.1]}, "Warning: in 2 of 4 stages II the shared model that taught was no better"),
        ({"A": [0.4], "B": [math.nan]}, "Warning: in 1 of 2 stages II the shared model that taught was no better"),
        ({"A": [0.4, 0.6]}, "In all 2 stages II the shared model was better than the untrained student"),
        ({"A": []}, "The teacher of stage II was not measured"),
    ],
)
def test_teachers_no_better_than_the_untrained_student_are_named(scores, said):
    text = ddbl_tables.idle_teachers(taught(scores))
    assert text.startswith(said)
    assert ("(B: round 2, 3)" in text) == (len(scores.get("B", [])) == 2)
