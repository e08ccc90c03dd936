"""Lists the folders of a data root safely: what does not belong, cannot be read or leads out of the root is a problem, not a surprise."""

import os
from pathlib import Path

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
SYSTEM_FILES = ("desktop.ini", "thumbs.db", "ehthumbs.db", "__macosx")  # hidden names (".DS_Store") are ignored as well


class Scan:
    """Lists folders of a data root and collects what should not be there."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[str] = []

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path != self.root else str(path)

    def folders(self, folder: Path, expected: str, allowed: tuple[str, ...] = (), files: tuple[str, ...] = ()) -> list:
        """Sub-folders, sorted by name; anything else in there is a problem, and so is a name that is not `allowed`."""
        found = []
        for entry in self._entries(folder):
            if entry.is_dir() and (not allowed or entry.name in allowed):
                found.append(entry)
            elif not entry.is_file() or entry.name not in files:
                kind = "folder" if entry.is_dir() else "file"
                self.problems.append(f"{self.name(entry)}: unexpected {kind}, expected {expected}")
        return found

    def images(self, folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
        """Image files, sorted by name; anything else in there is a problem."""
        found = []
        for entry in self._entries(folder):
            if entry.is_file() and entry.suffix.lower() in suffixes:
                found.append(entry)
            else:
                kind = "folder" if entry.is_dir() else "file"
                self.problems.append(f"{self.name(entry)}: unexpected {kind}, expected images ({', '.join(suffixes)})")
        return found

    def _entries(self, folder: Path) -> list[Path]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.problems.append(f"{self.name(folder)}: cannot be listed ({error.strerror}), expected a readable folder")
            return []
        visible = [folder / name for name in names if not name.startswith(".") and name.lower() not in SYSTEM_FILES]
        return [entry for entry in visible if self._is_usable(entry)]

    def _is_usable(self, entry: Path) -> bool:
        if any("\udc80" <= letter <= "\udcff" for letter in entry.name):
            shown = os.fsencode(entry.name).decode("ascii", "backslashreplace")
            self.problems.append(f"{self.name(entry.parent)}/{shown}: name is not valid UTF-8, rename it")
            return False
        if entry.is_symlink() and not entry.resolve().is_relative_to(self.root):
            target = entry.resolve()
            self.problems.append(f"{self.name(entry)}: links out of the data folder to {target}, expected a file inside it")
            return False
        if not entry.is_dir() and not entry.is_file():
            what = "a broken link" if entry.is_symlink() else "neither file nor folder"
            self.problems.append(f"{self.name(entry)}: is {what}, expected a file or a folder")
            return False
        return True
