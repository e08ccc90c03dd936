"""What centres, classes and patients may be called, and when two names mean the same: one rule for every reader."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from vfmgl_lib.base.files import is_control, shown

# The library's own words, as `same_name` has them: values beside centres' names in tables, or names of files and folders beside theirs.
RESERVED = {
    "shared": "the server's model, in results, checkpoints and `export --center`",
    "adapted": "the server's model with re-estimated statistics, in results",
    "all": "all centres counted together, in results",
    "pooled": "the model trained on all centres' images in one place",
    "mean": "the mean over the centres, in the tables of rounds",
    "own": "a centre's own model or division, in results and settings",
    "untrained": "the student before the first round, in results",
    "trivial": "the trivial baseline, in results",
    "server": "the server's folder of a federation",
    "centre": "the blank of site.yaml",
}
LONGEST_CENTER = 100  # bytes: what is named after a centre gets endings, and files have `LONGEST_NAME`
NEAR = 0.85  # difflib's ratio from which two words are one that was mistyped; "Kiel" and "Biel" have 0.75
SHORTEST_MARK = 2  # letters: "L", "OD"; so few are no word, they tell things apart as numbers do
_SIDES = frozenset(("left", "right", "links", "rechts", "gauche", "droite", "droit"))
FORMULA = "=+-@"  # a table's cell that begins so is a formula to a spreadsheet


def same_name(name: str) -> str:
    """A name in the one form in which it equals what people, keyboards and file systems take for the same name.

    Unicode in its composed, case-folded form; full-width letters are plain ones; blanks at the ends and dots at the end, which some
    systems drop, do not count.

    >>> same_name("Mu\\u0308ller ") == same_name("MÜLLER")
    True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.split()).rstrip(" .") or name


def marks(name: str) -> tuple[int | str, ...]:
    """The parts of a name that tell things apart: its numbers, words of one or two letters, and sides; in order.

    >>> marks("Patient 06_seg L"), marks("16_seg")
    ((6, 'l'), (16,))
    """
    parts = re.findall(r"[0-9]+|[^\W\d_]+", same_name(name))
    return tuple(
        int(part) if part.isdecimal() else part for part in parts if part.isdecimal() or len(part) <= SHORTEST_MARK or part in _SIDES
    )


def close_name(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that a mistyped one probably means; "": none. One with other `marks` is another thing, not a slip."""
    return next(iter(difflib.get_close_matches(name, [one for one in known if marks(one) == marks(name)], 1, cutoff)), "")


def near_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that are probably one: umlauts written out, accents and blanks left out, words in another order, a slip of the pen."""
    ordered = sorted(names)
    words = {name: plain_words(name) for name in ordered}
    return [
        (one, other)
        for place, one in enumerate(ordered)
        for other in ordered[place + 1 :]
        if same_name(one) != same_name(other) and _near(words[one], words[other])  # the same name is a problem already
    ]


def plain_words(name: str) -> tuple[str, ...]:
    """Words and numbers of a name in small letters, without accents; umlauts alike written out or not: "Köln" and "Koeln" are "koln"."""
    letters = unicodedata.normalize("NFKD", same_name(name))
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return tuple(re.findall(r"[0-9]+|[^\W\d_]+", re.sub("([aou])e", r"\1", plain)))


def _near(one: Sequence[str], other: Sequence[str]) -> bool:
    if "".join(one) == "".join(other):
        return True
    one, other = sorted(one), sorted(other)
    if len(one) != len(other):
        return False
    differing = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
    return all(
        min(map(len, pair)) > SHORTEST_MARK and not any(word.isdecimal() for word in pair) and _ratio(*pair) >= NEAR for pair in differing
    )


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def center_problems(name: str) -> list[str]:
    """Why a centre cannot be called so; none: it can."""
    meaning = RESERVED.get(same_name(name))
    problems = [f"center {name!r}: the library's own word for {meaning}; call it otherwise, e.g. {name + '_hospital'!r}"] if meaning else []
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST_CENTER:
        problems.append(f"center {shown(name)!r}: expected a name of at most {LONGEST_CENTER} bytes, files are called by it")
    if name.startswith(".") or not name.strip():
        problems.append(f"center {name!r}: files are called by it, and one that begins with a dot is hidden; call it otherwise")
    return problems + _cell_problems("center", name)


def name_problems(
    centers: Iterable[str], classes: Iterable[str], patients: Mapping[str, str], groups: Mapping[str, str] | None = None
) -> list[str]:
    """Names that cannot be told apart or written safely, each with what to do.

    Args:
        centers, classes: all names in use.
        patients, groups: all names in use -> a file of each, for the message.
    """
    centers, classes = list(centers), list(classes)
    problems = [problem for name in centers for problem in center_problems(name)]
    problems += [problem for name in classes for problem in _cell_problems("class", name)]
    problems += [problem for name in patients for problem in _cell_problems("patient", name)]
    problems += _clashes("center", "centre", dict.fromkeys(centers, ""))
    problems += _clashes("class", "class", dict.fromkeys(classes, ""))
    problems += _clashes("patient", "person", patients)
    return problems + _clashes("group", "group", groups or {})


def _cell_problems(kind: str, name: str) -> list[str]:
    if any(is_control(letter) for letter in name):
        return [f"{kind} {shown(name)!r}: holds a line break or another control character; rename it"]
    if name.startswith(tuple(FORMULA)):
        return [f"{kind} {name!r}: begins with {name[0]!r}, a formula to spreadsheets; rename it, expected a letter or digit first"]
    return []


def _clashes(kind: str, what: str, names: Mapping[str, str]) -> list[str]:
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(same_name(name), []).append(name)
    problems = []
    for several in spellings.values():
        if len(several) > 1:
            alike = len({unicodedata.normalize("NFKC", name) for name in several}) < len(several)
            ways = " and ".join(
                (_coded(name) if alike else repr(name)) + (f" ({names[name]})" if names[name] else "") for name in sorted(several)
            )
            problems.append(
                f"{kind} {ways}: one name in {len(several)} spellings (letter case, Unicode form or width, two blanks for one, blanks or a"
                f" dot at the end); expected one spelling a {what}: rename one as the other, or tell them apart by other letters"
            )
    return problems


def _coded(name: str) -> str:
    """A name, and where it holds other letters than ASCII how it is coded: for spellings that look alike."""
    return repr(name) if name.isascii() else f"{name!r} = {name!a}"


def probability_column(name: str) -> str:
    """The column of a table of predictions that holds the probability of one of more than two classes."""
    return f"probability[{name}]"
