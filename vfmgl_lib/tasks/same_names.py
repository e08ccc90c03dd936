"""Which names of a list and of a folder mean the same file, patient or centre; only where no other could be meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping

from vfmgl_lib.data.names import near_names, plain_words, same_name
from vfmgl_lib.data.scan import IMAGE_SUFFIXES, VOLUME_SUFFIXES
from vfmgl_lib.tasks.words import HEADER_WORDS, stem_of

LOOSEST = 2  # the last of `patient_keys`: numbers alone
# Words that are in many centres' names, and those that tell one house from its neighbour.
_ANY_CENTER = frozenset(word for name in HEADER_WORDS["center"].split() for word in plain_words(name))
_PLACES = frozenset(word for name in "nord süd ost west north south east mitte".split() for word in plain_words(name))


def file_form(text: str) -> str:
    """A path as files are compared by it."""
    return same_name(re.sub(r"^\./", "", text.replace("\\", "/")))


def is_file_name(text: str) -> bool:
    """Whether it ends as images and volumes do."""
    return text.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))


def rows_by_file(paths: Iterable[str]) -> dict[str, list[int]]:
    """A file's path, its ends and both without ending -> the rows that may be meant."""
    found: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        parts = path.split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        for form in dict.fromkeys(file_form(form) for end in ends for form in (end, end.removesuffix(parts[-1]) + stem_of(path))):
            found.setdefault(form, []).append(place)
    return found


def patient_keys(name: str) -> tuple[Hashable, ...]:
    """What a patient's name is compared by, the strictest first; () where there is nothing left of it."""
    plain = same_name(name)
    parts = re.findall(r"[0-9]+|[^\W\d_]+", re.sub(r"^([0-9]+)[.,]0+$", r"\1", plain))  # spreadsheets write 7 as 7.0
    words = tuple(int(part) if part.isdecimal() else part for part in parts)
    return plain, words, tuple(part for part in words if isinstance(part, int))


def _letters(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words before a name's first number, and those behind it."""
    parts = re.findall(r"[0-9]+|[^\W\d_]+", same_name(name))
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return tuple(parts[:first]), tuple(part for part in parts[first:] if not part.isdecimal())


def _contradicting(found: Mapping[str, str], mine: Collection[str], theirs: Collection[str]) -> list[str]:
    """Of names paired by their numbers alone, those whose words are not only another word for the same.

    "K-1" is not "P-1" where either side knows both words, or where one word would mean two; "12a" is not "12b", and "1" not "1R".
    """
    ours, known = {_letters(name)[0] for name in mine}, {_letters(name)[0] for name in theirs}
    meanings: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for name, other in found.items():
        meanings.setdefault(_letters(other)[0], set()).add(_letters(name)[0])
        meanings.setdefault(_letters(name)[0], set()).add(_letters(other)[0])

    def contradicts(name: str, other: str) -> bool:
        (word, end), (its_word, its_end) = _letters(name), _letters(other)
        if its_end and its_end != end:
            return True
        if not word or not its_word or word == its_word:
            return False
        several = any(len(meanings[one] - {(), one}) > 1 for one in (word, its_word))
        return word in known or its_word in ours or several

    return [name for name, other in found.items() if contradicts(name, other)]


def loosest_key(name: str) -> Hashable:
    """The last key of a name that has something in it: its numbers, if it has any."""
    return next(key for key in reversed(patient_keys(name)) if key)


def same_patients(wanted: Iterable[str], offered: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Name -> the one that means the same; names of which several may be meant, with these."""
    mine, theirs = list(wanted), list(offered)
    all_mine, all_theirs = list(mine), list(theirs)
    pairs: dict[str, str] = {}
    unclear: dict[str, list[str]] = {}
    for level in range(LOOSEST + 1):
        others, found = _grouped(theirs, level), {}
        for key, names in _grouped(mine, level).items():
            if len(names) == len(others.get(key, ())) == 1:
                found[names[0]] = others[key][0]
            elif key in others:
                unclear |= {name: others[key] for name in names}
        for name in _contradicting(found, all_mine, all_theirs) if level == LOOSEST else ():
            unclear[name] = [found.pop(name)]
        pairs |= found
        mine = [name for name in mine if name not in pairs and name not in unclear]
        theirs = [name for name in theirs if name not in pairs.values()]
    return pairs, unclear


def _grouped(names: Iterable[str], level: int) -> dict[Hashable, list[str]]:
    found: dict[Hashable, list[str]] = {}
    for name in names:
        if key := patient_keys(name)[level]:
            found.setdefault(key, []).append(name)
    return found


def same_centers(own: Collection[str], listed: Collection[str]) -> dict[str, str]:
    """Centre of the images -> the list's name of it; only where no other could be meant."""

    def within(one: str, other: str) -> bool:
        fewer, more = sorted((set(plain_words(one)), set(plain_words(other))), key=len)
        tells_apart = any(word in _PLACES or len(word) == 1 or word.isdecimal() for word in more - fewer)
        return bool(fewer - _ANY_CENTER) and fewer <= more and not tells_apart

    tests: tuple[Callable[[str, str], bool], ...] = (
        lambda one, other: same_name(one) == same_name(other),
        lambda one, other: bool(near_names((one, other))),
        within,
    )
    pairs: dict[str, str] = {}
    for fits in tests:
        mine, theirs = set(own) - pairs.keys(), set(listed) - set(pairs.values())
        for name in sorted(mine):
            meant = [other for other in theirs if fits(name, other)]
            if len(meant) == 1 and sum(fits(other, meant[0]) for other in mine) == 1:
                pairs[name] = meant[0]
    return pairs
