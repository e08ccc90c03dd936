"""Phantoms: the files on disk, and the differences between centres; what can be learnt from them is in phantoms/test_difficulty.py."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, f_oneway
from skimage.filters import threshold_otsu
from skimage.measure import label as components
from skimage.measure import regionprops

from vfmgl_lib.evaluation.heterogeneity import center_predictability, image_features
from vfmgl_lib.tasks import phantoms
from vfmgl_lib.tasks.endometrial import cohorts
from vfmgl_lib.tasks.endometrial import phantom as endometrial
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.nuclei import phantom as nuclei
from vfmgl_lib.tasks.painting.fields import ellipse_distance, smooth_field, smooth_union
from vfmgl_lib.tasks.painting.sampling import patient_name
from vfmgl_lib.tasks.phantoms import generator_of, write_phantoms

SAMPLES = {
    "endometrial": {"train": 5, "test": 3},
    "nuclei": {"train": 4, "val": 2, "test": 3},
}
LAYOUTS = tuple(SAMPLES)
TABLE_1 = Path(__file__).parents[2] / "data_manifests" / "table1_endometrial_patients.csv"


def write(root: Path, layout: str, **changes) -> Path:
    arguments = {"centers": 2, "samples": SAMPLES[layout], "image_size": 32, "heterogeneity": 1.0, "seed": 3}
    return write_phantoms(root, layout, **(arguments | changes))


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def rendered(layout: str, count: int, size: int, heterogeneity: float, split: str = "train", seed: int = 1):
    """The arrays and the sample of every planned image of four centres (with a split of "test" also of the external ones)."""
    generator = generator_of(layout)
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
    manifest = read_folders(root, layout, progress=False)
    table = manifest.table
    external = {"endometrial": endometrial.EXTERNAL_CENTERS, "nuclei": ()}[layout]
    for center in manifest.centers:
        for split in ("train", "val", "test"):
            found = int(((table["center"] == center) & (table["split"] == split)).sum())
            assert found == (0 if center in external and split != "test" else SAMPLES[layout].get(split, 0))
    assert manifest.centers == {"endometrial": ("A", "B", "E", "F"), "nuclei": ("SiteA", "SiteB")}[layout]
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
    monkeypatch.setattr(generator_of(layout), "render", None)
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
        ({"centers": 0}, "from 1 to 4"),
        ({"centers": 5}, "got 5"),
        ({"layout": "nuclei", "centers": 7}, "from 1 to 6, or None for the default, got 7"),
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
        "artefacts": 0.1,
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
        planned = endometrial.plan(4, {"train": 2, "test": 2}, heterogeneity, 0)
        assert all({s.label for s in planned if (s.center, s.split) == key} == {0, 1} for key in [(0, "train"), (5, "test")])
    shares = []
    for center in range(4):
        patients = {s.patient: s.label for s in endometrial.plan(4, {"train": 300}, 1.0, 0) if s.center == center}
        shares.append(np.mean(list(patients.values())))
    assert shares == pytest.approx([profile.prevalence for profile in endometrial.CENTERS[:4]], abs=0.02)


def test_prevalences_rank_as_in_table_1():
    table = pd.read_csv(TABLE_1)
    patients = table[table["set"] != "test"].pivot(index="center", columns="label", values="n")  # of E and F the external set
    paper = patients["MI"] / patients.sum(axis=1)
    ours = pd.Series([scanner.prevalence for scanner in endometrial.CENTERS], index=endometrial.CENTER_NAMES)
    assert paper.sort_values().index.tolist() == ours.sort_values().index.tolist()
    assert ours.between(0.5, 0.8).all()


def test_external_centers_have_test_images_alone_and_come_on_top():
    few, many = (endometrial.plan(n, {"train": 5, "test": 3}, 1.0, 0) for n in (1, 4))
    counts = pd.Series([(endometrial.CENTER_NAMES[s.center], s.split) for s in few]).value_counts().to_dict()
    assert counts == {("A", "train"): 5, ("A", "test"): 3, ("E", "test"): 3, ("F", "test"): 3}
    assert set(few) < set(many), "an external centre is the same beside any number of others"
    assert sorted({endometrial.CENTER_NAMES[s.center] for s in many}) == ["A", "B", "C", "D", "E", "F"]
    assert {s.center for s in endometrial.plan(2, {"train": 2}, 1.0, 0)} == {0, 1}


def test_table_1_is_the_papers():
    paper = pd.read_csv(TABLE_1)
    assert len(paper) == 2 * len(cohorts.TABLE_1)
    for row in paper.itertuples():
        cohort = cohorts.TABLE_1[row.center, row.set.replace("external", "test")][["NMI", "MI"].index(row.label)]
        assert (cohort.age_mean, cohort.age_std) == pytest.approx((row.age_mean, row.age_std), nan_ok=True)
        assert cohort.figo == (row.figo_I, row.figo_II, row.figo_III, row.figo_IV)
        assert cohort.histology == (row.histology_I, row.histology_II)
        assert sum(cohort.figo) == sum(cohort.histology) == row.n


def records(centers: int, samples: dict[str, int], heterogeneity: float) -> pd.DataFrame:
    """patients.csv with each patient's centre, split and label; the sets are planned only, nothing is drawn."""
    planned = endometrial.plan(centers, samples, heterogeneity, 0)
    table = pd.read_csv(io.BytesIO(endometrial.extra_files(planned, heterogeneity, 0)["patients.csv"]), dtype={"patient": str})
    known = {patient_name(s.center, s.split, s.patient): (endometrial.CENTER_NAMES[s.center], s.split, s.label) for s in planned}
    assert table["patient"].is_unique and set(table["patient"]) == set(known)
    return table.join(pd.DataFrame([known[name] for name in table["patient"]], columns=["center", "split", "label"]))


def test_patients_csv(tmp_path):
    root = write(tmp_path, "endometrial")
    text = (root / "patients.csv").read_text(encoding="utf-8")
    header, *rows = text.splitlines()
    assert header == "patient,age,figo,histology" and text.endswith("\n") and "\r" not in text
    assert all(re.fullmatch(r"P[1-6][13]\d{3},\d\d\.\d,(I|II|III|IV),(I|II)", row) for row in rows)
    assert {row.split(",")[0] for row in rows} == {folder.name for folder in root.glob("*/*data/*/*")}
    (root / "patients.csv").unlink()
    write(tmp_path, "endometrial")
    assert (root / "patients.csv").read_text(encoding="utf-8") == text
    more = endometrial.extra_files(endometrial.plan(2, {"train": 30, "test": 30}, 1.0, 3), 1.0, 3)["patients.csv"].decode()
    assert set(rows) < set(more.splitlines()), "a patient's record does not depend on how many others there are"


def test_ages_and_stages_follow_table_1():
    found = records(4, {"train": 1200, "test": 1200}, 1.0)
    for (center, split), pair in cohorts.TABLE_1.items():
        for label, cohort in enumerate(pair):
            own = found[(found["center"] == center) & (found["split"] == split) & (found["label"] == label)]
            if not np.isnan(cohort.age_mean):
                # Four standard errors: of 17 means and 17 deviations not one is that far off by chance.
                error = cohort.age_std / np.sqrt(len(own))
                assert own["age"].mean() == pytest.approx(cohort.age_mean, abs=4 * error)
                assert own["age"].std() == pytest.approx(cohort.age_std, abs=4 * error)
            for column, names, counts in (("figo", cohorts.FIGO, cohort.figo), ("histology", cohorts.HISTOLOGY, cohort.histology)):
                shares = np.array([(own[column] == name).mean() for name in names])
                expected = np.array(counts) / sum(counts)
                assert (np.abs(shares - expected) <= 4 * np.sqrt(expected * (1 - expected) / len(own)) + 1e-9).all()
    assert found.groupby("center")["age"].mean()["C"] > found.groupby("center")["age"].mean()["B"] + 3


def test_at_heterogeneity_0_all_centres_have_the_same_patients():
    found = records(4, {"train": 600, "test": 600}, 0.0)
    samples = [own["age"] for _, own in found.groupby("center")]
    assert f_oneway(*samples).pvalue > 0.01
    shares = found.groupby(["center", "split"])["label"].mean()
    assert shares.max() - shares.min() < 0.01
    assert chi2_contingency(pd.crosstab(found["center"], found["figo"])).pvalue > 0.01
    assert chi2_contingency(pd.crosstab(found["center"], found["histology"])).pvalue > 0.01
    assert f_oneway(*(own["age"] for _, own in records(4, {"train": 600, "test": 600}, 1.0).groupby("center"))).pvalue < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heterogeneity", [0.0, 2.0])
def test_extreme_settings_render(layout, heterogeneity):
    generator = generator_of(layout)
    planned = generator.plan({"endometrial": 4, "nuclei": 6}[layout], {"train": 1, "test": 1}, heterogeneity, 9)
    assert {sample.center for sample in planned} == set(range(6))
    for size in (32, 65, 224):
        for sample in planned:
            for array in generator.render(sample, size, heterogeneity, 9):
                assert array.dtype == np.uint8 and array.shape[:2] == (size, size)
            assert generator.render(sample, size, heterogeneity, 9)[0].std() > 5


def by_center(layout: str, count: int, size: int, heterogeneity: float, seed: int = 1) -> pd.DataFrame:
    """id, center, patient and image (size, size, 3) in [0, 1] of `count` training images of each of four centres."""
    arrays, planned = rendered(layout, count, size, heterogeneity, seed=seed)
    images = [np.broadcast_to(first.reshape(size, size, -1) / 255, (size, size, 3)) for first, *_ in arrays]
    named = [(s.paths[0], generator_of(layout).CENTER_NAMES[s.center], patient_name(s.center, s.split, s.patient)) for s in planned]
    return pd.DataFrame(named, columns=["id", "center", "patient"]).assign(image=images)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heterogeneity_is_what_tells_the_centers_apart(layout):
    """Which centre is this? 400 images at heterogeneity 0 do not say, 200 at 1 do."""
    alike = center_predictability(image_features(by_center(layout, 100, 48, 0.0)), 0).iloc[0]
    assert alike["low"] < alike["chance"] < alike["high"] and alike["balanced_accuracy"] < 0.33
    different = center_predictability(image_features(by_center(layout, 50, 48, 1.0)), 0).iloc[0]
    assert different["low"] > 0.75 and different["chance"] == 0.25


def nuclei_shapes(count: int, heterogeneity: float) -> pd.DataFrame:
    """Per tile of six centres, from the masks: radius (µm), its variation, eccentricity, share of clumped; and optical density."""
    size, rows = 160, []
    micrometres = 110 * np.sqrt(size / 256) / size
    for sample in nuclei.plan(6, {"train": count}, heterogeneity, 1):
        image, mask = nuclei.render(sample, size, heterogeneity, 1)
        whole = [r for r in regionprops(components(mask > 0)) if min(r.bbox[:2]) > 0 and max(r.bbox[2:]) < size]
        whole = [r for r in whole if r.area * micrometres**2 > 8]
        single = [r for r in whole if r.solidity > 0.92]
        radii = np.array([r.equivalent_diameter_area / 2 * micrometres for r in single])
        density = -np.log10(np.maximum(image, 1) / 255).sum(axis=2)[mask > 0].mean()
        clumped = np.mean([r.solidity < 0.9 for r in whole])
        shape = (radii.mean(), radii.std() / radii.mean(), np.mean([r.eccentricity for r in single]), clumped)
        patient = patient_name(sample.center, sample.split, sample.patient)
        rows.append((sample.paths[0], nuclei.CENTER_NAMES[sample.center], patient, *shape, density))
    return pd.DataFrame(rows, columns=["id", "center", "patient", "radius", "variation", "eccentricity", "clumped", "density"])


def test_organs_differ_in_size_shape_overlap_and_stain_of_their_nuclei():
    tiles = nuclei_shapes(20, 1.0)  # six patients a centre: an interval takes five
    mean = tiles.drop(columns=["id", "patient"]).groupby("center").mean()
    kidney, lung, bladder = "SiteC", "SiteD", "SiteF"
    assert (mean["radius"].idxmin(), mean["radius"].idxmax()) == (kidney, lung)
    assert mean["variation"].idxmax() == lung and mean["variation"].max() > 1.5 * mean["variation"].min()
    assert set(mean["eccentricity"].nlargest(2).index) == {lung, bladder}
    assert mean["clumped"][lung] > 2 * mean["clumped"][kidney]
    assert (mean["density"].idxmin(), mean["density"].idxmax()) == (bladder, lung)
    shapes = tiles.drop(columns="density")
    assert center_predictability(shapes, 0)["low"].iloc[0] > 0.4, "the masks alone tell the organ"
    alike = center_predictability(nuclei_shapes(12, 0.0).drop(columns="density"), 0).iloc[0]
    assert alike["balanced_accuracy"] < 0.27 and alike["chance"] == pytest.approx(1 / 6)


def test_classes_differ_in_the_junctional_zone_alone():
    """The same patient drawn with either label: few pixels change, and those hardly change the mean."""
    for sample in endometrial.plan(1, {"train": 8}, 0.0, 2):
        twin = endometrial.Sample(**{**vars(sample), "label": 1 - sample.label})
        first, second = (endometrial.render(s, 128, 0.0, 2)[0].astype(float) for s in (sample, twin))
        changed = np.abs(first - second) > 25
        assert 0.002 < changed.mean() < 0.15
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
