"""Phantoms: the files on disk, the differences between centres, and what can and cannot be learnt from them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import skew
from skimage.filters import threshold_otsu
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vfmgl_lib.data import phantoms
from vfmgl_lib.data.layouts import read_layout
from vfmgl_lib.data.phantoms import GENERATORS, endometrial, nuclei, write_phantoms
from vfmgl_lib.data.phantoms.fields import ellipse_distance, smooth_field, smooth_union

SAMPLES = {
    "endometrial": {"train": 5, "test": 3},
    "nuclei": {"train": 4, "val": 2, "test": 3},
}
LAYOUTS = tuple(SAMPLES)


def write(root: Path, layout: str, **changes) -> Path:
    arguments = {"centers": 2, "samples": SAMPLES[layout], "image_size": 32, "heterogeneity": 1.0, "seed": 3}
    return write_phantoms(root, layout, **(arguments | changes))


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def rendered(layout: str, count: int, size: int, heterogeneity: float, split: str = "train", seed: int = 1):
    """First array and sample of every planned image of four centres."""
    generator = GENERATORS[layout]
    planned = generator.plan(4, {split: count}, heterogeneity, seed)
    return [generator.render(sample, size, heterogeneity, seed) for sample in planned], planned


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_arguments_give_same_bytes(tmp_path, layout):
    first, second = contents(write(tmp_path / "a", layout)), contents(write(tmp_path / "b", layout))
    assert first == second
    other = contents(write(tmp_path / "c", layout, seed=4))
    images = [name for name in first if name.endswith(".png") and name in other]
    assert images and all(first[name] != other[name] for name in images if "/labels/" not in name)
    pngs = [first[name] for name in first if name.endswith(".png")]
    assert len(set(pngs)) == len(pngs), "no two files are alike"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_read(tmp_path, layout):
    root = write(tmp_path / "with space and ü", layout)
    manifest = read_layout(root, layout, progress=False)
    table = manifest.table
    for center in manifest.centers:
        for split in ("train", "val", "test"):
            found = int(((table["center"] == center) & (table["split"] == split)).sum())
            assert found == SAMPLES[layout].get(split, 0)
    assert len(manifest.centers) == 2
    assert (table.groupby("patient")[["center", "split"]].nunique() == 1).all(axis=None)
    if layout == "endometrial":
        assert manifest.classes == ("0_NMI", "1_MI")
        assert (table.groupby("patient")["label"].nunique() == 1).all()
        assert (table.groupby(["center", "split"])["label"].nunique() == 2).all()
    shapes = {"endometrial": {(32, 32)}, "nuclei": {(32, 32, 3)}}[layout]
    assert {np.asarray(Image.open(root / path)).shape for path in table["path"]} == shapes


def test_nuclei_masks_are_binary_and_cover_part_of_the_tile():
    pairs, _ = rendered("nuclei", 10, 64, 1.0)
    shares = []
    for image, mask in pairs:
        assert image.dtype == mask.dtype == np.uint8 and image.shape == (64, 64, 3) and mask.shape == (64, 64)
        assert set(np.unique(mask)) <= {0, 255}
        shares.append((mask > 0).mean())
    assert 0.10 < np.mean(shares) < 0.40 and min(shares) > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_call_reuses_the_folder(tmp_path, layout, monkeypatch):
    root = write(tmp_path, layout)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(GENERATORS[layout], "render", None)
    assert write(tmp_path, layout) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("writes", [1, 4, 7])
def test_interrupted_write_is_completed(tmp_path, layout, writes, monkeypatch):
    whole = contents(write(tmp_path / "whole", layout))
    real, done = phantoms.write_bytes, []

    def failing(path, content):
        if len(done) == writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.1.partial").write_bytes(content[:10])
            raise KeyboardInterrupt
        done.append(path)
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "write_bytes", failing)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut", layout)
    assert not (tmp_path / "cut" / "phantoms.json").exists()
    with pytest.raises(FileExistsError, match="seed 3 instead of 5"):
        write(tmp_path / "cut", layout, seed=5)
    assert contents(write(tmp_path / "cut", layout)) == whole


def test_interrupted_before_the_first_file(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(phantoms.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut", "nuclei")
    assert contents(write(tmp_path / "cut", "nuclei")) == contents(write(tmp_path / "whole", "nuclei"))


def test_missing_file_of_a_finished_folder_is_written_again(tmp_path):
    root = write(tmp_path, "nuclei")
    whole = contents(root)
    next(iter(root.glob("SiteA/train/labels/*.png"))).unlink()
    write(tmp_path, "nuclei")
    assert contents(root) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed 3 instead of 4"),
        ({"image_size": 40}, "image_size 32 instead of 40"),
        ({"heterogeneity": 0.5}, "heterogeneity 1.0 instead of 0.5"),
        ({"centers": 3}, "centers 2 instead of 3"),
        ({"samples": {"train": 6, "test": 3}}, "samples"),
    ],
)
def test_other_arguments_in_the_same_folder_are_refused(tmp_path, changes, message):
    root = write(tmp_path, "endometrial")
    before = contents(root)
    with pytest.raises(FileExistsError, match=message):
        write(tmp_path, "endometrial", **changes)
    with pytest.raises(FileExistsError, match="layout 'endometrial' instead of 'nuclei'"):
        write(tmp_path, "nuclei")
    assert contents(root) == before


def test_other_generator_version_is_refused(tmp_path, monkeypatch):
    write(tmp_path, "nuclei")
    monkeypatch.setattr(nuclei, "VERSION", nuclei.VERSION + 1)
    with pytest.raises(FileExistsError, match="generator_version"):
        write(tmp_path, "nuclei")


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "scan.png").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="not empty"):
        write(tmp_path / "hospital", "nuclei")
    with pytest.raises(FileExistsError, match="is a file"):
        write(tmp_path / "hospital" / "scan.png", "nuclei")
    root = write(tmp_path / "ours", "nuclei")
    stranger = root / "SiteA" / "train" / "images" / "mine.png"
    stranger.write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"mine\.png"):
        write(root, "nuclei")
    assert stranger.read_bytes() == b"x"
    stranger.unlink()
    (root / "phantoms.json").write_text("{")
    with pytest.raises(FileExistsError, match="not readable as JSON"):
        write(root, "nuclei")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "camelyon"}, "layout must be one of 'endometrial', .*'nuclei', got 'camelyon'"),
        ({"samples": {"train": -1}}, r"samples\['train'\] must be an integer >= 0, got -1"),
        ({"samples": {"train": 2.5}}, "got 2.5"),
        ({"samples": {"training": 2}}, "got 'training'"),
        ({"samples": {"train": 0}}, "at least one image"),
        ({"samples": {}}, "samples must map"),
        ({"samples": {"train": 2, "val": 1}}, "no validation folder"),
        ({"image_size": 31}, "image_size must be an integer >= 32 pixels, got 31"),
        ({"heterogeneity": -0.1}, "heterogeneity must be a number from 0 to 2, got -0.1"),
        ({"heterogeneity": float("nan")}, "got nan"),
        ({"heterogeneity": 2.1}, "got 2.1"),
        ({"centers": 0}, "from 1 to 6"),
        ({"centers": 7}, "got 7"),
        ({"centers": True}, "got True"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_invalid_arguments(tmp_path, changes, message):
    arguments = {
        "layout": "endometrial",
        "centers": 2,
        "samples": {"train": 2},
        "image_size": 32,
        "heterogeneity": 1.0,
        "seed": 0,
    } | changes
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_arguments_are_stored_with_defaults(tmp_path):
    root = write(tmp_path, "endometrial", centers=None, samples={"train": np.int64(2)}, heterogeneity=1)
    assert json.loads((root / "phantoms.json").read_text()) == {
        "layout": "endometrial",
        "generator_version": endometrial.VERSION,
        "centers": 4,
        "samples": {"train": 2, "val": 0, "test": 0},
        "image_size": 32,
        "heterogeneity": 1.0,
        "seed": 3,
    }
    assert write(tmp_path, "endometrial", centers=4, samples={"train": 2, "val": 0}, heterogeneity=1.0) == root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_samples_keep_the_earlier_ones(tmp_path, layout):
    few = contents(write(tmp_path / "few", layout))
    more = contents(write(tmp_path / "more", layout, centers=3, samples={"train": 9, "test": 6}))
    shared = [name for name in few if name.endswith(".png") and "/val/" not in name]
    assert shared and all(more[name] == few[name] for name in shared)


def test_two_images_are_enough_for_both_classes_and_prevalence_is_met():
    for heterogeneity in (0.0, 1.0, 2.0):
        planned = endometrial.plan(6, {"train": 2, "test": 2}, heterogeneity, 0)
        assert all({s.label for s in planned if (s.center, s.split) == key} == {0, 1} for key in [(0, "train"), (5, "test")])
    shares = []
    for center in range(4):
        patients = {s.patient: s.label for s in endometrial.plan(4, {"train": 300}, 1.0, 0) if s.center == center}
        shares.append(np.mean(list(patients.values())))
    assert shares == pytest.approx([profile.prevalence for profile in endometrial.CENTERS[:4]], abs=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heterogeneity", [0.0, 2.0])
def test_extreme_settings_render(layout, heterogeneity):
    generator = GENERATORS[layout]
    for size in (32, 65, 224):
        for sample in generator.plan(6, {"train": 1}, heterogeneity, 9):
            for array in generator.render(sample, size, heterogeneity, 9):
                assert array.dtype == np.uint8 and array.shape[:2] == (size, size)
            assert generator.render(sample, size, heterogeneity, 9)[0].std() > 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heterogeneity_separates_the_centers(layout):
    def separation(heterogeneity: float) -> float:
        """Variance between the centres' mean colours over what chance gives (F statistic; 1 where alike)."""
        arrays, planned = rendered(layout, 24, 40, heterogeneity)
        # One image a patient: those of a patient are alike, which chance would not give.
        colour = [(s.center, a[0].reshape(40 * 40, -1).mean(0)) for a, s in zip(arrays, planned, strict=True) if s.image == 0]
        groups = [np.array([c for center, c in colour if center == k]) for k in range(4)]
        between = np.sum([len(g) * (g.mean(0) - np.concatenate(groups).mean(0)) ** 2 for g in groups], axis=0) / 3
        within = np.sum([((g - g.mean(0)) ** 2).sum(0) for g in groups], axis=0) / (len(colour) - 4)
        return float(np.mean(between / within))

    assert separation(0.0) < 3.0
    assert separation(1.0) > 10.0


def test_intensity_statistics_do_not_solve_endometrial():
    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        arrays, planned = rendered("endometrial", 100, 48, 0.0, split)
        flat = np.stack([image.ravel() for (image,) in arrays]) / 255
        return np.stack([flat.mean(1), flat.std(1), skew(flat, axis=1)], 1), np.array([s.label for s in planned])

    (train, train_labels), (test, test_labels) = features("train"), features("test")
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(train, train_labels)
    assert roc_auc_score(train_labels, model.predict_proba(train)[:, 1]) <= 0.65
    assert roc_auc_score(test_labels, model.predict_proba(test)[:, 1]) <= 0.65


def test_classes_differ_in_the_junctional_zone_alone():
    """The same patient drawn with either label: few pixels change, and those hardly change the mean."""
    for sample in endometrial.plan(1, {"train": 8}, 0.0, 2):
        twin = endometrial.Sample(**{**vars(sample), "label": 1 - sample.label})
        first, second = (endometrial.render(s, 128, 0.0, 2)[0].astype(float) for s in (sample, twin))
        changed = np.abs(first - second) > 25
        assert 0.002 < changed.mean() < 0.06
        assert abs(first.mean() - second.mean()) < 4


@pytest.mark.parametrize("size", [64, 96])
def test_otsu_is_a_weak_but_possible_segmentation_of_nuclei(size):
    pairs, _ = rendered("nuclei", 12, size, 1.0)
    dice = []
    for image, mask in pairs:
        grey = image.mean(2)
        found, true = grey < threshold_otsu(grey), mask > 0
        dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    assert 0.3 < np.mean(dice) < 0.8


def test_fields():
    rng = np.random.default_rng(0)
    for scale in (0.5, 0.05, 1e-4):
        field = np.stack([smooth_field(rng, 48, scale) for _ in range(60)])
        assert field.dtype == np.float32 and field.shape == (60, 48, 48)
        assert field.std() == pytest.approx(1, abs=0.12) and abs(field.mean()) < 0.15
    x = np.array([0.0, 2.0, 3.0, 2.0], np.float32)
    y = np.array([0.0, 0.0, 0.0, 2.0], np.float32)
    assert ellipse_distance(x, y, 2.0, 2.0) == pytest.approx(np.array([0, 0, 1, np.sqrt(8) - 2]), abs=1e-5)
    assert smooth_union(np.array([-1.0, 3.0]), np.array([3.0, -1.0]), 0.1) == pytest.approx(np.array([-1.0, -1.0]))


@pytest.mark.slow
def test_small_cnn_learns_endometrial():
    """Three convolution blocks, 500 images of 64²: about 25 s on one core."""

    def data(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        arrays, planned = rendered("endometrial", count, 64, 0.0, split)
        images = torch.from_numpy(np.stack([image for (image,) in arrays])).float()[:, None] / 255
        return images, torch.tensor([sample.label for sample in planned])

    def block(before: int, after: int) -> list[torch.nn.Module]:
        layers: list[torch.nn.Module] = []
        for width in (before, after):
            layers += [torch.nn.Conv2d(width, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
        return [*layers, torch.nn.MaxPool2d(2)]

    images, labels = data("train", 125)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 2)]
        model = torch.nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), *head)
        steps = 8 * -(-len(images) // 32)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in range(8):
            for batch in torch.randperm(len(images)).split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    model.eval()
    images, labels = data("test", 60)
    with torch.no_grad():
        score = model(images).softmax(1)[:, 1]
    assert roc_auc_score(labels, score) >= 0.85
