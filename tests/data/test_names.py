"""Two spellings of one name, the library's own words, and names that no file or table can have."""

import unicodedata

import pytest

from vfmgl_lib.data.names import LONGEST_CENTER, RESERVED, close_name, marks, name_problems, near_names, same_name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Müller", unicodedata.normalize("NFD", "Müller")),
        ("1_MI", "1_mi"),
        ("A", "a"),
        ("P1", "P1."),
        ("P1", " P1 "),
        ("P1", "P1\u00a0"),
        ("Ａ１", "A1"),
        ("ﾊﾟ", "パ"),
        ("Strauß", "STRAUSS"),
        ("Å1", "\u212b1"),
        ("김", unicodedata.normalize("NFD", "김")),
    ],
)
def test_spellings_of_one_name(one, other):
    assert one != other and same_name(one) == same_name(other)
    (problem,) = name_problems((), (), {one: "x/1.png", other: "y/1.png"})
    assert "x/1.png" in problem and "y/1.png" in problem and "2 spellings" in problem and "rename" in problem
    assert len(name_problems((), [one, other], {})) == 1


@pytest.mark.parametrize(("one", "other"), [("P1", "P2"), ("a.1", "a1"), ("a b", "ab"), ("ü", "u"), ("1", "01"), ("...", "..")])
def test_other_names_stay_other_names(one, other):
    assert same_name(one) != same_name(other) and name_problems((), (), dict.fromkeys((one, other), "")) == []


def test_two_spellings_that_look_alike_are_told_apart_in_words():
    (problem,) = name_problems((), (), {"Müller": "a", "Mu\u0308ller": "b"})
    assert r"'M\xfcller'" in problem and r"'Mu\u0308ller'" in problem


@pytest.mark.parametrize("word", [*RESERVED, "Shared", " ALL", "ＡＬＬ"])
def test_the_librarys_own_words_are_no_centres(word):
    problems = name_problems([word, "B"], ("0", "1"), {})
    assert "the library's own word for" in problems[0] and "call it otherwise" in problems[0]
    assert name_problems(["B"], (word.strip(), "other"), {word.strip(): ""}) == [], "classes and patients may be called so"


@pytest.mark.parametrize("name", ["=1+1", "+A", "-A", "@A", "a\nb", "a\tb", "a\x00b", "a\x7f", "a\u2028b", "M\udcfcller"])
def test_names_that_no_table_can_have(name):
    for problems in (name_problems([name], (), {}), name_problems((), [name], {}), name_problems((), (), {name: ""})):
        (problem,) = problems
        assert "rename it" in problem and "\n" not in problem
        problem.encode()


@pytest.mark.parametrize(
    "name",
    [
        *("A", "hospital1", "Ö Süd", "Frau Müller, 1", "名", "I", "II", "test", "St. Mary's", "all_hospital", "A-1", "x" * LONGEST_CENTER),
        *("CON", "nul.x", "a:b", "a\\b", 'a"b', "a|b", "A.", " A", "<b>A</b>"),  # some systems have no such files; this one has
    ],
)
def test_ordinary_names(name):
    assert name_problems([name], [name], {name: ""}) == []


@pytest.mark.parametrize("name", ["..", ".hidden", " ", "A\u202eB"])
def test_a_centre_s_name_hides_and_turns_nothing(name):
    assert "call it otherwise" in " ".join(name_problems([name], (), {})) or "control character" in name_problems([name], (), {})[0]


def test_files_are_called_by_a_centre():
    (problem,) = name_problems(["片" * 34], (), {})
    assert f"at most {LONGEST_CENTER} bytes" in problem


def test_spellings_that_cannot_be_seen_alike_need_no_codes():
    (problem,) = name_problems(["Uni Köln", "Uni  Köln"], ("0", "1"), {})
    assert "'Uni Köln'" in problem and "'Uni  Köln'" in problem and "xf6" not in problem and "two blanks for one" in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Uniklinik Köln", "Uniklinik Koeln"),
        ("Uniklinik Köln", "Uniklinik Koln"),
        ("Uniklinik Köln", "uniklinikköln"),
        ("Uniklinik Köln", "Köln, Uniklinik"),
        ("Uniklinik Köln", "Uniklinikum Koeln"),
        ("Freiburg", "Freibrug"),
        ("Hôpital Nord", "Hopital Nord"),
    ],
)
def test_names_that_are_probably_one(one, other):
    assert near_names({one, other, "Elsewhere"}) == [tuple(sorted((one, other)))]


def test_names_that_are_near_and_two():
    pairs = [("Klinik 1", "Klinik 2"), ("Klinik A", "Klinik B"), ("Kiel", "Biel"), ("North", "South"), ("Köln", "KÖLN")]
    pairs += [("University Hospital East", "University Hospital West"), ("SiteA", "SiteB"), ("center_0", "center_10"), ("Bern", "Berlin")]
    assert [pair for pair in pairs if near_names(pair)] == []


def test_a_name_with_another_number_or_side_is_no_slip():
    assert (
        marks("06_seg") == marks("6_seg") != marks("16_seg")
        and marks("01L") != marks("01R")
        and marks("3 left eye") != marks("3 right eye")
    )
    assert close_name("grade 3", ["grade 1", "grade 2"]) == "" and close_name("grad 2", ["grade 1", "grade 2"]) == "grade 2"
