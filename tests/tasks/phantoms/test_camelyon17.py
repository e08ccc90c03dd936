"""CAMELYON17 phantoms: the files in the WILDS layout, the differences between centres, and what says the class."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vfmgl_lib.tasks import phantoms
from vfmgl_lib.tasks.camelyon17 import phantom as camelyon17
from vfmgl_lib.tasks.camelyon17.phantom import plan, render
from vfmgl_lib.tasks.camelyon17.reader import manifest_wilds
from vfmgl_lib.tasks.cases import Findings
from vfmgl_lib.tasks.phantoms import write_phantoms

SAMPLES = {"train": 8, "val": 3, "test": 3}
SIZE = 40


def write(root, **changes):
    arguments = {"centers": 2, "samples": SAMPLES, "image_size": 32, "heterogeneity": 1.0, "seed": 3}
    return write_phantoms(root, "camelyon17", **(arguments | changes))


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def drawn(count, heterogeneity=0.0, seed=1, centers=4):
    """Images (n, SIZE, SIZE, 3) in [0, 1] and labels, `count` patches a centre."""
    planned = plan(centers, {"train": count}, heterogeneity, seed)
    images = np.stack([render(sample, SIZE, heterogeneity, seed)[0] for sample in planned])
    return images / 255, np.array([sample.label for sample in planned])


def test_layout_is_read(tmp_path):
    root = write(tmp_path / "with space and ü")
    findings = Findings()
    table = manifest_wilds(root, findings)
    assert findings == Findings()
    assert table.groupby("center").size().to_dict() == {"hospital1": 14, "hospital2": 14}
    assert (table.groupby("patient")["center"].nunique() == 1).all()
    assert {np.asarray(Image.open(root / path)).shape for path in table["path"]} == {(32, 32, 3)}
    assert len({content for name, content in contents(root).items() if name.endswith(".png")}) == 28


def test_metadata_is_that_of_wilds(tmp_path):
    root = write(tmp_path)
    header, *rows = csv.reader((root / "metadata.csv").read_text().splitlines())
    assert header == ["", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]
    assert [row[0] for row in rows] == [str(number) for number in range(28)]
    slides = {tuple(row[1:3]): row[6] for row in rows}
    assert sorted(slides.values(), key=int) == [str(number) for number in range(len(slides))]
    assert {row[7] for row in rows} == {"0", "1"} and {row[8] for row in rows} == {"0"}


@pytest.mark.parametrize("count", [12, 14, 38, 60, 62, 130])
def test_any_number_of_patches_lies_on_whole_patients_with_both_classes(count):
    planned = plan(2, {"train": count - 2, "test": 2}, 1.0, 0)
    for center in range(2):
        own = [sample for sample in planned if sample.center == center]
        labels = {patient: Counter(s.label for s in own if s.patient == patient) for patient in {s.patient for s in own}}
        assert len(own) == count and len(labels) >= 6
        assert all(found[0] == found[1] <= 5 for found in labels.values())
    assert len({path for sample in planned for path in sample.paths}) == 2 * count


def test_more_samples_and_centers_keep_the_earlier_files(tmp_path):
    few = contents(write(tmp_path / "few"))
    more = contents(write(tmp_path / "more", centers=3, samples={"train": 15, "test": 2}))
    assert all(more[name] == few[name] for name in few if name.endswith(".png"))
    assert write(tmp_path / "again") and contents(tmp_path / "again") == few
    assert all(content != few[name] for name, content in contents(write(tmp_path / "other", seed=4)).items() if name.endswith(".png"))


def test_too_few_samples(tmp_path):
    with pytest.raises(ValueError, match="at least 12 images a center in the camelyon17 layout, two of each of 6 patients, got 11"):
        write(tmp_path / "new", samples={"train": 11})
    with pytest.raises(ValueError, match="from 1 to 5, or None for the default, got 6"):
        write(tmp_path / "new", centers=6)
    assert not (tmp_path / "new").exists()
    root = write(tmp_path / "new", centers=None, samples={"train": 12})
    assert json.loads((root / "phantoms.json").read_text())["centers"] == 5


@pytest.mark.parametrize("name", ["metadata.csv", "patches/patient_100_node_0/patch_patient_100_node_0_x_3072_y_9216.png"])
def test_missing_file_of_a_finished_folder_is_written_again(tmp_path, name):
    root = write(tmp_path)
    whole = contents(root)
    (root / name).unlink()
    write(tmp_path)
    assert contents(root) == whole


@pytest.mark.parametrize("writes", [1, 10, 29])
def test_interrupted_write_is_completed(tmp_path, writes, monkeypatch):
    whole = contents(write(tmp_path / "whole"))
    real, done = phantoms.write_bytes, []

    def failing(path, content):
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(path)
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "write_bytes", failing)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "cut")
    assert not (tmp_path / "cut" / "phantoms.json").exists()
    assert contents(write(tmp_path / "cut")) == whole


def test_strangers_are_refused(tmp_path):
    root = write(tmp_path)
    stranger = root / "patches" / "patient_100_node_0" / "mine.png"
    stranger.write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"mine\.png"):
        write(tmp_path)
    assert stranger.read_bytes() == b"x"


@pytest.mark.parametrize("heterogeneity", [0.0, 2.0])
def test_extreme_settings_render(heterogeneity):
    planned = plan(5, {"train": 12}, heterogeneity, 9)
    for size in (32, 65, 224):
        for sample in planned[::11]:
            (image,) = render(sample, size, heterogeneity, 9)
            assert image.dtype == np.uint8 and image.shape == (size, size, 3) and image.std() > 5


def test_heterogeneity_separates_the_centers():
    def separation(heterogeneity):
        """Variance between the centres' mean colours over that between their patients (F statistic; 1 where alike)."""
        planned = [sample for sample in plan(5, {"train": 96}, heterogeneity, 1) if sample.image < 2]  # 12 patients a centre
        colours = np.array([render(sample, 32, heterogeneity, 1)[0].mean((0, 1)) for sample in planned])
        patients = colours.reshape(5, 12, 2, 3).mean(2)
        between = 12 * patients.mean(1).var(0, ddof=1)
        return float(np.mean(between / patients.var(1, ddof=1).mean(0)))

    assert separation(0.0) < 2.5
    assert separation(1.0) > 10.0


def test_the_tumor_covers_the_central_third():
    for sample in plan(1, {"train": 24}, 0.0, 5):
        rng = np.random.default_rng(sample.image)
        tumor = camelyon17._Tissue(rng, camelyon17.COMMON, 96, 93.0, sample.label).tumor
        assert tumor[34:62, 34:62].min() > 0.9 if sample.label else not tumor.any()
    shares = [camelyon17._Tissue(np.random.default_rng(n), camelyon17.COMMON, 48, 66.0, 1).tumor.mean() for n in range(200)]
    assert min(shares) > 0.2 and np.quantile(shares, 0.9) > 0.9


def test_stains_have_the_same_histogram_in_both_classes():
    """What `_matched` makes of two different maps differs by each patch's own depth alone."""
    tissue = camelyon17._Tissue(np.random.default_rng(0), camelyon17.COMMON, 64, 76.0, 0)
    maps = np.random.default_rng(1).gamma(0.5, 1.0, (2, 64, 64)).astype(np.float32) * [[[1]], [[9]]] + [[[3]], [[0]]]
    for deciles in (camelyon17._HAEMATOXYLIN, camelyon17._EOSIN):
        first, second = (camelyon17._matched(np.random.default_rng(2), stain, deciles, tissue) for stain in maps)
        filled = tissue.glass < 0.01
        assert np.sort(first[filled]) == pytest.approx(np.sort(second[filled]), rel=0.03)
        assert first[tissue.glass >= 0.5].max() == 0
        ranks = [values[filled].argsort().argsort() for values in (first, maps[0])]
        assert np.corrcoef(*ranks)[0, 1] > 0.99, "what was darker stays darker"


# Measured, seeds 0 to 4: means alone 0.49 to 0.53, with the standard deviations 0.49 to 0.59.
def test_mean_colour_and_intensity_do_not_say_the_class():
    def features(seed):
        images, labels = drawn(100, seed=seed)
        flat = np.concatenate([images, images.mean(3, keepdims=True)], 3).reshape(len(images), -1, 4)
        return np.concatenate([flat.mean(1), flat.std(1)], 1), labels

    (train, train_labels), (test, test_labels) = features(1), features(2)
    for columns in (slice(0, 4), slice(0, 8)):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train[:, columns], train_labels)
        assert roc_auc_score(train_labels, model.predict_proba(train[:, columns])[:, 1]) <= 0.65
        assert roc_auc_score(test_labels, model.predict_proba(test[:, columns])[:, 1]) <= 0.65


def block(before, after):
    layers = []
    for width in (before, after):
        layers += [torch.nn.Conv2d(width, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    return [*layers, torch.nn.MaxPool2d(2)]


@pytest.mark.slow
def test_a_small_cnn_learns_the_class():
    """Two convolution blocks, 400 patches of 40², five epochs: about 8 s on one core. Measured, seeds 0 to 2: AUC 0.98."""
    images, labels = drawn(100)
    images, labels = torch.from_numpy(images).float().permute(0, 3, 1, 2), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 2)]
        model = torch.nn.Sequential(*block(3, 16), *block(16, 32), *head)
        steps = 5 * -(-len(images) // 32)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for _ in range(5):
            for batch in torch.randperm(len(images)).split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    model.eval()
    images, labels = drawn(50, seed=2)
    with torch.no_grad():
        score = model(torch.from_numpy(images).float().permute(0, 3, 1, 2)).softmax(1)[:, 1]
    assert roc_auc_score(labels, score) >= 0.85
