"""A long list of problems in few lines: one mistake that many rows or files share is told once, so that another one is seen too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

MANY = 3  # so many of a kind are told in one line
_PLACE = re.compile(r"(?:line (?P<line>[0-9]+): )?(?:(?P<file>(?!image |mask )[^:\n']{1,300}\.[A-Za-z0-9]{2,4})(?:, line [0-9]+)?: )?")
_ABSENT = re.compile(r"(?P<column>[a-z0-9-]+) (?P<path>'[^']*'|\"[^\"]*\"): (?P<what>file not found in [^;]*)(?:; .*)?", re.DOTALL)
_OWN = re.compile(r" as its image [^;]*")  # the one part of a mask's problem that is another one's in each row


def in_short(problems: Sequence[str], most: int) -> list[tuple[str, int]]:
    """(line, how many problems it tells) of at most so many lines; of a longer list those of all kinds first.

    Problems are alike that differ in their line or file alone, and all files that are not found.
    """
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(_alike(problem), []).append(problem)
    found = []
    for alike in groups.values():
        found += [(_together(alike), len(alike))] if len(alike) >= MANY else [(problem, 1) for problem in alike]
    if len(found) > most:
        found = _every_kind_first(found, most)
    return found


def _every_kind_first(found: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    turns = []
    for text, _ in found:
        kind = re.sub(r"'[^']*'|[0-9]+", "", _rest(text))
        turns.append(seen[kind])
        seen[kind] += 1
    kept = sorted(sorted(range(len(found)), key=lambda place: (turns[place], place))[:most])
    return [found[place] for place in kept]


def _rest(problem: str) -> str:
    match = _PLACE.match(problem)
    return problem[match.end() :] if match else problem


def _alike(problem: str) -> str:
    rest = _rest(problem)
    absent = _ABSENT.fullmatch(rest)
    return f"{absent['column']}: {absent['what']}" if absent else _OWN.sub("", rest)


def _together(problems: Sequence[str]) -> str:
    first, text = problems[0], _alike(problems[0])
    place, absent = _PLACE.match(first), _ABSENT.fullmatch(_rest(first))
    line, file = (place["line"], place["file"]) if place else (None, None)
    if absent:
        return f"{text}: {len(problems)} rows, e.g. {first}"
    if file:
        return f"{text}: in {len(problems)} files, e.g. {file}" + (f" (line {line})" if line else "")
    return f"{text}: in {len(problems)} rows, first line {line}" if line else f"{text}: {len(problems)} times"
