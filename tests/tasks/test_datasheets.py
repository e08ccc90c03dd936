"""Datasheets: those of the project are valid, wrong ones are refused, manifests are compared with them."""

import pandas as pd
import pytest
import yaml

from vfmgl_lib.data.manifest import COLUMNS, Manifest
from vfmgl_lib.tasks.datasheets import FOLDER, Datasheet, DatasheetError, Download, compare_counts, read_datasheet
from vfmgl_lib.tasks.folders import read_folders

SHEET = {
    "name": "task",
    "task": "classification",
    "question": "tumour or none",
    "images": "tiles",
    "source": "somewhere",
    "access": "public",
    "layout": "endometrial",
    "folders": "<center>/<image>",
    "centers": {"A": "one", "B": "another"},
    "split": "given",
}


def write(folder, **values):
    content = {key: value for key, value in (SHEET | values).items() if value is not None}
    (folder / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def sheet(**values) -> Datasheet:
    return Datasheet(**SHEET | values)


def manifest(*rows, classes=("0_NMI", "1_MI")) -> Manifest:
    """From (centre, split, label, patient)."""
    table = [
        (f"{center}/{split}/{number}", f"{number}.png", f"{number:064x}", center, patient, split, label, "")
        for number, (center, split, label, patient) in enumerate(rows)
    ]
    return Manifest("data", "classification", classes, pd.DataFrame(table, columns=list(COLUMNS)))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_datasheets_of_the_project_are_valid(path):
    assert read_datasheet(path.stem).name == path.stem


def test_endometrial_counts_are_those_of_table_one():
    expected = read_datasheet("endometrial").expected_patients
    table = pd.read_csv(FOLDER / "table1_endometrial_patients.csv")
    assert {(row.center, row.set, row.label): row.n for row in table.itertuples()} == {
        (center, split, label): number
        for center, splits in expected.items()
        for split, labels in splits.items()
        for label, number in labels.items()
    }
    assert table["n"].sum() == 1267  # the paper's total


def test_gated_entry_says_whom_to_write_to():
    (download,) = read_datasheet("endometrial").downloads
    assert download.gated and "@" in download.request and "3 months" in download.request and not download.file


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"centers": None}, "centers: Field required"),
        ({"centers": {}}, "centers: Dictionary should have at least 1 item"),
        ({"task": "regression"}, "task: Input should be 'classification' or 'segmentation', got 'regression'"),
        ({"name": "other"}, "name is 'other', expected 'task'"),
        ({"expected_images": {"A": -1}}, "expected_images: Value error, A is -1, expected a whole number from 0"),
        ({"expected_images": {"A": "12"}}, "A is '12', expected a whole number from 0"),
        ({"expected_images": {"A": {"test": {0: 12}}}}, "A.test.0 has a key that is no text"),
        ({"expected_images": {"C": 12}}, "counts are given for C, the centers are A, B"),
        ({"expected_images": {"A": {"training": 3}}}, "A.training: unknown split, expected one of train, val, test, external"),
        ({"expected_image": {"A": 3}}, "unknown key 'expected_image', expected expected_images, expected_patients or downloads"),
        ({"download": []}, "unknown key 'download'"),
        ({"downloads": [{"name": "x", "licence": "CC0", "url": "ftp://example.org/x", "file": "x"}]}, "must begin with http"),
        ({"downloads": [{"name": "x", "licence": "CC0", "url": "https://example.org/x"}]}, "file '' must be a plain name"),
        ({"downloads": [{"name": "x", "licence": "CC0", "url": "https://example.org/x", "file": "../x"}]}, "must be a plain name"),
        ({"downloads": [{"name": "x", "licence": "CC0", "url": "https://example.org/x", "file": ".x"}]}, "must be a plain name"),
        ({"downloads": [{"name": "x", "licence": "CC0", "gated": True}]}, "a gated download has a request"),
        ({"downloads": [{"name": "x", "url": "https://example.org/x", "file": "x"}]}, "downloads.0.licence: Field required"),
        (
            {"downloads": [{"name": f"{n}", "licence": "CC0", "url": "https://example.org/x", "file": "x"} for n in (1, 2)]},
            "downloads have the same file 'x'",
        ),
        (
            {"downloads": [{"name": "x", "licence": "CC0", "url": "https://e.org", "file": "x", "sha": "0"}]},
            "downloads.0.sha: Extra inputs",
        ),
        ({"downloads": [{"name": "x", "licence": "CC0", "url": "https://e.org", "file": "x", "sha256": "0"}]}, "downloads.0.sha256"),
    ],
)
def test_wrong_datasheet(tmp_path, values, expected):
    write(tmp_path, **values)
    with pytest.raises(DatasheetError) as caught:
        read_datasheet("task", tmp_path)
    assert expected in str(caught.value) and "task.yaml" in str(caught.value)


def test_missing_or_unreadable_datasheet(tmp_path):
    with pytest.raises(DatasheetError, match=r"no datasheet for 'prostata' in .*, there are: .*endometrial"):
        read_datasheet("prostata")
    (tmp_path / "task.yaml").write_text("a: [")
    with pytest.raises(DatasheetError, match=r"task\.yaml: cannot be read as YAML"):
        read_datasheet("task", tmp_path)
    (tmp_path / "task.yaml").write_text("- a\n")
    with pytest.raises(DatasheetError, match=r"task\.yaml: holds list, expected keys and values"):
        read_datasheet("task", tmp_path)


def test_further_keys_are_kept(tmp_path):
    write(tmp_path, scanners={"A": "3 T"}, stand_in={"what": "x", "source": "y", "licence": "z", "centers": "A", "split": "none"})
    read = read_datasheet("task", tmp_path)
    assert read.model_extra == {"scanners": {"A": "3 T"}} and read.stand_in.centers == "A"


def test_download_of_a_public_file():
    download = Download(name="x", licence="CC0", url="https://example.org/blob/", file="set v1.0.tar.gz")
    assert not download.gated and download.sha256 == ""


ROWS = [
    ("A", "train", 0, "a1"),
    ("A", "train", 1, "a2"),
    ("A", "train", 1, "a2"),
    ("A", "val", 1, "a3"),
    ("A", "test", 1, "a4"),
    ("B", "test", 0, "b1"),
    ("B", "test", 1, "b2"),
]


@pytest.mark.parametrize(
    ("counts", "findings"),
    [
        ({"expected_images": {"A": 5, "B": 2}}, []),
        ({"expected_images": {"A": 261, "B": 2}}, ["center 'A': 5 images, the datasheet expects 261"]),
        ({"expected_patients": {"A": 4, "B": 3}}, ["center 'B': 2 patients, the datasheet expects 3"]),
        ({"expected_images": {"A": {"train": 4, "test": 1}}}, []),  # no validation set known: it counts as training
        ({"expected_images": {"A": {"train": 3, "val": 1, "test": 1}}}, []),
        (
            {"expected_images": {"A": {"train": 3, "val": 2, "test": 0}}},
            ["center 'A', val: 1 images, the datasheet expects 2", "center 'A', test: 1 images, the datasheet expects 0"],
        ),
        ({"expected_patients": {"A": {"train": {"NMI": 1, "MI": 2}}, "B": {"external": {"NMI": 1, "MI": 1}}}}, []),
        (
            {"expected_patients": {"A": {"train": {"NMI": 2, "MI": 2}}, "B": {"external": {"NMI": 1, "MI": 9}}}},
            [
                "center 'A', train, NMI: 1 patients, the datasheet expects 2",
                "center 'B', external, MI: 2 patients, the datasheet expects 9".replace("2 p", "1 p"),
            ],
        ),
        (
            {"expected_images": {"A": {"train": {"benign": 1, "MI": 4}, "test": 1}}},
            [
                "classes are NMI, MI, the datasheet has MI, benign: images are compared without them",
                "center 'A', train: 4 images, the datasheet expects 5",
            ],
        ),
        ({"expected_images": "not published"}, []),
    ],
)
def test_counts(counts, findings):
    assert compare_counts(manifest(*ROWS), sheet(**counts)) == findings


def test_missing_and_unknown_centers():
    found = compare_counts(manifest(*ROWS), sheet(centers={"A": "x", "C": "y"}, expected_images={"A": 5, "C": 7}))
    assert found == ["center 'C': missing, the datasheet has it", "center 'B': unknown, the datasheet has A, C"]


def test_stand_in_is_compared_on_request():
    stand_in = {"what": "x", "source": "y", "licence": "z", "centers": "two of the real ones", "images": {"A": 6, "B": 2}}
    found = compare_counts(manifest(*ROWS), sheet(stand_in=stand_in), stand_in=True)
    assert found == ["center 'A': 5 images, the datasheet's stand-in expects 6"]
    with pytest.raises(ValueError, match="the datasheet 'task' has no stand_in"):
        compare_counts(manifest(*ROWS), sheet(), stand_in=True)


@pytest.mark.real_data
@pytest.mark.parametrize(("task", "folder"), [("endometrial", "idc_patches"), ("nuclei", "nuclei")])
def test_stand_ins_have_the_counts_of_their_datasheet(real_data_root, task, folder):
    found = read_folders(real_data_root / folder, task, verify=False, progress=False)
    assert compare_counts(found, read_datasheet(task), stand_in=True) == []
    assert compare_counts(found, read_datasheet(task)) != []
