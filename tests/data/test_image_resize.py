"""Images that are not square: into the network's square and back, at odd sizes, for images, masks, distances and data sets."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import COLUMNS, Manifest
from vfmgl_lib.data.preprocessing import RESIZES, input_spacing, placement, restored, squashed, squashed_mask
from vfmgl_lib.tools.predict.files import label_maps

SIZES = ((64, 64), (37, 91), (91, 37), (1, 50), (200, 33), (33, 34))  # width, height
WAYS = list(RESIZES)


@pytest.mark.parametrize("resize", WAYS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_constant_image_fills_its_place_and_a_background_the_rest(width, height, resize):
    image = Image.new("RGB", (width, height), (10, 20, 30))
    for background, level in (("white", 255), ("black", 0)):
        square = squashed(image, 32, resize, background)
        assert square.shape == (32, 32, 3) and square.dtype == np.uint8
        left, top, right, bottom = placement(width, height, 32, resize).place
        inside = np.zeros((32, 32), bool)
        inside[top:bottom, left:right] = True
        assert (square[inside] == (10, 20, 30)).all() and (square[~inside] == level).all()
    assert resize == "pad" or inside.all()


def test_where_an_image_lies():
    assert placement(200, 100, 64, "pad").place == (0, 16, 64, 48) and placement(200, 100, 64, "pad").box == (0, 0, 200, 100)
    assert placement(200, 100, 64, "crop").box == (50, 0, 150, 100) and placement(200, 100, 64, "crop").place == (0, 0, 64, 64)
    assert placement(100, 200, 64, "pad").place == (16, 0, 48, 64)
    with pytest.raises(ValueError, match=r"image_resize 'fill', expected one of stretch, pad, crop"):
        placement(1, 1, 1, "fill")


@pytest.mark.parametrize("resize", WAYS)
@pytest.mark.parametrize(("width", "height"), [(90, 61), (61, 90), (77, 77)])
def test_a_mask_comes_back_to_its_size_and_place(width, height, resize):
    """A disc in the middle, so that a crop keeps it, off the centre by an odd number of pixels."""
    rows, columns = np.mgrid[:height, :width]
    mask = ((rows - height // 2 - 3) ** 2 + (columns - width // 2 + 2) ** 2 < 20**2).astype(np.uint8)
    square = squashed_mask(mask, 64, resize)
    back = restored(square.astype(float), width, height, resize) > 0.5
    assert back.shape == mask.shape
    overlap = 2 * (back & (mask > 0)).sum() / (back.sum() + mask.sum())
    assert overlap > 0.96, "the same pixels, but for the rim"
    for axis in (0, 1):  # and not moved: half a pixel of the square at most
        apart = np.nonzero(back)[axis].mean() - np.nonzero(mask)[axis].mean()
        assert abs(apart) < 0.75 * max(width, height) / 64


@pytest.mark.parametrize("resize", WAYS)
def test_image_and_mask_lie_alike(resize):
    """A bright rectangle: where the mask of the square is, the square's image is bright."""
    mask = np.zeros((40, 96), np.uint8)
    mask[8:30, 40:70] = 1
    square = squashed(Image.fromarray(mask * 255).convert("RGB"), 64, resize, "black")[..., 0] > 127
    assert (square != (squashed_mask(mask, 64, resize) > 0)).mean() < 0.03


def test_labels_keep_their_numbers_and_outside_a_crop_is_background():
    labels = np.zeros((20, 60), np.uint8)
    labels[5:15, 25:35], labels[:, :5] = 3, 2
    assert set(np.unique(squashed_mask(labels, 32, "pad"))) == {0, 2, 3} and set(np.unique(squashed_mask(labels, 32, "crop"))) == {0, 3}
    back = restored(np.ones((32, 32)), 60, 20, "crop", outside=0)
    assert back[:, 20:40].min() == 1 and back[:, :20].max() == back[:, 40:].max() == 0


def test_stretching_is_as_it_always_was():
    """The released way, to the bit: what `image_resize: stretch` gives is Pillow's resize of the whole image."""
    generator = np.random.default_rng(1)
    for width, height in SIZES:
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert np.array_equal(squashed(image, 48), np.array(image.resize((48, 48), Image.Resampling.BILINEAR)))
        mask = generator.integers(0, 2, (height, width), dtype=np.uint8)
        assert np.array_equal(squashed_mask(mask, 48), np.array(Image.fromarray(mask).resize((48, 48), Image.Resampling.NEAREST)))
    values = generator.random((48, 48))
    expected = np.array(Image.fromarray(values.astype(np.float32)).resize((91, 37), Image.Resampling.BILINEAR))
    assert np.array_equal(restored(values, 91, 37), expected)


def test_a_pixel_of_the_square_in_mm():
    """An image of 100 x 200 pixels of 0.5 mm is 50 x 100 mm, whatever it becomes."""
    spacing, shape, size = (0.5, 0.5), (100, 200), (50, 50)
    assert input_spacing(spacing, shape, size) == (1.0, 2.0)
    assert input_spacing(spacing, shape, size, "pad") == (2.0, 2.0), "200 columns in 50"
    assert input_spacing(spacing, shape, size, "crop") == (1.0, 1.0), "100 rows in 50"


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for number, (width, height) in enumerate([(30, 61), (64, 33)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8) * 255).save(tmp_path / f"{number}_mask.png")
        rows.append((f"A/train/{number}", f"{number}.png", "0" * 64, "A", f"p{number}", "train", f"{number}_mask.png", ""))
    return Manifest(tmp_path, "segmentation", ("background", "cell"), pd.DataFrame(rows, columns=list(COLUMNS)))


@pytest.mark.parametrize("resize", WAYS)
def test_a_data_set_reads_images_masks_and_the_teacher_s_view_alike(manifest, resize):
    read = replace(manifest, reading=Reading(resize=resize, background="black"))
    data = ImageDataset(read, read.table, 32, 48)
    for number in range(2):
        image = Image.open(manifest.root / f"{number}.png")
        item = data[number]
        for name, side in (("image", 32), ("teacher_image", 48)):
            expected = torch.from_numpy(squashed(image, side, resize, "black")).permute(2, 0, 1).float() / 255
            assert torch.equal(item[name], expected)
        mask = (np.array(Image.open(manifest.root / f"{number}_mask.png")) > 0).astype(np.uint8)
        assert np.array_equal(item["target"].numpy(), squashed_mask(mask, 32, resize))


def test_another_way_is_another_manifest_and_stretching_is_not_written(manifest):
    """Names of studies and keys of cached features are as they were for what is stretched."""
    others = [replace(manifest, reading=Reading(resize=resize)) for resize in ("pad", "crop")]
    assert len({manifest.sha256, *(other.sha256 for other in others)}) == 3
    assert PLAIN.written() == {"max_value": None, "background": "white"} and repr(PLAIN) == "Reading(max_value=None, background='white')"
    assert repr(others[0].reading) == "Reading(max_value=None, background='white', resize='pad')"
    with pytest.raises(ValueError, match="resize must be one of stretch, pad, crop, got 'fill'"):
        Reading(resize="fill")


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", [(40, 70), (71, 30), (32, 32)])
def test_label_maps_of_several_classes_lie_where_the_image_shows_them(resize, shape):
    """A model that reads the class off the red channel; what it has not seen (crop) is background with probability 1."""
    side, classes = 32, ("background", "left", "right")
    columns = np.arange(shape[1])
    truth = np.broadcast_to(1 + (columns >= shape[1] // 2), shape).astype(np.uint8)
    image = np.repeat((truth * 100)[..., None], 3, axis=2)

    def run(squares):
        logits = np.stack([np.where(np.abs(squares[..., 0].astype(float) - 100 * k) < 50, 20.0, 0.0) for k in range(3)], 1)
        return logits.astype(np.float32), None

    def probabilities(logits):
        exact = np.exp(logits - logits.max(1, keepdims=True))
        return exact / exact.sum(1, keepdims=True)

    about = SimpleNamespace(classes=classes, image_size=side, reading=Reading(resize=resize, background="black"))
    ((labels, chance),) = label_maps(SimpleNamespace(description=about, run=run, probabilities=probabilities), [image], 4)
    assert labels.shape == chance.shape == shape
    left, top, right, bottom = placement(shape[1], shape[0], side, resize).box
    seen = np.zeros(shape, bool)
    seen[top:bottom, left:right] = True
    # A pixel of the square is several of the image's: only the border between the classes, and of the image, is uncertain.
    certain = (np.abs(columns - shape[1] / 2) > 4) & seen
    for border in (certain[: top + 3], certain[bottom - 3 :], certain[:, : left + 3], certain[:, right - 3 :]):
        border[:] = False
    assert certain.any() and (labels[certain] == truth[certain]).all()
    assert (labels[~seen] == 0).all() and np.allclose(chance[~seen], 0) and (chance[certain] > 0.99).all()
