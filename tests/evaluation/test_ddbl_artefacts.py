"""Whether dropped batches hold more images with an artefact: shares, weights, intervals, and what is said where nothing is known."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.ddbl_artefacts import ALL, COLUMNS, dropped_and_kept, known_artefacts, what_was_dropped
from vfmgl_lib.figures import deduction
from vfmgl_lib.figures.style import save_figure
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.phantoms import write_phantoms


def made(rounds: int, odd: dict[str, int], dropped, images: int = 40, size: int = 4):
    """Batches of `rounds` stages II in random order; `odd`: of each centre the number of images with an artefact.

    dropped: (share of a batch, random number) -> whether the batch is dropped.
    """
    random, rows, members, kinds = np.random.default_rng(0), [], {}, {}
    for center, count in odd.items():
        ids = [f"{center}{n}" for n in range(images)]
        kinds |= {name: "zipper" if n < count else "" for n, name in enumerate(ids)}
        for number in range(2, 2 + rounds):
            order = random.permutation(ids)
            members[center, number] = [list(part) for part in np.split(order, images // size)]
            for step, batch in enumerate(members[center, number]):
                share = np.mean([kinds[name] != "" for name in batch])
                rows.append({"round": number, "center": center, "step": step, "kept": int(not dropped(share, random.random()))})
    return pd.DataFrame(rows), lambda *key: members[key[:2]], pd.Series(kinds, name="artefact")


def test_shares_are_means_over_batches():
    batches, batch_ids, kinds = made(7, {"A": 4, "B": 8}, lambda share, _: share > 0.2)
    found = dropped_and_kept(batches, batch_ids, kinds, 0).set_index("center")
    assert list(found.index) == ["A", "B", ALL] and list(found.reset_index()) == COLUMNS
    for center in "AB":
        own = batches[batches["center"] == center]
        shares = {
            kept: np.mean([(kinds[batch_ids(r.center, r.round, "II")[r.step]] != "").mean() for r in own[own["kept"] == kept].itertuples()])
            for kept in (0, 1)
        }
        row = found.loc[center]
        assert (row["share_dropped"], row["share_kept"]) == pytest.approx((shares[0], shares[1]))
        assert row["difference"] == pytest.approx(shares[0] - shares[1]) and row["low"] <= row["difference"] <= row["high"]
        assert (row["dropped"], row["kept"]) == ((own["kept"] == 0).sum(), own["kept"].sum())
        assert (row["images"], row["with_artefact"], row["kind"]) == (40, {"A": 4, "B": 8}[center], "zipper")
    assert found.loc[ALL, "low"] > 0 and (found.loc[ALL, ["images", "with_artefact"]] == [80, 12]).all()
    sentence = what_was_dropped(found.reset_index(), "")
    assert "the dropped ones have more" in sentence and "interval over batches +" in sentence


def test_for_all_centers_a_center_that_drops_more_does_not_count_for_its_own_share():
    """A drops most of its batches and has many artefacts, B few of either; within each dropping is by chance."""
    batches, batch_ids, kinds = made(60, {"A": 20, "B": 2}, lambda share, chance: False)
    random = np.random.default_rng(1)
    batches["kept"] = (random.random(len(batches)) > np.where(batches["center"] == "A", 0.8, 0.2)).astype(int)
    row = dropped_and_kept(batches, batch_ids, kinds, 0).set_index("center").loc[ALL]
    assert row["low"] < 0 < row["high"] and abs(row["difference"]) < 0.05
    assert "which of the two have more is open" in what_was_dropped(row.to_frame().T.reset_index(names="center"), "")


def test_the_interval_holds_chance_in_about_95_percent():
    """Dropping by chance, 100 runs of seven rounds at three centres: it misses 0 in as many as a binomial of 5 % allows (99.9 %)."""
    missed = 0
    for run in range(100):
        batches, batch_ids, kinds = made(7, {"A": 4, "B": 4, "C": 3}, lambda share, chance: False)
        batches["kept"] = (np.random.default_rng(run).random(len(batches)) > 0.4).astype(int)
        row = dropped_and_kept(batches, batch_ids, kinds, run).iloc[-1]
        missed += not row["low"] <= 0 <= row["high"]
    assert missed <= 12


def test_where_there_is_no_interval_it_says_why():
    batches, *known = made(4, {"A": 4}, lambda share, _: False)
    few = dropped_and_kept(batches.assign(kept=[0] * 4 + [1] * (len(batches) - 4)), *known, 0).iloc[0]
    assert np.isnan(few["low"]) and few["reason"] == "no interval: 4 dropped, at least 5 batches are needed"
    assert np.isfinite(few["difference"]) and "at least 5 batches are needed" in what_was_dropped(few.to_frame().T, "")
    none = dropped_and_kept(*made(6, {"A": 4, "B": 4}, lambda share, _: False), 0)
    assert none["difference"].isna().all() and set(none["reason"]) == {"no interval: nothing was dropped"}
    assert what_was_dropped(none, "").endswith("cannot be said: nothing was dropped.")
    every = dropped_and_kept(*made(6, {"A": 4}, lambda share, _: True), 0)
    assert set(every["reason"]) == {"no interval: nothing was kept"} and "nothing was kept" in what_was_dropped(every, "")
    batches, batch_ids, kinds = made(6, {"A": 4, "B": 4}, lambda share, _: False)
    apart = dropped_and_kept(batches.assign(kept=(batches["center"] == "A").astype(int)), batch_ids, kinds, 0)
    assert what_was_dropped(apart, "").endswith("no centre has batches of both.")
    empty = dropped_and_kept(pd.DataFrame(columns=["center", "round", "step", "kept"]), None, pd.Series(["zipper"], ["a"]), 0)
    assert list(empty) == COLUMNS and empty.empty and "starts in round 2" in what_was_dropped(empty, "")


def test_it_is_known_of_phantoms_with_artefacts_alone(tmp_path):
    samples = {"train": 20, "val": 4, "test": 4}
    for share in (0.0, 0.1):
        write_phantoms(tmp_path / f"s{share}", "nuclei", centers=2, samples=samples, image_size=32, artefacts=share)
    manifest = read_folders(tmp_path / "s0.1", "nuclei", progress=False)
    known, reason = known_artefacts(manifest)
    assert not reason and known.index.tolist() == manifest.select(split="train")["id"].tolist()
    assert set(known) == {"", "thick section", "stain spill"}
    off, reason = known_artefacts(read_folders(tmp_path / "s0.0", "nuclei", progress=False))
    assert off.empty and reason == "No training image has an artefact (phantoms.artefacts)."
    (tmp_path / "s0.1" / "artefacts.csv").unlink()
    assert known_artefacts(manifest)[1] == "These phantoms are of a version that had no artefacts."
    (tmp_path / "s0.1" / "phantoms.json").unlink()
    real, reason = known_artefacts(manifest)
    assert real.empty and reason.startswith("The images are no phantoms")
    found = dropped_and_kept(*made(6, {"A": 4}, lambda share, _: True)[:2], real, 0)
    assert found.empty and what_was_dropped(found, reason) == reason


@pytest.mark.parametrize("dropped", [lambda share, _: share > 0.2, lambda share, _: False])
def test_the_figure(tmp_path, dropped):
    found = dropped_and_kept(*made(7, {"A": 4, "B": 8, "C": 0}, dropped), 0)
    figure = deduction.artefact_shares(found, "", ["A", "B", "C"])
    shares, differences = figure.axes
    assert [label.get_text() for label in shares.get_yticklabels()] == ["A: zipper", "B: zipper", "C: none", ALL]
    assert [text.get_text() for text in differences.texts][-1] == f"{found['dropped'].iloc[-1]} of 210 dropped"
    save_figure(figure, found, tmp_path, "artefacts")
    assert pd.read_csv(tmp_path / "artefacts.csv", keep_default_na=False)["center"].tolist() == ["A", "B", "C", ALL]
    assert deduction.artefact_shares(found.head(0), "nothing").axes[0].texts
