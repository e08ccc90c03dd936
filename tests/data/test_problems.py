"""Long lists of problems: one mistake in many rows is one line, and another one is not lost behind it."""

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.problems import in_short


def test_one_value_in_many_rows_is_one_line():
    problems = [f"line {line}: label 'benign' is no class of skin, expected one of a, b" for line in range(2, 32)]
    problems += [f"line {line}: patient is empty, expected who it is" for line in range(2, 32)] + ["line 40: label 'x' is no class"]
    error = ManifestError.listing("t.csv", problems)
    assert error.problems == tuple(problems), "all are kept"
    assert str(error).splitlines() == [
        "t.csv: 61 problems",
        "  - label 'benign' is no class of skin, expected one of a, b: in 30 rows, first line 2",
        "  - patient is empty, expected who it is: in 30 rows, first line 2",
        "  - line 40: label 'x' is no class",
    ]


def test_many_masks_and_missing_files():
    problems = [f"line {n}: masks/{n}.png: mask has value 128, expected only 0, 1" for n in range(2, 34)]
    problems += [f"line {n}: image 'a/{n}.png': file not found in /x; there is 'b/{n}.png'" for n in range(40, 70)]
    problems += [f"m{n}.tif: mask is 7x9, expected 9x7 as its image {n}.tif" for n in range(3)]
    assert in_short(problems, 20) == [
        ("mask has value 128, expected only 0, 1: in 32 files, e.g. masks/2.png (line 2)", 32),
        ("image: file not found in /x: 30 rows, e.g. line 40: image 'a/40.png': file not found in /x; there is 'b/40.png'", 30),
        ("mask is 7x9, expected 9x7: in 3 files, e.g. m0.tif", 3),
    ]


def test_another_kind_is_shown_after_many_values_of_one():
    problems = [f"line {line}: split 's{line}', expected one of train, val, test" for line in range(50)] + ["line 90: center is empty"]
    lines = str(ManifestError.listing("t.csv", problems)).splitlines()
    assert len(lines) == 22 and lines[-2:] == ["  - line 90: center is empty", "  … and 31 more"]


def test_two_of_a_kind_keep_their_lines():
    problems = ["line 2: center is empty", "line 3: center is empty"]
    assert [text for text, _ in in_short(problems, 20)] == problems
