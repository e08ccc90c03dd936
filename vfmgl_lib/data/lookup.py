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
from vfmgl_lib.data.names import marks
from vfmgl_lib.data.scan import IMAGE_SUFFIXES, system_kind


class Files:
    """The files of a data folder, found by what people write."""

    def __init__(self, home: Path):
        self.home = home
        self._names: dict[str, tuple[set[str], dict[str, list[str]]]] = {}  # folder -> its names; plain name -> names
        self._folders: dict[str, Path] = {}  # folder -> where it really is

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
            if not (real := self.real(path)).is_relative_to(self.home):
                return "", f"{text!r} leads out of the data folder to {real}, expected a file inside it"
            if file.is_file():
                return path, ""
            if file.is_dir():
                return "", f"{text!r} is a folder, expected a file"
        return "", f"{text!r}: file not found {here}{self._similar(text.replace(chr(92), '/'))}"

    def real(self, path: str) -> Path:
        """Where a path of `find` leads, links followed; each folder is looked at once."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = real_path(self.home / folder)
        file = self._folders[folder] / name
        return real_path(file) if file.is_symlink() else file

    def _as_stored(self, parts: Iterable[str]) -> str | None:
        """The path in the file system's own letters: in whichever Unicode form, and with blanks at the ends, which a table drops."""
        found = ""
        for part in parts:
            exact, plain = self._listed(found)
            if part not in exact:
                several = plain.get(_plain(part), [])
                if len(several) != 1:
                    return None
                part = several[0]
            found = f"{found}/{part}" if found else part
        return found or None

    def _listed(self, folder: str) -> tuple[set[str], dict[str, list[str]]]:
        if folder not in self._names:
            try:
                names = sorted(os.listdir(self.home / folder))
            except OSError:
                names = []  # no folder: nothing is found in it
            plain: dict[str, list[str]] = {}
            for name in names:
                plain.setdefault(_plain(name), []).append(name)
            self._names[folder] = set(names), plain
        return self._names[folder]

    def _similar(self, text: str) -> str:
        name, folder = PurePosixPath(text).name, PurePosixPath(text).parent.as_posix()
        # One with other numbers is another patient's, and no slip.
        alike = [other for other in self._listed("" if folder == "." else folder)[0] if _marks(other) == _marks(name)]
        if close := difflib.get_close_matches(name, sorted(alike), 1, 0.75):
            return f"; there is {(PurePosixPath(folder) / close[0]).as_posix()!r}"
        elsewhere = [path for path in self._by_name.get(name.casefold(), []) if _folders_agree(text, path)]
        if len(elsewhere) > 1:  # whose it is cannot be told
            return f"; {len(elsewhere)} files elsewhere are called so, e.g. {elsewhere[0]!r} and {elsewhere[1]!r}"
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


def _marks(name: str) -> tuple[int | str, ...]:
    """Of a file, without its ending, which tells nothing of whose it is."""
    return marks(re.sub(r"(\.nii)?\.[^.]*$", "", name, flags=re.IGNORECASE))


def _folders_agree(written: str, found: str) -> bool:
    """Whether the folders of one path are among the other's: another hospital's or patient's file of that name is not meant."""
    one, other = ({part.casefold() for part in PurePosixPath(path).parts[:-1]} for path in (written, found))
    return one <= other or other <= one


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()
