"""Figures of the data, and the tables made from images."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.data.layouts import read_layout
from vfmgl_lib.data.phantoms import write_phantoms
from vfmgl_lib.figures import heterogeneity, samples
from vfmgl_lib.figures.style import save_figure


@pytest.fixture(scope="module", params=["endometrial", "nuclei"])
def manifest(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    splits = {"train": 4, "test": 4} if request.param == "endometrial" else {"train": 2, "val": 2, "test": 2}
    return read_layout(
        write_phantoms(root / "data", request.param, centers=2, samples=splits, image_size=48), request.param, progress=False
    )


def pictures(centers: list[str], images: int = 3, mask: bool = True) -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = []
    for center in centers:
        for index in range(images):
            outline = np.zeros((8, 8), bool)
            outline[2:5, 2:5] = True
            image = random.random((8, 8, 3)).astype(np.float32)
            rows.append((f"{center}/{index}", center, "train", "" if mask else "MI", image, outline if mask else None))
    return pd.DataFrame(rows, columns=["id", "center", "split", "label", "image", "mask"])


def test_read_samples_keeps_the_order_and_the_values(manifest):
    ids = manifest.table["id"].tolist()[::-1][:5]
    table = samples.read_samples(manifest, ids, 32)
    assert table["id"].tolist() == ids
    assert all(image.shape == (32, 32, 3) and 0 <= image.min() and image.max() <= 1 for image in table["image"])
    if manifest.task_kind == "segmentation":
        assert all(mask.dtype == bool and mask.shape == (32, 32) for mask in table["mask"])
    else:
        assert set(table["label"]) <= set(manifest.classes)


def test_sample_counts(manifest):
    table = samples.sample_counts(manifest)
    assert table["images"].sum() == len(manifest.table)
    assert table["positive_share"].between(0, 1).all()
    if manifest.task_kind == "classification":
        row = table.iloc[0]
        assert row.positive_share == (manifest.select(row.center, row.split)["label"] == 1).mean()


def test_color_profile_is_a_density_and_knows_grey():
    table = pictures(["A", "B"])
    profile = samples.color_profile(table)
    assert list(profile["channel"].unique()) == ["red", "green", "blue"]
    assert np.allclose(profile.groupby(["center", "channel"])["density"].mean(), 1)
    grey = table.assign(image=[np.repeat(image[..., :1], 3, axis=2) for image in table["image"]])
    assert list(samples.color_profile(grey)["channel"].unique()) == ["grey"]


def test_image_statistics():
    table = pictures(["A"], images=1).assign(image=[np.concatenate([np.zeros((4, 8, 3)), np.ones((4, 8, 3))])])
    row = samples.image_statistics(table).iloc[0]
    assert (row.brightness, row.contrast) == (0.5, 0.5)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("mask", [True, False])
def test_image_grid(count: int, mask: bool, tmp_path):
    centers = ["a centre with a very long name indeed", "Łódź $1", *(f"c{i}" for i in range(6))][:count]
    table = pictures(centers, mask=mask)
    figure = heterogeneity.image_grid(table, columns=2)
    assert len(figure.axes) == 2 * count
    for axis in figure.axes:
        assert len(axis.images) == 1
        assert bool(axis.texts) == (not mask)
    assert figure.axes[0].get_ylabel() == "a centre with a\nvery long name\nindeed"
    save_figure(figure, table.drop(columns=["image", "mask"]), tmp_path, "grid")
    assert (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [2, 8])
def test_distributions_and_clouds_have_one_colour_a_centre(count: int):
    table = pictures([f"c{i}" for i in range(count)])
    lines = heterogeneity.color_distributions(samples.color_profile(table)).axes
    assert [axis.get_title(loc="left") for axis in lines] == ["red", "green", "blue"]
    assert all(len(axis.lines) == count and axis.get_xlabel() for axis in lines)
    top = lines[0].get_ylim()[1]
    assert top >= max(line.get_ydata().max() for axis in lines for line in axis.lines)
    cloud = heterogeneity.brightness_contrast(samples.image_statistics(table)).axes[0]
    assert len(cloud.collections) == count
    assert len({line.get_color() for line in lines[0].lines}) == count


def test_counts_draw_every_split_and_centre(tmp_path):
    rows = [(c, s, n, n // 2, 0.25) for c in ("A", "B") for s, n in (("train", 10), ("test", 4))]
    table = pd.DataFrame(rows, columns=["center", "split", "images", "patients", "positive_share"])
    left, right = heterogeneity.counts(table, "images of class MI").axes
    assert sum(bar.get_width() for bar in left.patches) == table["images"].sum()
    assert [text.get_text() for text in left.texts] == ["14 images, 7 patients"] * 2
    assert right.get_xlabel() == "images of class MI (%)"
    assert {x for line in right.lines[:2] for x in line.get_xdata()} == {25.0}
