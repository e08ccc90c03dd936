"""Figures of DDBL."""

import pandas as pd
import pytest

from vfmgl_lib.figures import deduction
from vfmgl_lib.figures.style import save_figure

KAPPA = 4.0


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
    batches = deduction.stage_two_batches(*study(centers, 3, high=7.0))
    assert len(batches) == centers * 2 * 3 and (batches["local_task_loss"] == 0.5).all()
    assert batches["ratio"].equals(batches["divergence"] / batches["threshold"])
    figure = deduction.divergence_over_threshold(batches, KAPPA)
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
    batches = deduction.stage_two_batches(steps, rounds)
    assert batches.empty
    for figure in (deduction.divergence_over_threshold(batches, KAPPA), deduction.kept_share(rounds)):
        assert "starts in round 2" in figure.axes[0].texts[0].get_text()
        save_figure(figure, batches, tmp_path, "nothing")
    assert deduction.telling_batches(batches).empty
    assert "starts in round 2" in deduction.what_happened(batches)


@pytest.mark.parametrize(
    ("high", "said"), [(7.0, "2 of 6 batches were dropped"), (1.0, "No batch was dropped: this run does not exercise")]
)
def test_what_happened_says_plainly_when_nothing_was_dropped(high: float, said: str):
    text = deduction.what_happened(deduction.stage_two_batches(*study(2, 2, high)))
    assert text.startswith(said) and text.endswith("The median of KL / threshold is 0.005.")


@pytest.mark.parametrize(("high", "second"), [(7.0, "dropped, highest KL"), (1.0, "highest KL, kept as well")])
def test_telling_batches_say_whether_one_was_dropped(high: float, second: str):
    telling = deduction.telling_batches(deduction.stage_two_batches(*study(2, 2, high)))
    assert telling["shown"].tolist() == ["kept, lowest KL", second]
    assert telling["divergence"].tolist() == [0.0, high]


def test_all_dropped_shows_a_dropped_one_only():
    batches = deduction.stage_two_batches(*study(2, 2, 7.0)).query("kept == 0")
    assert deduction.telling_batches(batches)["shown"].tolist() == ["dropped, highest KL"]
