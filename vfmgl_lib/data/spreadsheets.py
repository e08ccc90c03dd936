"""CSV as spreadsheets write it: read where there is one way to read it, else refused in one line that says what to do.

byte order mark          read: UTF-8, UTF-16 ("Unicode text") and UTF-32, each as its mark says
no mark                  UTF-8; another encoding (Windows-1252, Latin-1, ...) cannot be told for sure and is refused
separator                comma, semicolon or tab: the first by which the header is the expected one, else that of most
                         columns; a first line "sep=;" says it
line ends                LF, CRLF or CR; blank lines count, and are skipped
empty columns at the end dropped where they are empty in every row
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator

SEPARATORS = (",", ";", "\t")
# UTF-32 first: its mark begins as that of UTF-16 does.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, .xls
REMEDY = "save it as 'CSV UTF-8'"
Row = tuple[int, list[str]]  # the line where it begins, from 1; cells without blanks around them


class TableError(ValueError):
    """A file that is no CSV which can be read safely; one line, without the file's name."""


def decoded(content: bytes, other: str = "") -> str:
    """The text of a CSV.

    Args:
        other: encoding of what is no UTF-8, e.g. "cp1252"; "": such a file is refused.
    Raises: TableError: a workbook; an encoding that cannot be told for sure.
    """
    if content.startswith(WORKBOOKS):
        raise TableError(f"is a workbook of a spreadsheet program, not CSV; {REMEDY}")
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if other and encoding == "utf-8":
            try:
                return content.decode(other)
            except UnicodeDecodeError:  # then nobody can tell
                return decoded(content)
        if encoding != "utf-8":
            name = encoding.removesuffix("-sig").upper()
            raise TableError(f"is not CSV in {name}, which its byte order mark promises; {REMEDY}") from error
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise TableError(
            f"is not CSV in UTF-8: line {line} has the byte 0x{byte:02x} of another encoding (Windows-1252, Latin-1, ...), which cannot be"
            f" told for sure; {REMEDY}"
        ) from error
    if "\0" in text:
        raise TableError(f"is not CSV in UTF-8: it holds zero bytes, as UTF-16 without a byte order mark does; {REMEDY}")
    return text


def parsed(text: str, fits: Callable[[list[str]], bool]) -> tuple[list[str], Iterator[Row]]:
    """Header and rows of a CSV.

    Args:
        fits: whether a header is the expected one.
    Returns: the header, and the rows that are not blank; by the separator of most columns if none makes it fit.
    Raises: TableError: not CSV, also while the rows are read.
    """
    skipped = 0
    told = text[:5] if text[:4].lower() == "sep=" and text[5:6] in ("\r", "\n") else ""
    if told:
        text, skipped = text[5:].removeprefix("\r").removeprefix("\n"), 1
    failure, widest = None, None
    for separator in (told[4:],) if told else SEPARATORS:
        rows = _rows(text, separator, skipped)
        try:
            _, header = next(rows, (0, []))
        except TableError as error:  # quotes that end before another separator
            failure = error
            continue
        if fits(header):
            return header, rows
        if widest is None or len(header) > len(widest[0]):  # with foreign names: what a message shows
            widest = header, rows
    if failure or widest is None:
        raise failure or TableError("is empty")
    return widest


def _rows(text: str, separator: str, skipped: int) -> Iterator[Row]:
    try:
        width = ended = 0
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            number, ended = 1 + skipped + ended, reader.line_num  # a cell in quotes may have several lines
            cells = [cell.strip() for cell in row]
            if any(cells):
                while not width and not cells[-1]:
                    cells.pop()  # of the header; a row is cut to it below
                width = width or len(cells)
                yield number, cells[:width] if not any(cells[width:]) else cells
    except csv.Error as error:
        raise TableError(f"is not CSV in UTF-8 ({error})") from error
