"""Features, their components, neighbours, scores and the cases chosen by rule."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_ind, ttest_ind_from_stats, ttest_rel

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.interpretation import features as feats
from vfmgl_lib.models.students import ResNet18, UNet
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.phantoms import write_phantoms


def table(values, splits=None, labels=None, patients=None, center="A"):
    n = len(values)
    about = {"id": [f"i{i}" for i in range(n)], "patient": patients or [f"p{i}" for i in range(n)], "center": center}
    about |= {"split": splits or ["train"] * n, "label": labels if labels is not None else [i % 2 for i in range(n)]}
    return pd.DataFrame(about).join(pd.DataFrame(np.asarray(values, float)).add_prefix("f"))


@pytest.mark.parametrize("layout", ["endometrial", "nuclei"])
def test_features_are_what_the_head_reads(layout, tmp_path):
    root = write_phantoms(tmp_path / "p", layout, centers=1, samples={"train": 3, "test": 2}, image_size=32)
    manifest = read_folders(root, layout, progress=False)
    data = ImageDataset(manifest, manifest.select(manifest.training_centers[0], "train"), 32)
    torch.manual_seed(0)
    student = (ResNet18 if layout == "endometrial" else UNet)(2, width=4)
    found = feats.features_of(student, data, batch_size=2)
    assert found["id"].tolist() == data.table["id"].tolist()
    assert set(found["label"]) == ({0, 1} if layout == "endometrial" else {feats.SEGMENTATION})
    image = data[2]["image"][None]
    with torch.inference_mode():
        maps = student.encode(image)
        last = maps[-1] if layout == "endometrial" else student.features(maps)
    assert found.loc[2, feats.feature_names(found)].to_numpy(float) == pytest.approx(last.mean((2, 3))[0].numpy(), abs=1e-5)
    student.state_dict()[next(name for name in student.state_dict() if name.endswith("weight"))].fill_(np.inf)
    with pytest.raises(ValueError, match=f"image '{data.table['id'][0]}': feature f0 is nan, expected a finite number"):
        feats.features_of(student, data)


def test_components_are_fitted_on_training_rows_alone():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(50, 4)) * [5, 1, 0.1, 0.1]
    test = rng.normal(size=(20, 4)) * [0.1, 0.1, 0.1, 9] + 100
    points, explained = feats.principal_components(table(np.vstack([train, test]), ["train"] * 50 + ["test"] * 20))
    alone, _ = feats.principal_components(table(train))
    assert points.loc[:49, ["pc1", "pc2"]].to_numpy() == pytest.approx(alone[["pc1", "pc2"]].to_numpy())
    values, centered = np.linalg.eigvalsh(np.cov(train.T))[::-1], train - train.mean(0)
    assert explained["explained"].to_numpy() == pytest.approx(values[:2] / values.sum())
    assert explained["explained_test"].max() < 0.05, "the test rows vary along another axis"
    assert points["pc1"].iloc[:50].var() == pytest.approx(values[0]) and abs(centered.mean()) < 1e-9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((5, 3)), "all 3 features are constant over the 5 training images"),
        (np.eye(2), r"2 components need 3 training images and as many features, got \(2, 2\)"),
        ([[0, np.nan], [1, 2], [3, 4]], "image 'i0': feature f1 is nan"),
    ],
)
def test_components_of_bad_features(values, message):
    with pytest.raises(ValueError, match=message):
        feats.principal_components(table(values))


def test_neighbors_are_training_images_of_other_patients():
    values = [[0, 7], [0.1, 7], [1, 7], [5, 7], [0, 7]]
    found = feats.neighbors(table(values, ["train"] * 4 + ["test"], patients=["a", "x", "b", "c", "x"]), "i4", 2)
    assert found["id"].tolist() == ["i0", "i2"]  # i1 is of the same patient; the constant feature counts nothing
    spread = np.std([0, 0.1, 1, 5], ddof=1)
    assert found["distance"].tolist() == pytest.approx([0, 1 / spread / np.sqrt(2)])
    with pytest.raises(KeyError, match="'i9' is not among the 5"):
        feats.neighbors(table(values), "i9")


def predictions(scores, labels, center="A", model=None, stage="II", split="test"):
    n = len(scores)
    about = {"stage": stage, "model_center": model or center, "test_center": center, "split": split}
    ids = [f"{center}{i}" for i in range(n)]
    return pd.DataFrame({"id": ids, "patient": ids, "probability": scores, "label": labels}).assign(**about)


def test_pooled_t_test_equals_that_of_the_papers_summary():
    """Fig. 7c, centre D, training: p = 9e-6 from the printed means and SDs, with the counts of Table 1."""
    assert ttest_ind_from_stats(0.943, 0.070, 165, 0.846, 0.013, 11, equal_var=True).pvalue == pytest.approx(9e-6, rel=0.1)
    assert ttest_ind_from_stats(0.943, 0.070, 165, 0.846, 0.013, 11, equal_var=False).pvalue < 1e-20, "Welch's test is another"
    rng = np.random.default_rng(1)
    groups = [rng.normal(size=n) for n in (11, 165)]
    groups = [(g - g.mean()) / g.std(ddof=1) for g in groups]
    scores = [*(0.846 + 0.013 * groups[0]), *(0.943 + 0.070 * groups[1])]
    own = predictions(scores, [0] * 11 + [1] * 165, "D", split="train")
    row = feats.score_tests(feats.score_table(own, "patient")).iloc[0]
    assert row["p"] == pytest.approx(9e-6, rel=0.1) and (row["n_0"], row["n_1"]) == (11, 165)
    assert (row["mean_1"], row["std_1"]) == (pytest.approx(0.943), pytest.approx(0.070))


def test_score_tests_say_why_there_is_none():
    parts = [
        predictions([0.1, 0.2, 0.4], [1, 1, 1], "one class"),
        predictions([0.1, 0.2, 0.3, 0.1], [0, 1, 1, 0], "four patients"),
        predictions([0.1] * 5 + [0.2] * 5, [0] * 5 + [1] * 5, "equal"),
        predictions([0.9, 0.1, 0.2, 0.3, 0.25], [0, 1, 1, 1, 1], "one negative"),
        predictions([0.9, 0.1, 0.2, 0.3, 0.25] * 2, [0] * 5 + [1] * 5, "five of each"),
        predictions([0.5], [1], "A", model="B"),  # not its own centre's model
    ]
    tests = feats.score_tests(feats.score_table(pd.concat(parts), "image")).set_index("center")
    assert tests["reason"].to_dict() == {
        "one class": "only one class: 3 positive, 0 negative",
        "four patients": "2 patients of one class, at least 5 are needed",
        "equal": "the scores of each class are all equal",
        "one negative": "one patient of one class, at least 5 are needed",
        "five of each": "",
    }
    assert tests["p"].isna().tolist() == [True, True, True, True, False] and np.isnan(tests.loc["one negative", "std_0"])
    assert tests.loc["five of each", ["test", "patients"]].tolist() == ["independent t", 10]


def test_images_of_one_patient_are_not_independent_scores():
    rng = np.random.default_rng(0)
    patient, label = np.repeat(np.arange(10), 6), np.tile([0, 1], 30)
    table = predictions(rng.normal(size=10)[patient] + 0.3 * label + rng.normal(size=60), label).assign(patient=patient)
    row = feats.score_tests(feats.score_table(table, "image")).iloc[0]
    means = table.groupby(["patient", "label"])["probability"].mean().unstack()
    assert row["p"] == pytest.approx(ttest_rel(means[1], means[0]).pvalue) and (row["test"], row["patients"]) == ("paired t", 10)
    assert (row["n_0"], row["n_1"]) == (30, 30) and row["mean_1"] == pytest.approx(table.query("label == 1")["probability"].mean())
    apart = table[table["label"] == (table["patient"] % 2)]  # a patient has one class: the patients' means are what is compared
    row = feats.score_tests(feats.score_table(apart, "image")).iloc[0]
    means = apart.groupby("patient")["probability"].mean()
    assert row["p"] == pytest.approx(ttest_ind(means[1::2], means[::2]).pvalue) and row["test"] == "independent t"


def test_median_cases():
    own = pd.concat(
        [
            predictions([0.9, 0.1, 0.5, 0.3, 0.7, 0.7], [1, 1, 1, 1, 0, 0]),
            predictions([0.2], [1], "B"),
            predictions([0.6], [1], "B", model="A"),
            predictions([0.6], [1], "B", split="train"),
        ]
    )
    found = feats.median_cases(own)
    assert found.to_dict("list") == {
        "center": ["A", "A", "B"],
        "label": [1, 0, 1],
        "id": ["A3", "A4", "B0"],
        "score": [0.3, 0.7, 0.2],
        "of": [4, 2, 1],
    }
    with pytest.raises(ValueError, match="no rows of a centre's own model on its own val images"):
        feats.median_cases(own, "val")


def test_median_cases_of_a_segmentation():
    own = pd.DataFrame({"id": list("abc"), "dice": [0.2, 0.4, 1.0], "tp": [1, 2, 0], "fn": [3, 1, 0]})
    found = feats.median_cases(own.assign(model_center="A", test_center="A", split="test"))
    assert found[["label", "id"]].to_numpy().tolist() == [[1, "a"], [0, "c"]]


def test_critical_table():
    rows = [
        (r, "A", block, s, v, int(s in c))
        for r, c in ((1, "xy"), (2, "yz"))
        for block in "12"
        for s, v in zip("xyz", (1.0, 3.0, 2.0), strict=True)
    ]
    stages = pd.DataFrame(rows, columns=["round", "center", "teacher_block", "student_stage", "stage_score", "critical"])
    found = feats.critical_table(stages).set_index("student_stage")
    assert found["rank"].to_dict() == {"x": 3, "y": 1, "z": 2} and found["critical"].to_dict() == {"x": False, "y": True, "z": True}
    assert found["rounds"].to_dict() == {"x": 1, "y": 2, "z": 1} and set(found["of"]) == {2}
    with pytest.raises(ValueError, match="transfers nothing from a teacher"):
        feats.critical_table(stages.iloc[:0])
