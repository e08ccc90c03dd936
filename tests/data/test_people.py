"""Who is one person: names that belong to a centre, names of the whole set, and other tables that name them."""

import pandas as pd

from vfmgl_lib.data.people import matching_names, with_unique_patients


def people(*rows, groups=None):
    table = pd.DataFrame(rows, columns=["center", "patient"])
    return table if groups is None else table.assign(group=groups)


def test_nothing_changes_where_names_are_unique():
    table = people(("A", "1"), ("A", "1"), ("B", "2"))
    found, notes = with_unique_patients(table, "own")
    assert found is table and notes == []


def test_names_at_several_centers_are_told_apart_and_counted():
    table = people(("A", "197"), ("B", "197"), ("A", "a"), ("B", "b"), ("C", "M\u00fcller"), ("A", "Mu\u0308ller "))
    found, (note,) = with_unique_patients(table, "own")
    assert list(found["patient"]) == ["A/197", "B/197", "A/a", "B/b", "C/M\u00fcller", "A/Mu\u0308ller "]
    assert note.startswith(
        "2 patient name(s) are at several centers (197 at A and B, M\u00fcller at A and C): taken for different patients"
    )
    assert note.endswith("where one name is one person, `vfmgl data prepare --patients shared` says so"), "in a notebook, too"
    assert with_unique_patients(table, "shared") == (table, [])
    assert list(with_unique_patients(found, "own")[1]) == [], "once told apart they stay so"


def test_the_order_of_names_within_a_center_stays():
    own = [("B", name) for name in ("10", "2", "a", "B", "ä")]
    found, _ = with_unique_patients(people(*own, ("A", "2")), "own")
    assert list(found.loc[:4].sort_values("patient").index) == list(people(*own).sort_values("patient").index)


def test_barcodes_of_the_whole_world_stay():
    table = people(("A", "TCGA-EJ-5490"), ("B", "TCGA-EJ-5490"))
    assert with_unique_patients(table, "own") == (table, [])
    found, notes = with_unique_patients(people(("A", "TCGA-EJ-5490"), ("B", "TCGA-EJ-5490"), ("A", "1"), ("B", "1")), "own")
    assert list(found["patient"]) == ["TCGA-EJ-5490", "TCGA-EJ-5490", "A/1", "B/1"] and len(notes) == 1


def test_groups_belong_to_their_center_too():
    found, (note,) = with_unique_patients(people(("A", "1"), ("B", "2"), groups=["F", "F"]), "own")
    assert list(found["group"]) == ["A/F", "B/F"] and list(found["patient"]) == ["A/1", "B/2"] and note.startswith("1 group name(s)")


def test_another_tables_patients_find_theirs():
    apart = people(("A", "A/1"), ("B", "B/1"), ("A", "A/2"), ("B", "B/x"))
    plain = people(("A", "1"), ("B", "5"))

    def match(table, *rows):
        columns = ["patient", "center"][: len(rows[0])]
        return matching_names(pd.DataFrame(rows, columns=columns), table)

    assert match(apart, ("A/1",), ("b/1",), ("2",), ("X ",)) == ["A/1", "B/1", "A/2", "B/x"]
    assert match(apart, ("1",)) == ["1"], "whose is not known: it is nobody's"
    assert match(apart, ("1", "B"), ("2", "B"), ("x", "b")) == ["B/1", "B/2", "B/x"]
    assert match(plain, ("1",), ("5",)) == ["1", "5"]
    assert match(plain, ("1", "A"), ("1", "B")) == ["1", "B/1"], "not the one of another centre"
    assert match(people(("A", "12/3")), ("3",), ("12/3",)) == ["3", "12/3"]
