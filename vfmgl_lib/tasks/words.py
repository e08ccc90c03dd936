"""Words that people call folders, files and columns by, and what is guessed of names by them: English, German, French."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from vfmgl_lib.data.names import same_name

SPLIT_WORDS = {
    word: split
    for split, words in {
        "train": "train training traindata trainset trainingsdaten entrainement apprentissage",
        "val": "val valid validation valdata valset dev validierung",
        "test": "test tests testing testdata testset testdaten",
    }.items()
    for word in words.split()
}
IMAGE_WORDS = frozenset(
    "image images img imgs picture pictures photo photos bild bilder bilddaten foto fotos aufnahme aufnahmen cliche cliches".split()
)
MASK_WORDS = frozenset(
    "label labels mask masks gt ground_truth groundtruth annotation annotations segmentation segmentations seg segs manual"
    " maske masken segmentierung segmentierungen annotationen masque masques etiquettes".split()
)
_ENDINGS = "segmentations?|segmentierung|seg|masks?|maske|masken|masques?|gt|labels?|annotations?"
MASK_ENDING = re.compile(
    rf"[ _.-]({_ENDINGS}|manual\d?|1stho|2ndho)$|^(masks?|maske|masque|gt|seg|label|segmentation|segmentierung)[ _.-]", re.IGNORECASE
)
IMAGE_ENDING = re.compile(r"[ _.-](image|img|bild|photo|foto)$|^(image|img|bild|photo|foto)[ _.-]", re.IGNORECASE)
# A day or a month, with what parts it from the rest: it says when, not who.
DATE = re.compile(
    r"(?<![0-9])(?:(?:19|20)[0-9]{2}[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[1-9]|[12][0-9]|3[01])[-_.](?:0[1-9]|1[0-2])[-_.](?:19|20)[0-9]{2}"
    r"|(?:19|20)[0-9]{2}[-_.](?:0[1-9]|1[0-2]))(?![0-9])[ _.-]*"
)
# What a file is called before its eye, tile or slice; the first that fits all files of a centre. In words, for the user.
PATIENT_FORMS = {
    "the word for a patient and its number": re.compile(
        r"(?:^|[ _.-])((?:patientin|patient|pat|pt|p|pid|subject|subj|sub|id|fall|case)[ _.-]?[0-9]+)(?![0-9])", re.IGNORECASE
    ),
    "the first three fields of a TCGA barcode": re.compile(r"(TCGA-\w{2}-\w{4})"),
    "the name before L or R": re.compile(r"^(.*?\d)[ _.-]?(?:L|R|OD|OS|left|right)(?:[ _.-]+\d+)?$", re.IGNORECASE),
    "the name before the first '_'": re.compile(r"^([^_]*\d[^_]*)_.+$"),
    "the name before the first '-'": re.compile(r"^([^-]*\d[^-]*)-.+$"),
    "the name before the first blank": re.compile(r"^(\S*\d\S*) .+$"),
}
# A column of `samples.csv`, or of a colleague's list -> other words for it: English, German, French, Spanish, Italian, Dutch.
HEADER_WORDS = {
    "image": "bild bilddatei bildname datei dateiname pfad foto file filename filepath path fichier chemin imagen archivo immagine bestand"
    " afbeelding",
    "center": "centre klinik klinikum krankenhaus spital haus zentrum standort einrichtung hospital site clinic institution hopital hôpital"
    " clinique centro clinica ospedale ziekenhuis",
    "patient": "patientin patienten_id patient_id patientid patienten-nr pid pat pat-id pat_id id subject subject_id case case_id fall"
    " fall-nr fallnummer pat.-nr. pat_nr patientennummer patientnumber patient_no patient_nr no_patient paciente paziente patiënt",
    "label": "klasse class diagnose diagnosis befund histologie histology dignität ergebnis finding findings result outcome dx classe"
    " diagnostic diagnostique étiquette"
    " diagnóstico diagnosi klas",
    "mask": "maske masque segmentierung segmentation",
    "split": "aufteilung set teil",
    "external": "extern externe",
}
# A column with one of these words, or whose name ends on one, tells something else than who, where or what: an age is no patient's number.
OTHER_COLUMNS = frozenset(
    "alter age datum date jahr year geburtstag geburt birth dob geschlecht sex gender gewicht weight groesse grosse size height"
    " edad fecha eta data leeftijd naissance".split()
)
# A level of folders below a patient: one visit, examination, series or side.
_BELOW = (
    "visit|visite|besuch|termin|exam|examination|untersuchung|session|ses|scan|series|serie|sequence|sequenz|timepoint|time|followup|fu|week"
    "|woche|month|monat|day|tag|left|right|links|rechts|l|r|od|os|side|seite|v|t"
)
BELOW_PATIENT = re.compile(rf"(?:{_BELOW})(?:[ _.-]?[0-9]+)?", re.IGNORECASE)
# Findings that mean "no disease": such a class is named first.
NEGATIVE_WORDS = frozenset(
    "benign benigne gutartig negativ negative neg normal gesund healthy unauffallig unauffaellig kein keine nein no none ohne without 0"
    " benin benigno benigna benigni sain normale negatif negativo sano goedaardig gezond".split()
)
MOST_CLASSES = 20


def folder_word(name: str) -> str:
    """A folder's name as the words above are written: without accents and capitals, a blank or "-" as "_"."""
    letters = unicodedata.normalize("NFKD", same_name(name))
    return re.sub("[ -]", "_", "".join(letter for letter in letters if not unicodedata.combining(letter)))


def header_words(name: str) -> tuple[str, ...]:
    """A column's name as a whole, then its words: small letters and digits without accents. "Pat.-Nr." -> ("patnr", "pat", "nr")."""
    words = tuple(re.findall("[^\\W_]+", folder_word(name)))
    return "".join(words), *words


def tells_otherwise(name: str) -> bool:
    """Whether a column is called as something that is neither image, patient, centre nor label."""
    whole, *parts = header_words(name)
    long = tuple(word for word in OTHER_COLUMNS if len(word) > 4 or word == "jahr")
    return not OTHER_COLUMNS.isdisjoint(parts) or whole.endswith(long)


def undated(stem: str) -> str:
    """A file's name without dates."""
    return DATE.sub("", stem).strip(" _.-")


def stem_of(path: str) -> str:
    return re.sub(r"(\.nii\.gz|\.[^.]*)$", "", path.rsplit("/", 1)[-1], flags=re.IGNORECASE)


def lone_patients(listed: Sequence[tuple[str, str, str]], is_class: Callable[[str], bool]) -> list[str]:
    """One line for the centres where every image is another patient, with two files that may be one person's.

    Args:
        listed: (image's path, center, patient) of each row.
        is_class: whether a folder is called as a class: many people's images lie in it.
    """
    images: dict[str, list[str]] = {}
    people: dict[str, set[str]] = {}
    for path, center, patient in listed:
        images.setdefault(center, []).append(path)
        people.setdefault(center, set()).add(patient)
    lone = [center for center, paths in images.items() if 1 < len(paths) == len(people[center])]
    pair = next((pair for center in lone if (pair := _perhaps_one(images[center], is_class))), None)
    example = f" (perhaps {pair[0]} and {pair[1]})" if pair else ""
    text = "every image is another patient; if some are of one person, give them one name"
    return [f"at {', '.join(lone)} {text}{example}"] if lone else []


def _perhaps_one(paths: Sequence[str], is_class: Callable[[str], bool]) -> tuple[str, str] | None:
    """Two files whose names begin alike, or that lie in one of several folders."""
    beginnings: dict[str, list[str]] = {}
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder = PurePosixPath(path).parent
        matches = (form.search(undated(stem_of(path))) for form in PATIENT_FORMS.values())
        if beginning := next((match[1] for match in matches if match), ""):
            beginnings.setdefault(f"{folder}/{beginning}", []).append(path)
        if folder_word(folder.name) not in IMAGE_WORDS | SPLIT_WORDS.keys() and not is_class(folder.name):
            folders.setdefault(str(folder), []).append(path)
    for groups in (beginnings, folders):  # what all have in common tells nothing
        if several := next((own for own in groups.values() if 1 < len(own) < len(paths)), None):
            return several[0], several[1]
    return None
