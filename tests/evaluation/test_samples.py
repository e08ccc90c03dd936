"""Tables made from images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.data.manifest import COLUMNS, Manifest
from vfmgl_lib.evaluation import samples
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.phantoms import write_phantoms


@pytest.fixture(scope="module", params=["endometrial", "nuclei"])
def manifest(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    splits = {"train": 4, "test": 4} if request.param == "endometrial" else {"train": 2, "val": 2, "test": 2}
    return read_folders(
        write_phantoms(root / "data", request.param, centers=2, samples=splits, image_size=48), request.param, progress=False
    )


def test_read_samples_keeps_the_order_and_the_values(manifest):
    ids = manifest.table["id"].tolist()[::-1][:5]
    settings = load_settings("nuclei" if manifest.task_kind == "segmentation" else "endometrial", data__image_size=32)
    table = samples.read_samples(manifest, ids, settings.data)
    assert table["id"].tolist() == ids
    assert all(image.shape == (32, 32, 3) and 0 <= image.min() and image.max() <= 1 for image in table["image"])
    if manifest.task_kind == "segmentation":
        assert all(mask.dtype == bool and mask.shape == (32, 32) for mask in table["mask"])
    else:
        assert set(table["label"]) <= set(manifest.classes)


def stacked_slice(root: Path) -> Manifest:
    """One image of three different channels and its mask."""
    channels = np.stack([np.full((40, 40), value, np.uint8) for value in (0, 100, 200)], axis=-1)
    Image.fromarray(channels).save(root / "image.png")
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(root / "mask.png")
    row = ("A/train/1", "image.png", "", "A", "P1", "train", "mask.png", "0.6,0.7")
    return Manifest(root, "segmentation", ("background", "prostate"), pd.DataFrame([row], columns=list(COLUMNS)))


def test_of_neighbouring_slices_the_middle_one_is_shown(tmp_path):
    manifest = stacked_slice(tmp_path)
    for task, expected in (("prostate", (100, 100, 100)), ("nuclei", (0, 100, 200))):
        settings = load_settings(task, data__image_size=32)
        image = samples.read_samples(manifest, ["A/train/1"], settings.data)["image"][0]
        assert np.allclose(image, np.array(expected) / 255)


def test_each_center_gives_training_images_and_an_external_one_its_test_images(manifest):
    rows = manifest.table
    two = rows["center"].isin(manifest.training_centers)
    one = rows["center"] == manifest.training_centers[0]
    external = replace(manifest, table=rows[two & (~one | (rows["split"] == "test"))])
    few = samples.of_each_center(external, 2, 0)
    assert few.groupby("center")["split"].agg(list).tolist() == [["test"] * 2, ["train"] * 2]
    assert few["id"].is_unique and few.index.tolist() == [0, 1, 2, 3]
    every = samples.of_each_center(external, 100, 0)
    assert set(every["id"]) == set(rows.loc[two & (rows["split"] == np.where(one, "test", "train")), "id"])


def test_spacing_is_of_what_is_known(manifest, tmp_path):
    unknown = samples.spacing(manifest)
    assert unknown["center"].tolist() == list(manifest.centers) and (unknown["known"] == 0).all()
    assert unknown[["smallest", "median", "largest"]].isna().all(axis=None)
    one = stacked_slice(tmp_path)
    table = pd.concat([one.table, one.table.assign(id="A/train/2", spacing="")])
    row = samples.spacing(replace(one, table=table)).iloc[0]
    assert row.tolist() == ["A", 2, 1, 0.6, pytest.approx(0.65), 0.7]


def test_sample_counts(manifest):
    table = samples.sample_counts(manifest)
    for _, rows in table.groupby("center"):
        assert rows["split"].tolist() == [split for split in ("train", "val", "test") if split in set(rows["split"])]
    assert table["images"].sum() == len(manifest.table)
    assert table["positive_share"].between(0, 1).all()
    if manifest.task_kind == "classification":
        row = table.iloc[0]
        assert row.positive_share == (manifest.select(row.center, row.split)["label"] == 1).mean()
