"""The driver: every format end to end, interruptions, changed sources, leaking splits, and what is refused."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from vfmgl_lib.data.divisions import subset, with_validation
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.manifest_files import read_manifest, write_manifest
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks import conversion
from vfmgl_lib.tasks import folders as layouts
from vfmgl_lib.tasks import prepare as sources
from vfmgl_lib.tasks.cases import Case, Findings, Picture
from vfmgl_lib.tasks.datasheets import compare_counts, read_datasheet
from vfmgl_lib.tasks.phantoms import write_phantoms
from vfmgl_lib.tasks.prepare import formats_of, is_prepared, prepare, read_prepared, verify
from vfmgl_lib.tasks.prostate import reader as reader
from vfmgl_lib.tasks.records import TASKS
from vfmgl_lib.tools.data.__main__ import main


def beside(name):
    """The tests of a reader, for the files they build."""
    spec = importlib.util.spec_from_file_location(f"{name}_builders", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


volumes, tiles, series, patches = (beside(f"test_{task}") for task in ("prostate", "nuclei", "endometrial", "camelyon17"))


def picture(path, seed, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


def sites(root, centers=("BIDMC", "HK"), cases=5, first=0):
    for number, center in enumerate(centers, first):
        for case in range(cases):
            volumes.write_case(root / center, f"Case{case:02}", image=volumes.volume(100 * number + case))


def promise12(root):
    for number in (2, 3, 4, 5, 6, 38, 39, 40, 41, 42):
        for suffix, array in (("", volumes.volume(number)), ("_segmentation", volumes.gland())):
            image = sitk.GetImageFromArray(array.T)
            image.SetSpacing(volumes.SPACING)
            folder = root / f"TrainingData_Part{number // 20 + 1}"
            folder.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / f"Case{number:02}{suffix}.mhd"))


def downloads(root):
    seed = 0
    for number in range(5):
        seed += 3
        barcode = f"TCGA-EJ-549{number}-01Z-00-DX1"
        tiles.save_svs(root / "MoNuSAC" / barcode / f"{barcode}_1.svs", seed)
        tiles.annotate(root / "MoNuSAC" / barcode / f"{barcode}_1.xml", Epithelial=[tiles.SQUARE], Lymphocyte=[tiles.OTHER])
        barcode = f"TCGA-18-559{number}-01Z-00-DX1"
        tiles.save(root / "MoNuSeg" / "Tissue Images" / f"{barcode}.tif", seed + 1)
        tiles.annotate(root / "MoNuSeg" / "Annotations" / f"{barcode}.xml", Description=[tiles.SQUARE])
        for tile in (1, 2):
            tiles.save(root / "TNBC" / f"Slide_0{number}" / f"0{number}_{tile}.png", 1000 + 2 * seed + tile)
            mask = root / "TNBC" / f"GT_0{number}" / f"0{number}_{tile}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.resize(np.array((0, 255), np.uint8), tiles.SIZE[::-1])).save(mask)


def nuclei_folders(root):
    for number, site in enumerate(("SiteA", "SiteB")):
        for patient, split in enumerate(("train", "train", "train", "val", "test")):
            name = f"{number}{patient}_1.png"
            picture(root / site / split / "images" / name, 10 * number + patient)
            (root / site / split / "labels").mkdir(exist_ok=True)
            Image.fromarray(np.resize(np.array((0, 255, 255), np.uint8), (7, 9))).save(root / site / split / "labels" / name)


def endometrial_folders(root):
    seed = 0
    for center in "ABE":
        for folder in ("traindata", "testdata") if center != "E" else ("testdata",):
            for label in ("0_NMI", "1_MI"):
                for patient in range(3):
                    seed += 1
                    picture(root / center / folder / label / f"{center}{seed}" / f"Schnitt ü {patient}.png", seed)


def endometrial_volumes(root):
    rows, seed = [], 0
    for center in "AB":
        for folder in ("traindata", "testdata"):
            for label in ("0_NMI", "1_MI"):
                seed += 1
                home = root / center / folder / label / f"{center}{seed}"
                if center == "A":
                    series.write_series(home, series.pixels(seed))
                else:
                    series.write_nifti(home / "t2.nii.gz", series.pixels(seed).astype(np.int16))
                rows += [f"{center}{seed},1,2,18,5,25", f"{center}{seed},3,0,24,0,30"]
    series.write_regions(root, *rows)


def wilds(root, centers=(0, 1), patients=5, lists=False):
    """Five patients a center, four patches each, two of them tumor; with `lists` also the authors' file, which divides every patient."""
    lines, listed = [patches.HEADER], {}
    for center in centers:
        for patient in range(10 * center, 10 * center + patients):
            for number in range(4):
                path = patches.path_of(f"{patient:03}", number)
                picture(root / path, 1000 * patient + number)
                lines.append(f"{len(lines) - 1},{patient:03},4,{3328 + 32 * number},21792,{number % 2},{center},{center},0")
                side = "test" if number == 3 else "train"
                listed.setdefault(f"hospital{center + 1}", {}).setdefault(side, []).append((path, number % 2))
    if lists:
        patches.write_lists(root, listed)
    else:
        (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def pickled(root):
    wilds(root, lists=True)


SOURCES = {
    ("endometrial", "volumes"): endometrial_volumes,
    ("endometrial", "folders"): endometrial_folders,
    ("camelyon17", "wilds"): wilds,
    ("camelyon17", "pkl"): pickled,
    ("prostate", "sites"): sites,
    ("prostate", "promise12"): promise12,
    ("nuclei", "folders"): nuclei_folders,
    ("nuclei", "downloads"): downloads,
}
DIVIDED = [form for form in SOURCES if form not in (("endometrial", "volumes"), ("endometrial", "folders"), ("nuclei", "folders"))]


def run(task, source, out, **options):
    return prepare(task, source, out, progress=False, **options)


def problems(*arguments, **options):
    with pytest.raises(ManifestError) as caught:
        run(*arguments, **options)
    return caught.value.problems or (str(caught.value),)


def content(folder):
    """Every file with its bytes, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sides(manifest):
    """(center, split) -> number of patients."""
    return manifest.table.groupby(["center", "split"])["patient"].nunique().to_dict()


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Nothing here outlives the test: waiting for the disk would only take time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def source(tmp_path):
    """Ten prostate cases of two sites."""
    sites(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def reads(monkeypatch):
    """The volumes that are decoded, in order."""
    names, read = [], reader._read
    monkeypatch.setattr(reader, "_read", lambda volume, *rest: names.append(f"{volume.parent.name}/{volume.name}") or read(volume, *rest))
    return names


def test_every_format_is_tested():
    found = {(task, form.name) for task, record in TASKS.items() for form in formats_of(record)}
    assert found - set(SOURCES) == {(task, "samples") for task in TASKS}, "those in test_samples.py"
    assert set(SOURCES) < found


@pytest.mark.parametrize("form", SOURCES, ids="-".join)
def test_end_to_end(form, tmp_path):
    task, name = form
    SOURCES[form](tmp_path / "source")
    before = content(tmp_path / "source")
    done = run(task, tmp_path / "source", tmp_path / "out")
    assert (done.format, done.reused) == (name, False)
    manifest, table = done.manifest, done.manifest.table
    assert table["id"].is_unique and table["path"].is_unique and len(table) > 9
    assert all(row.id.startswith(f"{row.center}/") for row in table.itertuples())
    assert (table.groupby("patient")[["split", "center"]].nunique() == 1).all(axis=None), "no patient on two sides or in two centres"
    converted = task == "prostate" or name in ("volumes", "downloads")
    assert manifest.root == ((tmp_path / "out" / "data") if converted else tmp_path / "source").resolve()
    for row in table.itertuples():
        data = (manifest.root / row.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.sha256
        if manifest.task_kind == "segmentation":
            image, mask = Image.open(manifest.root / row.path), Image.open(manifest.root / row.label)
            assert mask.size == image.size and mask.mode == "L" and set(np.unique(mask)) == {0, 255}
    if form in DIVIDED:
        wanted = {"train": 3, "val": 1, "test": 1}
        assert sides(manifest) == {(center, split): count for center in manifest.centers for split, count in wanted.items()}
    spacing = {"prostate": {"0.75,0.5"}, "volumes": {"0.0357143,0.0625", "0.0535714,0.09375"}}
    assert set(table["spacing"]) == spacing.get(task, spacing.get(name, {""}))
    assert content(tmp_path / "source") == before, "the source is only read"
    again = read_prepared(tmp_path / "out")
    assert again.manifest.sha256 == manifest.sha256 and again.manifest.root == manifest.root and again.warnings == done.warnings
    assert set(done.warnings) <= set(verify(tmp_path / "out", progress=False))
    other = run(task, tmp_path / "source", tmp_path / "elsewhere")
    assert other.manifest.sha256 == manifest.sha256 and content(tmp_path / "out") == content(tmp_path / "elsewhere")


@pytest.mark.parametrize("form", SOURCES, ids="-".join)
def test_names_of_rows_and_files(form, tmp_path):
    SOURCES[form](tmp_path / "source")
    row = run(form[0], tmp_path / "source", tmp_path / "out").manifest.table.iloc[0]
    found = (row["id"], row["path"], row["patient"], row["label"])
    split, first = row["split"], "patch_patient_000_node_4_x_3328_y_21792"
    assert (
        found
        == {
            "volumes": ("A/test/0_NMI/A3/A3_1", "A/testdata/0_NMI/A3/A3_1.png", "A3", 0),
            "wilds": (f"hospital1/{first}", f"patches/patient_000_node_4/{first}.png", "patient_000", 0),
            "pkl": (f"hospital1/train/{first}", f"patches/patient_000_node_4/{first}.png", "patient_000", 0),
            "sites": (f"BIDMC/{split}/Case00_02", "BIDMC/images/Case00_02.png", "BIDMC-Case00", "BIDMC/labels/Case00_02.png"),
            "promise12": (f"BIDMC/{split}/Case02_02", "BIDMC/images/Case02_02.png", "BIDMC-Case02", "BIDMC/labels/Case02_02.png"),
            "downloads": (
                f"SiteB/{split}/TCGA-EJ-5490-01Z-00-DX1_1",
                f"SiteB/{split}/images/TCGA-EJ-5490-01Z-00-DX1_1.png",
                "TCGA-EJ-5490",
                f"SiteB/{split}/labels/TCGA-EJ-5490-01Z-00-DX1_1.png",
            ),
            "folders": ("A/test/0_NMI/A7/Schnitt ü 0", "A/testdata/0_NMI/A7/Schnitt ü 0.png", "A7", 0)
            if form[0] == "endometrial"
            else ("SiteA/test/04_1", "SiteA/test/images/04_1.png", "04", "SiteA/test/labels/04_1.png"),
        }[form[1]]
    )


def test_pictures_are_those_of_the_reader(tmp_path):
    for task, name in (("endometrial", "volumes"), ("prostate", "promise12"), ("nuclei", "downloads")):
        SOURCES[task, name](tmp_path / task)
        manifest = run(task, tmp_path / task, tmp_path / f"{task} out").manifest
        (form,) = (form for form in formats_of(TASKS[task]) if form.name == name)
        written = {(row.center, Path(row.path).stem): row for row in manifest.table.itertuples()}
        for case in form.cases(tmp_path / task, Findings()):
            for found in case.read():
                row = written.pop((case.center, f"{case.name}_{found.name}" if found.name else case.name))
                np.testing.assert_array_equal(np.asarray(Image.open(manifest.root / row.path)), found.image)
                if found.mask is not None:
                    np.testing.assert_array_equal(np.asarray(Image.open(manifest.root / row.label)), found.mask * 255)
        assert not written


@pytest.mark.parametrize("form", DIVIDED, ids="-".join)
def test_the_split_follows_the_seed_and_the_own_centre_alone(form, tmp_path):
    task, _ = form
    SOURCES[form](tmp_path / "source")

    def split(out, seed=42):
        table = run(task, tmp_path / "source", tmp_path / out, seed=seed).manifest.table
        return table.set_index("path" if form[0] == "camelyon17" else table["center"] + table["path"].map(lambda path: Path(path).name))[
            "split"
        ]

    first = split("a")
    assert any(not split(f"seed {seed}", seed).equals(first) for seed in (1, 2, 3))
    shutil.rmtree(tmp_path / "source")
    if form[1] == "sites":
        sites(tmp_path / "source", cases=5)
        sites(tmp_path / "source", centers=("A first one",), cases=4, first=7)
    elif form[1] == "wilds":
        wilds(tmp_path / "source", centers=(0, 1, 2))
    else:
        return
    more = split("with a third centre")
    assert more[first.index].equals(first) and len(more) > len(first)


def test_64_16_20_by_patient_and_evenly_over_the_classes(tmp_path):
    lines = [patches.HEADER]
    for patient in range(50):  # 30 normal ones and 20 with tumor
        path = patches.path_of(f"{patient:03}", 0)
        picture(tmp_path / "source" / path, patient)
        lines.append(f"{patient},{patient:03},4,3328,21792,{int(patient >= 30)},0,0,0")
    (tmp_path / "source" / "metadata.csv").write_text("\n".join(lines) + "\n")
    table = run("camelyon17", tmp_path / "source", tmp_path / "out").manifest.table
    counts = table.groupby(["split", "label"]).size().to_dict()
    assert counts == {("train", 0): 19, ("train", 1): 13, ("val", 0): 5, ("val", 1): 3, ("test", 0): 6, ("test", 1): 4}


@pytest.mark.parametrize("form", SOURCES, ids="-".join)
def test_a_bar_is_drawn_where_it_is_wanted(form, tmp_path, capsys):
    SOURCES[form](tmp_path / "source")
    for progress in (False, True):
        prepare(form[0], tmp_path / "source", tmp_path / f"{progress}", progress=progress)
        assert ("100%" in capsys.readouterr().err) == progress


# --- interrupted, repeated, changed


def test_interrupted_at_the_third_case_it_goes_on_and_ends_the_same(source, tmp_path, reads, monkeypatch):
    run("prostate", source, tmp_path / "undisturbed")
    counted = reader._read

    def interrupted(volume, *rest):
        if len(reads) == 2:
            raise KeyboardInterrupt
        return counted(volume, *rest)

    reads.clear()
    monkeypatch.setattr(reader, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("prostate", source, tmp_path / "out")
    assert is_prepared(tmp_path / "out")
    with pytest.raises(ManifestError, match=r"its preparation was interrupted, .* goes on with it"):
        read_prepared(tmp_path / "out")
    for options, message in (({"seed": 1}, "seed 42 instead of 1"), ({"split": "image"}, "split 'patient' instead of 'image'")):
        (problem,) = problems("prostate", source, tmp_path / "out", **options)
        assert message in problem, "what was begun otherwise is not gone on with"
    monkeypatch.setattr(reader, "_read", counted)
    assert not run("prostate", source, tmp_path / "out").reused
    assert reads == [f"{site}/Case{case:02}.nii.gz" for site in ("BIDMC", "HK") for case in range(5)], "each case is read once"
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


KILLED = """
import os, signal, sys
from vfmgl_lib.tasks.prepare import prepare
from vfmgl_lib.tasks.prostate import reader as prostate
read, calls = prostate._read, []
def dies(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*arguments)
prostate._read = dies
prepare("prostate", sys.argv[1], sys.argv[2], progress=False)
"""


def test_killed_it_goes_on_and_ends_the_same(source, tmp_path, reads):
    run("prostate", source, tmp_path / "undisturbed")
    environment = os.environ | {"PYTHONPATH": str(Path(sources.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert len(list((tmp_path / "out" / "cases").iterdir())) == 2 and not (tmp_path / "out" / "manifest.csv").exists()
    reads.clear()
    run("prostate", source, tmp_path / "out")
    assert len(reads) == 8, "the two finished ones are not read again"
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


@pytest.mark.parametrize("form", SOURCES, ids="-".join)
def test_the_second_call_reads_no_image(form, tmp_path, monkeypatch):
    task, _ = form
    SOURCES[form](tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    first = run(task, tmp_path / "source", tmp_path / "out")
    before = content(tmp_path / "out")

    def fails(*arguments, **options):
        pytest.fail("an image was read")

    for place in (sources, layouts):
        monkeypatch.setattr(place, "inspect_files", fails)
    monkeypatch.setattr(conversion, "png", fails)
    second = prepare(task, "source", Path("out"))
    assert second.reused and second.warnings == first.warnings and second.format == first.format
    assert second.manifest.sha256 == first.manifest.sha256 and second.manifest.root == first.manifest.root
    assert content(tmp_path / "out") == before


def test_a_changed_case_is_converted_again_and_no_other(source, tmp_path, reads):
    first = run("prostate", source, tmp_path / "out").manifest.table.set_index("path")["sha256"]
    reads.clear()
    volumes.write_case(source / "HK", "Case03", image=volumes.volume(999))
    done = run("prostate", source, tmp_path / "out")
    second = done.manifest.table.set_index("path")["sha256"]
    assert not done.reused and reads == ["HK/Case03.nii.gz"]
    assert set(second.index[second != first]) == {f"HK/images/Case03_{number:02}.png" for number in (2, 3, 4)}
    assert verify(tmp_path / "out", progress=False) and run("prostate", source, tmp_path / "out").reused
    os.utime(source / "HK" / "Case01.nii.gz", ns=(1, 1))
    reads.clear()
    assert not run("prostate", source, tmp_path / "out").reused and reads == ["HK/Case01.nii.gz"]


def test_a_changed_source_that_cannot_be_used_leaves_no_set_that_seems_complete(source, tmp_path):
    run("prostate", source, tmp_path / "out")
    volumes.write_case(source / "HK", "Case01", image=volumes.volume(999))
    volumes.write_case(source / "HK", "Case03", image=np.full(volumes.SHAPE, 7, np.int16))
    assert problems("prostate", source, tmp_path / "out")[0].startswith("HK/Case03.nii.gz: volume has no contrast")
    with pytest.raises(ManifestError, match="its preparation was interrupted"):
        read_prepared(tmp_path / "out")


def test_a_patient_who_is_withdrawn_leaves_no_picture(tmp_path):
    downloads(tmp_path / "source")
    run("nuclei", tmp_path / "source", tmp_path / "out")
    for file in (tmp_path / "source" / "MoNuSeg").rglob("TCGA-18-5592*"):
        file.unlink()
    done = run("nuclei", tmp_path / "source", tmp_path / "out")
    assert not [name for name in content(tmp_path / "out" / "data") if "TCGA-18-5592" in name]
    assert sides(done.manifest)["SiteE", "train"] == 2
    run("nuclei", tmp_path / "source", tmp_path / "new")
    assert content(tmp_path / "out") == content(tmp_path / "new"), "nor do patients who have changed sides"


def test_a_changed_table_beside_the_volumes_is_noticed(tmp_path):
    endometrial_volumes(tmp_path / "source")
    table = tmp_path / "source" / "patients.csv"
    table.write_text("patient,age,figo,histology\n" + "".join(f"{'AB'[n > 4]}{n},60,I,I\n" for n in range(1, 9)))
    run("endometrial", tmp_path / "source", tmp_path / "out")
    assert (tmp_path / "out" / "patients.csv").read_bytes() == table.read_bytes()
    table.write_text(table.read_text().replace("A1,60", "A1,61"))
    assert not run("endometrial", tmp_path / "source", tmp_path / "out").reused
    assert "A1,61" in (tmp_path / "out" / "patients.csv").read_text()
    table.unlink()
    assert not run("endometrial", tmp_path / "source", tmp_path / "out").reused
    assert not (tmp_path / "out" / "patients.csv").exists()


@pytest.mark.parametrize("damage", ["gone", "cut", "mask gone", "note gone", "note cut", "manifest gone", "manifest cut"])
def test_what_is_missing_or_cut_of_a_conversion_is_made_again(source, tmp_path, reads, damage):
    run("prostate", source, tmp_path / "out")
    before = content(tmp_path / "out")
    reads.clear()
    what, how = damage.rsplit(" ", 1) if " " in damage else ("image", damage)
    file = {
        "image": tmp_path / "out" / "data" / "HK" / "images" / "Case02_03.png",
        "mask": tmp_path / "out" / "data" / "HK" / "labels" / "Case02_03.png",
        "note": next(note for note in (tmp_path / "out" / "cases").iterdir() if "HK-Case02" in note.read_text()),
        "manifest": tmp_path / "out" / "manifest.csv",
    }[what]
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20])
    done = run("prostate", source, tmp_path / "out")
    assert not done.reused and reads == ([] if what == "manifest" else ["HK/Case02.nii.gz"])
    assert content(tmp_path / "out") == before and run("prostate", source, tmp_path / "out").reused


def test_a_set_of_an_earlier_preparation_is_converted_again(source, tmp_path, reads, monkeypatch):
    run("prostate", source, tmp_path / "out")
    reads.clear()
    monkeypatch.setattr(conversion, "VERSION", conversion.VERSION + 1)
    assert not run("prostate", source, tmp_path / "out").reused and len(reads) == 10
    assert run("prostate", source, tmp_path / "out").reused


# --- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed 42 instead of 1"),
        ({"split": "image"}, "split 'patient' instead of 'image'"),
        ({"format": "promise12"}, "format 'sites' instead of 'promise12'"),
    ],
)
def test_another_set_in_the_same_folder_is_refused(source, tmp_path, options, message):
    run("prostate", source, tmp_path / "out")
    before = content(tmp_path / "out")
    (problem,) = problems("prostate", source, tmp_path / "out", **options)
    assert problem == f"{tmp_path / 'out'}: holds a set prepared otherwise: {message}; choose another folder or delete it"
    assert content(tmp_path / "out") == before
    sites(tmp_path / "another")
    assert "source " in problems("prostate", tmp_path / "another", tmp_path / "out")[0]


@pytest.mark.parametrize("name", ["thesis.docx", "data/mine.png", "cases/mine.json", "manifest.csv", "patients.csv"])
def test_a_folder_with_other_files_is_refused(source, tmp_path, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    (problem,) = problems("prostate", source, tmp_path / "out")
    assert f"holds other files ({name.split('/')[0]}), expected a new folder or a set of 'prepare'" in problem
    assert content(tmp_path / "out") == {name: b"mine"}
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    assert run("prostate", source, tmp_path / "out").manifest.centers == ("BIDMC", "HK")


@pytest.mark.parametrize(("of_source", "of_out"), [("s", "s"), ("s", "s/out"), ("out/data", "out"), ("out/data/s", "out")])
def test_source_and_out_have_to_lie_apart(tmp_path, of_source, of_out):
    sites(tmp_path / of_source)
    before = content(tmp_path)
    (problem,) = problems("prostate", tmp_path / of_source, tmp_path / of_out)
    assert "expected source and --out apart: the source is only read" in problem
    assert content(tmp_path) == before
    (tmp_path / "link").symlink_to(tmp_path / of_out)
    assert "apart" in problems("prostate", tmp_path / of_source, tmp_path / "link" / "deeper" if of_out == "s" else tmp_path / "link")[0]


def test_wrong_arguments_are_named(source, tmp_path):
    out = tmp_path / "out"
    for arguments, options, message in [
        (("liver", source, out), {}, "unknown task 'liver', expected one of endometrial, camelyon17, prostate, nuclei"),
        (("prostate", source, out), {"split": "random"}, "unknown split rule 'random', expected one of patient, source, image"),
        (("prostate", tmp_path / "nowhere", out), {}, "nowhere: source folder not found, expected the unpacked download of prostate"),
        (("prostate", source, out), {"seed": -1}, "seed must be 0 or more, got -1"),
        (("prostate", source, out), {"format": "dicom"}, "unknown format 'dicom' of prostate, expected one of sites, promise12"),
        (
            ("nuclei", source, out),
            {},
            "not recognised as nuclei, it holds 2 folder(s); expected one of: folders: <center>/{train",
        ),
        (("prostate", source, out), {"split": "source"}, "--split source: the source names no split; use patient"),
    ]:
        (problem,) = problems(*arguments, **options)
        assert message in problem
        assert not out.exists()
    with pytest.raises(ManifestError, match=r"holds no prepared.json, expected a folder made by 'prepare'"):
        read_prepared(source)


@pytest.mark.parametrize("notes", ["", "[]", "{", '"x"'])
def test_damaged_notes_are_named(source, tmp_path, notes):
    run("prostate", source, tmp_path / "out")
    (tmp_path / "out" / "prepared.json").write_text(notes)
    for call in (lambda: run("prostate", source, tmp_path / "out"), lambda: verify(tmp_path / "out", progress=False)):
        with pytest.raises(ManifestError, match=r"prepared.json: cannot be read .*; delete .*out and prepare the set again"):
            call()


def test_a_read_only_source_is_enough(source, tmp_path):
    files = [source, *source.rglob("*")]
    before = content(source), {file: file.stat().st_mtime_ns for file in files}
    for file in files:
        file.chmod(0o555 if file.is_dir() else 0o444)
    try:  # root may write nevertheless, so what counts is that nothing has changed
        run("prostate", source, tmp_path / "out")
        assert run("prostate", source, tmp_path / "out").reused
        assert (content(source), {file: file.stat().st_mtime_ns for file in files}) == before
    finally:
        for file in files:
            file.chmod(0o755 if file.is_dir() else 0o644)


# --- leakage


def test_lists_that_divide_patients(tmp_path):
    pickled(tmp_path / "source")
    by_patient = run("camelyon17", tmp_path / "source", tmp_path / "a")
    assert by_patient.manifest.split_unit == "patient" and not any("LEAKAGE" in warning for warning in by_patient.warnings)
    said = "the source's own split divides patients, so it was not used; --split source would keep it"
    assert by_patient.warnings.count(said) == 1
    kept = run("camelyon17", tmp_path / "source", tmp_path / "b", split="source")
    assert kept.manifest.split_unit == "image" and said not in kept.warnings
    assert kept.warnings[0] == "LEAKAGE, as asked for: 10 of 10 patients have images in several splits"
    assert set(kept.manifest.table.loc[kept.manifest.table["split"] == "test", "path"].str.extract(r"x_(\d+)")[0]) == {"3424"}
    assert kept.warnings[0] in verify(tmp_path / "b", progress=False)
    drawn = run("camelyon17", tmp_path / "source", tmp_path / "c", split="image")
    assert drawn.manifest.split_unit == "image" and drawn.warnings[0].startswith("LEAKAGE")
    counts = drawn.manifest.table.groupby(["center", "split"]).size().to_dict()
    assert counts == {(center, split): n for center in drawn.manifest.centers for split, n in {"train": 13, "val": 3, "test": 4}.items()}
    assert run("camelyon17", tmp_path / "source", tmp_path / "b", split="source").warnings == kept.warnings


def test_lists_that_keep_patients_whole_are_used(tmp_path):
    wilds(tmp_path / "source")
    (tmp_path / "source" / "metadata.csv").unlink()
    paths = {patient: [(patches.path_of(f"{patient:03}", number), number % 2) for number in range(4)] for patient in range(5)}
    patches.write_lists(
        tmp_path / "source", {"hospital1": {"train": [row for n in (0, 1, 2, 3, 4)[:4] for row in paths[n]], "test": paths[4]}}
    )
    done = run("camelyon17", tmp_path / "source", tmp_path / "out", split="source")
    table = done.manifest.table
    assert set(table.loc[table["split"] == "test", "patient"]) == {"patient_004"}
    # The last 20 % of the 16 training images are of the last patient, who is divided by it: that is not kept by default.
    assert done.manifest.split_unit == "image" and sides(run("camelyon17", tmp_path / "source", tmp_path / "b").manifest) == {
        ("hospital1", "train"): 3,
        ("hospital1", "val"): 1,
        ("hospital1", "test"): 1,
    }


def test_the_split_unit_is_remembered(tmp_path):
    pickled(tmp_path / "source")
    manifest = run("camelyon17", tmp_path / "source", tmp_path / "out", split="source").manifest
    assert manifest.split_unit == "image"
    write_manifest(manifest, tmp_path / "copy.csv")
    found = [read_manifest(tmp_path / "copy.csv", manifest.root), read_prepared(tmp_path / "out").manifest]
    found += [subset(manifest, {"train": 3}, 0), with_validation(manifest, 0.2, 0), replace(manifest, table=manifest.table)]
    assert [one.split_unit for one in found] == ["image"] * 5
    notes = tmp_path / "copy.json"
    notes.write_text(notes.read_text().replace('"image"', '"slide"'))
    with pytest.raises(ManifestError, match="split_unit is 'slide', expected one of patient, image"):
        read_manifest(tmp_path / "copy.csv", manifest.root)


def test_slices_in_the_order_of_harmofl(source, tmp_path):
    """Its limits are those of its code: int(0.8 * n * 0.8) and int(0.8 * n), not rounded."""
    for center, seed in (("BIDMC", 0), ("HK", 1)):
        for case in range(5, 7):
            volumes.write_case(source / center, f"Case{case:02}", image=volumes.volume(500 + 10 * seed + case))
    names = [f"Case{case:02}_segmentation.nii.gz" for case in (3, 1, 0, 2, 6, 5, 4)]
    order = np.random.default_rng(0).permutation(21)
    volumes.write_order(source, order, names)  # of HK; BIDMC has no lists
    done = run("prostate", source, tmp_path / "out", split="image")
    assert done.manifest.split_unit == "image" and done.warnings[0].startswith("LEAKAGE, as asked for: ")
    table = done.manifest.table
    counted = [f"{name[:6]}_{number:02}" for name in names for number in (2, 3, 4)]
    wanted = [counted[index] for index in order]
    sliced = {"train": wanted[:13], "val": wanted[13:16], "test": wanted[16:]}
    for split, expected in sliced.items():
        own = table[(table["center"] == "HK") & (table["split"] == split)]
        assert set(own["path"].map(lambda path: Path(path).stem)) == set(expected)
        assert set(own["id"]) == {f"HK/{split}/{name}" for name in expected}
    other = table[table["center"] == "BIDMC"]
    assert other.groupby("split").size().to_dict() == {"train": 13, "val": 3, "test": 5}
    assert (other.groupby("patient")["split"].nunique() > 1).any()
    shuffled = [row.split for row in other.itertuples()]
    assert shuffled != sorted(shuffled, key=["train", "val", "test"].index), "not in the order of the files"
    volumes.write_order(source, order[::-1].copy(), names)
    assert not run("prostate", source, tmp_path / "out", split="image").reused, "changed lists are noticed"


def test_unusable_lists_of_harmofl_are_problems(source, tmp_path):
    volumes.write_order(source, range(9), [f"Case{case:02}_segmentation.nii.gz" for case in (0, 1, 2)])
    np.save(source / "BIDMC-dir.npy", np.array(["x"]))
    found = problems("prostate", source, tmp_path / "out", split="image")
    assert [text.split(":")[0] for text in found] == ["BIDMC-index.npy", "HK-dir.npy"]
    assert "not found" in found[0] and "differ, e.g. Case03_02, Case03_03, Case03_04" in found[1]
    assert run("prostate", source, tmp_path / "by patient").manifest.split_unit == "patient", "which needs no lists"


def test_one_case_a_centre_can_only_be_divided_by_image(tmp_path):
    sites(tmp_path / "source", cases=2)
    found = problems("prostate", tmp_path / "source", tmp_path / "out")
    expected = "2 patient(s) to divide, expected at least 3, one for each of train, val, test"
    assert [text for text in found if "to divide" in text] == [f"center 'BIDMC': {expected}", f"center 'HK': {expected}"]
    assert sides(run("prostate", tmp_path / "source", tmp_path / "b", split="image").manifest)["HK", "train"] >= 1


@pytest.mark.parametrize("form", [("endometrial", "folders"), ("endometrial", "volumes")], ids="-".join)
def test_external_centres_stay_external(form, tmp_path):
    SOURCES[form](tmp_path / "source")
    if form[1] == "volumes":
        for number in range(5):
            series.write_nifti(tmp_path / f"source/E/testdata/0_NMI/E{number}/t2.nii.gz", series.pixels(50 + number).astype(np.int16))
        with (tmp_path / "source" / "roi.csv").open("a") as file:
            file.writelines(f"E{number},1,2,18,5,25\n" for number in range(5))
    for split in ("patient", "source", "image"):
        done = run("endometrial", tmp_path / "source", tmp_path / f"by {split}", split=split)
        assert set(done.manifest.select("E")["split"]) == {"test"} and done.manifest.training_centers == ("A", "B")
        assert "center 'E' has no training samples: an external test center" in done.warnings
        assert done.manifest.split_unit == ("image" if split == "image" else "patient")
        assert set(done.manifest.select("A")["split"]) == ({"train", "val", "test"} if split == "image" else {"train", "test"})


@pytest.mark.parametrize("split", ["source", "image"])
def test_a_study_on_a_leaking_set_shows_the_warning(tmp_path, split):
    pickled(tmp_path / "source")
    run("camelyon17", tmp_path / "source", tmp_path / "out", split=split)
    workspace = open_workspace("camelyon17", "smoke", data=tmp_path / "out", runs=tmp_path / "runs", data__per_center={"train": 4})
    assert any(warning.startswith("LEAKAGE, as asked for: ") for warning in workspace.warnings)
    assert workspace.manifest.split_unit == "image"


# --- bad input


def test_all_problems_of_volumes_come_together(source, tmp_path):
    (source / "BIDMC" / "Case00_segmentation.nii.gz").unlink()
    os.truncate(source / "BIDMC" / "Case01.nii.gz", 300)
    volumes.write_case(source / "HK", "Case02", mask=np.zeros(volumes.SHAPE, np.uint8))
    (source / "HK" / "notes.txt").write_text("x")
    for case in (1, 3, 4):  # so one of them is on another side than the others
        shutil.copy(source / "HK" / "Case00.nii.gz", source / "HK" / f"Case{case:02}.nii.gz")
    found = problems("prostate", source, tmp_path / "out")
    names = ["BIDMC/Case00.nii.gz", "HK/notes.txt", "BIDMC/Case01.nii.gz", "HK/Case02_segmentation.nii.gz"]
    assert [text.split(":")[0] for text in found[:4]] == names
    assert len(found) == 7 and all("is in several splits: HK/images/Case00_" in text for text in found[4:])


def test_all_problems_of_patches_come_together(tmp_path):
    wilds(tmp_path / "source")
    gone, cut, *twins = (patches.path_of(f"{patient:03}", 1) for patient in range(5))
    (tmp_path / "source" / gone).unlink()
    os.truncate(tmp_path / "source" / cut, 60)
    twins.append(patches.path_of("000", 2))
    for twin in twins[1:]:
        shutil.copy(tmp_path / "source" / twins[0], tmp_path / "source" / twin)
    patches.edit(tmp_path / "source", "013,4,3328,21792,0,1", "013,4,3328,21792,3,1")
    found = problems("camelyon17", tmp_path / "source", tmp_path / "out")
    assert any(f"lists {gone}, which is not there" in text for text in found) and sum(gone in text for text in found) == 1
    assert sum(text.startswith(f"{cut}: cannot be decoded") for text in found) == 1
    assert any("tumor '3', expected 0 or 1" in text for text in found)
    (twin,) = (text for text in found if "the same file content" in text)
    assert "is in several splits" in twin and twins[0] in twin and len(found) == 4


def test_problems_of_the_patient_table_come_with_those_of_the_images(tmp_path):
    for name, build in (("volumes", endometrial_volumes), ("folders", endometrial_folders)):
        root = tmp_path / name
        build(root)
        (root / "patients.csv").write_bytes(b"patient,age,figo,histology\nA\xfc,60,I,I\n")
        (root / "A" / "notes.txt").write_text("x")
        found = problems("endometrial", root, tmp_path / f"{name} out")
        assert (
            found[0].startswith("patients.csv: is not CSV in UTF-8: line 2 has the byte 0xfc")
            and "A/notes.txt" in found[1]
            and len(found) == 2
        )
        (root / "A" / "notes.txt").unlink()
        (root / "patients.csv").write_text("patient,age,stage,histology\nA1,60,I,I\n")
        (problem,) = problems("endometrial", root, tmp_path / f"{name} out")
        assert problem.startswith("patients.csv: header is 'patient,age,stage,histology', expected 'patient,age,figo,histology'")
        (root / "patients.csv").write_text("patient,age,figo,histology\nA1,600,I,I\nA2,60,V,I\n")
        assert [text.split(",")[0] for text in problems("endometrial", root, tmp_path / f"{name} out")] == [
            "patients.csv: line 2: age '600'",
            "patients.csv: line 3: figo 'V'",
        ]


def test_a_csv_with_a_wrong_header(tmp_path):
    endometrial_volumes(tmp_path / "a")
    text = (tmp_path / "a" / "roi.csv").read_text(encoding="utf-8")
    (tmp_path / "a" / "roi.csv").write_text(text.replace("slice", "slize"), encoding="utf-8")
    (problem,) = problems("endometrial", tmp_path / "a", tmp_path / "out")
    assert problem.startswith("roi.csv: header is 'patient,slize,"), "and no line for every patient that has no row"
    wilds(tmp_path / "b")
    patches.edit(tmp_path / "b", "tumor", "tumour")
    assert "missing or repeated: tumor" in problems("camelyon17", tmp_path / "b", tmp_path / "out b")[0]


def test_a_patient_in_two_centres(tmp_path):
    downloads(tmp_path / "source")
    home = tmp_path / "source" / "MoNuSeg"
    tiles.save(home / "Tissue Images" / "TCGA-EJ-5490-01Z-00-DX1.tif", 77)
    tiles.annotate(home / "Annotations" / "TCGA-EJ-5490-01Z-00-DX1.xml", Description=[tiles.SQUARE])
    (problem,) = problems("nuclei", tmp_path / "source", tmp_path / "out")
    assert problem.startswith("patient 'TCGA-EJ-5490' is in the centers 'SiteB' (") and "'SiteE' (" in problem


def test_the_same_picture_on_two_sides(tmp_path):
    downloads(tmp_path / "source")
    table = run("nuclei", tmp_path / "source", tmp_path / "out").manifest.table
    own = table[table["center"] == "SiteE"]
    one, other = (own.loc[own["split"] == split, "id"].iloc[0].rsplit("/", 1)[-1] for split in ("train", "test"))
    folder = tmp_path / "source" / "MoNuSeg" / "Tissue Images"
    shutil.copy(folder / f"{one}.tif", folder / f"{other}.tif")
    (problem,) = problems("nuclei", tmp_path / "source", tmp_path / "out")
    assert "is in several splits" in problem and one in problem and other in problem


@pytest.mark.parametrize("form", SOURCES, ids="-".join)
def test_a_link_out_of_the_folder_is_refused(form, tmp_path):
    SOURCES[form](tmp_path / "source")
    endings = {"volumes": "t2.nii.gz", "sites": "Case01.nii.gz", "promise12": "Case03.mhd", "downloads": "*5592*.tif", "folders": "*.png"}
    file = sorted((tmp_path / "source").rglob(endings.get(form[1], "*.png")))[0]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    found = problems(form[0], tmp_path / "source", tmp_path / "out")
    name = file.relative_to(tmp_path / "source").as_posix()
    assert any(text.startswith(f"{name}: links out of the data folder") for text in found)


def test_names_with_spaces_and_other_letters(tmp_path):
    root = tmp_path / "Daten für 細胞 (1)"
    sites(root, centers=("Klinik Süd", "病院 B"))
    for file in sorted((root / "Klinik Süd").iterdir()):
        file.rename(file.with_name(file.name.replace("Case0", "Fall ä ")))
    done = run("prostate", root, tmp_path / "außen vor")
    assert done.manifest.centers == ("Klinik Süd", "病院 B")
    assert "Klinik Süd/images/Fall ä 0_02.png" in set(done.manifest.table["path"])
    assert verify(tmp_path / "außen vor", progress=False) and run("prostate", root, tmp_path / "außen vor").reused


def test_an_empty_source_and_one_without_cases(tmp_path):
    (tmp_path / "source").mkdir()
    for task in TASKS:
        assert "not recognised as" in problems(task, tmp_path / "source", tmp_path / "out")[0]
    assert "no case found" in problems("prostate", tmp_path / "source", tmp_path / "out", format="sites")[0]


# --- verified


@pytest.mark.parametrize("form", [("prostate", "sites"), ("nuclei", "folders")], ids="-".join)
def test_verify_names_everything(form, tmp_path):
    SOURCES[form](tmp_path / "source")
    manifest = run(form[0], tmp_path / "source", tmp_path / "out").manifest
    assert verify(tmp_path / "out", progress=False) == list(dict.fromkeys(read_prepared(tmp_path / "out").warnings))
    rows = list(manifest.table.itertuples())
    image, mask, gone, cut, both = (
        manifest.root / name for name in (rows[0].path, rows[1].label, rows[2].path, rows[3].path, rows[4].label)
    )
    for file in (image, mask):
        pixels = np.asarray(Image.open(file)).copy()
        pixels[0, 0] = 255 - pixels[0, 0]
        Image.fromarray(pixels).save(file)
    gone.unlink()
    os.truncate(cut, 70)
    both.unlink()
    with pytest.raises(ManifestError) as caught:
        verify(tmp_path / "out", progress=False)
    found = caught.value.problems
    for row, name, message in (
        (0, "path", "changed since it was listed"),
        (1, "label", "sha256 differs from the one noted"),
        (2, "path", "file not found"),
        (3, "path", "cannot be decoded"),
        (4, "label", "file not found"),
    ):
        assert sum(text.startswith(f"{getattr(rows[row], name)}: ") and message in text for text in found) == 1, found
    assert len(found) == 6, "the file that is cut is a changed one too"


def test_verify_of_a_set_whose_source_is_gone(tmp_path):
    nuclei_folders(tmp_path / "source")
    run("nuclei", tmp_path / "source", tmp_path / "out")
    (tmp_path / "source").rename(tmp_path / "moved")
    with pytest.raises(ManifestError, match="source: data folder not found"):
        verify(tmp_path / "out", progress=False)


# --- opened


def smallest(task, data, runs, **overrides):
    profile = Path(__file__).parents[1] / "smallest.yaml"
    return open_workspace(task, profile, data=data, runs=runs, **overrides)


def test_a_workspace_on_prepared_and_unprepared_sources(source, tmp_path, reads):
    done = run("prostate", source, tmp_path / "out")
    reads.clear()
    options = {"data__per_center": {}}
    on_set = smallest("prostate", tmp_path / "out", tmp_path / "runs", **options)
    assert not reads and on_set.manifest.sha256 == done.manifest.sha256 and not on_set.on_phantoms
    on_source = smallest("prostate", source, tmp_path / "runs", **options)
    assert len(reads) == 10 and on_source.manifest.sha256 == done.manifest.sha256
    again = smallest("prostate", source, tmp_path / "runs", **options)
    assert len(reads) == 10 and again.manifest.sha256 == done.manifest.sha256 and again.manifest.root == on_source.manifest.root
    assert again.manifest.root.is_relative_to(tmp_path / "runs" / "prepared")
    nuclei_folders(tmp_path / "folders")
    hashes = {smallest("nuclei", tmp_path / "folders", tmp_path / "runs").manifest.sha256 for _ in range(2)}
    assert len(hashes) == 1 and len(list((tmp_path / "runs" / "prepared").iterdir())) == 2


def test_a_set_of_another_task_is_refused(source, tmp_path):
    run("prostate", source, tmp_path / "out")
    with pytest.raises(ManifestError, match="out: holds a set of the task prostate, expected one of nuclei"):
        smallest("nuclei", tmp_path / "out", tmp_path / "runs")


def test_two_sources_of_one_name_are_two_sets(tmp_path):
    for number, place in enumerate(("one", "other")):
        sites(tmp_path / place / "data", centers=(f"Site{number}", "HK"))
    found = [smallest("prostate", tmp_path / place / "data", tmp_path / "runs").manifest for place in ("one", "other")]
    assert [manifest.centers for manifest in found] == [("HK", "Site0"), ("HK", "Site1")]


@pytest.mark.slow
def test_external_centres_take_part_in_the_evaluation_only(tmp_path):
    workspace = smallest("endometrial", "", tmp_path, federation__rounds=1)
    assert workspace.manifest.centers == ("A", "B", "C", "E", "F") and workspace.manifest.training_centers == ("A", "B", "C")
    study = workspace.run("vfmgl")
    assert set(study.rounds["center"]) == {"A", "B", "C"} == set(study.steps["center"])
    last = study.metrics[study.metrics["round"] == 1]
    assert set(last["model_center"]) == {"A", "B", "C", "shared", "adapted"}
    for model in ("A", "B", "C", "shared", "adapted"):
        tested = last[(last["model_center"] == model) & (last["split"] == "test")]
        # An external centre has no training images to adapt the shared model to.
        assert set(tested["test_center"]) == ({"A", "B", "C"} if model == "adapted" else {"A", "B", "C", "E", "F"})
    own = study.predictions[study.predictions["test_center"].isin(["E", "F"])]
    assert set(own["split"]) == {"test"} and len(own) > 0


# --- real sets


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(("task", "folder"), [("endometrial", "idc_patches"), ("prostate", "prostate"), ("nuclei", "nuclei")])
def test_real_sets(real_data_root, tmp_path, task, folder):
    done = run(task, real_data_root / folder, tmp_path / "out")
    sheet = read_datasheet(task)
    volumes_of = {center: done.manifest.select(center)["patient"].nunique() for center in done.manifest.centers}
    assert compare_counts(done.manifest, sheet, stand_in=True) == []
    if task == "prostate":
        assert volumes_of == sheet.stand_in.centers
        shares = done.manifest.table.drop_duplicates("patient").groupby(["center", "split"]).size()
        assert {n: (shares[c, "train"], shares[c, "val"], shares[c, "test"]) for c, n in volumes_of.items()} == {
            12: (8, 2, 2),
            13: (8, 2, 3),
        }
    if task == "nuclei":
        counted = done.manifest.table.groupby(["center", "split"]).size().unstack().to_dict("index")
        assert counted == sheet.stand_in.model_extra["images_by_split"]
    assert set(verify(tmp_path / "out", progress=False)) >= set(done.warnings)
    assert run(task, real_data_root / folder, tmp_path / "out").reused


def test_phantoms_prepare_without_complaint(tmp_path):
    for task, samples in {"prostate": {"train": 3, "val": 1, "test": 1}, "nuclei": {"train": 3, "val": 1, "test": 1}}.items():
        root = write_phantoms(tmp_path / task, task, centers=2, samples=samples, image_size=32, seed=1)
        done = run(task, root, tmp_path / f"{task} out")
        assert done.warnings == () and set(done.manifest.table["split"]) == {"train", "val", "test"}
    assert json.loads((tmp_path / "nuclei out" / "prepared.json").read_text())["converted"] is False


def test_thumbnails_are_counted_and_change_nothing(tmp_path):
    sites(tmp_path / "source")
    plain = run("prostate", tmp_path / "source", tmp_path / "plain")
    for name in ("@eaDir/BIDMC/thumb.jpg", "BIDMC/@eaDir/Case00.nii.gz", "HK/._Case01.nii.gz", "HK/Thumbs.db", "#recycle/Case00.nii.gz"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(b"x")
    done = run("prostate", tmp_path / "source", tmp_path / "out")
    assert done.manifest.sha256 == plain.manifest.sha256
    line = "5 file(s) and folder(s) of file servers and systems are not read: 1 #recycle, 1 ._*, 2 @eaDir, 1 Thumbs.db"
    assert line in done.warnings and line in read_prepared(tmp_path / "out").warnings


def test_a_long_name_is_shortened(tmp_path):
    rows, image = [], np.zeros((4, 4), np.uint8)
    for end in "ab":
        case = Case("片" * 83 + end, "A", "片" * 83 + end, (), list, "1_MI", "train")  # 250 bytes, a legal folder
        rows += [conversion._write_picture(TASKS["endometrial"], tmp_path, case, Picture(name, image)) for name in ("", "1", "123")]
    names = [Path(row["path"]).name for row in rows]
    assert [len(name.encode()) <= 255 and (tmp_path / row["path"]).is_file() for name, row in zip(names, rows, strict=True)] == [True] * 6
    assert len({*names}) == 6 and ["~" in name for name in names] == [False, True, True] * 2
    assert [row["name"].rsplit("/", 1)[-1] + ".png" for row in rows] == names, "what is called by the id later fits, too"


def test_no_room_ends_in_one_line_and_the_same_call_goes_on(tmp_path, monkeypatch, capsys):
    sites(tmp_path / "source")
    call = ["prepare", "prostate", "--source", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    replace_file, written = os.replace, []

    def full(temporary, path):
        written.append(path)
        if len(written) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(temporary, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(call) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no room is left on the disk; make room" in line and str(written[-1]) in line and "the same call goes on" in line
    assert not is_complete(tmp_path / "out") and not list((tmp_path / "out").rglob("*.partial"))
    assert main(call) == 0 and verify(tmp_path / "out", progress=False) is not None


def is_complete(folder):
    return "state" in json.loads((folder / "prepared.json").read_text())
