"""What centres, classes and patients may be called, and when two names mean the same: one rule for every reader."""

import unicodedata
from collections.abc import Iterable, Mapping

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


def center_problems(name: str) -> list[str]:
    """Why a centre cannot be called so; none: it can."""
    meaning = RESERVED.get(same_name(name))
    problems = [f"center {name!r}: the library's own word for {meaning}; call it otherwise, e.g. {name + '_hospital'!r}"] if meaning else []
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST_CENTER:
        problems.append(f"center {shown(name)!r}: expected a name of at most {LONGEST_CENTER} bytes, files are called by it")
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
            ways = " and ".join(_spelt(name) + (f" ({names[name]})" if names[name] else "") for name in sorted(several))
            problems.append(
                f"{kind} {ways}: one name in {len(several)} spellings (letter case, Unicode form or width, blanks or a dot at the end);"
                f" expected one spelling a {what}: rename one as the other, or tell them apart by other letters"
            )
    return problems


def _spelt(name: str) -> str:
    """A name, and where it holds other letters than ASCII how it is coded: spellings may look alike."""
    return repr(name) if name.isascii() else f"{name!r} = {name!a}"


def probability_column(name: str) -> str:
    """The column of a table of predictions that holds the probability of one of more than two classes."""
    return f"probability[{name}]"
