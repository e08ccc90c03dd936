"""Masks of more than two classes: which value is which class, what is refused, and that no size or file form changes a class."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.data.images import ImageError, decode_mask
from vfmgl_lib.data.label_masks import class_indices, encoded, values_of
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import COLUMNS, Manifest, ManifestError, check_manifest
from vfmgl_lib.data.manifest_files import read_manifest, write_manifest

VALUES = (0, 3, 1, 200)  # not in the order of their sizes
INDICES = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
CLASSES = ("background", "disc", "bar", "corner")


def test_the_values_of_classes():
    assert values_of(2) == values_of(2, ()) == () and values_of(4) == (0, 1, 2, 3) and values_of(2, (0, 7)) == (0, 7)
    for given, message in (
        ((0, 1, 2), "4 different values, one a class, got 0, 1, 2"),
        ((0, 1, 2, 2), "4 different"),
        ((0, 1, 2, 65536), "0 and 65535, got 65536"),
    ):
        with pytest.raises(ValueError, match=message):
            values_of(4, given)
    with pytest.raises(ValueError, match="at most 256"):
        values_of(257)


def test_a_mask_comes_back_as_it_was_written(tmp_path):
    for values, kind in ((VALUES, np.uint8), ((0, 1000, 2, 65535), np.uint16)):
        stored = encoded(INDICES, values)
        assert stored.dtype == kind and np.array_equal(class_indices(stored, values), INDICES)
        for name in ("mask.png", "mask.tif"):
            Image.fromarray(stored).save(tmp_path / name)
            assert np.array_equal(decode_mask(tmp_path / name, mask_values=values), INDICES)
    assert encoded(INDICES % 2, ()).tolist() == [[0, 255, 0], [255, 255, 0]], "two classes as ever"


def test_a_value_that_is_no_class_is_an_error_that_names_it(tmp_path):
    Image.fromarray(np.array([[0, 3], [7, 255]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        ImageError, match=r"^m: mask has values 7, 255, expected only 0, 3, 1, 200; `mask_values` in the task's file names others$"
    ):
        decode_mask(tmp_path / "m.png", "m", VALUES)
    Image.fromarray(np.full((2, 2, 3), (0, 3, 1), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(ImageError, match=r"coloured \(mode RGB\), expected one channel of 0, 3, 1, 200"):
        decode_mask(tmp_path / "rgb.png", mask_values=VALUES)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "m.jpg", quality=100)
    with pytest.raises(ImageError, match="is a JPEG, which does not keep values, expected a PNG or TIFF"):
        decode_mask(tmp_path / "m.jpg", mask_values=VALUES)
    Image.fromarray(np.array([[[0, 255], [3, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    with pytest.raises(ImageError, match="transparent in places"):
        decode_mask(tmp_path / "la.png", mask_values=VALUES)


def test_of_a_palette_the_indices_count_and_greys_where_only_they_are_classes(tmp_path):
    def save(indices, colors):
        picture = Image.fromarray(np.array([indices], np.uint8), "P")
        picture.putpalette([part for color in colors for part in color])
        picture.save(tmp_path / "p.png")
        return decode_mask(tmp_path / "p.png", mask_values=VALUES).tolist()

    assert save([0, 3, 1], [(0, 0, 0), (255, 0, 0), (9, 9, 9), (0, 255, 0)]) == [[0, 1, 2]], "painted labels"
    assert save([0, 1, 2], [(0,) * 3, (200,) * 3, (3,) * 3]) == [[0, 3, 1]], "greys that a program numbered anew: 2 is no class"
    with pytest.raises(ImageError, match="both are values of classes; save it without palette"):
        save([0, 1, 3], [(0,) * 3, (3,) * 3, (9,) * 3, (1,) * 3])


def _manifest(root, masks, classes=CLASSES, mask_values=VALUES):
    rows = []
    for number, mask in enumerate(masks):
        Image.fromarray(np.full((*mask.shape, 3), number, np.uint8)).save(root / f"{number}.png")
        Image.fromarray(encoded(mask, mask_values)).save(root / f"m{number}.png")
        split = ("train", "test")[number % 2]
        rows.append((f"{number}", f"{number}.png", "0" * 64, "AB"[number // 2], f"p{number}", split, f"m{number}.png", ""))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    manifest = Manifest(root, "segmentation", classes, table, mask_values=mask_values)
    import hashlib

    table["sha256"] = [hashlib.sha256((root / path).read_bytes()).hexdigest() for path in table["path"]]
    return Manifest(root, "segmentation", classes, table, mask_values=manifest.mask_values)


def test_a_resized_mask_has_no_class_that_the_file_has_not(tmp_path):
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20] = 3  # between 0 and 3 lie the classes 1 and 2
    data = ImageDataset(_manifest(tmp_path, [mask]), _manifest(tmp_path, [mask]).table, 32)
    target = data[0]["target"]
    assert target.unique().tolist() == [0, 3] and target.dtype.is_signed and data.classes == CLASSES
    expected = np.array(Image.fromarray(mask).resize((32, 32), Image.Resampling.NEAREST))
    assert np.array_equal(target.numpy(), expected)


def test_what_the_check_of_a_set_says_of_its_classes(tmp_path):
    every = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    manifest = _manifest(tmp_path, [every, every, every % 2, every])
    warnings = check_manifest(manifest)
    assert "center 'B': none of 1 train masks has bar, corner" in warnings and not [w for w in warnings if "'A'" in w]
    with pytest.raises(ManifestError, match=r"no mask has class 'corner' \(value 200\), expected each class at one centre at least"):
        check_manifest(_manifest(tmp_path, [every % 3] * 4))
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "m1.png")
    with pytest.raises(ManifestError, match=r"m1\.png: mask has value 9, expected only 0, 3, 1, 200"):
        check_manifest(manifest)


def test_a_manifest_keeps_the_values_and_names_them_in_its_hash_where_they_are_not_the_default(tmp_path):
    every = np.arange(16, dtype=np.uint8).reshape(4, 4) % 4
    manifest = _manifest(tmp_path, [every, every])
    write_manifest(manifest, tmp_path / "manifest.csv")
    again = read_manifest(tmp_path / "manifest.csv", tmp_path)
    assert again.mask_values == VALUES and again.sha256 == manifest.sha256
    plain = Manifest(tmp_path, "segmentation", CLASSES, manifest.table)
    assert plain.mask_values == (0, 1, 2, 3) and plain.sha256 != manifest.sha256
    two = Manifest(tmp_path, "segmentation", CLASSES[:2], manifest.table)
    assert (
        two.mask_values == () and two.sha256 != Manifest(tmp_path, "segmentation", CLASSES[:2], manifest.table, mask_values=(0, 1)).sha256
    )
    notes = json.loads((tmp_path / "manifest.json").read_text())
    for wrong, message in (([0, 1], "4 different values"), ("0123", "expected a list of whole numbers")):
        (tmp_path / "manifest.json").write_text(json.dumps(notes | {"mask_values": wrong}))
        with pytest.raises(ManifestError, match=message):
            read_manifest(tmp_path / "manifest.csv", tmp_path)
