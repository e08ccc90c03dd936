"""Every number of the paper has a counterpart or a reason."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.data.manifest import COLUMNS as MANIFEST_COLUMNS
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation import saved_runs
from vfmgl_lib.evaluation.beside_paper import lightweight_beside_paper
from vfmgl_lib.evaluation.complexity import counted
from vfmgl_lib.evaluation.counterparts import paper_centers
from vfmgl_lib.evaluation.paper import headline, paper_rows
from vfmgl_lib.evaluation.saved_runs import about, read_paper, read_run, read_runs
from vfmgl_lib.figures.style import save_table
from vfmgl_lib.methods.settings import load_settings

NAN = float("nan")
METHODS = ("vfmgl", "fedavg", "fedprox", "harmofl", "metafed", "frozen_probe")
CENTERS = {
    "endometrial": ("ABCD", "EF"),
    "camelyon17": ([f"hospital{i}" for i in range(1, 6)], ""),
    "prostate": (["BIDMC", "HK", "I2CVB", "ISBI", "ISBI_1.5", "UCL"], ""),
    "nuclei": ([f"Site{letter}" for letter in "ABCDEF"], ""),
}


def facts(task: str, origin: str = "own", training=None, external=None, findings: str = "") -> pd.DataFrame:
    known = CENTERS[task]
    lines = {"task": task, "data": "mine", "origin": origin, "training centres": ", ".join(training or known[0])}
    lines |= {"external centres": ", ".join(known[1] if external is None else external), "findings": findings}
    return pd.DataFrame(lines.items(), columns=["item", "text"])


def result(model: str, test: str, metric: str, value: float, **further) -> dict:
    row = {"method": "vfmgl", "seed": 0, "split_id": "own", "budget": "rounds", "model_center": model, "test_center": test}
    row |= {"split": "test", "metric": metric, "unit": "image", "value": value, "low": value - 0.05, "high": value + 0.05}
    return row | {"interval": "", "n": 20, "numerator": NAN, "denominator": NAN, "reason": ""} | further


def whole_run(task: str, origin: str = "own", **further) -> dict[str, pd.DataFrame]:
    """All tables of a task, as small as they can be."""
    training, external = (list(names) for names in CENTERS[task])
    classification = task in ("endometrial", "camelyon17")
    metric = "auc" if classification else "dice_mean_of_classes"
    values = dict(zip(METHODS, (0.9, 0.7, 0.75, 0.8, 0.85, 0.9), strict=True))
    rows = [result(c, c, metric, values[m], method=m) for c in training for m in METHODS]
    rows += [result(c, c, metric, 0.85, method=m, budget="updates") for c in training for m in METHODS[1:]]
    rows += [result(c, c, metric, 0.9, budget="updates") for c in training]
    if classification:
        for name in ("accuracy", "sensitivity", "specificity"):
            rows += [result(c, c, name, 0.75, numerator=15, denominator=20) for c in training]
            rows.append(result("all", "all", name, 0.75, numerator=60, denominator=80, n=80))
    else:
        values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        rows += [result(c, c, "assd", v, unit="px") for c, v in zip(training, values, strict=True)]
        for name in ("sensitivity", "specificity"):
            rows += [result(c, c, name, 0.8) for c in training]
            rows.append(result("all", "all", name, 0.5, n=120))  # over all images; the paper's mean is over the centres
    run = {"about": facts(task, origin, **further), "results": pd.DataFrame(rows)}
    run["deviations"] = pd.DataFrame([["federation.rounds", "20", "6"]], columns=["setting", "paper", "here"])
    divisions = [(c, name, v) for c in training for name, v in (("0.5-1", 0.7), ("0.6-2", 0.9))]
    run["robustness"] = pd.DataFrame(divisions, columns=["center", "split_id", "value"]).assign(
        metric=metric, unit="image", low=NAN, high=NAN, n=20, mean=0.8, std=0.1, splits=2, reason=""
    )
    if not classification:
        pairs = [(m, t) for m in training for t in training]
        steps = []
        for after, gain in (("hgkt_kd", 0.01), ("vfmgl", 0.03)):
            for place, (m, t) in enumerate(pairs):
                change = gain if place % 3 else -gain
                tested = (0.001, "paired Wilcoxon", "", "better" if change > 0 else "worse")
                steps.append((*("step", "hgkt", after, m, t, 0.5, 0.5 + change, change, change > 0, 1, 20, "image", ""), *tested))
        columns = "step before after model_center test_center value_before value_after difference improved seeds n unit reason"
        columns += " p_holm test test_reason significant"
        run["ablation"] = pd.DataFrame(steps, columns=columns.split()).assign(metric=metric)
    if external:
        pairs = [(e, m, s) for e in external for m, s in zip(training, (0.3, 0.1, -0.1, -0.2), strict=True)]
        run["external"] = pd.DataFrame(pairs, columns=["center", "model_center", "similarity"]).assign(
            metric="auc", chosen=lambda t: t["similarity"] == 0.3, value=0.7, low=0.6, high=0.8, n=30, reason=""
        )
        groups = []
        for center in [*training, *external]:
            for group in ("younger", "older", "well_differentiated"):
                one_class = center in "CD" and group == "older"
                for name in ("auc", "accuracy"):
                    value, reason = (NAN, "only one class") if one_class and name == "auc" else (0.8, "")
                    groups.append((group, f"age {group}", center, name, value, 0.7, 0.9, 10, 8.0, 10.0, 0.5, "val", reason))
        columns = "group title center metric value low high n numerator denominator cutoff cutoff_from reason".split()
        run["subgroups"] = pd.DataFrame(groups, columns=columns)
        scores = [(stage, c, s, 0.5, 0.8 - 0.3 * (stage == "I")) for stage in ("II", "I") for c in training for s in ("train", "test")]
        run["score_tests"] = pd.DataFrame(scores, columns=["stage", "center", "split", "mean_0", "mean_1"]).assign(
            std_0=0.1, std_1=0.2, n_0=8, n_1=10, p=0.01, reason=""
        )
    return run


def rows(table: pd.DataFrame, **where) -> pd.DataFrame:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table), where
    return table


def one(table: pd.DataFrame, **where) -> pd.Series:
    found = rows(table, **where)
    assert len(found) == 1, where
    return found.iloc[0]


@pytest.fixture(scope="module")
def printed() -> pd.DataFrame:
    return read_paper()


@pytest.fixture(scope="module")
def everything(printed) -> pd.DataFrame:
    return paper_rows(printed, [whole_run(task) for task in CENTERS])


def test_every_row_of_the_paper_is_there_once_and_in_order(printed, everything):
    columns = ["task", "center", "split", "method", "metric"]
    assert everything[columns].to_numpy().tolist() == printed[columns].to_numpy().tolist()
    np.testing.assert_array_equal(everything["paper"], printed["value"])


def test_with_all_tables_nothing_but_the_lightweight_is_missing(everything):
    missing = everything[everything["status"] == "not measurable here"]
    assert set(missing["task"]) == {"lightweight"} and missing["because"].str.contains("08_lightweight").all()
    compared = everything[everything["status"] == "compared"]
    assert compared["measured"].notna().all()
    given = compared[compared["metric"] != "t_test_p"]
    np.testing.assert_allclose(given["difference"], given["measured"] - given["paper"])
    assert compared[compared["metric"] == "t_test_p"]["difference"].isna().all()


def test_without_any_run_every_row_says_why(printed):
    table = paper_rows(printed, [])
    assert len(table) == len(printed) and (table["status"] == "not measurable here").all() and (table["because"] != "").all()
    assert table["measured"].isna().all() and table["difference"].isna().all()


def test_only_some_tasks(printed):
    table = paper_rows(printed, [whole_run("nuclei")], tasks=["nuclei"])
    assert set(table["task"]) == {"nuclei"} and len(table) == (printed["task"] == "nuclei").sum()


def test_pooled_counts_and_means(everything):
    pooled = one(everything, task="endometrial", center="all", metric="accuracy")
    assert (pooled["paper_counts"], pooled["counts"], pooled["measured"]) == ("349/437", "60/80", 0.75)
    assert one(everything, task="camelyon17", center="all", metric="sensitivity")["counts"] == "60/80"
    distance = one(everything, task="prostate", center="all", metric="assd")
    assert distance["measured"] == 3.5 and distance["n"] == 120 and "mean of 6 centres, in px" in distance["protocol"]
    # Six intervals of half-width 0.05 each: sqrt(6 * 0.05^2) / 6.
    assert distance["high"] - 3.5 == pytest.approx(0.05 / np.sqrt(6)) == 3.5 - distance["low"]
    assert one(everything, task="prostate", center="all", metric="specificity")["measured"] == pytest.approx(0.8)


def test_pooled_counts_that_are_undefined_are_not_replaced_by_a_mean(printed):
    run = whole_run("endometrial")
    pooled = run["results"]["model_center"] == "all"
    run["results"].loc[pooled, ["value", "numerator", "denominator", "reason"]] = [NAN, NAN, NAN, "centre C has no cutoff"]
    found = one(paper_rows(printed, [run]), task="endometrial", center="all", metric="accuracy")
    assert (found["status"], found["because"]) == ("not measurable here", "centre C has no cutoff")
    run["results"] = run["results"][~pooled]
    found = one(paper_rows(printed, [run]), task="endometrial", center="all", metric="accuracy")
    assert found["because"] == "results.csv has no accuracy over all centres"


def test_gain_over_the_mean_of_the_comparators(everything):
    gain = one(everything, center="B", metric="auc_gain")
    assert gain["measured"] == pytest.approx(0.1) and gain["difference"] == pytest.approx(0.1 - 0.066)
    assert "at matched updates +0.050" in gain["protocol"]


def test_gain_without_a_comparator_names_it(printed):
    run = whole_run("endometrial")
    run["results"] = run["results"].query("method not in ('metafed', 'harmofl')")
    gain = one(paper_rows(printed, [run]), center="A", metric="auc_gain")
    assert gain["measured"] == pytest.approx(0.9 - (0.7 + 0.75 + 0.9) / 3) and "without HarmoFL, MetaFed" in gain["protocol"]
    run["results"] = run["results"].query("method == 'vfmgl'")
    gain = one(paper_rows(printed, [run]), center="A", metric="auc_gain")
    assert gain["status"] == "not measurable here" and "none of the paper's comparators" in gain["because"]


def test_ablation_counts_and_changes(everything):
    improved = one(everything, task="prostate", metric="cross_centre_results_improved")
    assert (improved["paper_counts"], improved["counts"]) == ("22/36", "24/36")
    assert improved["measured"] == pytest.approx(24 / 36) and "significant by Holm's correction: 24 of 36" in improved["protocol"]
    kd = one(everything, task="nuclei", metric="dice_gain", method="HGKT+KD minus HGKT")
    assert kd["measured"] == pytest.approx(0.01 / 3) and kd["n"] == 36


def test_external_similarity_and_auc(everything):
    found = one(everything, center="E", method="VFMGL model A", metric="auc")
    assert (found["measured"], found["low"], found["high"], found["n"]) == (0.7, 0.6, 0.8, 30)
    assert "chosen by similarity" in found["protocol"]
    similar = one(everything, center="F", method="VFMGL model C", metric="similarity")
    assert similar["measured"] == -0.1 and "no formula" in similar["protocol"]


def test_subgroups_and_well_differentiated(everything):
    older = one(everything, center="C", split="test age>54.7")
    assert older["metric"] == "accuracy" and older["counts"] == "8/10" and "cutoff 0.5000 from the validation set" in older["protocol"]
    well = one(everything, metric="accuracy_well_differentiated_eec")
    assert (well["paper_counts"], well["counts"]) == ("111/157", "40/50")  # A to E, not F
    assert "centres A, B, C, D, E" in well["protocol"]


def test_a_group_of_one_class_says_so(printed):
    run = whole_run("endometrial")
    older = run["subgroups"]["group"] == "older"
    gone = older & (run["subgroups"]["center"] == "A") & (run["subgroups"]["metric"] == "auc")
    run["subgroups"].loc[gone, ["value", "reason"]] = [NAN, "only one class: 9 positive"]
    found = one(paper_rows(printed, [run]), center="A", split="test age>54.7")
    assert found["status"] == "not measurable here" and found["because"] == "only one class: 9 positive"


def test_scores_of_the_classes(everything):
    means = rows(everything, center="B", split="train", metric="score_mean").set_index("method")
    assert means.loc["VFMGL, NMI cases", ["measured", "std", "n"]].tolist() == [0.5, 0.1, 8]
    assert means.loc["VFMGL, MI cases", ["measured", "std", "n"]].tolist() == [0.8, 0.2, 10]
    p = one(everything, center="B", split="train", metric="t_test_p")
    assert (p["measured"], p["n"]) == (0.01, 18)


def test_divisions_have_mean_and_sd(everything):
    found = one(everything, task="nuclei", center="A", split="six splits")
    assert (found["measured"], found["std"], found["paper_std"]) == (0.8, 0.1, 0.0203)
    assert "2 divisions of our own (0.5-1, 0.6-2)" in found["protocol"]


def test_dice_is_the_papers_mean_of_classes(everything):
    found = one(everything, task="nuclei", center="A", split="test", metric="dice")
    assert found["measured"] == 0.9 and "mean of background and foreground" in found["protocol"]


def test_seeds_are_averaged(printed):
    run = whole_run("nuclei")
    run["results"] = pd.concat([run["results"], run["results"].assign(seed=1, value=run["results"]["value"] - 0.2)])
    found = one(paper_rows(printed, [run]), task="nuclei", center="A", split="test")
    assert found["measured"] == pytest.approx(0.8) and found["std"] == pytest.approx(0.2 / np.sqrt(2)) and found["seeds"] == 2
    assert found["low"] == pytest.approx(0.85)


def test_protocol_names_settings_and_data(printed):
    run = whole_run("nuclei", findings="center 'SiteA': missing; and 3 more")
    names = ["data.workers", "phantoms.centers", "optimizer.lr", "data.image_size", "teacher.grid", "teacher.source", "federation.rounds"]
    run["deviations"] = pd.DataFrame({"setting": [*names, "student.width"], "paper": "20", "here": "6"})
    protocol = one(paper_rows(printed, [run]), task="nuclei", center="A", split="test")["protocol"]
    assert "settings: federation.rounds 6 (paper: 20), data.image_size 6 (paper: 20), student.width" in protocol
    assert protocol.count("(paper: 20)") == 5 and "and 1 more; data: center 'SiteA': missing; and 3 more" in protocol
    assert "workers" not in protocol and "phantoms" not in protocol


def test_phantoms_and_stand_ins_get_no_difference(printed):
    for origin, why in (("phantoms", "embedded phantoms"), ("stand-in", "a stand-in")):
        table = paper_rows(printed, [whole_run("endometrial", origin)], tasks=["endometrial"])
        assert set(table["status"]) == {"not comparable"} and table["measured"].notna().all()
        assert table["difference"].isna().all() and table["because"].str.contains(why).all()


def test_the_same_centres_of_a_stand_in_are_compared(printed):
    run = whole_run("prostate", "stand-in")
    table = paper_rows(printed, [run], tasks=["prostate"])
    status = rows(table, split="test", metric="dice").set_index("center")["status"].to_dict()
    assert status == {
        "A": "compared",
        "B": "compared",
        "C": "not comparable",
        "D": "not comparable",
        "E": "not comparable",
        "F": "compared",
    }
    assert one(table, metric="assd")["status"] == "not comparable"


def test_letters_of_the_centres():
    assert paper_centers("camelyon17", ["hospital2", "hospital9"], "own") == {"B": ("hospital2", True)}
    assert paper_centers("nuclei", ["SiteA", "SiteB"], "stand-in") == {"F": ("SiteA", True), "B": ("SiteB", False)}
    assert paper_centers("prostate", ["RUNMC", "UCL"], "stand-in") == {"F": ("UCL", True)}
    assert paper_centers("endometrial", ["A", "E"], "phantoms") == {"A": ("A", False), "E": ("E", False)}


def test_a_centre_beyond_the_papers_is_pooled_with_no_difference(printed):
    run = whole_run("nuclei", training=[*CENTERS["nuclei"][0], "ours"])
    found = one(paper_rows(printed, [run], tasks=["nuclei"]), metric="assd")
    assert found["status"] == "not comparable" and np.isnan(found["difference"])


def test_fewer_centres_are_named(printed):
    run = whole_run("nuclei")
    run["about"] = facts("nuclei", training=["SiteA", "SiteB"])
    table = paper_rows(printed, [run], tasks=["nuclei"])
    gone = one(table, center="C", split="test")
    assert gone["status"] == "not measurable here" and gone["because"] == "the data have no centre C of the paper (they have SiteA, SiteB)"
    pooled = one(table, metric="assd")
    assert pooled["status"] == "not comparable" and "SiteA, SiteB; the paper's is over A, B, C, D, E, F" in pooled["because"]


@pytest.mark.parametrize("name", ["results", "robustness", "external", "subgroups", "score_tests"])
def test_a_missing_table_is_named(printed, name):
    run = whole_run("endometrial")
    del run[name]
    table = paper_rows(printed, [run], tasks=["endometrial"])
    assert table["because"].str.contains(f"{name}.csv").any()


def test_undefined_values_pass_their_reason_on(printed):
    run = whole_run("endometrial")
    aucs = (run["results"]["metric"] == "auc") & (run["results"]["test_center"] == "C") & (run["results"]["method"] == "vfmgl")
    run["results"].loc[aucs, ["value", "reason"]] = [NAN, "only one class"]
    table = paper_rows(printed, [run])
    assert one(table, task="endometrial", center="C", split="test", metric="auc")["because"] == "only one class"
    assert one(table, center="C", metric="auc_gain")["because"] == "only one class"


def test_two_runs_of_a_task_stand_below_each_other(printed):
    other = whole_run("nuclei", "phantoms")
    other["about"].loc[other["about"]["item"] == "data", "text"] = "embedded phantoms"
    table = paper_rows(printed, [whole_run("nuclei"), other], tasks=["nuclei"])
    assert len(table) == 2 * (printed["task"] == "nuclei").sum()
    counted = headline(table).set_index("data")
    assert counted.loc["mine", "compared"] == counted.loc["embedded phantoms", "not comparable"] == len(table) // 2


@pytest.mark.parametrize(("task", "student"), [("endometrial", "compared"), ("nuclei", "not measurable here")])
def test_lightweight_rows_are_those_of_notebook_08_and_of_the_network_that_the_paper_means(task, student, printed):
    memory = pd.DataFrame({"model": ["student, exported"], "batch": [1], "device": ["cpu"], "peak_bytes": [3e8]})
    run = whole_run(task)
    run["lightweight"] = lightweight_beside_paper(counted(load_settings(task, "paper"), "paper"), memory, printed)
    table = paper_rows(printed, [run], tasks=["lightweight"])
    of_student = table["method"] == "VFMGL (ResNet18)"
    assert set(table[of_student]["status"]) == {student} and set(table[~of_student]["status"]) == {"compared"} and len(table) == 5
    found = one(table, method="VFM (DINOv2 ViT-B/14)", metric="flops")
    assert abs(found["difference"]) < 0.001 * found["paper"] and found["protocol"].endswith("what the paper's number matches")
    run["lightweight"]["measured"] = NAN
    assert set(paper_rows(printed, [run], tasks=["lightweight"])["status"]) == {"not measurable here"}


def test_tables_survive_the_disk(printed, tmp_path: Path):
    run = whole_run("endometrial")
    run["results"]["model_center"] = run["results"]["model_center"].replace("A", "01")
    for name, table in run.items():
        notebook = saved_runs.TABLES[name][0]
        save_table(table, tmp_path / "smoke" / "endometrial" / "figures" / notebook, name, "a note")
    (again,) = read_runs(tmp_path / "smoke")
    assert set(again) == set(run) and "01" in set(again["results"]["model_center"])
    assert again["results"]["reason"].eq("").all() and again["results"]["numerator"].isna().any()
    run["results"]["model_center"] = again["results"]["model_center"] = run["results"]["test_center"].to_numpy()
    pd.testing.assert_frame_equal(paper_rows(printed, [run]), paper_rows(printed, [again]), check_dtype=False)


def test_what_another_version_saved_is_left_out_and_named(tmp_path: Path, caplog):
    run, figures = whole_run("nuclei"), tmp_path / "nuclei" / "figures"
    for name in ("about", "results", "robustness"):
        save_table(run[name], figures / saved_runs.TABLES[name][0], name, "a note")
    old = figures / "05_comparison" / "results.csv"
    pd.read_csv(old).assign(source="a note").to_csv(old, index=False)  # 0.1.0 did not name itself
    assert set(read_run(tmp_path / "nuclei")) == {"about", "robustness"}
    assert f"{old}: left out, vfmgl_lib 0.1.0 saved it" in caplog.text
    save_table(run["results"], figures / "06_generalization", "results", "a note")
    assert "results" in read_run(tmp_path / "nuclei"), "the other notebook's is of this version"


def test_a_folder_without_a_description_is_no_run(tmp_path: Path):
    save_table(whole_run("nuclei")["results"], tmp_path / "nuclei" / "figures" / "05_comparison", "results")
    assert read_runs(tmp_path) == [] and read_runs(tmp_path / "nowhere") == []
    assert set(read_run(tmp_path / "nuclei")) == {"results"}


def manifest(task: str, counts: dict[str, dict[str, int]]) -> Manifest:
    table = []
    for center, splits in counts.items():
        for split, n in splits.items():
            table += [
                (f"{center}/{split}/{i}", f"{center}{split}{i}.png", "0" * 64, center, f"{center}{split}{i}", split, "m.png", "")
                for i in range(n)
            ]
    frame = pd.DataFrame(table, columns=list(MANIFEST_COLUMNS))
    kind = "segmentation" if task in ("prostate", "nuclei") else "classification"
    if kind == "classification":
        frame["label"] = np.arange(len(frame)) % 2
    return Manifest(Path("."), kind, ("0", "1"), frame)


def test_about_tells_phantoms_stand_ins_and_ones_own_data_apart():
    small = {name: {"train": 4, "test": 2} for name in ("SiteA", "SiteB", "SiteC", "SiteD")}

    def origin(counts: dict, on_phantoms: bool = False) -> str:
        return about(manifest("nuclei", counts), "nuclei", "x", on_phantoms).set_index("item").loc["origin", "text"]

    assert origin(small) == "stand-in" and origin(small, True) == "phantoms"
    assert origin(small | {"SiteE": {"train": 4, "test": 2}}) == "own"
    assert origin(small | {"SiteB": {"train": 40, "test": 2}}) == "own"


def test_about_names_external_centres_and_differences():
    given = manifest("endometrial", {"A": {"train": 4, "test": 2}, "B": {"train": 4, "test": 2}, "E": {"test": 3}})
    found = about(given, "endometrial", "hospital", False).set_index("item")["text"]
    assert (found["training centres"], found["external centres"], found["data"]) == ("A, B", "E", "hospital")
    assert "missing" in found["findings"] and found["findings"].endswith("more")
    assert about(given, "endometrial", "", True).set_index("item").loc["data", "text"] == "embedded phantoms"
