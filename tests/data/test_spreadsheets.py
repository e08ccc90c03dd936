"""CSV as Excel, LibreOffice, Numbers and editors write it."""

import codecs

import pytest

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.spreadsheets import parsed
from vfmgl_lib.tasks.patients import read_csv

COLUMNS = ("patient", "slice", "note")
PLAIN = 'patient,slice,note\nMüller,1,"a, b"\nb2,2,\n'
ROWS = [{"patient": "Müller", "slice": "1", "note": "a, b"}, {"patient": "b2", "slice": "2", "note": ""}]
SEMICOLONS = 'patient;slice;note\nMüller;1;"a, b"\nb2;2;\n'

FORMS = {
    "plain": PLAIN.encode(),
    "mark": codecs.BOM_UTF8 + PLAIN.encode(),
    "windows": PLAIN.replace("\n", "\r\n").encode(),
    "old mac": PLAIN.replace("\n", "\r").encode(),
    "no end": PLAIN.rstrip("\n").encode(),
    "blank lines": ("\n\n" + PLAIN.replace("\n", "\n\n")).encode(),
    "semicolons": SEMICOLONS.encode(),
    "semicolons of Excel": codecs.BOM_UTF8 + SEMICOLONS.replace("\n", "\r\n").encode(),
    "tabs": SEMICOLONS.replace(";", "\t").encode(),
    "unicode text": SEMICOLONS.replace(";", "\t").replace("\n", "\r\n").encode("utf-16"),
    "utf-16 big end": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "utf-32": PLAIN.encode("utf-32"),
    "sep": b"sep=;\r\n" + SEMICOLONS.replace("\n", "\r\n").encode(),
    "sep with a mark": codecs.BOM_UTF8 + b"SEP=;\n" + SEMICOLONS.encode(),
    "sep of a bar": b"sep=|\n" + SEMICOLONS.replace(";", "|").encode(),
    "all quoted": b'"patient";"slice";"note"\n"M\xc3\xbcller";"1";"a, b"\n"b2";"2";""\n',
    "empty columns": SEMICOLONS.replace("\n", ";;;\n").encode(),
    "blanks around": PLAIN.replace(",1,", " , 1\u00a0,").replace("patient,", " patient ,").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_can_be_read_in_one_way_is_read(tmp_path, form):
    (tmp_path / "t.csv").write_bytes(FORMS[form])
    assert [row for _, row in read_csv(tmp_path / "t.csv", COLUMNS)] == ROWS


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    broken = PLAIN.replace("a, b", "a,\n\nb")
    for content, lines in ((PLAIN, [2, 3]), (broken, [2, 5]), ("sep=;\n\n" + SEMICOLONS.replace("\nb2", "\n\nb2"), [4, 6])):
        (tmp_path / "t.csv").write_text(content, encoding="utf-8")
        assert [line for line, _ in read_csv(tmp_path / "t.csv", COLUMNS)] == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.encode("cp1252"), "is not CSV in UTF-8: line 2 has the byte 0xfc of another encoding .* save it as 'CSV UTF-8'"),
        (PLAIN.replace("ü", "ń").encode("cp1250"), "line 2 has the byte 0xf1 of another encoding"),
        (PLAIN.encode("mac-roman"), "line 2 has the byte 0x9f of another encoding"),
        (PLAIN.replace("ü", "u").encode("utf-16-le"), "zero bytes, as UTF-16 without a byte order mark"),
        (codecs.BOM_UTF16_LE + PLAIN.encode("utf-16-le")[:-1], "is not CSV in UTF-16, which its byte order mark promises"),
        (codecs.BOM_UTF8 + PLAIN.encode("cp1252"), "is not CSV in UTF-8, which its byte order mark promises"),
        (b"PK\x03\x04 and so on", "is a workbook of a spreadsheet program"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a workbook of a spreadsheet program"),
        (PLAIN.replace(",", "|").encode(), r"header is 'patient\|slice\|note', expected 'patient,slice,note'"),
        (b'patient,slice,note\n"a,1,b\n', "is not CSV in UTF-8"),
        (b'"patient,slice,note\na,1,b\n', "is not CSV in UTF-8"),
        (b"sep=;\n", "header is ''"),
        (b"patient,slice,note\na,1,5,b\nb,1,6,c\n", "every row has other than the header's 3 fields, the first one 4"),
    ],
)
def test_the_rest_is_one_line_with_the_cause(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_csv(tmp_path / "t.csv", COLUMNS)
    assert len(str(caught.value).splitlines()) == 1 and "t.csv" in str(caught.value)


def test_foreign_headers_are_parted_by_the_separator_of_most_columns():
    header, rows = parsed("bild;klinik;patient, name;diagnose\na;b;c;d\n", lambda names: False)
    assert header == ["bild", "klinik", "patient, name", "diagnose"] and list(rows) == [(2, ["a", "b", "c", "d"])]
