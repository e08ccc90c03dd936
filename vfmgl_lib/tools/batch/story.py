"""What an executed notebook says about its figures: their titles, what they show, and the cells that drew them.

A figure is drawn by the cell that saves it under its name. Its title is the bold beginning of the text above that cell, so titles are
written once, in the notebooks. nbconvert makes `#cell-id=<id>` an anchor of every cell.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import unescape
from pathlib import Path

SAVING = re.compile(r"\bsave_(figure|drawn)\(")
QUOTED = re.compile(r"""(f?)(["'])([^"'\n]*)\2""")
LEAD = re.compile(r"\*\*(.+?)\*\*\s*")
SENTENCE_END = re.compile(r"(?<=[.?!])(?<!al\.)(?<!Fig\.)(?<!Figs\.)\s+(?=[A-ZΑ-Ω*])")
LONGEST = 240  # letters of what is said of a figure
FIELDS = {"metric": "(auc|dice)"}  # what the notebooks call the main metric; any other field of a name may be anything
MARKS = re.compile(r"</?\w+[^>]*>|\*+|`|\[(?=[^\]]*\]\()|(?<=\])\([^)]*\)|\]")


@dataclass(frozen=True)
class Cell:
    """A code cell and the text above it.

    Attributes:
        identity: the cell's id; "" for one without.
        title: the bold beginning of the text; "" where it has none.
        about: the first sentences after it.
    """

    identity: str
    source: str
    title: str
    about: str

    @property
    def anchor(self) -> str:
        """The cell's place in the notebook's HTML."""
        return f"cell-id={self.identity}" if self.identity else ""


def read_cells(notebook: Path) -> tuple[str, list[Cell]]:
    """A notebook's title, and its code cells that save figures; "" and none if the file is no notebook."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
    heading, text, found = "", "", []
    for cell in cells:
        source = "".join(cell.get("source", ""))
        if cell.get("cell_type") == "markdown":
            first = re.match(r"# +(.+)", source)
            heading, text = heading or (plain(first[1]) if first else ""), source
        elif SAVING.search(source):
            found.append(Cell(cell.get("id", ""), source, *described(text)))
    return heading, found


def described(text: str) -> tuple[str, str]:
    """The bold beginning of a text without its last stop, and the sentences after it as far as they are short; ("", "") without one."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if not part.startswith("#")]
    lead = LEAD.match(paragraphs[0]) if paragraphs else None
    if not lead:
        return "", ""
    rest = re.sub(r"^\([^)]{3,}\)[.,]?\s*", "", paragraphs[0][lead.end() :])
    about = ""
    for sentence in SENTENCE_END.split(plain(rest)):
        if about and len(about) + len(sentence) > LONGEST:
            break
        about = f"{about} {sentence}".strip()
    return plain(lead[1]).rstrip(".:"), about


def plain(text: str) -> str:
    """Markdown without its marks, in one line."""
    return " ".join(unescape(MARKS.sub("", text.replace("<sub>", "_"))).split())


def cell_of(figure: str, cells: list[Cell]) -> Cell | None:
    """The cell that saves a figure under this name: literally, by a name that is put together, or by names that begin with the cell's."""
    for cell in cells:
        names = [(kind, text) for kind, _, text in QUOTED.findall(cell.source)]
        if ("", figure) in names or any(kind and re.fullmatch(_pattern(text), figure) for kind, text in names):
            return cell
    return next((cell for cell in cells if cell.identity and figure.startswith(f"{cell.identity}_")), None)


def _pattern(text: str) -> str:
    """Of a formatted text, whose fields stand in braces; one that is nothing but fields matches no name."""
    parts = re.split(r"\{([^}]*)\}", text)
    patterns = [FIELDS.get(part, ".+") if place % 2 else re.escape(part) for place, part in enumerate(parts)]
    return "".join(patterns) if any(re.search(r"\w", part) for part in parts[::2]) else r"(?!)"


def in_words(name: str) -> str:
    """A file's name as a title: "pair_weights" -> "Pair weights"."""
    words = name.rsplit("/", 1)[-1].replace("_", " ").strip()
    return words[:1].upper() + words[1:]
