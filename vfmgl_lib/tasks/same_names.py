"""Which names of a list and of a folder mean the same file, patient or centre; only where no other could be meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable

from vfmgl_lib.data.names import near_names, plain_words, same_name
from vfmgl_lib.data.scan import IMAGE_SUFFIXES, VOLUME_SUFFIXES
from vfmgl_lib.tasks.words import stem_of


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


def loosest_key(name: str) -> Hashable:
    """The last key of a name that has something in it: its numbers, if it has any."""
    return next(key for key in reversed(patient_keys(name)) if key)


def same_patients(wanted: Iterable[str], offered: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Name -> the one that means the same; names of which several may be meant, with these."""
    mine, theirs = list(wanted), list(offered)
    pairs: dict[str, str] = {}
    unclear: dict[str, list[str]] = {}
    for level in range(len(patient_keys(""))):
        others = _grouped(theirs, level)
        for key, names in _grouped(mine, level).items():
            if len(names) == len(others.get(key, ())) == 1:
                pairs[names[0]] = others[key][0]
            elif key in others:
                unclear |= {name: others[key] for name in names}
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
        words = set(plain_words(one)), set(plain_words(other))
        return all(words) and (words[0] <= words[1] or words[1] <= words[0])

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
