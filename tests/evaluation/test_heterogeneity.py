"""Which centre is this? Image statistics, the classifier on them, and distances between distributions."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.stats import wasserstein_distance
from skimage.color import rgb_from_hed

from vfmgl_lib.evaluation import heterogeneity
from vfmgl_lib.evaluation.heterogeneity import (
    STAINS,
    center_distances,
    center_predictability,
    image_features,
    predictability_obstacle,
    stain_profile,
)


def pictures(*images: np.ndarray) -> pd.DataFrame:
    rows = [(f"{i}", "A", f"P{i}", image) for i, image in enumerate(images)]
    return pd.DataFrame(rows, columns=["id", "center", "patient", "image"])


def grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane[..., None], 3, axis=2).astype(np.float32)


def stained(haematoxylin: float, eosin: float) -> np.ndarray:
    """A flat image that both stains colour by Beer-Lambert's law; densities are decadic."""
    light = 10 ** -(np.array([haematoxylin, eosin]) @ rgb_from_hed[:2])
    return np.broadcast_to(light, (8, 8, 3)).astype(np.float32)


def planted(shifts: list[float], patients: int, images: int, signature: float = 0.0, noise: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """Features of centres whose mean is shifted; `signature` is what a patient's images share."""
    rng = np.random.default_rng(seed)
    rows = []
    for center, shift in enumerate(shifts):
        for patient in range(patients):
            own = rng.normal(0, signature, 8) if signature else np.zeros(8)
            for image in range(images):
                name = f"c{center}/p{patient}/{image}"
                rows.append((name, f"c{center}", f"c{center}p{patient}", *(shift + own + rng.normal(0, noise, 8))))
    return pd.DataFrame(rows, columns=["id", "center", "patient", *(f"f{i}" for i in range(8))])


def test_statistics_of_a_known_image():
    half = np.concatenate([np.zeros((8, 16)), np.ones((8, 16))])
    row = image_features(pictures(grey(half), grey(np.full((16, 16), 0.25)))).set_index("id")
    assert row.columns[:2].tolist() == ["center", "patient"]
    assert row.loc["0", ["grey mean", "grey SD", "grey 5 %", "grey 95 %"]].tolist() == [0.5, 0.5, 0, 1]
    # The edge's two lines of 16 pixels have a Laplacian of 1 and -1.
    assert row.loc["0", "grey sharpness"] == pytest.approx(np.log10(2 / 16), abs=1e-4)
    assert row.loc["1", ["grey mean", "grey SD", "grey 25 %", "grey sharpness"]].tolist() == pytest.approx([0.25, 0, 0.25, -6])


def test_blur_lowers_and_noise_raises_sharpness():
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.random((32, 32)), 1)
    images = [ndimage.gaussian_filter(scene, 1), scene, scene + rng.normal(0, 0.1, scene.shape)]
    assert image_features(pictures(*map(grey, images)))["grey sharpness"].is_monotonic_increasing


def test_stains_are_measured_where_there_is_colour():
    table = image_features(pictures(stained(0.7, 0.0), stained(0.2, 0.5), grey(np.full((8, 8), 0.5))))
    channels = {name.rsplit(" ", 1)[0] for name in table.columns if name.endswith("mean")}
    assert channels == {"red", "green", "blue", *STAINS}
    assert table["haematoxylin mean"].tolist()[:2] == pytest.approx([0.7, 0.2], abs=1e-3)
    assert table["eosin mean"].tolist()[:2] == pytest.approx([0.0, 0.5], abs=1e-3)
    assert all(name.startswith("grey") for name in image_features(pictures(grey(np.eye(8)))).columns[3:])


def test_stain_profile_is_a_density():
    table = pictures(stained(0.7, 0.1), stained(2.0, 1.8)).assign(center=["A", "B"])
    profile = stain_profile(table)
    step = profile["value"].iloc[1] - profile["value"].iloc[0]
    assert np.allclose(profile.groupby(["center", "channel"])["density"].sum() * step, 1)
    peaks = profile.loc[profile.groupby(["center", "channel"])["density"].idxmax()].set_index(["center", "channel"])["value"]
    assert peaks["A"].to_dict() == pytest.approx({"haematoxylin": 0.7, "eosin": 0.1}, abs=step)
    assert (peaks["B"] > 1.49).all(), "what is darker than the last bin is in it"
    with pytest.raises(ValueError, match="stains need images in colour"):
        stain_profile(pictures(grey(np.eye(8))))


@pytest.mark.parametrize(
    ("images", "message"), [(pictures(), "it has no rows"), (pictures(np.eye(8)).drop(columns="patient"), "lacks patient")]
)
def test_image_features_name_what_is_missing(images, message):
    with pytest.raises(ValueError, match=message):
        image_features(images)


def test_different_centers_are_told_apart_and_equal_ones_are_not():
    table = center_predictability(planted([0, 2, 4], 20, 3), 0)
    assert list(zip(table["center"], table["predicted"], strict=True))[:4] == [("c0", "c0"), ("c0", "c1"), ("c0", "c2"), ("c1", "c0")]
    assert table["balanced_accuracy"].iloc[0] > 0.95 and table["chance"].iloc[0] == pytest.approx(1 / 3)
    assert table["images"].sum() == 180 and table["patients"].iloc[0] == 60
    assert table.groupby("center")["share"].sum().tolist() == pytest.approx([1, 1, 1])
    diagonal = table[table["center"] == table["predicted"]]["share"]
    assert table["balanced_accuracy"].iloc[0] == pytest.approx(diagonal.mean())
    alike = center_predictability(planted([0, 0, 0], 40, 3), 0).iloc[0]
    assert alike["low"] < alike["chance"] < alike["high"]


def test_a_patient_is_never_on_both_sides():
    """Each patient's images are alike and the centres are not: seen in training, they would give the centre away."""
    found = center_predictability(planted([0, 0], 6, 20, signature=5.0, noise=0.01), 0).iloc[0]
    assert found["balanced_accuracy"] < 0.75
    features = planted([0, 0], 6, 20, signature=5.0, noise=0.01)
    each_alone = features.assign(patient=features["id"])
    assert center_predictability(each_alone, 0)["balanced_accuracy"].iloc[0] > 0.95


def test_a_large_center_does_not_count_more():
    features = planted([0, 0], 60, 2)
    many = pd.concat([features[features["center"] == "c0"], features[features["center"] == "c1"].head(20)])
    found = center_predictability(many, 0)
    taken_for_small = found.loc[found["predicted"] == "c1", "share"]
    assert (taken_for_small > 0.2).all(), "not everything is taken for the large centre"
    assert found["balanced_accuracy"].iloc[0] == pytest.approx(found.loc[found["center"] == found["predicted"], "share"].mean())


def test_same_table_and_seed_give_the_same_numbers_in_any_order():
    features = planted([0, 0.5], 15, 3)
    first = center_predictability(features, 3)
    pd.testing.assert_frame_equal(first, center_predictability(features.sample(frac=1, random_state=0), 3))
    others = [center_predictability(features, seed) for seed in range(4)]
    assert len({other["low"].iloc[0] for other in others}) > 1


def test_interval_is_over_patients():
    """Ten images a patient that are right or wrong together say as much as one."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(100) < 0.6, 10)
    truth, patients = np.repeat([0, 1], 500), np.repeat(np.arange(100), 10)
    widths = []
    for groups in (patients, np.arange(1000)):
        low, high, _ = heterogeneity._interval(truth, right, groups, np.random.default_rng(0))
        assert low < right.mean() < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(10), rel=0.1)
    assert widths[1] == pytest.approx(2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 1000), rel=0.1)


def test_few_patients_give_fewer_folds_and_no_interval():
    found = center_predictability(planted([0, 9], 2, 1), 0).iloc[0]
    assert found["balanced_accuracy"] == 1 and np.isnan(found["low"])
    assert found["reason"] == "no interval: 2 patients of one centre, at least 5 are needed"


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (planted([0], 5, 2), "at least 2, got c0"),
        (planted([0, 1], 5, 2).query("center == 'c0' or patient == 'c1p0'"), "'c1' has images of 1 patient, expected at least 2"),
        (planted([0, 1], 5, 2).assign(f3=np.nan), "image 'c0/p0/0': f3 is nan, expected a finite number"),
    ],
)
def test_unusable_features_are_named(features, message):
    with pytest.raises(ValueError, match=message):
        center_predictability(features, 0)


def test_what_stands_in_the_way_is_said_without_an_error():
    features = planted([0, 1], 5, 2)
    assert predictability_obstacle(features) == ""
    assert "at least 2, got c0" in predictability_obstacle(features.query("center == 'c0'"))
    assert "'c1' has images of 1 patient" in predictability_obstacle(features.query("center == 'c0' or patient == 'c1p0'"))


def test_distances():
    rng = np.random.default_rng(0)
    raw = {"A": rng.beta(2, 5, 40000), "B": rng.beta(2, 5, 40000) * 0.5, "C": rng.beta(5, 2, 40000)}
    rows = []
    for center, values in raw.items():
        density, edges = np.histogram(values, bins=64, range=(0, 1), density=True)
        rows += [(center, "grey", *pair) for pair in zip((edges[1:] + edges[:-1]) / 2, density, strict=True)]
    table = center_distances(pd.DataFrame(rows, columns=["center", "channel", "value", "density"]))
    assert table.columns.tolist() == ["channel", "center", "other", "distance"] and len(table) == 9
    square = table.pivot(index="center", columns="other", values="distance")
    assert (np.diag(square) == 0).all() and np.allclose(square, square.T)
    for (one, other), distance in table.set_index(["center", "other"])["distance"].items():
        # Half a bin is the most that the histogram can move a value.
        assert distance == pytest.approx(wasserstein_distance(raw[one], raw[other]), abs=1 / 128)
    assert square.loc["A", "B"] == pytest.approx(np.mean(raw["A"]) / 2, abs=0.005)
