"""What a path that leads to no file is answered with: the file that is meant, and never another patient's."""

import pytest

from vfmgl_lib.data.lookup import Files


@pytest.fixture
def files(tmp_path):
    names = ["North/16_seg.PNG", "North/Präparat 3 - e.JPG", "North/01L.png", "North/7_seg.png", "P3/scan.png", "P4/scan.png", "P5/one.png"]
    for name in [*names, "South/images/40.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return Files(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        "North/6_seg.PNG",
        "North/Präparat 13 - e.JPG",
        "North/Präparat 3 - f.JPG",
        "North/01R.png",
        "P1/scan.png",
        "P6/one.png",
        "North/40.png",
    ],
)
def test_no_hint_to_a_file_of_another_number_side_or_folder(files, wrong):
    path, problem = files.find(wrong)
    assert path == "" and problem == f"{wrong!r}: file not found in {files.home}"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("North/7_seg.PNG", "North/7_seg.png"),
        ("North/07_seg.png", "North/7_seg.png"),
        ("North/Praeparat 3 - e.JPG", "North/Präparat 3 - e.JPG"),
        ("40.PNG", "South/images/40.png"),
        ("South/40.png", "South/images/40.png"),
    ],
)
def test_a_slip_is_answered_with_the_file(files, wrong, meant):
    assert files.find(wrong)[1].endswith(f"; there is {meant!r}")


def test_of_several_files_of_that_name_none_is_chosen(files):
    assert files.find("scan.png")[1].endswith("; 2 files elsewhere are called so, e.g. 'P3/scan.png' and 'P4/scan.png'")
