"""Files of a data folder, found by what people write of them."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from vfmgl_lib.base.files import is_control, real_path, shown
from vfmgl_lib.data.scan import IMAGE_SUFFIXES, system_kind


class Files:
    """The files of a data folder, found by what people write."""

    def __init__(self, home: Path):
        self.home = home
        self._names: dict[str, dict[str, list[str]]] = {}  # folder -> plain name -> names

    def find(self, text: str) -> tuple[str, str]:
        """(path as the file system has it, problem): one of them is ""."""
        here = f"in {self.home}"
        if not text:
            return "", "is empty, expected a path below the data folder"
        if any(is_control(letter) for letter in text):
            return "", f"{shown(text)!r}: holds a line break or another control character; rename the file"
        if PurePosixPath(text).is_absolute() or re.match(r"[A-Za-z]:[\\/]|\\\\|~/", text):
            inside = Path(text)
            own = f", here {inside.relative_to(self.home).as_posix()!r}" if inside.is_relative_to(self.home) else ""
            return "", f"{text!r} is an absolute path, expected one that begins below the data folder {self.home}{own}"
        for written in dict.fromkeys((text, text.replace("\\", "/"))):
            parts = [part for part in PurePosixPath(written).parts if part != "."]
            if ".." in parts:
                return "", f"{text!r} leads out of its folder by '..', expected a path below the data folder {self.home}"
            path = self._as_stored(parts)
            if path is None:
                continue
            file = self.home / path
            if not real_path(file).is_relative_to(self.home):
                return "", f"{text!r} leads out of the data folder to {real_path(file)}, expected a file inside it"
            if file.is_dir():
                return "", f"{text!r} is a folder, expected a file"
            if file.is_file():
                return path, ""
        return "", f"{text!r}: file not found {here}{self._similar(text.replace(chr(92), '/'))}"

    def _as_stored(self, parts: Iterable[str]) -> str | None:
        """The path in the file system's own letters: in whichever Unicode form, and with blanks at the ends, which a table drops."""
        found = ""
        for part in parts:
            exact = f"{found}/{part}" if found else part
            if not os.path.lexists(self.home / exact):
                several = self._listed(found).get(_plain(part), [])
                if len(several) != 1:
                    return None
                exact = f"{found}/{several[0]}" if found else several[0]
            found = exact
        return found or None

    def _listed(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for name in sorted(os.listdir(self.home / folder)):
                    names.setdefault(_plain(name), []).append(name)
            except OSError:
                names = {}  # no folder: nothing is found in it
            self._names[folder] = names
        return self._names[folder]

    def _similar(self, text: str) -> str:
        name, folder = PurePosixPath(text).name, PurePosixPath(text).parent.as_posix()
        beside = [other for names in self._listed("" if folder == "." else folder).values() for other in names]
        if close := difflib.get_close_matches(name, beside, 1, 0.75):
            return f"; there is {(PurePosixPath(folder) / close[0]).as_posix()!r}"
        elsewhere = self._by_name.get(name.casefold(), [])
        return f"; there is {elsewhere[0]!r}" if elsewhere else ""

    @cached_property
    def images(self) -> list[str]:
        """All files with the ending of an image, hidden ones and those of systems left out."""
        return [path for path in self._all if path.lower().endswith(IMAGE_SUFFIXES)]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self._all:
            found.setdefault(path.rsplit("/", 1)[-1].casefold(), []).append(path)
        return found

    @cached_property
    def _all(self) -> list[str]:
        return list_files(self.home)


def list_files(home: Path, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Files below a folder, POSIX paths in order; hidden ones and those of systems left out, linked folders not entered."""
    found = []
    for folder, folders, names in os.walk(home):
        folders[:] = sorted(name for name in folders if not system_kind(Path(folder) / name))
        within = Path(folder).relative_to(home)
        found += [(within / name).as_posix() for name in sorted(names) if wanted(name) and not system_kind(Path(folder) / name)]
    return sorted(found)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()
