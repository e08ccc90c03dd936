"""Which class a word of a table, or a folder's name, means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vfmgl_lib.data.names import same_name
from vfmgl_lib.tasks.datasheets import class_titles

_NUMBER = re.compile(r"[0-9]+([.,]0+)?")  # spreadsheets and pandas write 1 as 1.0 as well


class ClassWords:
    """The words that a task's classes go by: names, names without a leading number ("0_NMI" is NMI), or their numbers from 0.

    Numbers are no words where a class itself is called by a number (BI-RADS 1 to 5): which is meant could not be told.

    >>> ClassWords(("benign", "carcinoma")).number("Carcinoma"), ClassWords(("benign", "carcinoma")).number("1")
    (1, 1)
    """

    def __init__(self, classes: Sequence[str], folders: Sequence[str] = ()):
        """folders: what their folders are called, where not so (`TaskRecord.class_folders`): as good as the names, and no numbers then."""
        self.classes = tuple(classes)
        named: dict[str, set[int]] = {}
        for names in (self.classes, class_titles(self.classes), folders):
            for number, name in enumerate(names):
                named.setdefault(same_name(name), set()).add(number)
        self._named = {word: numbers.pop() for word, numbers in named.items() if len(numbers) == 1}
        self.takes_numbers = not any(_NUMBER.fullmatch(word) for word in named)

    def number(self, word: str) -> int | None:
        """The class's number; None: it is none of them."""
        if self.is_number(word):
            number = int(re.split("[.,]", word)[0])
            return number if number < len(self.classes) else None
        return self._named.get(same_name(word))

    def is_number(self, word: str) -> bool:
        """Whether the class is meant by its number."""
        return self.takes_numbers and _NUMBER.fullmatch(word) is not None

    @property
    def expected(self) -> str:
        """The words, for a message."""
        names = ", ".join(self.classes)
        return f"one of {names}" + (f", or their numbers 0 to {len(self.classes) - 1}" if self.takes_numbers else "")

    def notes(self, words: Iterable[str]) -> list[str]:
        """Says what the numbers mean, where they are used."""
        meaning = ", ".join(f"{number} = {name}" for number, name in enumerate(self.classes))
        return [f"classes are given by number: {meaning}"] if any(self.is_number(word) for word in words) else []

    def mixed(self, words: Iterable[str]) -> tuple[str, str] | None:
        """A name and a number where both are used: it is not certain then that numbers count as these do."""
        known = [word for word in words if self.number(word) is not None]
        numbers, names = ([word for word in known if self.is_number(word) == wanted] for wanted in (True, False))
        return (names[0], numbers[0]) if names and numbers else None
