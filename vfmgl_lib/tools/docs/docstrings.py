"""Docstrings as this project writes them, as reStructuredText.

They are plain text: `code` in single backticks, sections ("Args:", "Returns: ...") by Google's names; what is indented is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

ITEMS = ("Args", "Attributes", "Raises")
WORDS = ("Returns", "Yields", "Example", "Examples", "Source", "Sources", "Shapes", "Units", "Note")
SECTION = re.compile(rf"({'|'.join((*ITEMS, *WORDS))}):(?:\s+(.*))?$")
ITEM = re.compile(r"([\w.*, ]+?)(?: \([^)]*\))?: (.*)")
MARK = re.compile(r"([-*]|\d+\.) ")
CODE = re.compile(r"``?([^`]+)``?")
SPECIAL = re.compile(r"([\\*|_])")


def to_rst(lines: Sequence[str]) -> list[str]:
    """A docstring's lines, without their common indent, as lines of reStructuredText."""
    found: list[str] = []
    for block in _blocks(lines):
        if block[0].startswith(" "):
            found += ["::", "", *(f"   {line}" for line in block)]
        elif section := SECTION.match(block[0]):
            found += _section(section[1], section[2] or "", block[1:])
        elif MARK.match(block[0]):
            found += _list(block)
        else:
            found.append(inline(" ".join(block)))
        found.append("")
    return found


def inline(text: str) -> str:
    """A line of text: what is in backticks is code, and no other character means anything."""
    parts = [f"``{part.strip()}``" if place % 2 else SPECIAL.sub(r"\\\1", part) for place, part in enumerate(CODE.split(text))]
    return "".join(parts).replace("````", "`` ``")


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Paragraphs, indented blocks, lists, and sections with all that is indented below their first line."""
    block: list[str] = []
    for line in [*(line.rstrip() for line in lines), ""]:
        if block and _ends(block, line):
            while not block[-1]:
                block.pop()
            yield block
            block = []
        if line or block:
            block.append(line)
    if any(block):
        yield [line for line in block if line]


def _ends(block: Sequence[str], line: str) -> bool:
    """Whether a line belongs to the block before it no more."""
    if SECTION.match(block[0]):
        return bool(line) and not line.startswith(" ")
    in_list = bool(MARK.match(block[0]))
    return not line or bool(SECTION.match(line)) or (not in_list and line.startswith(" ") != block[0].startswith(" "))


def _list(block: Sequence[str]) -> list[str]:
    """A list and lists within it, between which reStructuredText wants an empty line; an item is one line."""
    items: list[str] = []
    for line in block:
        if MARK.match(line.lstrip()):
            items.append(line)
        else:
            items[-1] += f" {line.strip()}"
    found: list[str] = []
    level = 0
    for item in items:
        text = item.lstrip()
        mark, _, rest = text.partition(" ")
        indent = len(item) - len(text)
        found += [""] if indent != level else []
        level = indent
        found.append(f"{' ' * indent}{mark} {inline(rest)}")
    return found


def _section(name: str, text: str, below: Sequence[str]) -> list[str]:
    """A section's title and its text, or a list of its items; code that stands below an example is shown as it is."""
    rows = [row for row in below if row]
    if name in ITEMS and not text:
        indent = min((len(row) - len(row.lstrip()) for row in rows), default=0)
        items: list[str] = []
        for row in rows:
            if len(row) - len(row.lstrip()) == indent or not items:
                items.append(row.strip())
            else:
                items[-1] += f" {row.strip()}"
        return [f"**{name}**", "", *(_item(item) for item in items)]
    if name.startswith("Example") and not text:
        return [f"**{name}**", "", "::", "", *(f"   {row}" for row in below)]
    return [f"**{name}:** {inline(' '.join([text, *(row.strip() for row in rows)]).strip())}"]


def _item(text: str) -> str:
    named = ITEM.fullmatch(text)
    return f"* ``{named[1]}``: {inline(named[2])}" if named else f"* {inline(text)}"
