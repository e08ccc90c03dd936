"""Lists the folders of a data root safely: what does not belong, cannot be read or leads out of the root is a problem, not a surprise."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import translate
from pathlib import Path

from vfmgl_lib.base.files import is_control, real_path, shown

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
NIFTI_SUFFIXES, META_SUFFIXES = (".nii", ".nii.gz"), (".mhd", ".mha")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *META_SUFFIXES)
# What file servers, scanners, systems and programs leave beside people's files, in any case of letters; the first that fits is counted.
SYSTEM_ENTRIES = (
    "@eaDir|@tmp|#recycle|#snapshot"  # Synology: thumbnails, in folders called as the images
    "|@Recycle|@Recently-Snapshot|@__thumb|.@__thumb"  # QNAP
    "|~snapshot"  # NetApp
    "|$RECYCLE.BIN|RECYCLER|System Volume Information|desktop.ini|Thumbs.db|Thumbs.db:encryptable|ehthumbs.db|ehthumbs_vista.db"  # Windows
    "|__MACOSX|.DS_Store|._*|.AppleDouble|.Trashes|.Spotlight-V100|.fseventsd|.TemporaryItems"  # macOS
    "|Network Trash Folder|Temporary Items|Icon\r"
    "|lost+found|.Trash*|.thumbnails|.nfs*|.fuse_hidden*"  # Linux
    "|.ipynb_checkpoints|.~lock.*#"  # Jupyter, LibreOffice
    "|.*"  # what is hidden
).split("|")
SYSTEM_FILES = ("~$*", "*.tmp", "*.part", "*.partial", "*.crdownload", "*.filepart", "*~", "DICOMDIR")  # not folders of such names
MASK_ENDING = re.compile(r"[_-](segmentation|seg|mask)$", re.IGNORECASE)
MASK_FOLDERS, IMAGE_FOLDERS = ("labels", "label", "masks", "mask"), ("images", "image")  # beside one another
_SLIDE_MASKS = re.compile(r"GT_(\d+)")  # TNBC: GT_NN beside Slide_NN


_SYSTEM = [re.compile("|".join(f"({translate(kind)})" for kind in kinds), re.IGNORECASE) for kinds in (SYSTEM_ENTRIES, SYSTEM_FILES)]


def system_kind(entry: Path | os.DirEntry) -> str:
    """Which of `SYSTEM_ENTRIES` and `SYSTEM_FILES` an entry is, as messages call it; "": none, it is somebody's own."""
    if (found := _SYSTEM[0].match(entry.name)) and found.lastindex:
        kind = SYSTEM_ENTRIES[found.lastindex - 1]
    elif (found := _SYSTEM[1].match(entry.name)) and found.lastindex and not entry.is_dir():
        kind = SYSTEM_FILES[found.lastindex - 1]
    else:
        return ""
    return kind.strip()  # macOS ends one with a line break


def skipped(counts: Counter) -> list[str]:
    """What was passed over, in one line; none if nothing was."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return [f"{counts.total()} file(s) and folder(s) of file servers and systems are not read: {kinds}"] if counts else []


def visible(folder: Path) -> list[Path]:
    """What people have put into a folder, in order; empty where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not system_kind(entry))
    except OSError:
        return []


def counted(kinds: Iterable[str]) -> str:
    """How many there are of each kind, the five most frequent: "12 .png, 3 .txt"."""
    counts = Counter(kinds)
    found = [f"{count} {shown(kind)}" for kind, count in counts.most_common(5)]
    return ", ".join([*found, "…"] if len(counts) > 5 else found)


def held(folder: Path) -> str:
    """What a folder holds, in words: how many files of each ending, and of folders."""
    entries = visible(folder)
    found = counted("folder(s)" if entry.is_dir() else entry.suffix.lower() or "file(s) without ending" for entry in entries)
    return f"it holds {found}" if found else "it is empty"


def masks_of_others(files: Iterable[Path]) -> dict[Path, Path]:
    """Which of the files are the mask of another one -> that one.

    Rules: `labels/a.png` of `images/a.*` (also label, masks, mask; image); `GT_01/a.png` of `Slide_01/a.*`; `a_segmentation.nii.gz` of
    `a.nii.gz` beside it (also _seg, _mask, any ending).
    """
    files = list(files)
    known: dict[tuple[str, str], Path] = {}
    for file in files:
        known.setdefault(_place(file.parent, _stem(file)), file)
    found = {}
    for file in files:
        stem, folder = _stem(file), file.parent
        slide = _SLIDE_MASKS.fullmatch(folder.name)
        beside = (f"Slide_{slide[1]}",) if slide else IMAGE_FOLDERS if folder.name.lower() in MASK_FOLDERS else ()
        bare = MASK_ENDING.sub("", stem)
        places = [_place(folder, bare)] if bare != stem else []
        places += [_place(folder.parent / images, name) for images in beside for name in (stem, bare)]
        image = next((known[place] for place in places if place in known), None)
        if image is not None:
            found[file] = image
    return found


def _place(folder: Path, stem: str) -> tuple[str, str]:
    return str(folder).lower(), stem.lower()


def _stem(file: Path) -> str:
    return re.sub(r"(\.nii\.gz|\.[^.]*)$", "", file.name, flags=re.IGNORECASE)


class SourceError(ValueError):
    """A file of a source cannot be used; the message names the file, the value, and what would have been right."""


class Scan:
    """Lists folders of a data root and collects what should not be there."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[str] = []
        self.skipped: Counter = Counter()  # kind of system entry -> how many

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path != self.root else str(path)

    def folders(self, folder: Path, expected: str, allowed: tuple[str, ...] = (), files: tuple[str, ...] = ()) -> list:
        """Sub-folders, sorted by name; anything else in there is a problem, and so is a name that is not `allowed`."""
        found = []
        for entry in self._entries(folder):
            if entry.is_dir() and (not allowed or entry.name in allowed):
                found.append(entry)
            elif not entry.is_file() or entry.name not in files:
                self.unexpected(entry, expected)
        return found

    def images(self, folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
        """Image files, sorted by name; anything else in there is a problem."""
        found = []
        for entry in self._entries(folder):
            if entry.is_file() and entry.suffix.lower() in suffixes:
                found.append(entry)
            else:
                self.unexpected(entry, f"images ({', '.join(suffixes)})")
        return found

    def unexpected(self, entry: Path, expected: str) -> None:
        self.problems.append(f"{self.name(entry)}: unexpected {'folder' if entry.is_dir() else 'file'}, expected {expected}")

    def _entries(self, folder: Path) -> list[Path]:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.problems.append(f"{self.name(folder)}: cannot be listed ({error.strerror}), expected a readable folder")
            return []
        found = []
        for entry in (folder / name for name in names):
            if kind := system_kind(entry):
                self.skipped[kind] += 1
            elif self._is_usable(entry):
                found.append(entry)
        return found

    def _is_usable(self, entry: Path) -> bool:
        if any(is_control(letter) for letter in entry.name):
            coded = any("\udc80" <= letter <= "\udcff" for letter in entry.name)
            wrong = "name is not valid UTF-8, rename it" if coded else "name holds a line break or another control character, rename it"
            self.problems.append(f"{self.name(entry.parent)}/{shown(entry.name)}: {wrong}")
            return False
        target = real_path(entry)
        if entry.is_symlink() and not target.is_relative_to(self.root):
            self.problems.append(f"{self.name(entry)}: links out of the data folder to {target}, expected a file inside it")
            return False
        if not entry.is_dir() and not entry.is_file():
            what = "a broken link" if entry.is_symlink() else "neither file nor folder"
            self.problems.append(f"{self.name(entry)}: is {what}, expected a file or a folder")
            return False
        return True
