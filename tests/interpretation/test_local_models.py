"""What is asked of all local models: the same as of each by itself, and tables without rows where the data do not have it."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.interpretation import cam, local_models, mrmr
from vfmgl_lib.interpretation.features import features_of, own_cases, principal_components, score_table, score_tests
from vfmgl_lib.models.students import ResNet18, UNet
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.phantoms import write_phantoms

SIZE = 32


@pytest.fixture(scope="module", params=["endometrial", "nuclei"])
def local(request, tmp_path_factory):
    """Layout, manifest, students by centre, features by stage and centre."""
    root = write_phantoms(tmp_path_factory.mktemp("p") / "p", request.param, centers=2, samples={"train": 12, "test": 6}, image_size=SIZE)
    manifest = read_folders(root, request.param, progress=False)
    students = {}
    for seed, center in enumerate(manifest.training_centers):
        torch.manual_seed(seed)
        students[center] = (ResNet18 if request.param == "endometrial" else UNet)(2, width=4).eval()
    everyone = ImageDataset(manifest, manifest.table[manifest.table["center"].isin(students)], SIZE)
    features = {"II": {center: features_of(student, everyone) for center, student in students.items()}}
    return request.param, manifest, students, features


def images_of(manifest) -> dict[str, ImageDataset]:
    return {center: ImageDataset(manifest, manifest.select(center, "test"), SIZE) for center in manifest.training_centers}


def test_evidence_is_held_against_random_weights(local):
    layout, manifest, students, _ = local
    maps = local_models.maps_of(students, images_of(manifest), "")
    lesions = local_models.known_lesions(manifest, maps["id"], SIZE, on_phantoms=True)
    summary = local_models.localise(students, manifest, maps, lesions, "", seed=0)
    assert list(summary.columns) == local_models.LOCALISED and set(summary["model"]) == {"trained", "random weights"}
    positive = manifest.select(split="test")
    positive = positive[positive["center"].isin(students)]
    positive = positive if layout == "nuclei" else positive[positive["label"] == 1]
    whole = summary[(summary["center"] == "all") & (summary["model"] == "trained")].iloc[0]
    assert whole["images"] == sum(lesions[name].any() for name in positive["id"])
    alone = cam.localisation(maps[maps["id"].isin(positive["id"])], lesions, "trained")
    expected = alone.dropna(subset="inside").groupby(["center", "patient"])["inside"].mean().mean()
    assert whole["inside"] == pytest.approx(expected, nan_ok=True)


def test_lesions_of_real_images_are_known_by_their_masks_alone(local):
    layout, manifest, students, _ = local
    maps = local_models.maps_of(students, images_of(manifest), "")
    lesions = local_models.known_lesions(manifest, maps["id"], SIZE, on_phantoms=False)
    assert bool(lesions) == (layout == "nuclei")
    if not lesions:
        summary = local_models.localise(students, manifest, maps, lesions, "", seed=0)
        assert summary.empty and list(summary.columns) == local_models.LOCALISED


def test_components_are_each_model_s_on_its_own_images(local):
    _, manifest, _, features = local
    points, explained = local_models.components(features)
    center = manifest.training_centers[1]
    table = features["II"][center]
    alone, share = principal_components(table[table["center"] == center])
    found = points[points["center"] == center]
    assert found["pc1"].tolist() == alone["pc1"].tolist() and set(points["stage"]) == {"II"}
    assert explained[explained["center"] == center]["explained"].tolist() == share["explained"].tolist()


def test_features_are_selected_by_class_or_not_at_all(local):
    layout, _, _, features = local
    selection = local_models.select(features, wanted=12, top=3)
    engines, words = local_models.compare_engines(next(iter(features["II"].values())), among=8, wanted=4)
    maps = local_models.feature_maps(features, selection)
    if layout == "nuclei":
        assert (selection.chosen, selection.top, selection.words) == ({}, 0, local_models.NO_CLASSES)
        assert engines.empty and words == local_models.NO_CLASSES and maps.empty
        return
    assert selection.chosen["II"]["rank"].max() == min(12, selection.varying["II"].min()) and selection.top == 3
    assert engines["engine"].tolist() == ["fast", "pymrmr"] and (engines["largest shortfall"] < 1e-6).all()
    assert words == ("equal" if engines.iloc[0, 1:5].equals(engines.iloc[1, 1:5]) else "equal but for ties")
    panels = maps.groupby(["label", "stage", "kind", "split"]).size()
    assert len(panels) == 8 and (panels == (3 * 2) ** 2).all() and maps["label"].iloc[0] == 1


def test_without_pymrmr_the_cross_check_says_what_is_missing(local, monkeypatch):
    layout, _, _, features = local
    monkeypatch.setitem(sys.modules, "pymrmr", None)
    one = next(iter(features["II"].values()))
    engines, words = local_models.compare_engines(one, among=8, wanted=4)
    if layout == "nuclei":
        assert words == local_models.NO_CLASSES
        return
    assert engines["engine"].tolist() == ["fast"] and (engines["largest shortfall"] < 1e-6).all()
    assert words.startswith("No cross-check: pymrmr is not installed") and "pip install --no-build-isolation pymrmr==0.1.11" in words
    with pytest.raises(RuntimeError, match="pymrmr is not installed"):
        mrmr(np.array([[0, 1], [1, 0]]), np.array([0, 1]), 1, engine="pymrmr")


def test_maps_add_up_to_the_predictions_they_explain(local):
    layout, manifest, students, _ = local
    center = manifest.training_centers[0]
    data = images_of(manifest)[center]
    if layout == "nuclei":
        assert len(local_models.logit_gaps(students[center], data, pd.DataFrame())) == 0
        return
    images = torch.stack([data[row]["image"] for row in range(len(data))])
    with torch.inference_mode():
        probability = students[center](images).softmax(1)[:, 1].double().numpy()
    predictions = pd.DataFrame({"id": data.table["id"], "probability": probability})
    assert (local_models.logit_gaps(students[center], data, predictions) < 1e-3).all()
    predictions["probability"] = np.roll(1 - probability, 1) * 0.5
    assert (local_models.logit_gaps(students[center], data, predictions) > 1e-3).any()


def test_a_single_centre_cannot_be_told_apart(local):
    _, _, _, features = local
    table = next(iter(features["II"].values()))
    told, obstacle = local_models.centers_told({("A", "II"): table[table["center"] == table["center"].iloc[0]]}, seed=0)
    assert told.empty and "at least 2" in obstacle


def test_a_segmentation_has_no_scores_and_its_cases_go_by_dice():
    about = {"stage": "II", "model_center": "A", "test_center": "A", "split": "test", "id": ["x", "y"], "patient": ["p", "q"]}
    masks = pd.DataFrame(about | {"tp": [5, 0], "fn": [0, 0], "dice": [0.9, 1.0]})
    scores = score_table(masks, "image")
    assert scores.empty and "p" in score_tests(scores)
    assert own_cases(masks)[["id", "label", "score"]].to_numpy().tolist() == [["x", 1, 0.9], ["y", 0, 1.0]]
