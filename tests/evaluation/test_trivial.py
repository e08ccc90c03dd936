"""The trivial baselines: each rule wins where it should."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import COLUMNS, Manifest
from vfmgl_lib.evaluation.trivial import trivial_segmentation

SIDE = 16


def _data(root, draw, classes=("background", "organ")):
    """Twelve images and masks as `draw(number, generator)` gives them."""
    rows, generator = [], np.random.default_rng(0)
    for number in range(12):
        for name, pixels in zip(("image", "mask"), draw(number, generator), strict=True):
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{name}{number}.png")
        rows.append((f"{number}", f"image{number}.png", "0" * 64, "A", f"{number}", "train", f"mask{number}.png", ""))
    manifest = Manifest(root, "segmentation", classes, pd.DataFrame(rows, columns=list(COLUMNS)))
    return ImageDataset(manifest, manifest.table, SIDE)


def _square(row, column):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row : row + 6, column : column + 6] = True
    return mask


@pytest.mark.parametrize("dark", [True, False])
def test_otsu_finds_what_is_darker_or_brighter(tmp_path, dark):
    def draw(number, generator):
        mask = _square(number % 10, (3 * number) % 10)
        return np.where(mask == dark, 40, 200), 255 * mask

    data = _data(tmp_path, draw)
    assert trivial_segmentation(data, [data])[0]["dice"].min() == 1


def test_where_brightness_says_nothing_the_common_place_is_taken(tmp_path):
    def draw(number, generator):
        return generator.integers(0, 256, (SIDE, SIDE)), 255 * _square(4 + number % 2, 4)

    data = _data(tmp_path, draw)
    (table,) = trivial_segmentation(data, [data])
    # rows 4 to 10 and 5 to 10: at least half of the masks are in all seven rows
    assert table["dice"].tolist() == pytest.approx([2 * 36 / (36 + 42)] * 12)


SEVERAL = ("background", "one", "two", "nowhere")


def test_of_several_classes_the_nearest_brightness_is_taken(tmp_path):
    def draw(number, generator):
        mask = np.maximum(_square(number % 10, 0), 2 * _square((3 * number) % 10, 9))
        return np.array([20, 100, 200])[mask] + generator.integers(-15, 16, mask.shape), mask

    data = _data(tmp_path, draw, SEVERAL)
    (table,) = trivial_segmentation(data, [data])
    assert table[["dice", "dice[one]", "dice[two]", "dice[nowhere]"]].to_numpy().min() == 1


def test_of_several_classes_each_has_its_common_place(tmp_path):
    def draw(number, generator):
        return generator.integers(0, 256, (SIDE, SIDE)), np.maximum(_square(4, 0), 2 * _square(4 + number % 2, 9))

    data = _data(tmp_path, draw, SEVERAL)
    (table,) = trivial_segmentation(data, [data])
    assert table["dice[one]"].tolist() == [1] * 12
    assert table["dice[two]"].tolist() == pytest.approx([2 * 36 / (36 + 42)] * 12)
