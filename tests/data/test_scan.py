"""What file servers and systems leave behind, and which files are masks of others."""

from collections import Counter
from pathlib import Path

import pytest

from vfmgl_lib.data.scan import Scan, held, masks_of_others, skipped, system_kind, visible

FOLDERS = (
    "@eaDir;#recycle;.thumbnails;.AppleDouble;__MACOSX;$RECYCLE.BIN;lost+found;.Trashes;.Trash-1000;.Spotlight-V100;.fseventsd;"
    "System Volume Information;Network Trash Folder;.ipynb_checkpoints;@Recycle;.@__thumb;#snapshot;~snapshot;RECYCLER;.git"
).split(";")
FILES = (
    "Thumbs.db ehthumbs.db desktop.ini .DS_Store ._x.png ~$x.xlsx .~lock.x.csv# x.tmp x.png.part .nfs00012 DICOMDIR x.png~ x.crdownload"
).split()


def test_system_entries_are_passed_over_and_counted(tmp_path):
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
    for name in (*FILES, "Icon\r", "THUMBS.DB", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("P1.tmp", "old.part"):
        (tmp_path / name).mkdir()
    scan = Scan(tmp_path)
    assert [folder.name for folder in scan.folders(tmp_path, "folders", files=("a.png",))] == ["P1.tmp", "old.part"]
    assert scan.problems == [] and scan.skipped.total() == len(FOLDERS) + len(FILES) + 2
    assert scan.skipped["Thumbs.db"] == 2 and scan.skipped["@eaDir"] == 1 and scan.skipped["Icon"] == 1
    (line,) = skipped(scan.skipped)
    assert line.startswith(f"{scan.skipped.total()} file(s) and folder(s)") and "1 @eaDir" in line and "2 Thumbs.db" in line
    assert skipped(Counter()) == []
    assert [entry.name for entry in visible(tmp_path)] == ["P1.tmp", "a.png", "old.part"]


@pytest.mark.parametrize("name", ["1.png", "Case00.nii.gz", "thumbs", "P1", "recycle", "DICOM", "a.tmp.png", "lost", "IM0001", "part"])
def test_peoples_own_names(name):
    assert system_kind(Path(name)) == ""


def test_names_with_line_breaks_are_a_problem_in_one_line(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"x")
    scan = Scan(tmp_path)
    assert scan.images(tmp_path) == []
    assert scan.problems[0].endswith(r"a\nb.png: name holds a line break or another control character, rename it")


def test_links_that_lead_in_a_circle_are_a_problem_in_one_line(tmp_path):
    (tmp_path / "P1").symlink_to("P1")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    scan = Scan(tmp_path.resolve())
    assert scan.folders(tmp_path.resolve(), "folders") == []
    assert scan.problems == [f"{name}: is a broken link, expected a file or a folder" for name in ("P1", "a", "b")]


def test_masks_of_other_files():
    pairs = {
        "a/labels/x.png": "a/images/x.jpg",
        "a/Masks/y.png": "a/images/y.png",
        "b/mask/z_mask.png": "b/image/z.tif",
        "c/mask/x.png": "c/images/x.png",
        "d/labels/x.png": "d/image/x.png",
        "s/Case00_segmentation.nii.gz": "s/Case00.nii.gz",
        "s/case01_Segmentation.nii": "s/Case01.nii.gz",
        "t/GT_01/01_1.png": "t/Slide_01/01_1.png",
        "q/x-mask.png": "q/x.bmp",
    }
    alone = ["z/labels/x.png", "q/y_mask.png", "s/Case02_segmentation.nii.gz", "t/GT_02/01_1.png", "a/x_segment.png", "a/x.png"]
    found = masks_of_others(map(Path, [*pairs, *pairs.values(), *alone]))
    assert found == {Path(mask): Path(image) for mask, image in pairs.items()}


def test_what_a_folder_holds(tmp_path):
    assert held(tmp_path) == "it is empty"
    for name in ("1.dcm", "2.dcm", "a.txt", "IM1", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    assert held(tmp_path) == "it holds 2 .dcm, 1 file(s) without ending, 1 .txt, 1 folder(s)"
