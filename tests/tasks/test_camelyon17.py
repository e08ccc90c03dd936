"""CAMELYON17's lists: WILDS' metadata.csv and the authors' data.pkl, of which nothing may be executed."""

import builtins
import contextlib
import functools
import io
import os
import pickle
import re

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.tasks.camelyon17 import reader as camelyon17
from vfmgl_lib.tasks.camelyon17.reader import FORMATS, manifest_pickle, manifest_wilds
from vfmgl_lib.tasks.cases import Findings

HEADER = ",patient,node,x_coord,y_coord,tumor,slide,center,split"
PATIENTS = {"004": 0, "010": 0, "020": 1, "040": 2, "060": 3, "080": 4}  # and their centers
RECONSTRUCT = np.array(0).__reduce__()[0]


def path_of(patient, number, node=4):
    slide = f"patient_{patient}_node_{node}"
    return f"patches/{slide}/patch_{slide}_x_{3328 + 32 * number}_y_21792.png"


@pytest.fixture
def root(tmp_path):
    """Six patients of five centers, four patches each, listed both ways."""
    root = tmp_path / "with space and ü"
    lines, lists = [HEADER], {}
    for patient, center in PATIENTS.items():
        for number in range(4):
            file = root / path_of(patient, number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"not looked into")
            lines.append(f"{len(lines) - 1},{patient},4,{3328 + 32 * number},21792,{number % 2},{center},{center},0")
            side = "test" if number == 3 else "train"
            lists.setdefault(f"hospital{center + 1}", {}).setdefault(side, []).append((path_of(patient, number), number % 2))
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    write_lists(root, lists)
    return root


def write_lists(root, lists, protocol=4, paths=np.array, labels=np.array):
    content = {
        center: {side: (paths([path for path, _ in rows]), labels([label for _, label in rows])) for side, rows in sides.items()}
        for center, sides in lists.items()
    }
    (root / "data.pkl").write_bytes(pickle.dumps(content, protocol))


def read(reader, root):
    findings = Findings()
    return reader(root, findings), findings


def problems(reader, root):
    return read(reader, root)[1].problems


def edit(root, old, new):
    text = (root / "metadata.csv").read_text(encoding="utf-8")
    assert old in text
    (root / "metadata.csv").write_text(text.replace(old, new, 1), encoding="utf-8")


def test_formats_are_recognised_by_their_names(root, tmp_path):
    wilds, lists = FORMATS
    assert (wilds.name, lists.name) == ("wilds", "pkl") and not wilds.cases and not lists.cases
    assert wilds.recognise(root) and lists.recognise(root)
    assert not wilds.recognise(tmp_path) and not lists.recognise(tmp_path / "nowhere")
    (root / "data.pkl").unlink()
    assert wilds.recognise(root) and not lists.recognise(root)


def test_wilds(root):
    before = sorted(root.rglob("*"))
    (root / "patches" / ".DS_Store").touch()
    (root / "patches" / "patient_004_node_4" / "Thumbs.db").touch()
    table, findings = read(manifest_wilds, root)
    assert findings == Findings(warnings=["2 file(s) and folder(s) of file servers and systems are not read: 1 .DS_Store, 1 Thumbs.db"])
    assert tuple(table.columns) == ("id", "path", "center", "patient", "split", "label")
    assert table.iloc[1].to_dict() == {
        "id": "hospital1/patch_patient_004_node_4_x_3360_y_21792",
        "path": "patches/patient_004_node_4/patch_patient_004_node_4_x_3360_y_21792.png",
        "center": "hospital1",
        "patient": "patient_004",
        "split": "",
        "label": 1,
    }
    assert table.groupby("center").size().to_dict() == {f"hospital{n}": 8 if n == 1 else 4 for n in range(1, 6)}
    assert set(table["split"]) == {""} and table["id"].is_unique
    assert {path for path in sorted(root.rglob("*")) if path.name not in (".DS_Store", "Thumbs.db")} == set(before)


def test_wilds_as_a_spreadsheet_leaves_it(root):
    expected, _ = read(manifest_wilds, root)
    rows = pd.read_csv(root / "metadata.csv", index_col=0)  # patients become numbers
    rows[["center", "tumor", "patient", "node", "y_coord", "x_coord"]].to_csv(root / "metadata.csv", index=False, encoding="utf-8-sig")
    assert (root / "metadata.csv").read_bytes().startswith(b"\xef\xbb\xbfcenter,tumor")
    table, findings = read(manifest_wilds, root)
    assert findings == Findings()
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "tumor",
            "tumour",
            "expected the columns patient, node, x_coord, y_coord, tumor, center, separated by commas; missing or repeated: tumor",
        ),
        (",slide,", ",tumor,", "missing or repeated: tumor"),
        (HEADER, HEADER.replace(",", "|"), "missing or repeated: patient, node"),
        (HEADER, HEADER.replace(",", ";"), "metadata.csv line 2: 1 fields, expected 9"),
        (HEADER + "\n", "", "missing or repeated: patient"),
        ("0,004,4,3328,21792,0,", "0,004,4,3328,21792,2,", "metadata.csv line 2: tumor '2', expected 0 or 1"),
        ("0,004,4,3328,21792,0,", "0,004,4,3328,21792,,", "metadata.csv line 2: tumor '', expected 0 or 1"),
        ("21792,0,0,0,0\n", "21792,0,0,5,0\n", "metadata.csv line 2: center '5', expected 0 to 4"),
        ("21792,0,0,0,0\n", "21792,0,0,0\n", "metadata.csv line 2: 8 fields, expected 9"),
        ("0,004,4,3328", "0,004,4,3329", f"metadata.csv line 2: lists {path_of('004', 0).replace('3328', '3329')}, which is not there"),
        ("0,004,4,3328", "0,../../004,4,3328", "metadata.csv line 2: lists patches/patient_../../004_node_4/"),
        ("1,004,4,3360", "1,004,4,3328", f"metadata.csv line 3: lists {path_of('004', 0)} again, expected one row an image"),
        ("1,004,4,3360", "1,004,4,3328", f"{path_of('004', 1)}: is not in metadata.csv, expected one row an image"),
        ("21792,0,0,0,0\n", "21792,0,0,1,0\n", f"patient 'patient_004' is in hospital2 ({path_of('004', 0)}) and hospital1 ("),
        ("0,004,4,3328", '0,"004,4,3328', "metadata.csv: is not CSV in UTF-8"),
    ],
)
def test_wrong_metadata(root, old, new, message):
    edit(root, old, new)
    assert any(message in problem for problem in problems(manifest_wilds, root)), problems(manifest_wilds, root)


def test_metadata_that_is_no_text_or_not_there(root):
    (root / "metadata.csv").write_bytes(b"\xff,patient")
    assert any("metadata.csv: is not CSV in UTF-8" in problem for problem in problems(manifest_wilds, root))
    (root / "metadata.csv").write_text(HEADER + "\n")
    assert problems(manifest_wilds, root) == [f"{root}: lists no image, expected at least one"]
    (root / "metadata.csv").unlink()
    assert problems(manifest_wilds, root) == ["metadata.csv: cannot be read (No such file or directory)"]


def test_all_problems_are_found_together(root):
    edit(root, "0,004,4,3328,21792,0,", "0,004,4,3328,21792,2,")
    (root / path_of("040", 1)).unlink()
    (root / "patches" / "patient_004_node_4" / "notes.txt").touch()
    (root / "patches" / "patient_004_node_4" / "größe 1.png").touch()
    assert problems(manifest_wilds, root) == [
        "patches/patient_004_node_4/notes.txt: unexpected file, expected images (.png)",
        "metadata.csv line 2: tumor '2', expected 0 or 1",
        f"metadata.csv line 15: lists {path_of('040', 1)}, which is not there",
        "patches/patient_004_node_4/größe 1.png: is not in metadata.csv, expected one row an image",
    ]


@pytest.mark.parametrize("reader", [manifest_wilds, manifest_pickle])
@pytest.mark.parametrize("name", ["patches", "patches/patient_004_node_4", path_of("004", 0), "list"])
def test_links_out_of_the_folder_are_refused(root, tmp_path, reader, name):
    name = {manifest_wilds: "metadata.csv", manifest_pickle: "data.pkl"}[reader] if name == "list" else name
    (root / name).rename(tmp_path / "outside")
    (root / name).symlink_to(tmp_path / "outside")
    message = f"{name}: links out of the data folder to {tmp_path / 'outside'}, expected a f"
    assert problems(reader, root)[0].startswith(message)


def test_lists(root):
    table, findings = read(manifest_pickle, root)
    assert not findings.problems
    wilds, _ = read(manifest_wilds, root)
    shared = ["path", "center", "patient", "label"]
    pd.testing.assert_frame_equal(*(t[shared].sort_values("path", ignore_index=True) for t in (table, wilds)))
    assert table["id"].tolist()[0] == "hospital1/train/patch_patient_004_node_4_x_3328_y_21792"
    assert table[table["split"] == "test"]["path"].tolist() == [path_of(patient, 3) for patient in PATIENTS]
    # Of hospital1's six training images the last one, of three the last none: rounded down as the released code does.
    assert table[table["split"] == "val"]["path"].tolist() == [path_of("010", 2)]
    assert findings.warnings == [
        "the source's own split leaks: 6 of 6 patients are in more than one of train, val and test, with patches of the same slides;"
        " divided by patient they are not"
    ]


def test_lists_that_respect_the_patients_and_leave_images_out(root):
    rows = {patient: [(path_of(patient, number), number % 2) for number in range(3)] for patient in PATIENTS}
    write_lists(root, {"hospital1": {"train": rows["004"], "test": rows["010"]}})
    table, findings = read(manifest_pickle, root)
    assert not findings.problems and len(table) == 6
    assert findings.warnings == ["18 of 24 images are not in data.pkl and left out"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (np.array, np.array),
        (list, list),
        (tuple, lambda values: [np.int64(value) for value in values]),
        (lambda values: np.array(values, object), lambda values: np.array(values, object)),
        (lambda values: np.array([*map(np.str_, values)], object), lambda values: np.array(values, ">i4")),
        (lambda values: [np.str_(value) for value in values], lambda values: np.array(values, bool)),
        (lambda values: np.array(values)[:, None], lambda values: np.array(values, float)[:, None]),
        (lambda values: np.array(values).repeat(2)[::2], lambda values: np.array(values, np.uint8)),
    ],
)
def test_lists_of_any_kind_and_protocol(root, protocol, paths, labels):
    expected, _ = read(manifest_pickle, root)
    lists = {}
    for row in expected.itertuples():
        lists.setdefault(row.center, {}).setdefault("test" if row.split == "test" else "train", []).append((row.path, row.label))
    write_lists(root, lists, protocol, paths, labels)
    table, findings = read(manifest_pickle, root)
    assert not findings.problems
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("", ""),
        ("./patches/", ""),
        ("/home/someone/patient_data/camelyon17/patches/", ""),
        ("E:\\data\\camelyon17\\patches\\", ""),
        ("../elsewhere/patches/", "expected …/patient_<patient>_node_<node>/<image>"),
        ("patches\\..\\..\\", "expected …/patient_<patient>_node_<node>/<image>"),
    ],
)
def test_paths_of_another_machine(root, start, message):
    def foreign(path):
        end = path.removeprefix("patches/")
        return start + (end.replace("/", "\\") if "\\" in start else end)

    rows = [(foreign(path_of("004", number)), 0) for number in range(4)]
    write_lists(root, {"hospital1": {"train": rows[:3], "test": rows[3:]}})
    table, findings = read(manifest_pickle, root)
    assert len(table) == (0 if message else 4)
    assert all(message in problem for problem in findings.problems) and len(findings.problems) == (4 if message else 0)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"hospital6": {}}, "holds the keys 'hospital6', expected {\"hospital1\""),
        ({}, "holds the keys , expected"),
        ([], "holds list, expected"),
        ({"hospital1": {"train": ([], [])}}, "data.pkl hospital1: holds 'train', expected"),
        ({"hospital1": 3}, "data.pkl hospital1: holds int, expected"),
        ({"hospital1": {"train": 1, "test": 1}}, "data.pkl hospital1 train: found int where a list or an array was expected"),
        ({"hospital1": {"train": [], "test": []}}, "data.pkl hospital1 train: not enough values"),
        ({"hospital1": {"train": (["a"], []), "test": ([], [])}}, "data.pkl hospital1 train: 1 paths and 0 labels, expected as many"),
        (
            {"hospital1": {"train": ([path_of("004", 0)], [2]), "test": ([], [])}},
            f"train 0: label 2 of {path_of('004', 0)}, expected 0 or 1",
        ),
        ({"hospital1": {"train": ([path_of("004", 0)], ["1"]), "test": ([], [])}}, "label '1' of "),
        ({"hospital1": {"train": ([path_of("004", 9)], [1]), "test": ([], [])}}, f"train 0: lists {path_of('004', 9)}, which is not there"),
        ({"hospital1": {"train": ([path_of("004", 0)] * 2, [0, 0]), "test": ([], [])}}, f"lists {path_of('004', 0)} more than once"),
        ({"hospital1": {"train": ([5], [0]), "test": ([], [])}}, "train 0: path 5, expected text"),
        ({"hospital1": {"train": ([None], [0]), "test": ([], [])}}, "found NoneType among the values"),
        ({"hospital1": {"train": (np.zeros((2, 2)), [0]), "test": ([], [])}}, "found an array of shape (2, 2), expected one dimension"),
        ({"hospital1": {"train": (np.zeros(2, complex), [0]), "test": ([], [])}}, "found an array of c16, expected text or numbers"),
        ({"hospital1": {"train": (np.array([b"a"]), [0]), "test": ([], [])}}, "found an array of S1, expected text or numbers"),
        ({"hospital1": {"train": (np.ndarray, [0]), "test": ([], [])}}, "found a numpy class where a list or an array was expected"),
        ({"hospital1": {"train": ([np.dtype("i8")], [0]), "test": ([], [])}}, "found a numpy dtype among the values"),
    ],
)
def test_wrong_lists(root, lists, message):
    (root / "data.pkl").write_bytes(pickle.dumps(lists))
    assert any(message in problem for problem in problems(manifest_pickle, root)), problems(manifest_pickle, root)


class Made:
    """Pickled as a call of any function, with any state for what it returns."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    "state",
    [
        (1, (3,), np.dtype("U2"), False, b"xx"),
        (1, (2,), np.dtype("U1"), False, b"\xff" * 8),
        (1, (3,), np.dtype("O"), False, ["a"]),
        (1, (10**12,), np.dtype("O"), False, []),
        (1, (-1,), np.dtype("i8"), False, b""),
        (1, ("a",), np.dtype("i8"), False, b""),
        (1, (1,), "i8", False, b"12345678"),
        (1, (1,), np.dtype("i8"), False, 8),
        (1,),
        {"a": 1},
    ],
)
def test_arrays_that_are_none(root, state):
    array = Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)
    (root / "data.pkl").write_bytes(pickle.dumps({"hospital1": {"train": (array, [0]), "test": ([], [])}}))
    found = problems(manifest_pickle, root)
    assert len(found) == 1 and found[0].startswith("data.pkl hospital1 train: ") and found[0].endswith(", expected paths and labels")


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-9], lambda content: content[9:], lambda content: b"path,label"]
)
def test_damaged_pickle(root, damage):
    (root / "data.pkl").write_bytes(damage((root / "data.pkl").read_bytes()))
    (problem,) = problems(manifest_pickle, root)
    assert problem.startswith("data.pkl: cannot be read (") and '), expected {"hospital1"' in problem


def test_pickle_above_the_limit(root, monkeypatch):
    monkeypatch.setattr(camelyon17, "LIST_BYTES", 100)
    assert problems(manifest_pickle, root)[0].endswith(" bytes, the limit is 100")


def touch(marker):
    return Made(eval, (f"open({str(marker)!r}, 'w').close()",))


def load(marker):
    """An array file that has a pickle of its own inside."""
    np.save(marker.with_suffix(".npy"), np.array([touch(marker)], object), allow_pickle=True)
    return Made(np.load, (str(marker.with_suffix(".npy")), None, True))


# What gives each away, and what is pickled; all but the last three write the file `marker` when they are trusted.
EVIL = {
    "system": lambda marker: Made(os.system, (f"touch '{marker}'",)),
    "eval": touch,
    "exec": lambda marker: Made(exec, (f"open({str(marker)!r}, 'w').close()",)),
    "open": lambda marker: Made(open, (str(marker), "w")),
    "numpy.load": load,
    "numpy.memmap": lambda marker: Made(np.memmap, (str(marker), "uint8", "w+", 0, 1)),
    "eval in an array": lambda marker: np.array(["a", touch(marker)], object),
    "eval in a list": lambda marker: [touch(marker)],
    "eval in a state": lambda marker: Made(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, [touch(marker)])),
    "eval in a dtype": lambda marker: Made(np.dtype, (touch(marker),)),
    "eval in a scalar": lambda marker: Made(np.int64(0).__reduce__()[0], (np.dtype("O"), touch(marker))),
    "getattr": lambda marker: Made(getattr, ("text", "upper")),
    "partial": lambda marker: Made(functools.partial, (print,)),
    "numpy.f2py": lambda marker: Made(np.f2py.run_main, (["-h"],)),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", EVIL)
def test_a_crafted_pickle_is_refused_and_not_executed(root, tmp_path, name, protocol):
    thing = EVIL[name](tmp_path / "executed")
    (root / "data.pkl").write_bytes(pickle.dumps({"hospital1": {"train": (thing, [0]), "test": ([], [])}}, protocol))
    (problem,) = problems(manifest_pickle, root)
    assert re.match(r"data\.pkl: cannot be read \(it names .*, and only numpy arrays, lists and text are read\), expected", problem)
    assert name.split(" in ")[0] in problem
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", list(EVIL)[:-3])
def test_the_crafted_pickles_do_execute_where_they_are_trusted(tmp_path, name):
    content = pickle.dumps(EVIL[name](tmp_path / "executed"))
    with contextlib.suppress(TypeError):  # of what numpy makes of the result
        pickle.Unpickler(io.BytesIO(content)).load()
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch executed'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch executed'\no.",  # OBJ
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ of what is no class here
        b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",  # BUILD on a function: sets its attributes
        b"\x80\x02cnumpy\ndtype\nN}X\x08\x00\x00\x00__call__cnumpy\ndtype\ns\x86b.",  # and by the other form of state
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # persistent identity
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.dot\x93.",  # a dotted name
    ],
)
def test_other_ways_to_a_function_are_closed(root, tmp_path, program, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = []
    monkeypatch.setattr(builtins, "eval", called.append)
    (root / "data.pkl").write_bytes(program)
    (problem,) = problems(manifest_pickle, root)
    assert problem.startswith("data.pkl: cannot be read (")
    assert not (tmp_path / "executed").exists() and not called
    assert camelyon17._Name("dtype")(1).kind == "dtype", "the stand-ins are as they were"
