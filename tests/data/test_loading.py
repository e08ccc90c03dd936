"""Batches: values, sizes, order, worker processes, cache, files that fail at run time."""

import numpy as np
import pytest
import torch
from PIL import Image

from vfmgl_lib.data.images import ImageError
from vfmgl_lib.data.loading import ORIENTATIONS, TURNED_SHARE, ImageDataset, draw_orientations, epoch_batches, load_batches, oriented
from vfmgl_lib.tasks.folders import read_folders


@pytest.fixture
def segmentation(tmp_path):
    """One site, five training images (one grayscale) and one test image, 20 x 12 pixels."""
    root = tmp_path / "nuclei"
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 1)):
        for kind in ("images", "labels"):
            (root / "SiteA" / split / kind).mkdir(parents=True)
        for number in range(count):
            shape = (12, 20) if number == 4 else (12, 20, 3)
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image.save(root / f"SiteA/{split}/images/{split}{number}.png")
            mask = Image.fromarray(rng.integers(0, 2, (12, 20), dtype=np.uint8) * 255)
            mask.save(root / f"SiteA/{split}/labels/{split}{number}.png")
    return read_folders(root, "nuclei", progress=False)


@pytest.fixture
def classification(tmp_path):
    root = tmp_path / "ec"
    rng = np.random.default_rng(1)
    for split in ("traindata", "testdata"):
        for label in "01":
            for number in range(3):
                folder = root / "A" / split / label / f"{split}{label}{number}"
                folder.mkdir(parents=True)
                Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(folder / "1.png")
    return read_folders(root, "endometrial", progress=False)


def dataset(manifest, image_size=8, teacher_size=14, **options):
    return ImageDataset(manifest, manifest.select(split="train"), image_size, teacher_size, **options)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(torch.as_tensor(first[name]), torch.as_tensor(second[name])) for name in first)


def test_segmentation_item(segmentation):
    item = dataset(segmentation)[3]
    assert item["image"].shape == (3, 8, 8) and item["image"].dtype == torch.float32
    assert item["teacher_image"].shape == (3, 14, 14) and item["teacher_image"].dtype == torch.float32
    assert item["target"].shape == (8, 8) and item["target"].dtype == torch.int64
    assert set(item["target"].unique().tolist()) == {0, 1}
    assert item["row"] == 3
    for name in ("image", "teacher_image"):
        assert 0 <= item[name].min() and item[name].max() <= 1


def test_classification_item(classification):
    data = ImageDataset(classification, classification.select(split="test"), 8)
    assert [int(data[row]["target"]) for row in range(len(data))] == data.table["label"].tolist() == [0, 0, 0, 1, 1, 1]
    item = data[0]
    assert item.keys() == {"image", "target", "row", "orientation"}
    assert item["target"].shape == () and item["target"].dtype == torch.int64


def test_own_size_is_the_file_itself(classification):
    data = ImageDataset(classification, classification.select(split="train"), 9)
    square = Image.open(classification.root / data.table.loc[0, "path"]).resize((9, 9), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    assert torch.equal(data[0]["image"], expected)


def test_resize_is_antialiased_and_in_place(tmp_path, segmentation):
    path = segmentation.root / segmentation.select(split="train").loc[0, "path"]
    stripes = np.zeros((12, 20, 3), np.uint8)
    stripes[:, ::2] = 255  # without antialiasing, a half-sized picture of it would be all white or all black
    Image.fromarray(stripes).save(path)
    image = dataset(segmentation, image_size=4)[0]["image"]
    assert (image - 0.5).abs().max() < 0.15
    quadrant = np.zeros((12, 20, 3), np.uint8)
    quadrant[:6, 10:, 1] = 255
    Image.fromarray(quadrant).save(path)
    image = dataset(segmentation, image_size=4)[0]["image"]
    assert image[1, 0, 3] == 1 and image[1, 3, 0] == 0 and image[1, 0, 0] == 0 and image[0].max() == 0


def test_mask_keeps_to_the_image(segmentation):
    row = segmentation.select(split="train").loc[0]
    mask = np.zeros((12, 20), np.uint8)
    mask[:6, 10:] = 1
    Image.fromarray(mask).save(segmentation.root / row["label"])
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[:2, 2:] = 1
    assert torch.equal(dataset(segmentation, image_size=4)[0]["target"], expected)


def test_mask_takes_the_nearest_pixel(segmentation):
    mask = np.zeros((12, 20), np.uint8)
    mask[:, 2::5] = 1  # the middle one of every five columns; an average would be background
    Image.fromarray(mask).save(segmentation.root / segmentation.select(split="train").loc[0, "label"])
    assert (dataset(segmentation, image_size=4)[0]["target"] == 1).all()


def test_gray_file_has_three_equal_channels(segmentation):
    image = dataset(segmentation)[4]["image"]
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2]) and image.std() > 0


def test_cache_changes_no_value_and_keeps_to_its_limit(segmentation):
    plain, cached = dataset(segmentation, cache_bytes=0), dataset(segmentation)
    one_sample = 3 * 8 * 8 + 3 * 14 * 14 + 8 * 8
    bounded = dataset(segmentation, cache_bytes=2 * one_sample + 1)
    for _ in range(2):
        for row in range(5):
            assert equal(plain[row], cached[row]) and equal(plain[row], bounded[row])
    assert [len(data._cache) for data in (plain, cached, bounded)] == [0, 5, 2]


def test_cached_sample_is_safe_from_its_reader(segmentation):
    data = dataset(segmentation)
    first = data[0]
    kept = {name: torch.as_tensor(value).clone() for name, value in first.items()}
    first["image"].mul_(0)
    first["target"].fill_(7)
    assert equal(data[0], kept)


def test_epoch_has_every_row_once():
    seed = np.random.SeedSequence(5)
    for n in (1, 2, 3, 7, 16, 17, 33):
        for size in (1, 2, 4, 16, 50):
            batches = epoch_batches(n, size, seed)
            assert sorted(row for batch in batches for row in batch) == list(range(n))
            assert all(len(batch) == size for batch in batches[:-1])
            assert len(batches[-1]) <= size + 1
            if size > 1 and n > 1:
                assert min(map(len, batches)) >= 2
    assert [len(batch) for batch in epoch_batches(9, 4, seed)] == [4, 5]
    assert [len(batch) for batch in epoch_batches(3, 1, seed)] == [1, 1, 1]


def test_epoch_order_follows_the_seed():
    first = epoch_batches(30, 4, np.random.SeedSequence(5))
    assert epoch_batches(30, 4, np.random.SeedSequence(5)) == first
    assert epoch_batches(30, 4, np.random.SeedSequence(6)) != first
    assert [row for batch in first for row in batch] != list(range(30))
    with pytest.raises(ValueError, match="at least 1, got n = 0, batch_size = 4"):
        epoch_batches(0, 4, np.random.SeedSequence(5))


def test_batches_are_the_items_in_order(segmentation):
    data = dataset(segmentation)
    batches = [[4, 0], [2, 1, 3]]
    loaded = list(load_batches(data, batches))
    assert [batch["row"].tolist() for batch in loaded] == batches
    assert loaded[1]["image"].shape == (3, 3, 8, 8) and loaded[1]["target"].shape == (3, 8, 8)
    assert torch.equal(loaded[1]["image"][2], data[3]["image"])


def test_workers_give_the_same_batches(segmentation):
    batches = epoch_batches(5, 2, np.random.SeedSequence(0))
    alone = list(load_batches(dataset(segmentation), batches))
    helped = list(load_batches(dataset(segmentation), batches, workers=2))
    assert len(alone) == len(helped) == 2
    assert all(equal(first, second) for first, second in zip(alone, helped, strict=True))


def test_loading_leaves_the_global_generator_alone(segmentation):
    before = torch.get_rng_state()
    list(load_batches(dataset(segmentation), [[0, 1]]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_fails_at_run_time(segmentation, workers):
    data = dataset(segmentation)
    path = segmentation.root / data.table.loc[2, "path"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"train2\.png: cannot be decoded .* damaged or cut short"):
        list(load_batches(data, [[0, 1], [2, 3], [4]], workers=workers))


def test_file_that_is_gone(segmentation):
    data = dataset(segmentation)
    (segmentation.root / data.table.loc[1, "label"]).unlink()
    with pytest.raises(ImageError, match=r"labels/train1\.png: cannot be read \(No such file"):
        data[1]


def test_mask_that_no_longer_fits(segmentation):
    data = dataset(segmentation)
    Image.fromarray(np.zeros((12, 19), np.uint8)).save(segmentation.root / data.table.loc[0, "label"])
    with pytest.raises(ImageError, match=r"labels/train0\.png: mask is 19x12, expected 20x12"):
        data[0]


def test_refuses(segmentation):
    with pytest.raises(ValueError, match="the table has no rows"):
        ImageDataset(segmentation, segmentation.select(split="val"), 8)
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, got 0"):
        dataset(segmentation, image_size=0)
    with pytest.raises(ValueError, match="teacher_size must be at least 1 pixel, got -14"):
        dataset(segmentation, teacher_size=-14)
    for batches in ([[0, 1], []], [[0, 5]], [[-1]]):
        with pytest.raises(ValueError, match=r"batch \d is .*, expected rows from 0 to 4"):
            load_batches(dataset(segmentation), batches)


@pytest.mark.real_data
def test_real_sets(real_data_root):
    for folder, layout, size in (("idc_patches", "endometrial", 224), ("nuclei", "nuclei", 256)):
        manifest = read_folders(real_data_root / folder, layout, verify=False, progress=False)
        data = ImageDataset(manifest, manifest.select(manifest.centers[0], "train"), size, 224)
        (batch,) = load_batches(data, [list(range(4))])
        assert batch["image"].shape == (4, 3, size, size) and batch["teacher_image"].shape == (4, 3, 224, 224)
        assert 0.1 < batch["image"].mean() < 0.95 and batch["image"].std() > 0.02


def grid(side=4):
    """Told apart from all its turned and mirrored images."""
    return torch.arange(3 * side * side).reshape(3, side, side)


def test_orientations_are_those_of_numpy_and_all_different():
    seen = set()
    for orientation in range(ORIENTATIONS):
        expected = np.rot90(grid().numpy(), orientation % 4, (1, 2))
        expected = expected[..., ::-1] if orientation >= 4 else expected
        found = oriented(grid(), orientation)
        np.testing.assert_array_equal(found.numpy(), expected)
        np.testing.assert_array_equal(oriented(grid()[0], orientation).numpy(), expected[0])
        seen.add(found.numpy().tobytes())
    assert len(seen) == 8 and torch.equal(oriented(grid(), 0), grid())


def test_turning_an_orientation_gives_another_one():
    """A group: a quarter turn or a flip of the eight gives the eight, and four quarters or two flips nothing new."""
    all_eight = {oriented(grid(), orientation).numpy().tobytes() for orientation in range(ORIENTATIONS)}
    for first in range(ORIENTATIONS):
        image = oriented(grid(), first)
        assert {oriented(image, then).numpy().tobytes() for then in range(ORIENTATIONS)} == all_eight
        quarter = image
        for _ in range(4):
            quarter = oriented(quarter, 1)
        assert torch.equal(quarter, image) and torch.equal(oriented(oriented(image, 4), 4), image)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_image_teacher_image_and_mask_are_turned_alike(segmentation, cache_bytes):
    data, plain = dataset(segmentation, cache_bytes=cache_bytes), dataset(segmentation)
    for orientation in (3, 0, 6, 6):
        (batch,) = load_batches(data, [[2, 0]], orientations=[orientation, 1, 7, 1, 1])
        assert batch["row"].tolist() == [2, 0] and batch["orientation"].tolist() == [7, orientation]
        for position, turn in enumerate((7, orientation)):
            item = plain[int(batch["row"][position])]
            for name in ("image", "teacher_image", "target"):
                assert torch.equal(batch[name][position], oriented(item[name], turn)), name
    assert not torch.equal(batch["target"][0], plain[2]["target"]), "a mask that looks the same turned would show nothing"


def test_a_class_is_not_turned(classification):
    data = dataset(classification)
    labels = [int(data[row]["target"]) for row in range(len(data))]
    (batch,) = load_batches(data, [list(range(len(data)))], orientations=[5] * len(data))
    assert batch["target"].tolist() == labels and torch.equal(batch["image"][1], oriented(data[1]["image"], 5))


def test_a_row_has_its_orientation_whatever_the_batches_and_workers(segmentation):
    data, orientations = dataset(segmentation), [3, 0, 6, 1, 4]
    alone = {row: next(iter(load_batches(data, [[row]], orientations=orientations))) for row in range(5)}
    for batches, workers in (([[4, 3, 2, 1, 0]], 0), ([[0, 2], [1, 4, 3]], 2)):
        for batch in load_batches(dataset(segmentation), batches, workers, orientations=orientations):
            for position, row in enumerate(batch["row"].tolist()):
                assert int(batch["orientation"][position]) == orientations[row]
                assert all(torch.equal(batch[name][position], alone[row][name][0]) for name in ("image", "teacher_image", "target"))


def test_three_quarters_are_turned_each_way_equally_often():
    drawn = np.array(draw_orientations(40_000, np.random.SeedSequence(3)))
    counts = np.bincount(drawn, minlength=8) / len(drawn)
    assert len(counts) == 8 and counts[0] == pytest.approx(1 - TURNED_SHARE, abs=0.01)
    assert counts[1:] == pytest.approx([TURNED_SHARE / 7] * 7, abs=0.008)
    assert draw_orientations(50, np.random.SeedSequence(3)) == draw_orientations(50, np.random.SeedSequence(3))
    assert draw_orientations(50, np.random.SeedSequence(3)) != draw_orientations(50, np.random.SeedSequence(4))


def test_refuses_orientations(segmentation):
    data = dataset(segmentation)
    for orientations in ([0] * 4, [0] * 6, [0, 0, 0, 0, 8], [-1, 0, 0, 0, 0], []):
        with pytest.raises(ValueError, match=r"orientations must be 5 numbers from 0 to 7, one a row; got \d"):
            load_batches(data, [[0]], orientations=orientations)
